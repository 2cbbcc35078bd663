"""The command that labels many images."""

import argparse
import sys
from typing import Any

from mnv4_mm.cli.arguments import Parser


def add_label(parser: Parser) -> None:
    parser.epilog = (
        'Repeat the command to continue a run that was stopped. An image that cannot be read does not stop it: its row '
        'has an error. Exit code 1: parts have failed, or no image could be read.'
    )
    parser.add_argument('file', help='file written by `mnv4 export`')
    parser.add_argument(
        'images', help='folder, list (.txt, .csv, .parquet), tar file of WebDataset, Parquet file with images, or video'
    )
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the Parquet files')
    parser.add_argument('--workers', type=int, metavar='N', help='processes (default: one per core)')
    parser.add_argument(
        '--ray', metavar='ADDRESS', help='use a Ray cluster: auto (the running one), local (a new one), or HOST:PORT'
    )
    parser.add_argument(
        '--score-thr', type=float, help="detection: leave out boxes with lower scores (default: the file's limit)"
    )
    parser.add_argument('--part', type=int, default=256, metavar='N', help='images per Parquet file (default: 256)')
    parser.add_argument('--coco', metavar='FILE.json', help='also write the results as COCO JSON')
    parser.add_argument(
        '--fast-jpeg',
        action='store_true',
        help='decode JPEG files at a half, quarter or eighth of their size if they are resized to no more than that: '
        'faster, with slightly other results (`mnv4 compare --fast-jpeg`)',
    )
    parser.add_argument('--retry', action='store_true', help='label parts again that have images with errors')
    parser.set_defaults(call=label)


def label(args: argparse.Namespace) -> int:
    """Run ``mnv4 label``: check the arguments, label the images, and print how many were labelled.

    Returns:
        Exit code: 1 if a part of the job has failed or no image could be read, else 0.
    """
    options: dict[str, Any] = dict(
        out=args.out, workers=args.workers, ray=args.ray, score_thr=args.score_thr, part=args.part, coco=args.coco
    )
    from mnv4_mm.label.run import label

    done = label(args.file, args.images, retry=args.retry, fast_jpeg=args.fast_jpeg, **options)
    print(f'{done.rows} images, {done.errors} of them unreadable: {done.folder}')
    for line in done.failed:
        print(f'failed: {line}', file=sys.stderr)
    if done.failed:
        others = '' if args.coco is None else f'; {args.coco} was not written'
        print(f'{len(done.failed)} parts have failed{others}: repeat the command to try them again', file=sys.stderr)
    return int(bool(done.failed) or done.errors == done.rows)
