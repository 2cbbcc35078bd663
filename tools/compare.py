"""Judge exported files beside PyTorch. ``python tools/compare.py CHECKPOINT [FILES ...]``."""

import argparse
import sys

import _cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Accuracy, differences of outputs, latency and memory of exported files beside PyTorch.',
        epilog='Exit code 1 if a file is outside the tolerance, 2 for a mistake in an argument or a file.',
    )
    parser.add_argument('checkpoint', help='.pth file they were exported from')
    parser.add_argument('files', nargs='*', help='exported files (default: all in exported/ beside the checkpoint)')
    parser.add_argument('--config', help='config to use instead of the one in the checkpoint')
    parser.add_argument('--data', metavar='DIR', help='your data set: COCO layout, or pictures and masks')
    parser.add_argument(
        '--on', choices=('val', 'train'), default='val', help='compare on the test set or on the training pictures'
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=1e-3,
        help='most that AP or mIoU, in [0, 1], may differ, and fp32 outputs, relatively (default: 0.001)',
    )
    parser.add_argument(
        '--int8-tolerance', type=float, default=1e-2, help='most that AP or mIoU of int8 may differ (default: 0.01)'
    )
    parser.add_argument('--rounds', type=int, default=20, help='how often each is timed; 0: not at all (default: 20)')
    parser.add_argument('--out', metavar='FILE.json', help='write the table to a file as well')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = vars(parse_args(argv))
    failed = []

    def call() -> None:
        from mnv4_mm.deploy.compare import compare

        rows = compare(args.pop('checkpoint'), args.pop('files'), **args)
        failed.extend(row for row in rows if not row.passes)

    code = _cli.run(call)
    return code or int(bool(failed))


if __name__ == '__main__':
    sys.exit(main())
