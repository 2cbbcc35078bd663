"""What an exported file gives -> detections or a class map in pixels of the picture. Needs numpy and OpenCV only."""

from typing import Any, NamedTuple

import cv2
import numpy as np

from mnv4_mm.runtime.meta import Selection
from mnv4_mm.runtime.preprocess import Placement


class Detections(NamedTuple):
    """What was found, best first.

    Attributes:
        boxes: (K, 4) float32 as (x1, y1, x2, y2) in pixels of the picture.
        scores: (K,) float32 in [0, 1].
        labels: (K,) int64.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class ClassMap(NamedTuple):
    """The class of each pixel.

    Attributes:
        labels: (H, W) uint8, or int32 for more than 256 classes.
    """

    labels: np.ndarray


def select(boxes: np.ndarray, scores: np.ndarray, how: Selection) -> Detections:
    """Thresholds and suppresses the boxes of one picture as mmdet does, class by class.

    mmdet looks at the ``nms_pre`` best of each level, this at as many in all: the end of a long list can differ.

    Args:
        boxes: (A, 4).
        scores: (A, classes).
        how: The thresholds.

    Returns:
        Detections, their boxes still in pixels of the input.
    """
    anchors, labels = np.nonzero(scores > how.score_thr)
    boxes, scores = boxes[anchors], scores[anchors, labels]
    if how.min_size >= 0:
        large = ((boxes[:, 2:] - boxes[:, :2]) > how.min_size).all(axis=1)
        boxes, scores, labels = boxes[large], scores[large], labels[large]
    order = np.argsort(-scores, kind='stable')[: how.candidates]
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
    # Which of the best stay does not depend on worse ones, and of these there can be tens of thousands.
    looked_at = 10 * how.max_per_img
    best: np.ndarray = np.zeros(0, np.int64)
    while len(scores) and len(best) < how.max_per_img:
        # Its stubs ask for lists. -1: it would drop scores equal to its threshold, and they have been chosen already.
        suppress: Any = cv2.dnn.NMSBoxesBatched
        some = slice(looked_at)
        best = np.asarray(suppress(corners[some], scores[some], labels[some], -1.0, how.iou_thr), np.int64)
        if looked_at >= len(scores):
            break
        looked_at *= 4
    best = np.sort(best)[: how.max_per_img]
    return Detections(boxes[best], scores[best], labels[best].astype(np.int64))


def in_picture(found: Detections, at: Placement) -> Detections:
    """Moves boxes from pixels of the input to pixels of the picture."""
    high, wide = (original / placed for original, placed in zip(at.original, at.placed, strict=True))
    return found._replace(boxes=found.boxes * np.array([wide, high, wide, high], np.float32))


def class_map(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The best class at each pixel of logits that are enlarged bilinearly (``align_corners=False``), fast and exact.

    Where the four places around a pixel have the same best class, that class is the best of all that lies between, so
    that only the other pixels are computed: see docs/export.md for what it saves.

    Args:
        logits: (classes, h, w).
        size: Height and width of the map, whole multiples of h and w by one even factor, or h and w themselves.

    Returns:
        (H, W) uint8, or int32 for more than 256 classes.

    Raises:
        ValueError: sizes that do not fit.
    """
    classes, h, w = logits.shape
    dtype = np.uint8 if classes <= 256 else np.int32
    factor = size[0] // h
    if (h * factor, w * factor) != tuple(size) or (factor != 1 and factor % 2):
        raise ValueError(f'({h}, {w}) cannot be enlarged to {size}: one even factor is needed')
    best = logits.argmax(axis=0).astype(dtype)
    if factor == 1:
        return best
    # Cells lie between the places of the logits, and around them those between an edge and the places next to it.
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
    """Bilinear weights of a cell's four corners (top left, top right, bottom left, bottom right).

    Returns:
        (factor * factor, 4) float32, a row a pixel.
    """
    t = (np.arange(factor, dtype=np.float32) + 0.5) / factor
    line = np.stack([1 - t, t])  # (2, factor)
    return np.einsum('ay,bx->yxab', line, line).reshape(factor * factor, 4)


def map_in_picture(labels: np.ndarray, at: Placement) -> ClassMap:
    """Cuts the picture's part out of a map of the input and brings it to the picture's size; the nearest class."""
    labels = np.ascontiguousarray(labels[: at.placed[0], : at.placed[1]])
    if at.placed != at.original:
        labels = cv2.resize(labels, at.original[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return ClassMap(labels)
