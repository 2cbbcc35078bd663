"""Reading and writing of measured records, and of the Markdown pages and plots that are generated from them."""

import hashlib
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
_DIGEST = 'Description'  # key of the records' digest in the metadata of a plot


def read_records(path: Path, keys: Iterable[str]) -> list[dict[str, Any]]:
    """Read records in JSON Lines.

    Args:
        path: The file.
        keys: Keys that each record must have.

    Raises:
        UserError: The file is empty, or a line is not a record with these keys.
    """
    records = []
    for number, line in enumerate(path.read_text(encoding='utf-8', errors='replace').splitlines(), 1):
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        missing = [key for key in keys if not isinstance(content, dict) or key not in content]
        if missing:
            raise UserError(f'--records {path}, line {number}: not a record (it has no {missing[0]!r})')
        records.append(content)
    if not records:
        raise UserError(f'--records {path}: the file is empty')
    return records


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write records as JSON Lines. An existing file is replaced as a whole, not appended to."""
    write_whole(path, ''.join(json.dumps(one, separators=(',', ':')) + '\n' for one in records))


def merge_records(path: Path, new: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return the records of a file followed by new ones, which replace those with the same values of ``keys``.

    The file is not written.

    Args:
        path: The file; it need not exist.
        new: New records.
        keys: Keys that identify a record.

    Raises:
        UserError: The file exists, but is empty or has a line that is not a record.
    """
    old = read_records(path, keys) if path.is_file() else []
    replaced = {tuple(one[key] for key in keys) for one in new}
    return [one for one in old if tuple(one[key] for key in keys) not in replaced] + list(new)


def prose(text: str) -> list[str]:
    """Wrap text into the lines of a Markdown paragraph, at most 128 characters each, followed by an empty line."""
    return [*textwrap.wrap(' '.join(text.split()), 128, break_long_words=False, break_on_hyphens=False), '']


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f'| {" | ".join(cells)} |' for cells in (header, ['---'] * len(header), *rows)]


def write_page(page: Path, text: str, plot: Callable[[], 'Figure']) -> None:
    """Write a page and, beside it, its plot.

    Args:
        page: Path of the page, ``<name>.md``; the plot is ``<name>.png``.
        text: Text of the page.
        plot: Function that draws the plot.
    """
    write_plot(page.with_suffix('.png'), text, plot())
    write_whole(page, text)


def write_plot(path: Path, text: str, plot: 'Figure') -> None:
    """Write a plot as a PNG file, with a digest of a text in its metadata.

    The digest shows whether the plot is outdated, see ``has_digest``.

    Args:
        path: The PNG file.
        text: Text that is made from the same records as the plot, such as that of the page.
        plot: The plot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    plot.savefig(path, dpi=110, metadata={_DIGEST: _digest(text)})


def is_current(page: Path, text: str) -> bool:
    """Return True if a page on disk has the given text and the plot beside it was written with the same text.

    Args:
        page: Path of the page, which must exist.
        text: Text that the page should have.
    """
    return page.read_text(encoding='utf-8') == text and has_digest(page.with_suffix('.png'), text)


def has_digest(plot: Path, text: str) -> bool:
    """Return True if the metadata of a plot hold the digest of a text; False if the plot is missing or no image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(plot) as opened:
            return opened.info.get(_DIGEST) == _digest(text)
    except (FileNotFoundError, UnidentifiedImageError):
        return False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def machine_lines(records: Sequence[Record]) -> list[str]:
    """Describe the machines, versions and commits with which records were measured.

    Args:
        records: Records with ``date`` and ``machine``, see ``describe_machine``. ``machine['load']`` is a pair: the
            load averages before and after the measurement.

    Returns:
        The lines of Markdown paragraphs, one paragraph for each distinct description.
    """
    paragraphs: dict[str, None] = {}
    for record in records:
        machine = record['machine']
        versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items() if name != 'mnv4_mm')
        load = ' and '.join('unknown' if value is None else f'{value:.1f}' for value in machine['load'])
        text = (
            f'Measured on {record["date"]} (commit {machine["commit"]}) on one thread of a machine with '
            f'{machine["cores"]} cores ({machine["cpu"]}; {", ".join(machine["instructions"])}), Python '
            f'{machine["python"]}, {versions}. Load average before and after: {load}.'
        )
        paragraphs[text] = None
    return [line for text in paragraphs for line in prose(text)]
