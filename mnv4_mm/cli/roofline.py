"""Commands that measure nets and blocks on one thread, and write pages from the records."""

import argparse
from pathlib import Path

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

ROOFLINE = Files(ROOFLINE_RECORDS, ROOFLINE_PAGE)
BLOCKS = Files(BLOCK_RECORDS, BLOCK_PAGE)


def _add_files(parser: Parser, default: Files) -> None:
    parser.add_argument('--measure', action='store_true', help='measure first; records of the same nets are replaced')
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='rounds of --measure (default: 5)')
    parser.add_argument('--records', type=Path, metavar='FILE.jsonl', help=f'default: {default.records}')
    parser.add_argument(
        '--page', type=Path, metavar='FILE.md', help=f'page to write, with a plot beside it (default: {default.page})'
    )
    parser.add_argument(
        '--check', action='store_true', help='write nothing; exit code 1 if the page is not that of the records'
    )


def add_roofline(parser: Parser) -> None:
    parser.epilog = 'Measure on a machine that does nothing else.'
    parser.add_argument(
        '--nets', nargs='+', default=[], metavar='NAME',
        help='nets to measure: mnv4_<net>, timm:<net>, or a config (default: all of the page)',
    )  # fmt: skip
    _add_files(parser, ROOFLINE)
    parser.set_defaults(call=roofline)


def roofline(args: argparse.Namespace) -> int:
    """Check the arguments of ``roofline``, measure if requested, print the correlations and write the page."""
    names = check_selection('--nets', args.nets, NETS, measure=args.measure)
    _check_rounds(args)
    files = check_files(args.records, args.page, ROOFLINE, measure=args.measure, check=args.check)

    from mnv4_mm.transfer import pages
    from mnv4_mm.transfer.roofline_page import load_roofline, page, plot, summary

    if args.measure:
        from mnv4_mm.transfer.roofline_measure import measure_nets

        # The old records are read first, so that a file that is none is reported at once.
        pages.merge_records(files.records, [], ('net',))
        new = measure_nets(names, args.rounds, log=_log)
        pages.write_records(files.records, pages.merge_records(files.records, new, ('net',)))
    result = load_roofline(files.records)
    if len(result.nets) < 3:
        raise UserError(f'{files.records} has {len(result.nets)} classification nets: a ranking needs at least 3')
    print('\n'.join(summary(result)))
    text = page(result, files.page.with_suffix('.png').name)
    if args.check:
        return _report_check(files, pages.is_current(files.page, text))
    pages.write_page(files.page, text, lambda: plot(result))
    return 0


def add_blocks(parser: Parser) -> None:
    parser.epilog = 'Measure on a machine that does nothing else.'
    parser.add_argument(
        '--only',
        nargs='+',
        default=[],
        metavar='PART',
        help=f'parts to measure: {", ".join(BLOCK_PARTS)} (default: all)',
    )
    _add_files(parser, BLOCKS)
    parser.set_defaults(call=blocks)


def blocks(args: argparse.Namespace) -> int:
    """Check the arguments of ``blocks``, measure if requested, and write the page."""
    parts = check_selection('--only', args.only, BLOCK_PARTS, measure=args.measure)
    _check_rounds(args)
    files = check_files(args.records, args.page, BLOCKS, measure=args.measure, check=args.check)

    from mnv4_mm.transfer import pages
    from mnv4_mm.transfer.blocks_page import ALL_KEYS, KEYS, page, plot

    if args.measure:
        from mnv4_mm.transfer.blocks import measure_blocks

        pages.merge_records(files.records, [], KEYS)
        for part in parts:
            new = measure_blocks([part], args.rounds, log=_log)
            pages.write_records(files.records, pages.merge_records(files.records, new, KEYS))
    records = pages.read_records(files.records, ALL_KEYS)
    text = page(records, files.page.with_suffix('.png').name)
    if args.check:
        return _report_check(files, pages.is_current(files.page, text))
    pages.write_page(files.page, text, lambda: plot(records))
    return 0


def _check_rounds(args: argparse.Namespace) -> None:
    if args.rounds < 1:
        raise UserError(f'--rounds {args.rounds}: at least 1')
    if args.rounds != 5 and not args.measure:
        raise UserError('--rounds has no effect without --measure')


def _report_check(files: Files, is_current: bool) -> int:
    state = 'is that of' if is_current else 'is not that of'
    print(f'{files.page} {state} {files.records}{"" if is_current else ": run the command without --check"}')
    return 0 if is_current else 1


def _log(line: str) -> None:
    print(line, flush=True)
