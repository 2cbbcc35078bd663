"""Expected values for a sample image, to test code that runs an exported file on a device."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mnv4_mm.images import read_image
from mnv4_mm.runtime.meta import OUTPUTS, sha256
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.preprocess import prepare
from mnv4_mm.runtime.results import Detections

COUNT = 5  # values of each kind


def sample(predictor: Predictor, path: Path) -> dict[str, Any]:
    """Return input, raw outputs and results for an image, as numbers to compare with.

    Args:
        predictor: The exported file, or PyTorch with its input and ``raw`` or ``logits`` outputs.
        path: The image.

    Returns:
        ``of``: the runtime that computed the numbers, or ``pytorch``; ``input`` and ``outputs``: shape, mean, and the
        values at the middle of each axis but the last; ``results``: the first boxes, scores and labels, or the share
        of each class in the class map.
    """
    meta = predictor.meta
    batch, placement = prepare(read_image(path), meta.input, meta.resize)
    outputs = dict(zip(OUTPUTS[meta.kind], predictor.run(batch), strict=True))
    return dict(
        of=meta.target,
        image=path.name,
        sha256=sha256(path),
        placed=placement.placed,
        input=_digest(batch),
        outputs={name: _digest(value) for name, value in outputs.items()},
        results=_results(predictor, path),
    )


def _digest(value: np.ndarray) -> dict[str, Any]:
    if not value.size:  # no detections
        return dict(shape=value.shape, mean=0.0, middle=[])
    middle = value[tuple(side // 2 for side in value.shape[:-1])]
    return dict(shape=value.shape, mean=float(value.mean()), middle=[float(item) for item in middle[:COUNT]])


def _results(predictor: Predictor, path: Path) -> dict[str, Any]:
    result = predictor(path)
    if isinstance(result, Detections):
        return {name: getattr(result, name)[:COUNT].tolist() for name in ('boxes', 'scores', 'labels')}
    labels, counts = np.unique(result.class_map, return_counts=True)
    order = np.argsort(-counts)[:COUNT]
    return dict(labels=labels[order].tolist(), share=(counts[order] / result.class_map.size).tolist())


def write_sample(predictor: Predictor, image: Path, path: Path) -> Path:
    """Write ``<file>.sample.json`` beside an exported file and return its path."""
    out = path.with_name(f'{path.name}.sample.json')
    out.write_text(json.dumps(sample(predictor, image), indent=1))
    return out
