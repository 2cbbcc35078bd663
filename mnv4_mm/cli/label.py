"""The command that labels many images."""

import argparse
import sys

from mnv4_mm.cli.arguments import Parser
from mnv4_mm.label.run import PART, check_label


def add_label(parser: Parser) -> None:
    parser.epilog = (
        'The same command continues where an earlier one was stopped. Exit code 1 if a part of the images could not be '
        'labelled; an image that cannot be read only has an error in its row.'
    )
    parser.add_argument('file', help='file written by `mnv4 export`')
    parser.add_argument(
        'images', help='folder, list (.txt, .csv, .parquet), tar file of WebDataset, Parquet file with images, or video'
    )
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the Parquet files')
    parser.add_argument('--workers', type=int, metavar='N', help='processes (default: one per core)')
    parser.add_argument(
        '--ray', metavar='ADDRESS', help='use a Ray cluster: auto (the running one), local (a new one), or its address'
    )
    parser.add_argument(
        '--score-thr', type=float, help="detection: leave out boxes with lower scores (default: the file's limit)"
    )
    parser.add_argument(
        '--part', type=int, default=PART, metavar='N', help=f'images per Parquet file (default: {PART})'
    )
    parser.add_argument('--coco', metavar='FILE.json', help='also write the results as COCO JSON')
    parser.set_defaults(call=label)


def label(args: argparse.Namespace) -> int:
    """Check the arguments of ``label``, label the images, and return 1 if a part of them could not be labelled."""
    options = dict(
        out=args.out, workers=args.workers, ray=args.ray, score_thr=args.score_thr, part=args.part, coco=args.coco
    )
    check_label(args.file, args.images, **options)

    from mnv4_mm.label.run import label

    done = label(args.file, args.images, **options)
    print(f'{done.rows} images, {done.errors} of them unreadable: {done.folder}')
    for name in done.failed:
        print(f'{name} could not be labelled: its process died every time', file=sys.stderr)
    return int(bool(done.failed))
