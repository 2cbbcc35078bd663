"""Differences between the outputs of an exported file and PyTorch. They show conversion errors that AP may hide."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mnv4_mm.runtime.meta import Selection
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.results import Detections, class_map, select

# Share of detections that may have no match: if the IoU of two boxes is near the threshold of NMS, noise decides.
MAX_UNMATCHED = 0.02
MATCH_TOLERANCE = 0.01  # largest difference of scores and boxes (relative to the input size) of matching detections


@dataclass
class Difference:
    """Difference between the outputs of an exported file and of PyTorch over some images.

    Attributes:
        largest: The difference in the image where it is largest, by the kind of the outputs:

            - Raw outputs and logits: largest absolute difference, relative to the largest absolute value of PyTorch's
              output; infinity if the difference is NaN.
            - Detections: largest difference of the scores, or of the boxes relative to the longer side of the input,
              of matching detections. It is replaced by the number of detections without a match, divided by the number
              of PyTorch's detections, if this share is larger and above ``MAX_UNMATCHED``.
            - Class maps: share of pixels that differ.
        kind: ``raw`` for raw outputs and logits, ``detections``, or ``pixels`` for class maps.
        inconclusive: Why the comparison proves nothing; empty if it is conclusive.
    """

    largest: float
    kind: str
    inconclusive: str = ''

    def __str__(self) -> str:
        return f'{self.largest:.1e} ({self.kind})'


def difference(reference: Predictor, predictor: Predictor, inputs: Iterable[np.ndarray]) -> Difference:
    """Run two predictors on the same inputs and measure how much their outputs differ.

    Args:
        reference: The PyTorch model, with raw boxes and scores, or logits, as outputs, see ``graph.reference``.
        predictor: The exported file, with outputs of any kind. ``select`` or ``class_map`` converts the outputs of
            PyTorch to that kind.
        inputs: Batches of one image each, as ``predictor.meta.input`` describes them.

    Returns:
        The difference. The comparison is inconclusive if PyTorch detects nothing, if most of its scores are equal in
        every image, or if its class maps have the same class everywhere.

    Raises:
        ValueError: Raw outputs or logits have different shapes.
    """
    kind, selection = predictor.meta.kind, predictor.meta.selection
    largest, scores_differ = 0.0, False
    classes: set[int] = set()
    for batch in inputs:
        expected, actual = reference.run(batch), predictor.run(batch)
        if kind == 'nms':
            assert selection is not None
            detections = select(expected[0][0], expected[1][0], selection)
            scores = detections.scores
            scores_differ |= len(scores) > 0 and len(np.unique(scores)) >= len(scores) / 2
            size = max(batch.shape[1:])
            largest = max(
                largest, detection_difference(detections, Detections(actual[0], actual[1], actual[2]), selection, size)
            )
        elif kind == 'class_map':
            size = batch.shape[1:3] if predictor.meta.input.layout == 'NHWC' else batch.shape[2:]
            labels = class_map(expected[0][0], (size[0], size[1]))
            classes.update(np.unique(labels).tolist())
            largest = max(largest, float((labels != actual[0][0]).mean()))
        else:
            for a, b in zip(expected, actual, strict=True):
                if a.shape != b.shape:
                    raise ValueError(f'outputs of shape {b.shape} instead of {a.shape} as in PyTorch')
                relative = float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12))
                largest = max(largest, float('inf') if np.isnan(relative) else relative)
    # With untrained weights, no score reaches the threshold, or most are equal. Then any file would match.
    inconclusive = ''
    if kind == 'nms' and not scores_differ:
        inconclusive = 'PyTorch has no detections, or most scores are equal (untrained net?): nothing is compared'
    elif kind == 'class_map' and len(classes) < 2:
        inconclusive = 'PyTorch has the same class everywhere (untrained net?): nothing is compared'
    return Difference(largest, {'nms': 'detections', 'class_map': 'pixels'}.get(kind, 'raw'), inconclusive)


def detection_difference(expected: Detections, actual: Detections, selection: Selection, size: int) -> float:
    """Measure the difference of two lists of detections, see ``Difference.largest``.

    Each detection is matched with the nearest unmatched one of the same label.

    Args:
        expected: Detections of PyTorch.
        actual: Detections of the exported file.
        selection: Settings by which both were selected.
        size: Longer side of the input in pixels.

    Returns:
        ``Difference.largest`` of one image.
    """
    matches = match_detections(expected, actual, selection, size)
    share = (len(matches.missing) + len(matches.extra)) / max(1, len(expected.scores))
    return max(matches.largest, share if share > MAX_UNMATCHED else 0.0)


class Matches(NamedTuple):
    """Result of matching the detections of an exported file with those of PyTorch.

    Attributes:
        largest: Largest difference of two matching detections, in scores or in boxes relative to the input.
        missing: Indices of confident detections of PyTorch without a match.
        extra: Indices of confident detections of the file without a match.
        confident: Number of confident detections in the list that has more of them.
    """

    largest: float
    missing: list[int]
    extra: list[int]
    confident: int


def match_detections(
    expected: Detections,
    actual: Detections,
    selection: Selection,
    size: int,
    tolerance: float = MATCH_TOLERANCE,
    margin: float = 1e-3,
) -> Matches:
    """Match two lists of detections, see ``detection_difference``.

    Args:
        expected: Detections of PyTorch.
        actual: Detections of the exported file.
        selection: Settings by which both were selected.
        size: Longer side of the input in pixels.
        tolerance: Two detections match if their scores and boxes (relative to ``size``) differ by at most this.
        margin: Detections are confident if their score is above the lowest possible score (the score threshold, or the
            lowest score of ``expected`` if that list is full) by more than this.

    Returns:
        The matches.
    """
    differences, extra = [0.0], []
    free = np.ones(len(expected.scores), bool)
    is_full = selection.max_per_img <= len(expected.scores)
    lowest = (expected.scores.min() if is_full else selection.score_thr) + margin
    for i, (box, score, label) in enumerate(zip(actual.boxes, actual.scores, actual.labels, strict=True)):
        candidates = np.flatnonzero(free & (expected.labels == label))
        if len(candidates):
            box_difference = np.abs(expected.boxes[candidates] - box).max(axis=1) / size
            distance = np.maximum(box_difference, np.abs(expected.scores[candidates] - score))
            if distance.min() <= tolerance:
                differences.append(float(distance.min()))
                free[candidates[distance.argmin()]] = False
                continue
        if score > lowest:
            extra.append(i)
    missing = np.flatnonzero(free & (expected.scores > lowest)).tolist()
    confident = max(int((detections.scores > lowest).sum()) for detections in (expected, actual))
    return Matches(max(differences), missing, extra, confident)
