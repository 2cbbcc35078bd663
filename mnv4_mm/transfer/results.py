"""The committed results: tables, CSV and plots made of records, written into a page between two marks."""

from collections.abc import Sequence
from pathlib import Path

from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.transfer.protocol import Protocol, read_protocol
from mnv4_mm.transfer.records import read_records
from mnv4_mm.transfer.tables import Group, group_records, page, plot, to_csv

BEGIN, END = '<!-- begin results -->', '<!-- end results -->'


def read_groups(files: Sequence[Path]) -> tuple[list[Group], list[Protocol]]:
    """Read records and compare those that may be compared.

    Args:
        files: Files of records, each named like its shipped protocol, or beside a protocol file of the same name.

    Raises:
        UserError: A file cannot be read, has no records, or there is no such protocol.
    """
    protocols = []
    for file in files:
        beside = file.with_suffix('.py')
        protocols.append(read_protocol(beside if beside.is_file() else file.stem))
    groups = group_records(record for file in files for record in read_records(file))
    if not groups:
        raise UserError(f'no run has succeeded in {", ".join(map(str, files))}')
    names = {protocol.name for protocol in protocols}
    unknown = [group.protocol for group in groups if group.protocol not in names]
    if unknown:
        raise UserError(f'records of the protocol {unknown[0]} are in a file of another name')
    return groups, protocols


def write_results(files: Sequence[Path], path: Path) -> None:
    """Write the tables into a page, and CSV and plots into a folder ``results`` beside it.

    Args:
        files: See ``read_groups``.
        path: The page. What is between its marks is replaced; without a page, one is made.

    Raises:
        UserError: See ``read_groups``, or the page has no marks.
    """
    groups, protocols = read_groups(files)
    write_whole(path, with_results(path.read_text(encoding='utf-8') if path.is_file() else None, groups, protocols))
    folder = path.parent / 'results'
    write_whole(folder / 'transfer.csv', to_csv(groups))
    titles = {protocol.name: protocol.title for protocol in protocols}
    for group in groups:
        plot(group, f'{titles[group.protocol]}, {group.head}', folder / f'{group.protocol}-{group.head}.png')


def with_results(text: str | None, groups: Sequence[Group], protocols: Sequence[Protocol]) -> str:
    """Return the text of a page with these results between its marks.

    Raises:
        UserError: The page has no marks.
    """
    text = f'# Transfer\n\n{BEGIN}\n{END}\n' if text is None else text
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f'the page has no lines {BEGIN} and {END}, between which the results go')
    return f'{before}{BEGIN}\n\n{page(groups, protocols, "results")}\n{END}{after}'
