"""Measure what must be fast, as ratios. ``python tools/bench.py``, or ``make bench``."""

import argparse
import sys
from pathlib import Path

import _cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Speed as ratios, both sides measured in turn in one run.')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/bench.json'), help='default: work_dirs/bench.json')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    def call() -> None:
        from mnv4_mm.report.bench import bench

        print(bench(args.out))

    return _cli.run(call)


if __name__ == '__main__':
    sys.exit(main())
