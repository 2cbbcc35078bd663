"""Iteration over the images of the entries of a source."""

import gzip
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import cv2
import numpy as np

from mnv4_mm.errors import UserError
from mnv4_mm.images import IMAGE_SUFFIXES, MAX_BYTES
from mnv4_mm.label.source import Entry, bytes_column, open_parquet

ROWS_AT_ONCE = 64  # images of a Parquet file in memory
GZIP = b'\x1f\x8b'
COMPRESSED = (b'BZh', b'\xfd7zXZ', b'\x5d\x00\x00', b'\x28\xb5\x2f\xfd')  # bzip2, xz, lzma, zstd


class Item(NamedTuple):
    """An image to label.

    Attributes:
        id: Identifier of the image in the results.
        content: The image in one of three forms: path of an image file (str), content of an image file (bytes), or
            pixels (H, W, 3) uint8 BGR. A ``UserError`` if the image cannot be read.
    """

    id: str
    content: str | bytes | np.ndarray | UserError


class _Archive(tarfile.TarFile):
    """A tar file, or several that were concatenated, read as a stream.

    The module ``tarfile`` takes a damaged header, or the end of a file that was cut off, for the end of the archive.
    Here, both are errors.
    """

    has_ended = False  # the last block was one of zeros, which ends an archive


class _Member(tarfile.TarInfo):
    """A member of an ``_Archive``."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> '_Member':
        return _checked(super().fromtarfile, tarfile)


def _checked(read: Any, archive: _Archive) -> Any:
    try:
        member = read(archive)
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        archive.has_ended = True
        raise
    except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]  # the end of the file
        if archive.has_ended:
            raise
        raise tarfile.ReadError(str(error)) from error
    except tarfile.HeaderError as error:
        raise tarfile.ReadError(str(error)) from error
    archive.has_ended = False
    return member


@contextmanager
def _open_shard(path: str) -> Iterator[_Archive]:
    """Open a tar file, compressed by gzip or not.

    The module ``tarfile`` stops at the end of the first of several concatenated gzip streams.
    """
    with open(path, 'rb') as file:
        start = file.read(8)
    if start.startswith(COMPRESSED):
        raise tarfile.ReadError('it is compressed, but not by gzip')
    opener: Any = gzip.open if start.startswith(GZIP) else open
    with (
        opener(path, 'rb') as stream,
        _Archive.open(fileobj=stream, mode='r|', tarinfo=_Member, ignore_zeros=True) as archive,
    ):
        yield archive


def items_of(entries: Iterable[Entry]) -> Iterator[Item]:
    """Yield the images of entries.

    If an entry cannot be read, or only in part, the images that could be read are followed by an item that holds the
    error.
    """
    for entry in entries:
        if entry.kind == 'image':
            yield Item(entry.id, entry.path)
            continue
        try:
            if not os.path.isfile(entry.path):  # reading from a named pipe would wait for a writer
                raise UserError(f'no file {entry.path}')
            yield from READERS[entry.kind](entry)
        except (UserError, OSError) as error:
            name = f'{entry.id}#{entry.group}' if entry.kind == 'rows' else entry.id
            yield Item(name, UserError(str(error)))


def _shard(entry: Entry) -> Iterator[Item]:
    """Yield the images of a tar file: ``<shard>/<member>``. Nothing is unpacked to the disk."""
    seen: Counter[str] = Counter()
    try:
        with _open_shard(entry.path) as shard:
            for member in shard:
                if not member.name.lower().endswith(IMAGE_SUFFIXES) or member.isdir():
                    continue
                seen[member.name] += 1
                name = f'{entry.id}/{member.name}'
                if seen[member.name] > 1:
                    yield Item(f'{name}#{seen[member.name]}', UserError(f'{name} occurs twice'))
                elif not member.isfile():
                    yield Item(name, UserError(f'{name} is a link or a device: neither is followed in a tar file'))
                elif member.size > MAX_BYTES:
                    yield Item(name, UserError(f'{name} is refused: it has {member.size} bytes'))
                else:
                    file = shard.extractfile(member)
                    assert file is not None
                    yield Item(name, file.read())
    except (tarfile.TarError, zlib.error, EOFError, ValueError) as error:
        raise UserError(f'{entry.path} is damaged: {error}') from error


def _video(entry: Entry) -> Iterator[Item]:
    """Yield the frames of a video: ``<video>#<number>``, from 0."""
    video = cv2.VideoCapture(entry.path)
    try:
        declared, number = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0
        while (frame := video.read()[1]) is not None:
            yield Item(f'{entry.id}#{number}', frame)
            number += 1
    finally:
        video.release()
    if not number:
        raise UserError(f'{entry.path} is not a readable video')
    # Some containers count a frame too many; a video that was cut off lacks more.
    if number < declared - 1:
        raise UserError(f'{entry.path} ends after {number} of {declared} frames')


def _rows(entry: Entry) -> Iterator[Item]:
    """Yield the images of a row group of a Parquet file; without ids, ``<file>#<group>.<row>``."""
    import pyarrow as pa

    with open_parquet(entry.path) as file:
        name = bytes_column(file.schema_arrow)
        if name is None or entry.group >= file.num_row_groups:
            raise UserError(f'{entry.path} was changed: it has no row group {entry.group} with images')
        columns = [name, *(['id'] if 'id' in file.schema_arrow.names else [])]
        number = 0
        try:
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[entry.group], columns=columns):
                contents = batch.column(name).to_pylist()
                ids = batch.column('id').to_pylist() if 'id' in columns else [None] * len(contents)
                for content, id_ in zip(contents, ids, strict=True):
                    id_ = f'{entry.id}#{entry.group}.{number}' if id_ is None else str(id_)
                    yield Item(id_, _content(content, entry, id_))
                    number += 1
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f'{entry.path} is damaged: {" ".join(str(error).split())[:200]}') from error


def _content(value: Any, entry: Entry, id_: str) -> str | bytes | UserError:
    """Return the content of an image, or its path, from a row: bytes, or Hugging Face's struct of bytes and path."""
    if isinstance(value, dict):
        path = value.get('path')
        value = value.get('bytes')
        if value is None and path:
            return os.path.join(os.path.dirname(entry.path), path)
    return UserError(f'{id_} is empty') if value is None else value


READERS = {'shard': _shard, 'video': _video, 'rows': _rows}
