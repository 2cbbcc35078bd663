"""Commands for data sets: check, download, draw."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mnv4_mm.cli.arguments import Parser
from mnv4_mm.config.index import CHECKOUT
from mnv4_mm.config.source import check_config_file
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_output_file, check_output_folder

if TYPE_CHECKING:
    from mnv4_mm.data.checked import CheckedData

BACKGROUNDS = CHECKOUT / 'data/mini/coco/train2017' if CHECKOUT else None


def add_download(parser: Parser) -> None:
    parser.epilog = 'An interrupted download continues where it stopped.'
    parser.add_argument(
        'name', choices=('coco2017', 'ade20k'), help='coco2017: 20 GB, to data/coco; ade20k: 1 GB, to data/ade'
    )
    parser.add_argument('--root', metavar='DIR', help='folder to unpack to')
    parser.set_defaults(call=download)


def download(args: argparse.Namespace) -> None:
    """Run ``mnv4 download``: download a public data set and print the path of its folder."""
    from mnv4_mm.data.download import download_dataset

    print(download_dataset(args.name, args.root))


def add_check(parser: Parser) -> None:
    parser.epilog = (
        'Exit code 0: the data set can be trained on or, with --fix, the cleaned copy was written; 2: neither. The '
        'data set is never changed.'
    )
    parser.add_argument('path', type=Path, help='folder of the data set')
    parser.add_argument(
        '--task', choices=('detection', 'segmentation'), help='what it is for (default: by what is in the folder)'
    )
    parser.add_argument('--config', metavar='NAME', help='also state what this config would train on')
    parser.add_argument(
        '--allow-dropped', action='store_true', help='leave out what is broken, even if it is more than 1 %%'
    )
    parser.add_argument(
        '--fix', type=Path, metavar='OUT', help='write a cleaned copy to this new folder: COCO JSON, or masks'
    )
    parser.add_argument('--report', type=Path, metavar='FILE.html', help='write findings and statistics as a web page')
    parser.set_defaults(call=check)


def check(args: argparse.Namespace) -> None:
    """Run ``mnv4 check``: check a data set, and print what it contains and what is wrong with it.

    Raises:
        UserError: An argument is invalid, or the data set can neither be trained on nor, with ``--fix``, be cleaned.
    """
    if args.config:
        check_config_file(args.config)
    if args.fix:
        from mnv4_mm.data.prepare import check_fixed_folder

        check_output_folder('--fix', check_fixed_folder(args.path, args.fix))
    if args.report:
        if args.report.resolve().is_relative_to(args.path.resolve()):
            raise UserError(f'--report {args.report} is inside of {args.path}, which is never changed')
        if args.report.suffix.lower() not in ('.html', '.htm'):
            raise UserError(f'--report {args.report}: a web page is written; name a .html file')
        check_output_file('--report', args.report)

    from mnv4_mm.apis.check import check

    checked = check(args.path, task=args.task, config=args.config)
    _print_checked(checked)
    if args.report:
        from mnv4_mm.files import write_whole
        from mnv4_mm.report.data_sheet import data_sheet

        write_whole(args.report, data_sheet(checked, args.allow_dropped))
        print(f'report: {args.report}')
    if args.fix:
        check(args.path, task=checked.task, fix=args.fix)
        print(f'cleaned copy: {args.fix}')
    else:
        checked.require_usable(args.allow_dropped)


def _print_checked(checked: 'CheckedData') -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for line in checked.summary():
        console.print(line)
    table = Table('class', *checked.splits, title=f'{checked.objects} of each class', title_justify='left')
    for name in checked.classes:
        table.add_row(Text(name), *(str(split.histogram[name]) for split in checked.splits.values()))
    console.print(table)


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
    """Run ``mnv4 draw``: draw a synthetic data set and print the path of its folder."""
    if args.backgrounds is None:
        raise UserError('name a folder of .jpg images by --backgrounds: the default is in a clone of the repository')
    check_output_folder('OUT', args.out)

    from mnv4_mm.data.drawn import draw_dataset

    print(draw_dataset(args.out, args.backgrounds, args.train, args.val, args.size, args.seed))
