"""Fetch a public data set to where the configs look. ``python tools/download_dataset.py coco2017``."""

import argparse
import sys

import _cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Download, check and unpack; continues where it was stopped.')
    parser.add_argument(
        'name', choices=('coco2017', 'ade20k'), help='coco2017: 20 GB, to data/coco; ade20k: 1 GB, to data/ade'
    )
    parser.add_argument('--root', metavar='DIR', help='where to instead')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    def call() -> None:
        from mnv4_mm.data.download import download_dataset

        print(download_dataset(args.name, args.root))

    return _cli.run(call)


if __name__ == '__main__':
    sys.exit(main())
