"""Commands that measure nets and blocks on one thread, and write pages from the records."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnv4_mm.cli.arguments import Parser
from mnv4_mm.errors import UserError
from mnv4_mm.transfer.nets import (
    BLOCK_PAGE,
    BLOCK_PARTS,
    BLOCK_RECORDS,
    NETS,
    ROOFLINE_PAGE,
    ROOFLINE_RECORDS,
    Files,
    check_files,
    check_selection,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDS = 5
MAX_LOAD = 0.5  # load average above which other processes disturb a measurement
ROOFLINE = Files(ROOFLINE_RECORDS, ROOFLINE_PAGE)
BLOCKS = Files(BLOCK_RECORDS, BLOCK_PAGE)


def _add_files(parser: Parser, default: Files, records: str) -> None:
    parser.epilog = 'Measure on a machine that does nothing else.'
    parser.add_argument('--measure', action='store_true', help=f'measure first; {records}')
    parser.add_argument('--rounds', type=int, metavar='N', help=f'rounds of --measure (default: {ROUNDS})')
    parser.add_argument('--records', type=Path, metavar='FILE.jsonl', help=f'default: {default.records}')
    parser.add_argument(
        '--page', type=Path, metavar='FILE.md', help=f'page to write, with a plot beside it (default: {default.page})'
    )
    parser.add_argument(
        '--check', action='store_true', help='write nothing; exit code 1 if the page is not that of the records'
    )


def add_roofline(parser: Parser) -> None:
    parser.add_argument(
        '--nets', nargs='+', default=[], metavar='NAME',
        help='nets to measure: mnv4_<net>, timm:<net>, or a config (default: all of the page)',
    )  # fmt: skip
    _add_files(parser, ROOFLINE, 'the records are replaced, since only nets of one measurement are ranked together')
    parser.set_defaults(call=roofline)


def roofline(args: argparse.Namespace) -> int:
    """Run ``mnv4 roofline``: measure with ``--measure``, print the correlations, and write the page.

    With ``--check``, the page is compared with the records instead of written.

    Returns:
        Exit code: 1 if a net could not be measured, or if ``--check`` finds that the page is not that of the records;
        else 0.
    """
    names, files = _check(args, '--nets', args.nets, NETS, ROOFLINE)

    from mnv4_mm.transfer import pages
    from mnv4_mm.transfer.roofline_page import load_roofline, page, plot, summary

    if args.measure:
        from mnv4_mm.transfer.roofline_measure import measure_nets

        _warn_of_load()
        pages.write_records(files.records, measure_nets(names, args.rounds or ROUNDS, log=_log))
    result = load_roofline(files.records)
    print('\n'.join(summary(result)))
    code = _write_or_check(args, files, page(result, files.page.with_suffix('.png').name), lambda: plot(result))
    return code or int(args.measure and len(result.records) < len(names))


def add_blocks(parser: Parser) -> None:
    parser.add_argument(
        '--only',
        nargs='+',
        default=[],
        metavar='PART',
        help=f'parts to measure: {", ".join(BLOCK_PARTS)} (default: all)',
    )
    _add_files(parser, BLOCKS, 'records of the same parts are replaced')
    parser.set_defaults(call=blocks)


def blocks(args: argparse.Namespace) -> int:
    """Run ``mnv4 blocks``: measure with ``--measure``, then write the page or, with ``--check``, compare it.

    Returns:
        Exit code: 1 if ``--check`` finds that the page is not that of the records, else 0.
    """
    parts, files = _check(args, '--only', args.only, BLOCK_PARTS, BLOCKS)

    from mnv4_mm.transfer import pages
    from mnv4_mm.transfer.blocks_page import ALL_KEYS, KEYS, page, plot

    if args.measure:
        from mnv4_mm.transfer.blocks import measure_blocks

        _warn_of_load()
        pages.merge_records(files.records, [], KEYS)  # reports an invalid file of records before the measurement
        for part in parts:
            new = measure_blocks([part], args.rounds or ROUNDS, log=_log)
            # Blocks that are not measured any more, as their sizes have changed, are dropped.
            others = [one for one in pages.merge_records(files.records, [], KEYS) if one['part'] != part]
            pages.write_records(files.records, [*others, *new])
    records = pages.read_records(files.records, ALL_KEYS)
    return _write_or_check(args, files, page(records, files.page.with_suffix('.png').name), lambda: plot(records))


def _check(
    args: argparse.Namespace, option: str, chosen: Sequence[str], available: Sequence[str], default: Files
) -> tuple[list[str], Files]:
    names = check_selection(option, chosen, available, measure=args.measure)
    if args.rounds is not None and args.rounds < 1:
        raise UserError(f'--rounds {args.rounds}: at least 1')
    if args.rounds is not None and not args.measure:
        raise UserError('--rounds has no effect without --measure')
    return names, check_files(args.records, args.page, default, measure=args.measure, check=args.check)


def _warn_of_load() -> None:
    load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0.0
    if load > MAX_LOAD:
        print(f'warning: the load average is {load:.1f}: other processes disturb the measurement', file=sys.stderr)


def _write_or_check(args: argparse.Namespace, files: Files, text: str, plot: 'Callable[[], Figure]') -> int:
    from mnv4_mm.transfer import pages

    if args.check:
        return _report_check(files, pages.is_current(files.page, text))
    pages.write_page(files.page, text, plot)
    return 0


def _report_check(files: Files, is_current: bool) -> int:
    state = 'is that of' if is_current else 'is not that of'
    print(f'{files.page} {state} {files.records}{"" if is_current else ": run the command without --check"}')
    return 0 if is_current else 1


def _log(line: str) -> None:
    print(line, flush=True)
