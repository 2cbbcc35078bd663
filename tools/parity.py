"""Every headline model with three nets in every runtime: the table of docs/parity.md. ``python tools/parity.py``."""

import argparse
import sys
from pathlib import Path

import _cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Trains every headline model with three nets for minutes, exports it to every runtime, compares. '
        'Hours on a CPU; what is done already is not done again.',
        epilog='Exit code 1 if a file is outside the tolerance, 2 for a mistake in an argument.',
    )
    parser.add_argument('--models', nargs='+', default=[], metavar='NAME', help='headline configs (default: all)')
    parser.add_argument('--nets', nargs='+', default=[], metavar='NAME', help='conv_s, conv_m, hybrid_m (default: all)')
    parser.add_argument('--to', nargs='+', default=[], metavar='NAME', help='runtimes (default: all)')
    parser.add_argument('--folder', type=Path, default=Path('work_dirs/parity'), help='default: work_dirs/parity')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = vars(parse_args(argv))
    bad = []

    def call() -> None:
        from mnv4_mm.report.parity import parity

        bad.extend(parity(args.pop('models'), args.pop('nets'), args.pop('to'), **args))

    return _cli.run(call) or int(bool(bad))


if __name__ == '__main__':
    sys.exit(main())
