"""Print parameters and multiply-accumulates of the nets and of the shipped configs. ``python tools/complexity.py``."""

import argparse
import sys

import _cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Parameters and multiply-accumulates, as Markdown tables.')
    parser.add_argument('configs', nargs='*', help='config names (default: all shipped ones)')
    parser.add_argument('--backbone', metavar='NAME', help='count the detectors with this backbone, e.g. mnv4_hybrid_m')
    parser.add_argument(
        '--nets', action='store_true', help='all nets instead: trunk and classifier, beside paper and timm'
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    def call() -> None:
        from mnv4_mm.report.complexity import nets_table, table

        print(nets_table() if args.nets else table(args.configs, args.backbone))

    return _cli.run(call)


if __name__ == '__main__':
    sys.exit(main())
