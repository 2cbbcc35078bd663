"""Commands that run a PyTorch model: train, test, infer.

Some imports are inside functions, so that ``mnv4 --help`` works without the optional packages Pillow and rich.
"""

import argparse
import shlex
from pathlib import Path

from mnv4_mm.cli.arguments import Parser
from mnv4_mm.config.index import config_index
from mnv4_mm.config.options import EvaluateOptions, TrainOptions
from mnv4_mm.config.rules import check_device, check_precision, may_have_gpu
from mnv4_mm.config.source import check_config_file
from mnv4_mm.errors import UserError
from mnv4_mm.paths import (
    check_checkpoint,
    check_class_map_folder,
    check_detections_file,
    check_output_folder,
    check_weights_file,
)
from mnv4_mm.weights.work_dir import first_readable, list_checkpoints


def add_train(parser: Parser) -> None:
    parser.add_argument('config', help='path, or name of a shipped config such as mnv4_ssdlite_coco')
    TrainOptions.add_arguments(parser)
    parser.add_argument('--no-report', dest='report', action='store_false', help='write no report when training ends')
    parser.set_defaults(call=train)


def train(args: argparse.Namespace) -> None:
    """Run ``mnv4 train``: check the arguments, and train.

    Then the report is written, if the config asks for one and ``--no-report`` is not given. After quantisation-aware
    training (``--qat``), the model is exported, too.
    """
    from mnv4_mm.config.check import check_config, check_config_data

    options = TrainOptions.from_namespace(args)
    source = check_config(args.config, options)
    if options.work_dir:
        check_output_folder('--work-dir', options.work_dir)
    set_by_hand = options.cfg_options or {}
    start = options.resume if not isinstance(options.resume, bool) else set_by_hand.get('load_from')
    if start:
        check_checkpoint(start)
    elif options.resume:
        folder = set_by_hand.get('work_dir') or options.work_dir or options.default_work_dir(args.config)
        # What is skipped is printed when the run reads it.
        first_readable(list_checkpoints(str(folder)), check_checkpoint, '', log=lambda line: None)
    if options.weights not in (None, 'timm', 'none'):
        check_weights_file(options.weights)
    if options.teacher:
        check_checkpoint(options.teacher)
    if options.teacher_config:
        check_config_file(options.teacher_config)
    if options.qat:
        from mnv4_mm.deploy.arguments import check_qat

        check_qat(options.qat)
    check_config_data(source, options, ('train_dataloader', 'val_dataloader'))
    if options.amp_dtype == 'fp16':
        on_gpu = may_have_gpu()
        if on_gpu:
            import torch  # takes seconds, but less than OpenMMLab

            on_gpu = torch.cuda.is_available()
        check_precision(options.amp_dtype, on_gpu)

    from mnv4_mm.deploy.qat import train

    folder = train(args.config, **options.as_arguments())
    if args.report:
        from mnv4_mm.report.training import report_after_training

        report_after_training(folder, launcher=options.launcher, command=_train_command(args.config, options))
    if options.qat:
        from mnv4_mm.deploy.qat import export_after_training

        export_after_training(folder)


def _train_command(config: str, options: TrainOptions) -> str:
    """Return the command that trains with these options, for the report."""
    return shlex.join(['mnv4', 'train', config, *options.as_command_line()])


def add_test(parser: Parser) -> None:
    parser.usage = '%(prog)s [CONFIG] CHECKPOINT [options]'
    parser.add_argument('config', nargs='?', help='path or name of a config (default: the one in the checkpoint)')
    parser.add_argument('checkpoint', nargs='?', help='.pth file written by `mnv4 train`')
    EvaluateOptions.add_arguments(parser)
    parser.set_defaults(call=test)


def test(args: argparse.Namespace) -> None:
    """Run ``mnv4 test``: check the arguments, and evaluate the checkpoint."""
    from mnv4_mm.config.check import check_checkpoint_data, check_config, check_config_data

    if args.config is None:
        args.parser.error('the following arguments are required: checkpoint')
    options = EvaluateOptions.from_namespace(args)
    config, checkpoint = (args.config, args.checkpoint) if args.checkpoint else (None, args.config)
    if not config and (checkpoint.endswith('.py') or (checkpoint in config_index() and not Path(checkpoint).exists())):
        raise UserError(f'{checkpoint} is a config, and CHECKPOINT is missing: mnv4 test {checkpoint} CHECKPOINT')
    source = check_config(config, options, checkpoint)
    if options.out and source.get('default_scope') == 'mmdet':
        check_detections_file(options.out)
    elif options.out and source.get('default_scope') == 'mmseg':
        check_class_map_folder(options.out)
    for flag, folder in (('--work-dir', options.work_dir), ('--show-dir', options.show_dir)):
        if folder:
            check_output_folder(flag, folder)
    check_checkpoint(checkpoint)
    if config:
        check_config_data(source, options, ('train_dataloader' if options.on == 'train' else 'test_dataloader',))
    else:
        check_checkpoint_data(source, options.data)

    from mnv4_mm.apis.evaluate import evaluate_files

    evaluate_files(config, checkpoint, **options.as_arguments())


def add_infer(parser: Parser) -> None:
    parser.add_argument('source', help='image, folder of images, or video')
    parser.add_argument('checkpoint', help='.pth file written by `mnv4 train`, or file written by `mnv4 export`')
    parser.add_argument('--config', help='config to use instead of the one in the checkpoint')
    parser.add_argument('--out-dir', default='outputs', help='where to write (default: outputs)')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='draw boxes with at least this score (default: 0.3)'
    )
    parser.add_argument(
        '--inference',
        choices=('whole', 'slide'),
        help="segmentation: whole images, or overlapping windows of a training crop's size (default: the config's)",
    )
    parser.add_argument('--device', help='torch device (default: the GPU if there is one)')
    parser.add_argument(
        '--annotations',
        metavar='FILE.json',
        help='COCO annotation file of these images: predictions get its ids of images and categories',
    )
    parser.add_argument(
        '--coco', action='store_true', help="also write coco_results.json, a list in COCO's results format"
    )
    parser.add_argument(
        '--labels',
        choices=('coco', 'yolo', 'label-studio'),
        help='also write the boxes from --score-thr on for a labelling tool: coco or yolo for CVAT, label-studio',
    )
    parser.epilog = 'Exit code 1 if images that cannot be read were left out, 2 for a mistake in an argument or a file.'
    parser.set_defaults(call=infer)


def infer(args: argparse.Namespace) -> int:
    """Run ``mnv4 infer``: check the arguments, run the model on the images, and print the path of the predictions.

    With ``--labels``, the path of the file for a labelling tool is printed, too.

    Returns:
        Exit code: 1 if images that cannot be read were left out, else 0.
    """
    from mnv4_mm.apis.infer import infer_files
    from mnv4_mm.runtime.labels import write_labels

    if args.config:
        check_config_file(args.config)
    if args.device:
        check_device(args.device)
    # It imports torch only for a checkpoint, and only after its own checks.
    inferred = infer_files(
        args.source,
        args.checkpoint,
        config=args.config,
        out_dir=args.out_dir,
        score_thr=args.score_thr,
        device=args.device,
        inference=args.inference,
        annotations=args.annotations,
        coco=args.coco,
        labels=args.labels,
    )
    print(inferred.path)
    if inferred.are_numbered:
        print('images are numbered from 1; --annotations FILE gives them the ids of a data set')
    if args.labels:
        source = Path(args.source).resolve()
        folder = source.name if source.is_dir() else source.parent.name
        model = Path(args.checkpoint).name
        print(write_labels(inferred.path, args.labels, score_thr=args.score_thr, folder=folder, model=model))
    return 1 if inferred.unreadable else 0
