"""The table of results: a row per image, written as Parquet."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mnv4_mm.label.source import escaped
from mnv4_mm.runtime.meta import META_KEY, Meta
from mnv4_mm.runtime.results import ClassMap, Detections


class Row(NamedTuple):
    """The result for an image.

    Attributes:
        id: Identifier of the image.
        height: Height of the image in pixels; None without a result.
        width: Width of the image in pixels; None without a result.
        result: Detections or a class map; None if the image could not be read.
        error: Why there is no result; None if there is one.
    """

    id: str
    height: int | None
    width: int | None
    result: Detections | ClassMap | None
    error: str | None


def schema_of(meta: Meta) -> pa.Schema:
    """Return the schema of the table of results of an exported file.

    All tables have the columns ``id``; ``width`` and ``height`` of the image in pixels; and ``error``, which is null
    unless the image could not be read. If it could not, all other columns but ``id`` are null.

    For detection, the columns ``boxes`` as (x1, y1, x2, y2) in pixels of the image, ``scores`` and ``labels`` are
    lists, best first. For segmentation, the column ``segments`` is a list with an element for each class that occurs:
    its ``label``, and its mask as pycocotools' compressed run-length encoding (``counts``). Labels are indices into the
    class names.

    The schema's metadata has, under the key ``mnv4_mm``, a JSON with the class names, the category ids, the value of
    the first class in masks, and the origin of the model.
    """
    if meta.task == 'detection':
        results = [
            pa.field('boxes', pa.list_(pa.list_(pa.float32(), 4))),
            pa.field('scores', pa.list_(pa.float32())),
            pa.field('labels', pa.list_(pa.int32())),
        ]
    else:
        segment = pa.struct([pa.field('label', pa.int32()), pa.field('counts', pa.string())])
        results = [pa.field('segments', pa.list_(segment))]
    about = dict(classes=meta.classes, category_ids=meta.category_ids, first_value=meta.first_value, source=meta.source)
    return pa.schema(
        [
            pa.field('id', pa.string(), nullable=False),
            pa.field('width', pa.int32()),
            pa.field('height', pa.int32()),
            *results,
            pa.field('error', pa.string()),
        ],
        metadata={META_KEY: json.dumps(about)},
    )


def to_table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Convert rows to a table with the schema of ``schema_of``."""
    columns: dict[str, Any] = {
        'id': pa.array([escaped(row.id) for row in rows], pa.string()),
        'width': pa.array([row.width for row in rows], pa.int32()),
        'height': pa.array([row.height for row in rows], pa.int32()),
        'error': pa.array([None if row.error is None else escaped(row.error) for row in rows], pa.string()),
    }
    if 'boxes' in schema.names:
        columns |= _detections([row.result for row in rows])
    else:
        segments = [None if row.result is None else _segments(row.result) for row in rows]
        columns['segments'] = pa.array(segments, schema.field('segments').type)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _detections(results: list[Any]) -> Mapping[str, pa.Array]:
    missing = pa.array([result is None for result in results], pa.bool_())
    found = [result for result in results if result is not None]
    counts = [0 if result is None else len(result) for result in results]
    offsets = pa.array(np.cumsum([0, *counts]), pa.int32())

    def joined(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        parts = [getattr(result, name) for result in found]
        return np.concatenate([np.zeros(shape, dtype), *parts]).astype(dtype)

    boxes = pa.FixedSizeListArray.from_arrays(pa.array(joined('boxes', (0, 4), np.float32).ravel()), 4)
    values = dict(
        boxes=boxes,
        scores=pa.array(joined('scores', (0,), np.float32)),
        labels=pa.array(joined('labels', (0,), np.int32)),
    )
    return {name: pa.ListArray.from_arrays(offsets, value, mask=missing) for name, value in values.items()}


def _segments(result: Any) -> list[dict[str, Any]]:
    return [
        dict(label=segment['category_id'] - result.first_value, counts=segment['segmentation']['counts'])
        for segment in result.to_coco(0)
    ]


class Tally(NamedTuple):
    """Size of a table of results.

    Attributes:
        rows: Number of rows.
        errors: Number of rows with an error.
    """

    rows: int
    errors: int


def tally(path: Path) -> Tally:
    """Count the rows of a Parquet file and those with an error, from its footer.

    Raises:
        pa.ArrowException: The file is damaged or incomplete.
        OSError: The file cannot be read.
    """
    import pyarrow.parquet as pq

    footer = pq.read_metadata(path)
    errors = 0
    for group in range(footer.num_row_groups):
        row_group = footer.row_group(group)
        column = row_group.column(footer.num_columns - 1)  # `error` is the last one
        errors += row_group.num_rows - column.statistics.null_count
    return Tally(footer.num_rows, errors)
