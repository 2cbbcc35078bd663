"""How far a file's outputs are from PyTorch's. Silent mistakes of converters show here, before any metric."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mnv4_mm.deploy.predictor import Predictor
from mnv4_mm.deploy.results import Detections, class_map, select


@dataclass
class Difference:
    """What was found over some pictures.

    Attributes:
        largest: Raw outputs: the largest difference relative to the largest value. Detections: the larger of the
            scores' largest difference and the boxes', relative to the input's size, or the share that one of them does
            not have. Class maps: the share of other pixels.
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
    kind = predictor.meta.kind
    largest, vacuous = 0.0, ''
    for batch in inputs:
        expected, found = by.run(batch), predictor.run(batch)
        if kind == 'nms':
            assert predictor.meta.selection is not None
            best = select(expected[0][0], expected[1][0], predictor.meta.selection)
            # With untrained weights nothing is above the threshold, or all scores are alike: then everything agrees.
            if len(best.scores) == 0 or len(np.unique(best.scores)) < len(best.scores) / 2:
                vacuous = 'PyTorch finds nothing, or scores are alike: an untrained net? Nothing is compared'
            size = max(batch.shape[1:])
            largest = max(largest, _detections(best, Detections(found[0], found[1], found[2]), size))
        elif kind == 'class_map':
            size = batch.shape[1:3] if predictor.meta.input.layout == 'NHWC' else batch.shape[2:]
            labels = class_map(expected[0][0], (size[0], size[1]))
            largest = max(largest, float((labels != found[0][0]).mean()))
        else:
            for a, b in zip(expected, found, strict=True):
                if a.shape != b.shape:
                    raise ValueError(f'outputs of other shapes: {b.shape} where PyTorch has {a.shape}')
                # NaN compares as different, too.
                gap = np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)
                largest = max(largest, float(gap)) if gap == gap else float('inf')
    return Difference(largest, {'nms': 'detections', 'class_map': 'pixels'}.get(kind, 'raw'), vacuous)


def _detections(expected: Detections, found: Detections, size: int) -> float:
    """See ``Difference.largest``; detections are paired by label and nearest box."""
    gaps, strangers = [0.0], 0
    # What is near the end of the list may be in one and not in the other.
    for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
        same = expected.labels == label
        if not same.any():
            strangers += 1
            continue
        gap = np.abs(expected.boxes[same] - box).max(axis=1) / size
        both = np.maximum(gap, np.abs(expected.scores[same] - score))
        if both.min() > 0.01:
            strangers += 1
        else:
            gaps.append(float(both.min()))
    share = (strangers + abs(len(expected.scores) - len(found.scores))) / max(1, len(expected.scores))
    return max(max(gaps), share)
