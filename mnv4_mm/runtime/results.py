"""Results: detections and class maps in pixels of the image, and their computation from the outputs of a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from mnv4_mm.errors import UserError
from mnv4_mm.runtime import draw
from mnv4_mm.runtime.meta import Selection
from mnv4_mm.runtime.preprocess import Placement


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections in an image, best first.

    Attributes:
        boxes: (K, 4) float32 as (x1, y1, x2, y2) in pixels of the image.
        scores: (K,) float32 in [0, 1].
        labels: (K,) int64, indices into ``classes``.
        classes: Class names.
        category_ids: Category id of each class in the data set; None if ids count from 1.
        image: (H, W, 3) uint8 BGR, the image the model was run on; None if it is not kept.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] | None = None
    image: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    def plot(self, image: np.ndarray | None = None, score_thr: float = 0.3) -> np.ndarray:
        """Draw the boxes with class names and scores.

        Args:
            image: (H, W, 3) uint8 BGR to draw on, which is copied; the image of the detections if left out.
            score_thr: Boxes with lower scores are not drawn.

        Returns:
            (H, W, 3) uint8 BGR.

        Raises:
            ValueError: There is no image to draw on.
        """
        shown = self.scores >= score_thr
        canvas = _canvas(self.image if image is None else image)
        return draw.draw_boxes(canvas, self.boxes[shown], self.labels[shown], self.scores[shown], self.classes)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return the detections in COCO's results format.

        Args:
            image_id: Id of the image in the data set.

        Returns:
            A dict per detection: ``image_id``, ``category_id``, ``bbox`` [x, y, width, height] in pixels of the image,
            and ``score``.
        """
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        return [
            dict(
                image_id=image_id,
                category_id=label + 1 if self.category_ids is None else self.category_ids[label],
                bbox=[x1, y1, x2 - x1, y2 - y1],
                score=score,
            )
            for (x1, y1, x2, y2), score, label in rows
        ]


@dataclass(frozen=True, eq=False)
class ClassMap:
    """The class of each pixel of an image.

    Attributes:
        class_map: (H, W) uint8, or int32 for more than 256 classes; indices into ``classes``.
        classes: Class names.
        palette: RGB of each class, 0 to 255; colours are chosen if it is empty.
        first_value: Value of the first class in the masks of the data set: 1 if 0 stands for unlabelled, else 0.
        image: (H, W, 3) uint8 BGR, the image the model was run on; None if it is not kept.
    """

    class_map: np.ndarray
    classes: tuple[str, ...] = ()
    palette: Sequence[Sequence[int]] = ()
    first_value: int = 0
    image: np.ndarray | None = field(default=None, repr=False)

    @property
    def colours(self) -> Sequence[Sequence[int]]:
        """RGB of each class: ``palette``, or chosen colours."""
        return self.palette or draw.palette(len(self.classes))

    def plot(self, image: np.ndarray | None = None, legend: bool = True) -> np.ndarray:
        """Lay the colours of the classes over the image.

        Args:
            image: (H, W, 3) uint8 BGR of the size of the class map to draw on, which is copied; the image of the class
                map if left out.
            legend: Add a column with the names of the classes that occur. It makes the image wider, and higher if the
                legend is higher than the image.

        Returns:
            (H', W', 3) uint8 BGR; (H, W, 3) without a legend.

        Raises:
            ValueError: There is no image to draw on.
        """
        drawn = draw.overlay(_canvas(self.image if image is None else image), self.class_map, self.colours)
        return draw.with_legend(drawn, [self.class_map], self.classes, self.colours) if legend else drawn

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return a segment for each class that occurs, in COCO's results format for stuff. Needs pycocotools.

        Args:
            image_id: Id of the image in the data set.

        Returns:
            A dict per class: ``image_id``, ``category_id`` (the value of the class in the masks of its data set), and
            ``segmentation``, the class's mask as pycocotools' compressed run-length encoding.

        Raises:
            UserError: pycocotools is not installed.
        """
        try:
            from pycocotools import mask
        except ImportError:
            raise UserError('run lengths of class maps need pycocotools: pip install pycocotools') from None
        segments = []
        for label in np.unique(self.class_map).tolist():
            run_lengths = mask.encode(np.asfortranarray(self.class_map == label, np.uint8))
            segmentation = dict(size=run_lengths['size'], counts=run_lengths['counts'].decode())
            segments.append(dict(image_id=image_id, category_id=label + self.first_value, segmentation=segmentation))
        return segments


def _canvas(image: np.ndarray | None) -> np.ndarray:
    if image is None:
        raise ValueError('these results carry no image: pass the one to draw on')
    return image


def class_map_type(classes: int) -> type[np.generic]:
    """Return the data type of class maps: uint8 for at most 256 classes, int32 for more."""
    return np.uint8 if classes <= 256 else np.int32


def select(boxes: np.ndarray, scores: np.ndarray, selection: Selection) -> Detections:
    """Apply score threshold and non-maximum suppression, class by class, as mmdet does.

    Before suppression, mmdet keeps the ``nms_pre`` best boxes of each level; this function keeps the
    ``selection.candidates`` best boxes of all levels together. If there are more boxes than that, the lowest-scoring
    detections can differ from mmdet's.

    Args:
        boxes: (A, 4) as (x1, y1, x2, y2) in pixels of the input.
        scores: (A, classes), without the background.
        selection: Thresholds and limits.

    Returns:
        Detections without class names, best first, their boxes in pixels of the input.
    """
    anchors, labels = np.nonzero(scores > selection.score_thr)
    boxes, scores = boxes[anchors], scores[anchors, labels]
    if selection.min_size >= 0:
        large = ((boxes[:, 2:] - boxes[:, :2]) > selection.min_size).all(axis=1)
        boxes, scores, labels = boxes[large], scores[large], labels[large]
    order = np.argsort(-scores, kind='stable')[: selection.candidates]
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
    # Only a box of higher score can suppress another one. So suppression starts with the best of tens of thousands of
    # boxes, and is repeated with more if too few are left.
    count = 10 * selection.max_per_img
    kept: np.ndarray = np.zeros(0, np.int64)
    while len(scores) and len(kept) < selection.max_per_img:
        # Any: OpenCV's stubs ask for lists. -1: the score threshold is already applied, and OpenCV's would also drop
        # scores equal to it.
        suppress: Any = cv2.dnn.NMSBoxesBatched
        first = slice(count)
        kept = np.asarray(suppress(corners[first], scores[first], labels[first], -1.0, selection.iou_thr), np.int64)
        if count >= len(scores):
            break
        count *= 4
    kept = np.sort(kept)[: selection.max_per_img]
    return Detections(boxes[kept], scores[kept], labels[kept].astype(np.int64))


def boxes_to_image(boxes: np.ndarray, placement: Placement) -> np.ndarray:
    """Convert boxes (K, 4) as (x1, y1, x2, y2) from pixels of the model's input to pixels of the image."""
    y, x = (original / placed for original, placed in zip(placement.original, placement.placed, strict=True))
    return boxes * np.array([x, y, x, y], np.float32)


def class_map(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Compute the class map of bilinearly upsampled logits (``align_corners=False``), without upsampling all of them.

    If the four positions around a pixel have the same best class, that class is also the best one of the interpolated
    logits. Therefore only the other pixels are interpolated. The result is exact; docs/export.md lists the time saved.

    Args:
        logits: (classes, h, w) float32.
        size: Height and width (H, W) of the class map: (h, w), or both multiplied by the same even factor.

    Returns:
        (H, W) uint8, or int32 for more than 256 classes.

    Raises:
        ValueError: ``size`` is not (h, w) multiplied by 1 or an even factor.
    """
    classes, h, w = logits.shape
    factor = size[0] // h
    if (h * factor, w * factor) != tuple(size) or (factor != 1 and factor % 2):
        raise ValueError(f'({h}, {w}) cannot be upsampled to {size}: one even factor is needed')
    best = logits.argmax(axis=0).astype(class_map_type(classes))
    if factor == 1:
        return best
    # A cell is the area between four neighbouring logits. Padding adds the cells between the outermost logits and the
    # edge of the map.
    best = np.pad(best, 1, 'edge')
    corners = np.stack([best[:-1, :-1], best[:-1, 1:], best[1:, :-1], best[1:, 1:]])  # (4, h + 1, w + 1)
    cells = np.repeat(corners[0], factor * factor).reshape(h + 1, w + 1, factor * factor)
    rows, columns = np.nonzero((corners != corners[0]).any(axis=0))
    if len(rows):
        at = np.pad(logits, ((0, 0), (1, 1), (1, 1)), 'edge').transpose(1, 2, 0)  # (h + 2, w + 2, classes)
        values = np.stack([at[rows + dy, columns + dx] for dy in (0, 1) for dx in (0, 1)], axis=1)  # (M, 4, classes)
        cells[rows, columns] = (corner_weights(factor) @ values).argmax(axis=2)
    full = cells.reshape(h + 1, w + 1, factor, factor).transpose(0, 2, 1, 3).reshape((h + 1) * factor, -1)
    edge = factor // 2
    return full[edge:-edge, edge:-edge]


def corner_weights(factor: int) -> np.ndarray:
    """Return the bilinear weights of the corners of a cell, the area between four neighbouring logits.

    Args:
        factor: Upsampling factor: a cell is ``factor`` pixels high and wide.

    Returns:
        (factor * factor, 4) float32: a row per pixel of the cell in row-major order, with the weights of the top left,
        top right, bottom left and bottom right corner.
    """
    t = (np.arange(factor, dtype=np.float32) + 0.5) / factor
    line = np.stack([1 - t, t])  # (2, factor)
    return np.einsum('ay,bx->yxab', line, line).reshape(factor * factor, 4)


def map_to_image(labels: np.ndarray, placement: Placement) -> np.ndarray:
    """Convert a class map from the size of the model's input to the size of the image.

    Crop the padding, then resize to the image by nearest neighbour.

    Args:
        labels: (H, W) class map of the padded input.
        placement: Size of the image before and in the input.

    Returns:
        (H', W') class map of the original image.
    """
    labels = np.ascontiguousarray(labels[: placement.placed[0], : placement.placed[1]])
    if placement.placed != placement.original:
        labels = cv2.resize(labels, placement.original[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return labels
