"""Predictor: an image in, detections or a class map out, whatever the runtime."""

import sys
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import numpy as np

from mnv4_mm.errors import UserError
from mnv4_mm.images import decode_image
from mnv4_mm.runtime.meta import Meta, read_meta, sidecar
from mnv4_mm.runtime.preprocess import Placement, prepare, prepare_reduced, to_pixels
from mnv4_mm.runtime.results import ClassMap, Detections, boxes_to_image, class_map, map_to_image, select
from mnv4_mm.runtime.sessions import RUNTIMES, Session


def load(path: str | Path, threads: int | None = None, *, fast_jpeg: bool = False) -> 'Predictor':
    """Load an exported file.

    Args:
        path: The file; its JSON must be beside it.
        threads: Number of threads of the runtime; None for the default, see ``Runtime.session``.
        fast_jpeg: See ``Predictor``.

    Returns:
        The model, which takes images and returns detections or class maps.

    Raises:
        UserError: The file is missing or damaged, or its runtime is not installed, does not run on this operating
            system or cannot load the file.
    """
    path = Path(path)
    meta = read_meta(path)
    if meta.target not in RUNTIMES:
        raise UserError(f'{sidecar(path)} cannot be read: there is no runtime {meta.target!r}')
    runtime = RUNTIMES[meta.target]
    absent = runtime.absent()
    if absent:
        raise UserError(absent)
    return Predictor(meta, runtime.session(path, meta, threads), fast_jpeg=fast_jpeg)


class ImagePredictor(ABC):
    """A model that takes images, whatever runs it: PyTorch (``apis.model.TorchPredictor``) or a runtime.

    Attributes:
        task: ``detection`` or ``segmentation``.
        classes: Class names, in the order of labels.
    """

    task: str
    classes: tuple[str, ...]

    def __call__(self, image: np.ndarray | str | Path) -> Detections | ClassMap:
        """Detect or segment.

        Args:
            image: (H, W, 3) uint8 BGR, as OpenCV reads, of any size; or an image file.

        Returns:
            Detections or a class map in pixels of the image. Its ``image`` is the given array, not a copy.

        Raises:
            UserError: The array has another shape or type or is empty, or the file is not a readable image.
        """
        return self.predict(to_pixels(image))

    @abstractmethod
    def predict(self, pixels: np.ndarray) -> Detections | ClassMap:
        """Detect or segment in an image that has been read and checked, see ``__call__``.

        Args:
            pixels: (H, W, 3) uint8 BGR.

        Returns:
            Detections or a class map in pixels of the image, with ``pixels`` as its ``image``.
        """


class Predictor(ImagePredictor):
    """An exported model with its preprocessing and postprocessing.

    Args:
        meta: Metadata of the exported file.
        session: Function that runs the model, see ``sessions.base.Session``.
        fast_jpeg: Decode JPEG files at a half, quarter or eighth of their size if they are resized to no more than
            that. This is faster and changes the results a little. Results of files then have no ``image``.
    """

    def __init__(self, meta: Meta, session: Session, *, fast_jpeg: bool = False) -> None:
        self.meta = meta
        self.session = session
        self.fast_jpeg = fast_jpeg
        self.task = meta.task
        self.classes = meta.classes

    def __call__(self, image: np.ndarray | str | Path) -> Detections | ClassMap:
        if not self.fast_jpeg or isinstance(image, np.ndarray):
            return super().__call__(image)
        batch, placement = self.prepare(image)
        return self.finish(self.run(batch), placement)

    def predict(self, pixels: np.ndarray) -> Detections | ClassMap:
        batch, placement = self.prepare(pixels)
        return replace(self.finish(self.run(batch), placement), image=pixels)

    def prepare(self, image: np.ndarray | str | Path | bytes, name: str | Path = '') -> tuple[np.ndarray, Placement]:
        """Read an image and make it the input of the model.

        Args:
            image: (H, W, 3) uint8 BGR; or an image file, or the content of one.
            name: Name of the image for messages; not needed for a file.

        Returns:
            The input batch and the image's placement in it, see ``preprocess.prepare``.

        Raises:
            UserError: The array has another shape or type or is empty, or the file is not a readable image.
        """
        to, resize = self.meta.input, self.meta.resize
        if self.fast_jpeg and not isinstance(image, np.ndarray):
            return prepare_reduced(image, to, resize, name)
        return prepare(decode_image(image, name) if isinstance(image, bytes) else to_pixels(image), to, resize)

    def finish(self, outputs: list[np.ndarray], placement: Placement, index: int = 0) -> Detections | ClassMap:
        """Turn the outputs of ``run`` into results.

        Args:
            outputs: Outputs of the model, as ``run`` returns them.
            placement: Size of the image before and in the input, as ``preprocess.prepare`` returns it.
            index: Index of the image in the batch; not used for ``nms`` outputs, whose batch size is 1.

        Returns:
            Detections or a class map in pixels of the image, without the image.
        """
        meta = self.meta
        if meta.task == 'segmentation':
            labels = outputs[0][index]
            if meta.kind == 'logits':
                labels = class_map(labels, placement.size)
            return ClassMap(map_to_image(labels, placement), meta.classes, meta.palette or (), meta.first_value)
        if meta.kind == 'nms':
            boxes, scores, labels = outputs
            selected = Detections(boxes, scores, labels.astype(np.int64))
        else:
            assert meta.selection is not None
            selected = select(outputs[0][index], outputs[1][index], meta.selection)
        boxes = boxes_to_image(selected.boxes, placement)
        return replace(selected, boxes=boxes, classes=meta.classes, category_ids=meta.category_ids)

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run the model without preprocessing and postprocessing.

        Args:
            batch: Input batch in the size, layout and type that ``meta.input`` describes. The batch size must be 1
                unless ``meta.dynamic_batch`` is True.

        Returns:
            Outputs, as ``Meta.kind`` describes them, in the order of ``meta.OUTPUTS``.

        Raises:
            UserError: The input has another shape or type.
        """
        to = self.meta.input
        sides = [_exactly(side) for side in to.size] if to.size else [range(to.divisor, sys.maxsize, to.divisor)] * 2
        count = range(1, sys.maxsize) if self.meta.dynamic_batch else _exactly(1)
        axes = [count, _exactly(3), *sides] if to.layout == 'NCHW' else [count, *sides, _exactly(3)]
        fits = batch.ndim == 4 and all(length in axis for length, axis in zip(batch.shape, axes, strict=True))
        if not fits or batch.dtype != to.dtype:
            required = ', '.join(map(_text, axes))
            raise UserError(f'this file takes ({required}) {to.dtype}, got {batch.shape} {batch.dtype}')
        return self.session(batch)


def _exactly(length: int) -> range:
    return range(length, length + 1)


def _text(axis: range) -> str:
    """Describe the lengths that an axis may have."""
    if len(axis) == 1:
        return str(axis.start)
    return 'any number' if axis.step == 1 else f'a multiple of {axis.step}'
