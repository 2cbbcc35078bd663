"""Draw a data set of coloured shapes on real pictures. ``python tools/draw_dataset.py data/shapes``."""

import argparse
import sys
from pathlib import Path

import _cli

BACKGROUNDS = Path(__file__).resolve().parents[1] / 'data/mini/coco/train2017'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw a data set whose held-out AP and mIoU mean something.')
    parser.add_argument('out', help='folder to make')
    parser.add_argument('--train', type=int, default=256, help='training pictures (default: 256)')
    parser.add_argument('--val', type=int, default=64, help='validation pictures (default: 64)')
    parser.add_argument('--size', type=int, default=320, help='width and height in pixels (default: 320)')
    parser.add_argument('--seed', type=int, default=0, help='the same seed draws the same pictures (default: 0)')
    parser.add_argument('--backgrounds', type=Path, default=BACKGROUNDS, help='folder of .jpg pictures to draw on')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = vars(parse_args(argv))

    def call() -> None:
        from mnv4_mm.data.drawn import draw_dataset

        print(draw_dataset(args.pop('out'), **args))

    return _cli.run(call)


if __name__ == '__main__':
    sys.exit(main())
