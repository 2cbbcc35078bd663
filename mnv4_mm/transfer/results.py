"""Files with the results of transfer runs: a Markdown page with tables between two marks, a CSV file, and plots."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.transfer.pages import has_digest, write_plot
from mnv4_mm.transfer.protocol import Protocol, protocol_index, read_protocol
from mnv4_mm.transfer.records import Record, latest, read_records
from mnv4_mm.transfer.tables import FAILED_RUNS, Group, curve_name, group_records, page, plot_name, plot_names, to_csv

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
        files: Files of records. The protocol of a record is ``<protocol>.py`` in the same folder or, if there is no
            such file, the shipped one of this name.

    Raises:
        UserError: A file cannot be read, no run has succeeded, or a protocol is missing.
    """
    found: list[Record] = []
    protocols: dict[str, Protocol] = {}
    for file in files:
        records = read_records(file)
        found += records
        for name in dict.fromkeys(record['protocol'] for record in records):
            beside = file.with_name(f'{name}.py')
            if not beside.is_file() and name not in protocol_index():
                raise UserError(f'{file} has records of the protocol {name}, which is not shipped: put {beside} there')
            protocols[name] = read_protocol(beside if beside.is_file() else name)
    found = latest(found)
    groups = group_records(found)
    if not groups:
        raise UserError(f'no run has succeeded in {", ".join(map(str, files))}')
    return Results(groups, list(protocols.values()), [record for record in found if 'error' in record])


def write_results(results: Results, path: Path) -> None:
    """Write the tables into a page, and the CSV file and the plots into the folder ``results`` beside the page.

    Args:
        results: The results.
        path: The page. The text between ``BEGIN`` and ``END`` is replaced; a missing page is created.

    Raises:
        UserError: The page lacks ``BEGIN`` or ``END``, it would lose a table, or a file cannot be written.
    """
    old = path.read_text(encoding='utf-8') if path.is_file() else None
    new = with_results(old, results)
    for title in _titles(old or '') - _titles(new):
        raise UserError(
            f'{path} has a table that is not in these records, {title}: name all files, or another page by --page'
        )
    write_whole(path, new)
    folder = path.parent / 'results'
    text = to_csv(results.groups)
    write_whole(folder / f'{path.stem}.csv', text)
    from mnv4_mm.transfer.plots import plot, plot_curves  # imports matplotlib

    titles = {protocol.name: protocol.title for protocol in results.protocols}
    for group in results.groups:
        title = f'{titles[group.protocol]}, {group.head}'
        if len(group.rows) > 1:
            write_plot(folder / plot_name(group, results.groups), text, plot(group, title))
        if name := curve_name(group, results.groups):
            write_plot(folder / name, text, plot_curves(group, title))


def _titles(page: str) -> Counter[str]:
    """Return how often each title of a table of results occurs in a page."""
    block = page.partition(BEGIN)[2].partition(END)[0]
    titles = (line.removeprefix('### ') for line in block.splitlines() if line.startswith('### '))
    return Counter(title for title in titles if title != FAILED_RUNS)


def are_current(results: Results, path: Path) -> bool:
    """Return True if the files of ``write_results`` exist and match the results.

    Args:
        results: The results.
        path: The page.

    Raises:
        UserError: The page lacks ``BEGIN`` or ``END``.
    """
    folder, text = path.parent / 'results', to_csv(results.groups)
    file = folder / f'{path.stem}.csv'
    if not (path.is_file() and file.is_file()):
        return False
    content = path.read_text(encoding='utf-8')
    plots = (name for group in results.groups for name in plot_names(group, results.groups))
    return (
        with_results(content, results) == content
        and file.read_text(encoding='utf-8') == text
        and all(has_digest(folder / name, text) for name in plots)
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
