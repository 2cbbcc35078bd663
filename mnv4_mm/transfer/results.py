"""Files with the results of transfer runs: a Markdown page with tables between two marks, a CSV file, and plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.transfer.pages import has_digest, write_plot
from mnv4_mm.transfer.protocol import Protocol, read_protocol
from mnv4_mm.transfer.records import Record, latest, read_records
from mnv4_mm.transfer.tables import Group, curve_name, group_records, page, plot_name, to_csv

BEGIN, END = '<!-- begin results -->', '<!-- end results -->'


class Results(NamedTuple):
    """Compared records.

    Attributes:
        groups: Groups of comparable records.
        protocols: Protocols of the records.
        failed: Records of failed runs.
    """

    groups: list[Group]
    protocols: list[Protocol]
    failed: list[Record]


def read_results(files: Sequence[Path]) -> Results:
    """Read records and compare those with the same protocol, head, recipe and data.

    Args:
        files: Files of records. Each is named like its protocol: ``camvid.jsonl`` has records of ``camvid.py`` in the
            same folder or, if there is no such file, of the shipped protocol ``camvid``.

    Raises:
        UserError: A file cannot be read, no run has succeeded, or the protocol of a file or record is missing.
    """
    protocols = []
    for file in files:
        beside = file.with_suffix('.py')
        protocols.append(read_protocol(beside if beside.is_file() else file.stem))
    records = latest(record for file in files for record in read_records(file))
    groups = group_records(records)
    if not groups:
        raise UserError(f'no run has succeeded in {", ".join(map(str, files))}')
    names = {protocol.name for protocol in protocols}
    unknown = [group.protocol for group in groups if group.protocol not in names]
    if unknown:
        raise UserError(f'records of the protocol {unknown[0]} are in a file of another name')
    return Results(groups, protocols, [record for record in records if 'error' in record])


def write_results(results: Results, path: Path) -> None:
    """Write the tables into a page, and the CSV file and the plots into the folder ``results`` beside the page.

    Args:
        results: The results.
        path: The page. The text between ``BEGIN`` and ``END`` is replaced; a missing page is created.

    Raises:
        UserError: The page lacks ``BEGIN`` or ``END``, or a file cannot be written.
    """
    write_whole(path, with_results(path.read_text(encoding='utf-8') if path.is_file() else None, results))
    folder = path.parent / 'results'
    text = to_csv(results.groups)
    write_whole(folder / 'transfer.csv', text)
    from mnv4_mm.transfer.plots import plot, plot_curves  # imports matplotlib

    titles = {protocol.name: protocol.title for protocol in results.protocols}
    for group in results.groups:
        title = f'{titles[group.protocol]}, {group.head}'
        write_plot(folder / plot_name(group, results.groups), text, plot(group, title))
        if name := curve_name(group, results.groups):
            write_plot(folder / name, text, plot_curves(group, title))


def are_current(results: Results, path: Path) -> bool:
    """Return True if the files of ``write_results`` exist and match the results.

    Args:
        results: The results.
        path: The page.

    Raises:
        UserError: The page lacks ``BEGIN`` or ``END``.
    """
    folder, text = path.parent / 'results', to_csv(results.groups)
    file = folder / 'transfer.csv'
    if not (path.is_file() and file.is_file()):
        return False
    content = path.read_text(encoding='utf-8')
    plots = (name(group, results.groups) for group in results.groups for name in (plot_name, curve_name))
    return (
        with_results(content, results) == content
        and file.read_text(encoding='utf-8') == text
        and all(has_digest(folder / name, text) for name in plots if name)
    )


def with_results(text: str | None, results: Results) -> str:
    """Return the text of a page with the tables of results between ``BEGIN`` and ``END``.

    Args:
        text: Text of the page; None for a new page.
        results: The results.

    Raises:
        UserError: The page lacks ``BEGIN`` or ``END``.
    """
    text = f'# Transfer\n\n{BEGIN}\n{END}\n' if text is None else text
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f'the page has no lines {BEGIN} and {END}, between which the results go')
    return f'{before}{BEGIN}\n\n{page(*results, "results")}\n{END}{after}'
