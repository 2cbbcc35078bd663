"""Export of the results of a job to COCO JSON, row by row: memory does not grow with the number of images."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mnv4_mm.errors import UserError
from mnv4_mm.files import replacing
from mnv4_mm.label.job import ROWS_AT_ONCE, Job
from mnv4_mm.paths import check_output_file
from mnv4_mm.runtime.meta import META_KEY

START = '{"info": {"description": "mnv4 label"},\n'  # tells files that may be replaced from the user's own annotations


def check_coco(path: Path, folder: Path) -> None:
    """Check that writing a JSON file replaces nothing but an earlier JSON file of ``write_coco``.

    Args:
        path: The JSON file.
        folder: Folder of the job.

    Raises:
        UserError: The file is in the folder of the job, has other content, or cannot be read or written.
    """
    if path.suffix != '.json':
        raise UserError(f'--coco {path}: name a .json file')
    try:
        check_output_file('--coco', str(path))
        if path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f'--coco {path} is inside --out {folder}: name a file elsewhere')
        if path.exists() and not _is_own(path):
            raise UserError(f'--coco {path} exists and was not written by `mnv4 label`: name another file')
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        raise UserError(f'--coco {path} cannot be read: {error}') from error


def _is_own(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open('rb') as file:
        return file.read(len(START)) == START.encode()


def write_coco(job: Job, path: Path) -> None:
    """Write the results of a finished job to a JSON file with ``images``, ``annotations`` and ``categories``.

    An existing file is replaced, see ``check_coco``.

    The id of an image is the number of its row, from 1, in the order of the parts. Images that could not be read are
    listed under ``unreadable`` instead of ``images``. A detection becomes an annotation with a ``score`` and a ``bbox``
    [x, y, width, height] in pixels. A class map becomes an annotation with a ``segmentation`` for each class that
    occurs, without a score; this needs pycocotools.

    Args:
        job: The job, of which all parts are done.
        path: The JSON file. Missing folders are created.

    Raises:
        UserError: The file cannot be written.
    """
    about = json.loads(pq.read_schema(job.path(0)).metadata[META_KEY.encode()])
    is_detection = 'boxes' in pq.read_schema(job.path(0)).names
    first = 1 if is_detection else about['first_value']
    ids = about['category_ids'] or list(range(first, first + len(about['classes'])))
    categories = [dict(id=id_, name=name) for id_, name in zip(ids, about['classes'], strict=True)]
    try:
        with replacing(path) as part, part.open('w') as file:
            lists = dict(
                images=_images(job),
                unreadable=_unreadable(job),
                annotations=_annotations(job, ids),
                categories=categories,
            )
            file.write(START)
            for number, (name, items) in enumerate(lists.items()):
                file.write(f'{"," if number else ""}{json.dumps(name)}: [')
                for index, item in enumerate(items):
                    file.write((',\n' if index else '\n') + json.dumps(item))
                file.write(']\n')
            file.write('}\n')
    except OSError as error:
        raise UserError(f'--coco {path} cannot be written: {error.strerror or error}') from error


def _rows(job: Job, columns: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of all parts with their numbers, from 1."""
    number = 0
    for part in range(job.count):
        for batch in pq.ParquetFile(job.path(part)).iter_batches(ROWS_AT_ONCE, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _images(job: Job) -> Iterator[dict[str, Any]]:
    for number, row in _rows(job, ['id', 'width', 'height', 'error']):
        if row['error'] is None:
            yield dict(id=number, file_name=row['id'], width=row['width'], height=row['height'])


def _unreadable(job: Job) -> Iterator[dict[str, Any]]:
    for _, row in _rows(job, ['id', 'error']):
        if row['error'] is not None:
            yield dict(file_name=row['id'], reason=row['error'])


def _annotations(job: Job, ids: list[int]) -> Iterator[dict[str, Any]]:
    """Yield detections, or a segment per class that occurs; numbered from 1."""
    number = 0
    for image_id, row in _rows(job):
        for values in _of_row(row, ids):
            number += 1
            yield dict(id=number, image_id=image_id, iscrowd=0, **values)


def _of_row(row: dict[str, Any], ids: list[int]) -> Iterator[dict[str, Any]]:
    for box, score, label in zip(row.get('boxes') or (), row.get('scores') or (), row.get('labels') or (), strict=True):
        x1, y1, x2, y2 = box
        width, height = x2 - x1, y2 - y1
        yield dict(category_id=ids[label], bbox=[x1, y1, width, height], area=width * height, score=score)
    for segment in row.get('segments') or ():
        from pycocotools import mask

        size, counts = [row['height'], row['width']], segment['counts']
        run_lengths = dict(size=size, counts=counts.encode())
        yield dict(
            category_id=ids[segment['label']],
            segmentation=dict(size=size, counts=counts),
            area=int(mask.area(run_lengths)),
            bbox=mask.toBbox(run_lengths).tolist(),
        )
