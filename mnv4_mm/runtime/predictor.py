"""Picture in, results out, whatever the runtime. Needs numpy, OpenCV and the runtime only."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Meta
from mnv4_mm.runtime.preprocess import prepare, read_image
from mnv4_mm.runtime.results import ClassMap, Detections, class_map, in_picture, map_in_picture, select

Session = Callable[[np.ndarray], list[np.ndarray]]  # an input -> outputs by ``meta.OUTPUTS``


class Predictor:
    """A net in a runtime.

    Args:
        meta: What the file says of itself.
        session: Runs it.
    """

    def __init__(self, meta: Meta, session: Session) -> None:
        self.meta = meta
        self.session = session

    def __call__(self, image: np.ndarray | str | Path) -> Detections | ClassMap:
        """Detects or segments.

        Args:
            image: (H, W, 3) uint8 in BGR, as OpenCV reads, of any size; or a picture file.

        Raises:
            UserError: not such a picture.
        """
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        batch, at = prepare(pixels, self.meta.input, self.meta.resize)
        outputs = self.run(batch)
        if self.meta.task == 'segmentation':
            labels = outputs[0][0]
            if self.meta.kind == 'logits':
                size = batch.shape[1:3] if self.meta.input.layout == 'NHWC' else batch.shape[2:]
                labels = class_map(labels, (size[0], size[1]))
            return map_in_picture(labels, at)
        if self.meta.kind == 'nms':
            boxes, scores, labels = outputs
            return in_picture(Detections(boxes, scores, labels.astype(np.int64)), at)
        assert self.meta.selection is not None
        return in_picture(select(outputs[0][0], outputs[1][0], self.meta.selection), at)

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        """Runs the bare net.

        Args:
            batch: What ``meta.input`` says.

        Returns:
            What ``meta.kind`` says.

        Raises:
            UserError: another shape or type.
        """
        to = self.meta.input
        sides = [_only(side) for side in to.size] if to.size else [range(to.divisor, sys.maxsize, to.divisor)] * 2
        pictures = range(1, sys.maxsize) if self.meta.any_number else _only(1)
        axes = [pictures, _only(3), *sides] if to.layout == 'NCHW' else [pictures, *sides, _only(3)]
        fits = batch.ndim == 4 and all(length in axis for length, axis in zip(batch.shape, axes, strict=True))
        if not fits or batch.dtype != to.dtype:
            wanted = ', '.join(map(_text, axes))
            raise UserError(f'this file takes ({wanted}) {to.dtype}, got {batch.shape} {batch.dtype}')
        return self.session(batch)


def _only(length: int) -> range:
    return range(length, length + 1)


def _text(axis: range) -> str:
    """The lengths that an axis may have, in words."""
    if len(axis) == 1:
        return str(axis.start)
    return 'any number' if axis.step == 1 else f'a multiple of {axis.step}'
