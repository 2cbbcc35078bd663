"""Measure what must be fast, as ratios. ``python tools/bench.py``, or ``make bench``."""

import argparse
import sys
from pathlib import Path

import _cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Speed as ratios, both sides measured in turn in one run.')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/bench.json'),
        help='default: work_dirs/bench.json; a plot goes beside it',
    )
    parser.add_argument(
        '--only',
        nargs='+',
        default=[],
        metavar='PART',
        help='augmentation, training, step, evaluation, startup, backbone, exported (default: all)',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    def call() -> None:
        from mnv4_mm.bench.run import bench

        bench(args.out, args.only, lambda line: print(line, flush=True))

    return _cli.run(call)


if __name__ == '__main__':
    sys.exit(main())
