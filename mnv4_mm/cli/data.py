"""Commands that make data sets: download, draw."""

import argparse
from pathlib import Path

from mnv4_mm.cli.arguments import Parser
from mnv4_mm.config.index import CHECKOUT
from mnv4_mm.errors import UserError

BACKGROUNDS = CHECKOUT / 'data/mini/coco/train2017' if CHECKOUT else None


def add_download(parser: Parser) -> None:
    parser.epilog = 'An interrupted download continues where it stopped.'
    parser.add_argument(
        'name', choices=('coco2017', 'ade20k'), help='coco2017: 20 GB, to data/coco; ade20k: 1 GB, to data/ade'
    )
    parser.add_argument('--root', metavar='DIR', help='folder to unpack to')
    parser.set_defaults(call=download)


def download(args: argparse.Namespace) -> None:
    """Download a public data set and print its folder."""
    from mnv4_mm.data.download import download_dataset

    print(download_dataset(args.name, args.root))


def add_draw(parser: Parser) -> None:
    parser.add_argument('out', help='folder to make')
    parser.add_argument('--train', type=int, default=256, help='training images (default: 256)')
    parser.add_argument('--val', type=int, default=64, help='validation images (default: 64)')
    parser.add_argument('--size', type=int, default=320, help='width and height in pixels (default: 320)')
    parser.add_argument('--seed', type=int, default=0, help='the same seed draws the same images (default: 0)')
    parser.add_argument(
        '--backgrounds',
        type=Path,
        default=BACKGROUNDS,
        help='folder of .jpg images to draw on (default: data/mini of the repository)',
    )
    parser.set_defaults(call=draw)


def draw(args: argparse.Namespace) -> None:
    """Draw a data set and print its folder."""
    if args.backgrounds is None:
        raise UserError('name a folder of .jpg images by --backgrounds: the default is in a clone of the repository')

    from mnv4_mm.data.drawn import draw_dataset

    print(draw_dataset(args.out, args.backgrounds, args.train, args.val, args.size, args.seed))
