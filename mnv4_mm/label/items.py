"""The images of an entry of a source, one after the other."""

import tarfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np

from mnv4_mm.errors import UserError
from mnv4_mm.images import IMAGE_SUFFIXES, MAX_BYTES
from mnv4_mm.label.source import Entry, bytes_column, open_parquet

ROWS_AT_ONCE = 64  # images of a Parquet file in memory


class Item(NamedTuple):
    """An image to label.

    Attributes:
        id: Identifies the image in the results.
        content: Path of an image file; content of an image file; pixels (H, W, 3) uint8 BGR; or why there is no image.
    """

    id: str
    content: str | bytes | np.ndarray | UserError


def items_of(entries: Iterable[Entry]) -> Iterator[Item]:
    """Yield the images of entries. An entry that cannot be read, or not to its end, yields an item with the reason."""
    for entry in entries:
        if entry.kind == 'image':
            yield Item(entry.id, entry.path)
            continue
        try:
            yield from READERS[entry.kind](entry)
        except (UserError, OSError) as error:
            name = f'{entry.id}#{entry.group}' if entry.kind == 'rows' else entry.id
            yield Item(name, UserError(str(error)))


def _shard(entry: Entry) -> Iterator[Item]:
    """Yield the images of a tar file: ``<shard>/<member>``. Nothing is unpacked to the disk."""
    try:
        with tarfile.open(entry.path, 'r|*') as shard:
            for member in shard:
                if not (member.isfile() and member.name.lower().endswith(IMAGE_SUFFIXES)):
                    continue
                name = f'{entry.id}/{member.name}'
                if member.size > MAX_BYTES:
                    yield Item(name, UserError(f'{name} is refused: it has {member.size} bytes'))
                    continue
                file = shard.extractfile(member)
                assert file is not None
                yield Item(name, file.read())
    except (tarfile.TarError, EOFError, ValueError) as error:
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
                    content = content.get('bytes') if isinstance(content, dict) else content
                    id_ = f'{entry.id}#{entry.group}.{number}' if id_ is None else str(id_)
                    yield Item(id_, UserError(f'{id_} is empty') if content is None else content)
                    number += 1
        except pa.ArrowException as error:
            raise UserError(f'{entry.path} is damaged: {" ".join(str(error).split())[:200]}') from error


READERS = {'shard': _shard, 'video': _video, 'rows': _rows}
