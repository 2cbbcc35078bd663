"""Sources of images: folders, lists, WebDataset shards, Parquet files and videos.

A source is a list of entries: image files, and files that hold many images. Entries are divided into parts, the units
of work: a part is done entirely or not at all.
"""

import csv
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mnv4_mm.errors import UserError
from mnv4_mm.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_SUFFIXES = ('.tar', '.tar.gz', '.tgz')
PARQUET_SUFFIX = '.parquet'
LIST_SUFFIXES = ('.txt', '.csv')
# Names of the column with the paths of images, in CSV and Parquet files.
PATH_COLUMNS = ('path', 'file_name', 'filename', 'file', 'image')
# Names of the column with the content of image files in Parquet files. As a struct it has a field ``bytes``.
BYTES_COLUMNS = ('bytes', 'image', 'jpg', 'png', 'content')


class Entry(NamedTuple):
    """An image, or a file that holds several images.

    Attributes:
        id: Identifies it: the path relative to the source's folder, or what the list says.
        kind: ``image``, ``shard`` (a tar file), ``video``, or ``rows`` (a row group of a Parquet file).
        path: Absolute path of the file.
        group: Index of the row group; 0 for other kinds.
    """

    id: str
    kind: str
    path: str
    group: int = 0


def read_source(source: str | Path) -> list[Entry]:
    """List the entries of a source.

    Args:
        source: A folder, which is searched with its subfolders for images, tar files and videos; a text file with a
            path per line; a CSV or Parquet file with a column of paths; a Parquet file with a column of bytes; a tar
            file; a video; or an image. Relative paths in lists count from the folder of the list. A column ``id``
            replaces the path as the id.

    Returns:
        The entries; those of a folder are sorted by path.

    Raises:
        UserError: The source does not exist, cannot be read or holds no images, or an id occurs twice.
    """
    path = Path(source)
    if path.is_dir():
        entries = sorted(_folder(path))
    elif not path.is_file():
        raise UserError(
            f'no images at {path}: a source is a folder, a list (.txt, .csv, .parquet), a tar file or a video'
        )
    elif path.suffix.lower() == '.txt':
        lines = _read_text(path).splitlines()
        entries = [_listed(path, line.strip()) for line in lines if line.strip()]
    elif path.suffix.lower() == '.csv':
        entries = list(_csv(path))
    elif path.suffix.lower() == PARQUET_SUFFIX:
        entries = list(_parquet(path))
    elif kind := kind_of(path.name):
        entries = [Entry(path.name, kind, str(path.absolute()))]
    else:
        raise UserError(
            f'{path}: a source is a folder, or a file that ends in {", ".join(LIST_SUFFIXES)}, {PARQUET_SUFFIX}, '
            f'{", ".join((*SHARD_SUFFIXES, *VIDEO_SUFFIXES, *IMAGE_SUFFIXES))}'
        )
    if not entries:
        raise UserError(f'no images in {path}: neither {", ".join(IMAGE_SUFFIXES)} nor tar files nor videos')
    seen: set[tuple[str, int]] = set()
    for entry in entries:
        if (entry.id, entry.group) in seen:
            raise UserError(f'{path} names {entry.id!r} twice: each image needs an id of its own')
        seen.add((entry.id, entry.group))
    return entries


def kind_of(name: str) -> str | None:
    """Return the kind of an entry by the suffix of its file; None for other files."""
    name = name.lower()
    for kind, suffixes in (('image', IMAGE_SUFFIXES), ('shard', SHARD_SUFFIXES), ('video', VIDEO_SUFFIXES)):
        if name.endswith(suffixes):
            return kind
    return None


def into_parts(entries: list[Entry], size: int) -> list[list[Entry]]:
    """Divide entries into parts: up to ``size`` images, or a file that holds several."""
    parts: list[list[Entry]] = []
    for is_image, run in itertools.groupby(entries, lambda entry: entry.kind == 'image'):
        members = list(run)
        step = size if is_image else 1
        parts += [members[start : start + step] for start in range(0, len(members), step)]
    return parts


def _folder(root: Path) -> Iterator[Entry]:
    """Yield the entries of a folder and its subfolders; names that begin with a dot are skipped."""
    pending = [str(root)]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as found:
                for item in found:
                    if item.name.startswith('.'):
                        continue
                    if item.is_dir():
                        # A link to a folder could lead back to one above it.
                        if not item.is_symlink():
                            pending.append(item.path)
                    elif kind := kind_of(item.name):
                        yield Entry(
                            os.path.relpath(item.path, root).replace(os.sep, '/'), kind, os.path.abspath(item.path)
                        )
        except OSError as error:
            raise UserError(f'{folder} cannot be read: {error.strerror}') from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8-sig')
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f'{path} cannot be read as UTF-8 text: {error}') from error


def _listed(source: Path, value: str, id_: str | None = None) -> Entry:
    """Return the entry for a path in a list."""
    path = os.path.abspath(os.path.join(source.parent, value))
    # The content of a file of another suffix decides whether it is an image; if not, it gets a row with an error.
    return Entry(id_ or value, kind_of(value) or 'image', path)


def _csv(source: Path) -> Iterator[Entry]:
    rows = csv.reader(_read_text(source).splitlines())
    try:
        header = [name.strip() for name in next(rows, [])]
        column = _column(source, header, PATH_COLUMNS)
        id_column = header.index('id') if 'id' in header else None
        for number, row in enumerate(rows, 2):
            if not row:
                continue
            if len(row) != len(header):
                raise UserError(f'{source}, line {number}: {len(row)} values, but the header has {len(header)}')
            if not row[column].strip():
                raise UserError(f'{source}, line {number}: no path')
            yield _listed(source, row[column].strip(), None if id_column is None else row[id_column].strip())
    except csv.Error as error:
        raise UserError(f'{source} cannot be read: {error}') from error


def _column(source: Path, header: list[str], names: tuple[str, ...]) -> int:
    for name in names:
        if name in header:
            return header.index(name)
    raise UserError(f'{source} has no column {", ".join(names)}: its first line has {", ".join(header) or "nothing"}')


def _parquet(source: Path) -> Iterator[Entry]:
    with open_parquet(source) as file:
        schema = file.schema_arrow
        if bytes_column(schema):
            for group in range(file.num_row_groups):
                yield Entry(source.name, 'rows', str(source.absolute()), group)
            return
        header = list(schema.names)
        name = header[_column(source, header, PATH_COLUMNS)]
        columns = [name, *(['id'] if 'id' in header else [])]
        for batch in file.iter_batches(columns=columns):
            paths = batch.column(name).to_pylist()
            ids = batch.column('id').to_pylist() if 'id' in header else [None] * len(paths)
            for path, id_ in zip(paths, ids, strict=True):
                if not isinstance(path, str) or not path:
                    raise UserError(f'{source}: column {name} has {path!r}, which is not a path')
                yield _listed(source, path, None if id_ is None else str(id_))


def open_parquet(path: str | Path) -> 'pa.parquet.ParquetFile':
    """Open a Parquet file.

    Raises:
        UserError: It is not a readable Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f'{path} is not a readable Parquet file: {" ".join(str(error).split())[:200]}') from error


def bytes_column(schema: 'pa.Schema') -> str | None:
    """Return the name of the column with the content of image files; None if there is none."""
    import pyarrow as pa

    for name in BYTES_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_struct(kind) and kind.get_field_index('bytes') >= 0:
                kind = kind.field('bytes').type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name
    return None
