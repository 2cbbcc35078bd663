"""Expected values for a sample image, to test code that runs an exported file on a device."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from mnv4_mm.deploy.verify import outputs_as
from mnv4_mm.images import read_image, write_image
from mnv4_mm.runtime.meta import OUTPUTS, Precision, sha256
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.preprocess import prepare
from mnv4_mm.runtime.results import Detections

COUNT = 5  # number of values, detections or classes that are listed
# Tolerances for code under test. With the given input, only the arithmetic of another CPU differs. If the code decodes
# and resizes the image itself, pixels differ by one or two units, and scores by 0.02.
GIVEN_INPUT: dict[Precision, float] = {'fp32': 0.001, 'fp16': 0.01, 'bf16': 0.05, 'int8': 0.05}
OWN_INPUT = dict(input_mean=0.5, scores=0.05, boxes=0.02, share=0.02)


def sample(predictor: Predictor | None, pytorch: Predictor, path: Path) -> dict[str, Any]:
    """Compute reference values for one image, to test code that runs the exported file on a device.

    Args:
        predictor: The exported file; None if it cannot run on this machine.
        pytorch: The PyTorch model with the input of the file and ``raw`` or ``logits`` outputs, see
            ``graph.reference``.
        path: The image file.

    Returns:
        A dictionary for JSON. Its main keys:

        - ``of``: the runtime that computed the numbers, or ``pytorch``.
        - ``input``, and each of the ``outputs``: shape, mean and ``middle``, the first five values along the last axis
          at the middle of all other axes.
        - ``results``: the best five detections, with boxes (x1, y1, x2, y2) in pixels of the image; or the labels of
          the five largest classes of the class map and their shares of the pixels.
        - ``pytorch``: ``outputs`` and ``results`` of PyTorch.
        - ``tolerance``: largest differences of a client that pass, as ``given_input`` if the client takes the input
          from the PNG of ``write_sample``, and as ``own_input`` if the client itself decodes and resizes the image.
          Differences of scores, shares and the mean of the input are absolute. Those of boxes are relative to the
          longer side of the input (for ``outputs``) or of the image (for ``results``).

    Raises:
        UserError: The image cannot be read.
    """
    running = predictor or pytorch
    meta = running.meta
    batch, placement = prepare(read_image(path), meta.input, meta.resize)
    names = OUTPUTS[meta.kind]
    given = GIVEN_INPUT[meta.precision]
    return dict(
        of=meta.target,
        image=path.name,
        sha256=sha256(path),
        placed=placement.placed,
        input=_digest(batch),
        outputs=_digests(names, running.run(batch)),
        results=_results(running, path),
        pytorch=dict(outputs=_digests(names, outputs_as(meta.kind, pytorch, batch)), results=_results(pytorch, path)),
        tolerance=dict(given_input=dict(scores=given, boxes=given, share=given), own_input=OWN_INPUT),
    )


def _digests(names: tuple[str, ...], values: list[np.ndarray]) -> dict[str, Any]:
    return {name: _digest(value) for name, value in zip(names, values, strict=True)}


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


def write_sample(predictor: Predictor | None, pytorch: Predictor, image: Path, path: Path) -> list[Path]:
    """Write ``<file>.sample.json`` and ``<file>.sample.png`` beside an exported file.

    The JSON holds what ``sample`` returns, and name and SHA-256 of the PNG. The PNG holds the pixels of the input,
    resized and padded but not normalised. The results of a client that starts from the PNG do not depend on how the
    client decodes and resizes a JPEG.

    Args:
        predictor: See ``sample``.
        pytorch: See ``sample``.
        image: The image file.
        path: The exported file.

    Returns:
        The paths of the JSON and the PNG.

    Raises:
        UserError: The image cannot be read, or the PNG cannot be written.
    """
    out, png = (path.with_name(f'{path.name}.sample.{suffix}') for suffix in ('json', 'png'))
    content = sample(predictor, pytorch, image)
    to = dataclasses.replace(pytorch.meta.input, normalise=False, layout='NHWC', dtype='uint8')
    pixels = prepare(read_image(image), to, pytorch.meta.resize)[0][0]
    write_image(png, pixels[..., ::-1] if to.channel_order == 'RGB' else pixels)
    content['input'].update(file=png.name, sha256=sha256(png))
    out.write_text(json.dumps(content, indent=1))
    return [out, png]
