"""Labelling of images in a process of ``mnv4 label``, in Ray, or in any engine that passes Arrow tables."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mnv4_mm.errors import UserError
from mnv4_mm.label.items import Item
from mnv4_mm.label.table import Row, schema_of, to_table
from mnv4_mm.runtime.predictor import load
from mnv4_mm.runtime.preprocess import Placement
from mnv4_mm.runtime.results import Detections

READERS = 2  # threads that decode and resize
AHEAD = 8  # images that are decoded before the model needs them
BATCH = 8  # images per run of a file that takes any number


class Prepared(NamedTuple):
    """An image that is ready for the model, or the reason why it could not be read.

    Attributes:
        id: Identifier of the image.
        batch: Input of the model with a batch size of 1; None if the image could not be read.
        placement: Size of the image before and in the input; None if the image could not be read.
        error: Why the image could not be read; None if it was read.
    """

    id: str
    batch: np.ndarray | None = None
    placement: Placement | None = None
    error: str | None = None


class Labeller:
    """Labels images with an exported file.

    The model runs in the calling thread. At the same time, other threads decode and resize the next images, and compute
    the results of earlier images from the outputs of the model.

    Args:
        file: Exported file.
        score_thr: Detection: boxes with lower scores are left out; the score threshold of the file if None.
        threads: Number of threads of the runtime.
        batch: Maximum number of images per run of the model. Files with a fixed batch size run on one image at a time.
        fast_jpeg: See ``runtime.predictor.Predictor``.

    Raises:
        UserError: The file cannot be loaded.
    """

    def __init__(
        self,
        file: str | Path,
        *,
        score_thr: float | None = None,
        threads: int = 1,
        batch: int = BATCH,
        fast_jpeg: bool = False,
    ) -> None:
        self.predictor = load(file, threads, fast_jpeg=fast_jpeg)
        self.score_thr = score_thr
        self.batch = batch if self.predictor.meta.dynamic_batch else 1
        self.schema = schema_of(self.predictor.meta)
        self._pool = ThreadPoolExecutor(READERS)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Label a table of images, as ``map_batches`` of Ray Data passes it.

        Args:
            table: A table with a column ``path``, or with columns ``bytes`` (content of image files) and ``id``. With
                paths, ``id`` is optional: the path is the default. The table may be empty.

        Returns:
            A table with a row per image, see ``table.schema_of``. An image that cannot be read has a row with the
            error.

        Raises:
            UserError: ``table`` lacks one of these columns, or a column has another type.
        """
        content = 'bytes' if 'bytes' in table.schema.names else 'path'
        ids = 'id' if 'id' in table.schema.names else 'path'
        for name in (content, ids):
            if name not in table.schema.names:
                raise UserError(f'a table of images has a column path, or bytes and id; got {table.schema.names}')
        values = table.column(content).to_pylist()
        expected = bytes if content == 'bytes' else str
        for value in values:
            if value is not None and not isinstance(value, expected):
                raise UserError(
                    f'the column {content} of a table of images must hold {expected.__name__}, got '
                    f'{type(value).__name__}'
                )
        pairs = zip(table.column(ids).to_pylist(), values, strict=True)
        items = (Item(str(id_), UserError('there is no image') if value is None else value) for id_, value in pairs)
        return to_table(list(self.rows(items)), self.schema)

    def rows(self, items: Iterable[Item]) -> Iterator[Row]:
        """Yield the results of images, in their order."""
        finishing: deque[Future[Row]] = deque()
        for group in self._grouped(self._prepared(items)):
            finishing += self._run(group)
            while len(finishing) > AHEAD:
                yield finishing.popleft().result()
        while finishing:
            yield finishing.popleft().result()

    def _prepared(self, items: Iterable[Item]) -> Iterator[Prepared]:
        """Decode and resize images in threads, a few ahead."""
        pending: deque[Future[Prepared]] = deque()
        for item in items:
            pending.append(self._pool.submit(self._prepare, item))
            if len(pending) > max(AHEAD, self.batch):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _prepare(self, item: Item) -> Prepared:
        try:
            if isinstance(item.content, UserError):
                raise item.content
            batch, placement = self.predictor.prepare(item.content, item.id)
        except UserError as error:
            return Prepared(item.id, error=str(error))
        return Prepared(item.id, batch, placement)

    def _grouped(self, prepared: Iterable[Prepared]) -> Iterator[list[Prepared]]:
        """Group consecutive inputs of the same shape. An image that could not be read forms its own group."""
        group: list[Prepared] = []
        for image in prepared:
            same = group and image.batch is not None and group[0].batch is not None
            if group and not (same and len(group) < self.batch and image.batch.shape == group[0].batch.shape):  # type: ignore[union-attr]
                yield group
                group = []
            group.append(image)
        if group:
            yield group

    def _run(self, group: list[Prepared]) -> list[Future[Row]]:
        if group[0].batch is None:
            done: Future[Row] = Future()
            done.set_result(Row(group[0].id, None, None, None, group[0].error))
            return [done]
        batch = np.concatenate([image.batch for image in group if image.batch is not None])
        outputs = self.predictor.run(batch)
        return [self._pool.submit(self._finish, image, outputs, index) for index, image in enumerate(group)]

    def _finish(self, image: Prepared, outputs: list[np.ndarray], index: int) -> Row:
        assert image.placement is not None
        result = self.predictor.finish(outputs, image.placement, index)
        if isinstance(result, Detections) and self.score_thr is not None:
            kept = result.scores >= self.score_thr
            result = replace(result, boxes=result.boxes[kept], scores=result.scores[kept], labels=result.labels[kept])
        return Row(image.id, *image.placement.original, result, None)
