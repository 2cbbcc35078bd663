"""What an exported file must give for a sample picture: for those who write the code around it on a device."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mnv4_mm.runtime.meta import OUTPUTS, sha256
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.preprocess import prepare, read_image
from mnv4_mm.runtime.results import Detections

FIRST = 5  # so many of each are written


def sample(by: Predictor, picture: Path) -> dict[str, Any]:
    """Input, raw outputs and results for a picture, as numbers to compare with.

    Args:
        by: The file, or PyTorch with its input and a ``raw`` or ``logits`` end.
        picture: The picture.

    Returns:
        ``of``: ``pytorch``, or the runtime whose numbers they are; ``input`` and ``outputs``: shape, mean, and the
        values at the middle of each axis but the last;
        ``results``: the first boxes, scores and labels, or the share of each class in the map.
    """
    batch, at = prepare(read_image(picture), by.meta.input, by.meta.resize)
    values = dict(zip(OUTPUTS[by.meta.kind], by.run(batch), strict=True))
    return dict(
        of=by.meta.target,
        picture=picture.name,
        sha256=sha256(picture),
        placed=at.placed,
        input=_digest(batch),
        outputs={name: _digest(value) for name, value in values.items()},
        results=_results(by, picture),
    )


def _digest(value: np.ndarray) -> dict[str, Any]:
    if not value.size:  # nothing was found
        return dict(shape=value.shape, mean=0.0, middle=[])
    middle = value[tuple(side // 2 for side in value.shape[:-1])]
    return dict(shape=value.shape, mean=float(value.mean()), middle=[float(item) for item in middle[:FIRST]])


def _results(by: Predictor, picture: Path) -> dict[str, Any]:
    found = by(picture)
    if isinstance(found, Detections):
        return {name: value[:FIRST].tolist() for name, value in found._asdict().items()}
    labels, counts = np.unique(found.labels, return_counts=True)
    order = np.argsort(-counts)[:FIRST]
    return dict(labels=labels[order].tolist(), share=(counts[order] / found.labels.size).tolist())


def write_sample(by: Predictor, picture: Path, path: Path) -> Path:
    """Writes ``<file>.sample.json``; returns its path."""
    out = path.with_name(f'{path.name}.sample.json')
    out.write_text(json.dumps(sample(by, picture), indent=1))
    return out
