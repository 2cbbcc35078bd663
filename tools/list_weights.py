"""List timm's published MobileNetV4 weights. ``python tools/list_weights.py``."""

import argparse
import sys

import _cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Tags for init_cfg=dict(type="Pretrained", checkpoint="timm://<tag>").'
    )
    parser.add_argument('--arch', help='only those of a net, e.g. conv_m')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    def call() -> None:
        from mnv4_mm.report.weights import weights_table

        print(weights_table(args.arch))

    return _cli.run(call)


if __name__ == '__main__':
    sys.exit(main())
