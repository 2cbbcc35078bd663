"""Commands for exported files: export, spread, compare, parity, deploy (mmdeploy)."""

import argparse
from pathlib import Path

from mnv4_mm.cli.arguments import Parser
from mnv4_mm.config.index import find_config
from mnv4_mm.config.options import KeyValueAction
from mnv4_mm.config.rules import check_device
from mnv4_mm.config.source import check_config_file, read_checkpoint_source, read_source
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_output_folder


def add_export(parser: Parser) -> None:
    parser.epilog = (
        'A JSON file beside each exported file describes its input and outputs. Exit code 2 if a file differs from '
        'PyTorch by more than its precision explains: it is not written then.'
    )
    parser.add_argument('checkpoint', help='.pth file written by `mnv4 train`; carries its config')
    parser.add_argument(
        '--to',
        nargs='+',
        metavar='RUNTIME',
        help='onnx, openvino, ncnn, coreml, litert, executorch, web (default: onnx)',
    )
    parser.add_argument('--config', help='config to use instead of the one in the checkpoint')
    parser.add_argument('--out-dir', help='where to write (default: exported/ beside the checkpoint)')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the input in pixels, multiples of 32 (default: as in testing)',
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='any height and width that are multiples of 32; with --raw or --logits any number of images, too',
    )
    parser.add_argument(
        '--precision',
        choices=('fp32', 'fp16', 'bf16', 'int8'),
        help='of the weights; bf16, for OpenVINO, of the arithmetic (default: fp32)',
    )
    parser.add_argument(
        '--best-for',
        choices=('cpu',),
        help='export to all installed runtimes in fp32, int8 and bf16, measure AP or mIoU and latency, and name the '
        'fastest file that is as accurate as PyTorch; takes minutes',
    )
    parser.add_argument(
        '--calibration',
        metavar='DIR',
        help='folder of images, for int8 and for the comparison with PyTorch (default: the training images)',
    )
    parser.add_argument(
        '--plain-int8',
        action='store_true',
        help='int8 without the steps that raise its accuracy, to compare with them (docs/int8.md)',
    )
    parser.add_argument('--unchecked', action='store_true', help='also write files that differ from PyTorch')
    kinds = parser.add_mutually_exclusive_group()
    for kind, text in (
        ('nms', 'detection: the best boxes, after non-maximum suppression'),
        ('raw', 'detection: all boxes and their scores'),
        ('class-map', 'segmentation: the class of each pixel'),
        ('logits', "segmentation: the head's logits"),
    ):
        kinds.add_argument(
            f'--{kind}', dest='kind', action='store_const', const=kind.replace('-', '_'), help=f'output: {text}'
        )
    parser.add_argument(
        '--normalised', dest='normalise', action='store_true', help='the input is normalised values instead of pixels'
    )
    parser.set_defaults(call=export)


def export(args: argparse.Namespace) -> None:
    """Run ``mnv4 export``: check the arguments, and export the checkpoint."""
    from mnv4_mm.config.check import TASK_OF_SCOPE
    from mnv4_mm.deploy.arguments import check_export, choose_kind

    if args.config:
        check_config_file(args.config)
    if args.best_for:
        chosen = ('to', 'precision', 'dynamic', 'kind', 'normalise', 'plain_int8', 'unchecked')
        if given := [name for name in chosen if getattr(args, name)]:
            flags = dict(kind='--nms, --raw, --class-map and --logits', normalise='--normalised')
            flag = flags.get(given[0], f'--{given[0].replace("_", "-")}')
            raise UserError(f'--best-for chooses for itself: leave out {flag}')
    to, precision = args.to or ['onnx'], args.precision or 'fp32'
    checked = dict(
        out_dir=args.out_dir,
        size=args.size,
        dynamic=args.dynamic,
        precision=precision,
        kind=args.kind,
        calibration=args.calibration,
        plain_int8=args.plain_int8,
    )
    targets = check_export(args.checkpoint, to, **checked)
    if args.kind:
        source = read_source(find_config(args.config)) if args.config else read_checkpoint_source(Path(args.checkpoint))
        task = TASK_OF_SCOPE.get((source or {}).get('default_scope', ''))
        if task:
            for target in targets:
                choose_kind(target, task, args.kind)
    if args.best_for:
        from mnv4_mm.deploy.best import export_best

        export_best(
            args.checkpoint,
            config=args.config,
            out_dir=args.out_dir,
            size=args.size,
            calibration=args.calibration,
        )
        return

    from mnv4_mm.deploy.export import export

    export(args.checkpoint, to, config=args.config, normalise=args.normalise, unchecked=args.unchecked, **checked)


def add_spread(parser: Parser) -> None:
    parser.epilog = 'The float outputs stay the same. Quantise the result to see how int8 copes (docs/int8.md).'
    parser.add_argument('checkpoint', help='.pth file written by `mnv4 train`; carries its config')
    parser.add_argument('out', help='.pth file to write')
    parser.add_argument(
        '--octaves', type=float, default=2.0, help='standard deviation of the factors, in powers of two (default: 2)'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the factors (default: 0)')
    parser.set_defaults(call=spread)


def spread(args: argparse.Namespace) -> None:
    """Run ``mnv4 spread``: check the arguments, and write a checkpoint that is harder to quantise."""
    from mnv4_mm.deploy.arguments import check_spread

    check_spread(args.checkpoint, args.out, octaves=args.octaves, seed=args.seed)

    from mnv4_mm.deploy.channels import spread_channels

    spread_channels(args.checkpoint, args.out, octaves=args.octaves, seed=args.seed)


def add_compare(parser: Parser) -> None:
    parser.epilog = 'Exit code 1 if a file is outside the tolerance, 2 for a mistake in an argument or a file.'
    parser.add_argument('checkpoint', help='.pth file that the files were exported from')
    parser.add_argument('files', nargs='*', help='exported files (default: all in exported/ beside the checkpoint)')
    parser.add_argument('--config', help='config to use instead of the one in the checkpoint')
    parser.add_argument('--data', metavar='DIR', help='your data set: boxes in any common format, or images and masks')
    parser.add_argument(
        '--allow-dropped', action='store_true', help='leave out what is broken in --data, even if it is more than 1 %%'
    )
    parser.add_argument(
        '--on', choices=('val', 'train'), default='val', help='compare on the test set or on the training images'
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=1e-3,
        help='largest difference of AP or mIoU, in [0, 1], and largest relative one of fp32 outputs (default: 0.001)',
    )
    parser.add_argument(
        '--int8-tolerance',
        type=float,
        default=1e-2,
        help='largest difference of AP or mIoU of int8, bf16 and --fast-jpeg (default: 0.01)',
    )
    parser.add_argument('--rounds', type=int, default=20, help='timed runs of each file; 0: none (default: 20)')
    parser.add_argument(
        '--measured',
        nargs='+',
        default=[],
        metavar='FILE.jsonl',
        help='measurements that the page of `mnv4 export --to web` has shown: a row each',
    )
    parser.add_argument(
        '--npu',
        nargs='+',
        default=[],
        metavar='NAME',
        help='also compile int8 files for NPUs: LiteRT files for ethos-u55-128, ethos-u85-256, ...; ONNX files for '
        'hexagon-v73, -v75, -v79 (needs `make npu`)',
    )
    parser.add_argument(
        '--fast-jpeg',
        action='store_true',
        help='also measure AP or mIoU of each file with images as `mnv4 label --fast-jpeg` reads them',
    )
    parser.add_argument('--out', metavar='FILE.json', help='also write the table to a file')
    parser.set_defaults(call=compare)


def compare(args: argparse.Namespace) -> int:
    """Run ``mnv4 compare``: check the arguments, and compare exported files with PyTorch.

    Returns:
        Exit code: 1 if a file does not pass, else 0.
    """
    from mnv4_mm.config.check import check_checkpoint_data
    from mnv4_mm.deploy.arguments import check_compare
    from mnv4_mm.deploy.measured import measured_files, read_measurements

    source = read_source(find_config(args.config)) if args.config else None
    if args.data and not Path(args.data).is_dir():
        raise UserError(f'no folder {args.data}: name the folder of a data set')
    measurements = read_measurements(args.measured)
    checkpoint, artifacts = check_compare(
        args.checkpoint,
        args.files,
        on=args.on,
        tolerance=args.tolerance,
        int8_tolerance=args.int8_tolerance,
        rounds=args.rounds,
        npu=args.npu,
        out=args.out,
    )
    measured_files(measurements, artifacts)
    if not args.config:
        source = read_checkpoint_source(Path(checkpoint))
    check_checkpoint_data(source or {}, args.data)

    from mnv4_mm.deploy.compare import Tolerances, compare_checked

    rows = compare_checked(
        checkpoint,
        artifacts,
        measurements=measurements,
        config=args.config,
        data=args.data,
        allow_dropped=args.allow_dropped,
        on=args.on,
        tolerances=Tolerances(args.tolerance, args.int8_tolerance),
        rounds=args.rounds,
        npu=args.npu,
        fast_jpeg=args.fast_jpeg,
        out=args.out,
    )
    return 0 if all(row.passes for row in rows) else 1


def add_parity(parser: Parser) -> None:
    parser.description = (
        'Train every headline model with three nets for minutes, export it to every runtime, compare: the table of '
        'docs/parity.md. Hours on a CPU; finished parts are not repeated.'
    )
    parser.epilog = 'Exit code 1 if a file is outside the tolerance, 2 for a mistake in an argument.'
    parser.add_argument('--models', nargs='+', default=[], metavar='NAME', help='headline configs (default: all)')
    parser.add_argument('--nets', nargs='+', default=[], metavar='NAME', help='conv_s, conv_m, hybrid_m (default: all)')
    parser.add_argument('--to', nargs='+', default=[], metavar='NAME', help='runtimes (default: all but web)')
    parser.add_argument('--folder', type=Path, default=Path('work_dirs/parity'), help='default: work_dirs/parity')
    parser.set_defaults(call=parity)


def parity(args: argparse.Namespace) -> int:
    """Run ``mnv4 parity``: check the arguments, and make the parity table.

    Returns:
        Exit code: 1 if a file does not pass, else 0.
    """
    from mnv4_mm.report.recipes import check_parity

    check_output_folder('--folder', args.folder)  # first: the other check is also about what is installed
    check_parity(args.models, args.nets, args.to)

    from mnv4_mm.report.parity import parity

    return 1 if parity(args.models, args.nets, args.to, folder=args.folder) else 0


def add_deploy(parser: Parser) -> None:
    parser.description = "Export ONNX for mmdeploy's pipelines and SDK, with the arguments of mmdeploy's own script."
    parser.add_argument('deploy_cfg', help='deploy config, one of configs/deploy')
    parser.add_argument('model_cfg', help='path or name of the config the checkpoint was trained with')
    parser.add_argument('checkpoint', help='.pth file written by `mnv4 train`')
    parser.add_argument('img', help='image with which the model is traced')
    parser.add_argument('--test-img', nargs='+', metavar='IMAGE', help='images to draw (default: the same)')
    parser.add_argument('--work-dir', default='.', help='where to write (default: here)')
    parser.add_argument('--device', default='cpu', help='torch device (default: cpu)')
    parser.add_argument(
        '--log-level',
        default='INFO',
        choices=('CRITICAL', 'ERROR', 'WARNING', 'INFO', 'DEBUG'),
        help='(default: INFO)',
    )
    parser.add_argument('--show', action='store_true', help='also show the images in windows')
    parser.add_argument('--dump-info', action='store_true', help='also write what the SDK needs')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=KeyValueAction,
        metavar='KEY=VALUE',
        help='of the deploy config, e.g. "onnx_config.input_shape=[512, 512]"',
    )
    others = parser.add_argument_group("of mmdeploy's script for other backends, refused here")
    others.add_argument('--calib-dataset-cfg', help=argparse.SUPPRESS)
    others.add_argument('--quant', action='store_true', help=argparse.SUPPRESS)
    others.add_argument('--quant-image-dir', help=argparse.SUPPRESS)
    others.add_argument('--uri', help=argparse.SUPPRESS)
    parser.set_defaults(call=deploy)


def deploy(args: argparse.Namespace) -> None:
    """Run ``mnv4 deploy``: check the arguments, export with mmdeploy, and print the path of the exported file."""
    from mnv4_mm.deploy.arguments import check_mmdeploy

    check_config_file(args.model_cfg)
    check_device(args.device)
    unsupported = {name: getattr(args, name) for name in ('calib_dataset_cfg', 'quant', 'quant_image_dir', 'uri')}
    images = [args.img, *(args.test_img or [])]
    check_mmdeploy(args.deploy_cfg, args.checkpoint, images, args.work_dir, args.show, unsupported)
    check_config_file(args.deploy_cfg)
    options = {name: value for name, value in vars(args).items() if name not in ('call', 'parser')}
    paths = [options.pop(name) for name in ('deploy_cfg', 'model_cfg', 'checkpoint', 'img')]

    from mnv4_mm.deploy.mmdeploy_script import deploy

    print(deploy(*paths, **options))
