"""How far a file's outputs are from PyTorch's. Silent mistakes of converters show here, before any metric."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mnv4_mm.runtime.meta import Selection
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.results import Detections, class_map, select

# Share of detections that only one of two may have: of two boxes that overlap by as much as NMS allows, noise decides.
STRANGERS = 0.02
NEAR = 0.01  # a detection is another's if score and box (relative to the input's size) differ by less


@dataclass
class Difference:
    """What was found over some pictures.

    Attributes:
        largest: Raw outputs: the largest difference relative to the largest value. Detections: the larger of the
            scores' largest difference and the boxes', relative to the input's size, or the share that one of them does
            not have, if it is over ``STRANGERS``. Class maps: the share of other pixels.
        of: What it is of.
        vacuous: Why the comparison says nothing; empty if it does.
    """

    largest: float
    of: str
    vacuous: str = ''

    def text(self) -> str:
        return f'{self.largest:.1e} ({self.of})'


def difference(by: Predictor, predictor: Predictor, inputs: Iterable[np.ndarray]) -> Difference:
    """Runs both on the same inputs.

    Args:
        by: PyTorch, ending in raw boxes and scores, or in logits.
        predictor: The file.
        inputs: As both take them.
    """
    kind, how = predictor.meta.kind, predictor.meta.selection
    largest, distinct = 0.0, False
    classes: set[int] = set()
    for batch in inputs:
        expected, found = by.run(batch), predictor.run(batch)
        if kind == 'nms':
            assert how is not None
            best = select(expected[0][0], expected[1][0], how)
            distinct |= len(best.scores) > 0 and len(np.unique(best.scores)) >= len(best.scores) / 2
            size = max(batch.shape[1:])
            largest = max(largest, _detections(best, Detections(found[0], found[1], found[2]), how, size))
        elif kind == 'class_map':
            size = batch.shape[1:3] if predictor.meta.input.layout == 'NHWC' else batch.shape[2:]
            labels = class_map(expected[0][0], (size[0], size[1]))
            classes.update(np.unique(labels).tolist())
            largest = max(largest, float((labels != found[0][0]).mean()))
        else:
            for a, b in zip(expected, found, strict=True):
                if a.shape != b.shape:
                    raise ValueError(f'outputs of other shapes: {b.shape} where PyTorch has {a.shape}')
                # NaN compares as different, too.
                gap = np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)
                largest = max(largest, float(gap)) if gap == gap else float('inf')
    # With untrained weights nothing is above the threshold, or all scores are alike: then everything agrees.
    vacuous = ''
    if kind == 'nms' and not distinct:
        vacuous = 'PyTorch finds nothing, or scores are alike: an untrained net? Nothing is compared'
    elif kind == 'class_map' and len(classes) < 2:
        vacuous = 'PyTorch finds the same class everywhere: an untrained net? Nothing is compared'
    of = {'nms': 'detections', 'class_map': 'pixels'}.get(kind, 'raw')
    return Difference(largest, of, vacuous)


def _detections(expected: Detections, found: Detections, how: Selection, size: int) -> float:
    """See ``Difference.largest``; each detection is paired with the nearest one of its label that is left."""
    gaps, strangers = [0.0], 0
    left = np.ones(len(expected.scores), bool)
    # What is within noise of the last one's score may be in one list and not in the other.
    full = how.max_per_img <= len(expected.scores)
    certain = (expected.scores.min() if full else how.score_thr) + 1e-3
    for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
        same = np.flatnonzero(left & (expected.labels == label))
        if len(same):
            gap = np.abs(expected.boxes[same] - box).max(axis=1) / size
            both = np.maximum(gap, np.abs(expected.scores[same] - score))
            if both.min() <= NEAR:
                gaps.append(float(both.min()))
                left[same[both.argmin()]] = False
                continue
        strangers += bool(score > certain)
    strangers += int((left & (expected.scores > certain)).sum())
    share = strangers / max(1, len(expected.scores))
    return max(*gaps, share if share > STRANGERS else 0.0)
