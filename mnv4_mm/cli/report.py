"""Commands for the report on a training run, and for tables of weights, complexity and speed."""

import argparse
from pathlib import Path

from mnv4_mm.bench.parts import PARTS, check_bench
from mnv4_mm.cli.arguments import Parser
from mnv4_mm.config.rules import check_backbone_name
from mnv4_mm.config.source import check_config_file, read_checkpoint_source
from mnv4_mm.paths import check_output_folder
from mnv4_mm.weights.tags import tags_of
from mnv4_mm.weights.work_dir import find_checkpoint


def add_report(parser: Parser) -> None:
    parser.description = (
        'Evaluate a trained checkpoint and write a page, a model card and all numbers: what `mnv4 train` writes at its '
        'end, anew, e.g. after exporting.'
    )
    parser.add_argument('path', metavar='WORK_DIR|CHECKPOINT', help='folder of a run, or .pth file')
    parser.add_argument('--data', metavar='DIR', help='the data set it was trained with (default: from its config)')
    parser.add_argument('--out', metavar='DIR', help='where to write (default: report/ beside the checkpoint)')
    parser.set_defaults(call=report)


def report(args: argparse.Namespace) -> None:
    """Run ``mnv4 report``: check the arguments, evaluate the checkpoint, and write the report."""
    checkpoint = find_checkpoint(args.path, log=lambda line: None)  # printed when the report reads it
    if args.out:
        check_output_folder('--out', args.out)

    from mnv4_mm.config.check import check_checkpoint_data

    check_checkpoint_data(read_checkpoint_source(checkpoint) or {}, args.data)

    from mnv4_mm.report.training import write_report

    write_report(args.path, data=args.data, out=args.out)


def add_weights(parser: Parser) -> None:
    parser.epilog = 'For init_cfg=dict(type="Pretrained", checkpoint="timm://<tag>").'
    parser.add_argument('--arch', help='only those of one net, e.g. conv_m')
    parser.set_defaults(call=weights)


def weights(args: argparse.Namespace) -> None:
    """Run ``mnv4 weights``: print the table of published weights."""
    tags_of(args.arch)

    from mnv4_mm.report.weights import weights_table

    print(weights_table(args.arch))


def add_complexity(parser: Parser) -> None:
    parser.add_argument('configs', nargs='*', help='config names (default: all shipped ones)')
    parser.add_argument('--backbone', metavar='NAME', help='count models with this backbone, e.g. mnv4_hybrid_m')
    parser.add_argument(
        '--nets',
        action='store_true',
        help='all nets instead: backbone and classifier, next to the numbers of the paper and of timm',
    )
    parser.set_defaults(call=complexity)


def complexity(args: argparse.Namespace) -> None:
    """Run ``mnv4 complexity``: print tables of parameters and multiply-accumulates (MACs)."""
    for name in args.configs:
        check_config_file(name)
    if args.backbone:
        check_backbone_name(args.backbone)

    from mnv4_mm.report.complexity import nets_table, table

    print(nets_table() if args.nets else table(args.configs, args.backbone))


def add_bench(parser: Parser) -> None:
    parser.epilog = 'Both sides are measured in turn in one run; each result is printed when it is known.'
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/bench.json'),
        help='default: work_dirs/bench.json; a plot goes beside it',
    )
    parser.add_argument(
        '--only', nargs='+', default=[], metavar='PART', help=f'{", ".join(PARTS)} (default: all but gpu)'
    )
    parser.set_defaults(call=bench)


def bench(args: argparse.Namespace) -> None:
    """Run ``mnv4 bench``: check the arguments and that the required packages are installed, and run the benchmark."""
    check_bench(args.out, args.only)

    from mnv4_mm.bench.run import bench

    bench(args.out, args.only, lambda line: print(line, flush=True))
