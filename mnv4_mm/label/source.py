"""Sources of images: folders, lists, WebDataset shards, Parquet files and videos.

A source is a list of entries: image files, and files that hold many images. Entries are divided into parts, the units
of work: a part is done entirely or not at all.
"""

import csv
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mnv4_mm.errors import UserError
from mnv4_mm.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SHARD_SUFFIXES = ('.tar', '.tar.gz', '.tgz')
PARQUET_SUFFIX = '.parquet'
LIST_SUFFIXES = ('.txt', '.csv')
WHAT = 'images come from a folder, a list (.txt, .csv, .parquet), a tar file or a video'
# Names of the column with the paths of images, in CSV and Parquet files.
PATH_COLUMNS = ('path', 'file_name', 'filename', 'file', 'image')
# Names of the column with the content of image files in Parquet files. As a struct it has a field ``bytes``.
BYTES_COLUMNS = ('bytes', 'image', 'jpg', 'png', 'content')


class Entry(NamedTuple):
    """An image, or a file that holds several images.

    Attributes:
        id: Identifier of the entry: the path relative to the folder, or the id or path given in a list.
        kind: ``image``, ``shard`` (a tar file), ``video``, or ``rows`` (a row group of a Parquet file).
        path: Absolute path of the file. Bytes that are not UTF-8 are surrogates, as Python decodes file names.
        group: Index of the row group; 0 for other kinds.
    """

    id: str
    kind: str
    path: str
    group: int = 0


def read_source(source: str | Path) -> list[Entry]:
    """List the entries of a source.

    Args:
        source: A folder, which is searched with its subfolders for images, tar files, videos and Parquet files with
            images; a text file with a path per line; a CSV or Parquet file with a column of paths; a Parquet file with
            a column of image content; a tar file; a video; or an image. Relative paths in a list are relative to the
            folder of the list. If a list has a column ``id``, its values are the ids instead of the paths.

    Returns:
        The entries; those of a folder are sorted by path.

    Raises:
        UserError: The source does not exist, cannot be read or holds no images, or an id occurs twice.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    ids: set[str] = set()  # of rows of Parquet files
    if path.is_dir():
        entries = sorted(_folder(path, ids))
    elif not path.is_file():
        raise UserError(f'{path} does not exist, or is not a file: {WHAT}')
    elif suffix == '.txt':
        entries = [_listed(path, line.strip()) for line in _lines(path) if line.strip()]
    elif suffix == '.csv':
        entries = list(_csv(path))
    elif suffix == PARQUET_SUFFIX:
        entries = list(_row_groups(path, escaped(path.name), ids)) or list(_parquet_paths(path))
    elif kind := kind_of(path.name):
        entries = [Entry(escaped(path.name), kind, str(path.absolute()))]
    else:
        suffixes = (*LIST_SUFFIXES, PARQUET_SUFFIX, *SHARD_SUFFIXES, *VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
        raise UserError(f'{path}: {WHAT}, or a file that ends in {", ".join(suffixes)}')
    if not entries:
        if path.is_dir():
            raise UserError(f'no images ({", ".join(IMAGE_SUFFIXES)}), tar files or videos in {path}')
        raise UserError(f'{path} is empty: it names no images')
    seen: set[tuple[str, int]] = set()
    for entry in entries:
        if (entry.id, entry.group) in seen or entry.id in ids:
            raise UserError(f'{path} names {entry.id!r} twice: each image needs an id of its own')
        seen.add((entry.id, entry.group))
    return entries


def kind_of(name: str) -> str | None:
    """Return the kind of an entry by the suffix of the file name: ``image``, ``shard`` or ``video``, otherwise None."""
    name = name.lower()
    for kind, suffixes in (('image', IMAGE_SUFFIXES), ('shard', SHARD_SUFFIXES), ('video', VIDEO_SUFFIXES)):
        if name.endswith(suffixes):
            return kind
    return None


def into_parts(entries: Sequence[Entry], size: int) -> Iterator[list[Entry]]:
    """Divide entries into parts, in their order.

    Args:
        entries: Entries of a source.
        size: Maximum number of image files in a part.

    Yields:
        Parts of up to ``size`` consecutive image files. An entry that holds several images is a part of its own.
    """
    for is_image, run in itertools.groupby(entries, lambda entry: entry.kind == 'image'):
        while part := list(itertools.islice(run, size if is_image else 1)):
            yield part


def escaped(text: str) -> str:
    r"""Return text that can be stored as UTF-8: bytes of file names that are not UTF-8 become ``\udcXX``."""
    return text.encode('utf-8', 'backslashreplace').decode()


def _folder(root: Path, ids: set[str]) -> Iterator[Entry]:
    """Yield the entries of a folder and its subfolders; names that begin with a dot are skipped."""
    pending = [str(root)]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as found:
                items = [item for item in found if not item.name.startswith('.')]
        except OSError as error:
            raise UserError(f'{folder} cannot be read: {error.strerror}') from error
        for item in items:
            if item.is_dir():
                # A link to a folder could lead back to one above it.
                if not item.is_symlink():
                    pending.append(item.path)
                continue
            name = escaped(os.path.relpath(item.path, root).replace(os.sep, '/'))
            if kind := kind_of(item.name):
                yield Entry(name, kind, os.path.abspath(item.path))
            elif item.name.lower().endswith(PARQUET_SUFFIX):
                # None for Parquet files without images, such as metadata beside the images.
                yield from _row_groups(Path(item.path), name, ids)


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file with line breaks; unlike in ``str.splitlines``, nothing else ends a line."""
    try:
        return list(io.StringIO(path.read_text(encoding='utf-8-sig'), newline=None))
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f'{path} cannot be read as UTF-8 text: {error}') from error


def _listed(source: Path, value: str, id_: str | None = None) -> Entry:
    """Return the entry for a path in a list."""
    path = os.path.abspath(os.path.join(source.parent, value))
    # The content of a file of another suffix decides whether it is an image; if not, it gets a row with an error.
    return Entry(escaped(id_ or value), kind_of(value) or 'image', path)


def _csv(source: Path) -> Iterator[Entry]:
    rows = csv.reader(_lines(source))
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
    raise UserError(f'{source} has no column {", ".join(names)}; it has {", ".join(header)[:200] or "none"}')


def _parquet_paths(source: Path) -> Iterator[Entry]:
    with open_parquet(source) as file:
        header = list(file.schema_arrow.names)
        name = header[_column(source, header, PATH_COLUMNS)]
        for path, *ids in _values(file, source, [name, *(['id'] if 'id' in header else [])]):
            if not isinstance(path, str) or not path:
                raise UserError(f'{source}: column {name} has {path!r:.40}, which is not a path')
            yield _listed(source, path, str(ids[0]) if ids and ids[0] is not None else None)


def _row_groups(path: Path, name: str, ids: set[str]) -> Iterator[Entry]:
    """Yield the row groups of a Parquet file with the content of images; nothing for other Parquet files.

    Args:
        path: The file.
        name: Name of the file, for the entries.
        ids: Ids of the rows of other Parquet files; those of this file are added.

    Raises:
        UserError: The file is damaged, or an id is missing or occurs twice, also in another file.
    """
    with open_parquet(path) as file:
        if bytes_column(file.schema_arrow) is None:
            return
        if 'id' in file.schema_arrow.names:
            for (id_,) in _values(file, path, ['id']):
                if id_ in (None, '') or str(id_) in ids:
                    raise UserError(f'{path}: the id {id_!r:.40} is missing or occurs twice')
                ids.add(str(id_))
        for group in range(file.num_row_groups):
            yield Entry(name, 'rows', os.path.abspath(path), group)


def _values(file: 'pq.ParquetFile', path: Path, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the values of columns, row by row.

    Raises:
        UserError: The file is damaged.
    """
    import pyarrow as pa

    try:
        for batch in file.iter_batches(columns=columns):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path} is damaged: {" ".join(str(error).split())[:200]}') from error


def open_parquet(path: str | Path) -> 'pq.ParquetFile':
    """Open a Parquet file so that little memory is used to read it in batches.

    Raises:
        UserError: The file is not a readable Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # With its defaults, pyarrow reads whole row groups ahead, and pandas writes one per file.
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f'{path} is not a readable Parquet file: {" ".join(str(error).split())[:200]}') from error


def bytes_column(schema: 'pa.Schema') -> str | None:
    """Return the first column of ``BYTES_COLUMNS`` that has the content of image files; None if there is none.

    The type of the column must be binary, or a struct with a binary field ``bytes``.
    """
    import pyarrow as pa

    for name in BYTES_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_struct(kind) and kind.get_field_index('bytes') >= 0:
                kind = kind.field('bytes').type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
                return name
    return None
