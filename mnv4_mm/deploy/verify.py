"""Comparison of an exported file with PyTorch, to refuse files that differ by more than rounding explains.

``LIMITS`` separates the rounding of each precision from conversion errors. The loss of accuracy is not measured here
but by ``mnv4 compare``.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import box_iou

from mnv4_mm.data.formats.files import first
from mnv4_mm.deploy.difference import Matches, match_detections
from mnv4_mm.deploy.graph import Graph
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Kind, Precision
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.results import Detections, class_map, select

MAX_IMAGES = 4
HALF_MAX = 65504  # the largest number of fp16


class MismatchError(UserError):
    """A file differs from PyTorch by more than its precision explains, or weights overflow in its precision."""


class Limits(NamedTuple):
    """Largest differences from PyTorch that pass.

    Attributes:
        outputs: Raw outputs and logits: root mean square error, relative to the standard deviation of PyTorch's
            outputs.
        pixels: Class maps: share of pixels that differ.
        match: Detections match if their scores, and their boxes relative to the longer side of the input, differ by at
            most this.
        unmatched: Number of detections of PyTorch and of the file without a match, divided by the larger number of
            detections of the two. It can reach 2. Only confident detections are counted, whose score is more than
            ``match`` above the lowest possible one: rounding can move weaker ones below the threshold. Two detections
            of one object between which non-maximum suppression can choose either way are not counted.
    """

    outputs: float
    pixels: float
    match: float
    unmatched: float


LIMITS: dict[Precision, Limits] = {
    'fp32': Limits(outputs=0.001, pixels=0.01, match=0.01, unmatched=0.02),
    'fp16': Limits(outputs=0.1, pixels=0.05, match=0.05, unmatched=0.1),
    'bf16': Limits(outputs=0.3, pixels=0.1, match=0.1, unmatched=0.2),
    'int8': Limits(outputs=0.7, pixels=0.4, match=0.25, unmatched=0.5),
}


class Verification(NamedTuple):
    """Result of a comparison.

    Attributes:
        difference: Difference from PyTorch, see ``Limits``.
        limit: Largest difference that passes.
        measure: Name of the measured difference, for messages.
        inconclusive: Reason why the comparison proves nothing; empty if it is conclusive.
    """

    difference: float
    limit: float
    measure: str
    inconclusive: str = ''

    @property
    def passes(self) -> bool:
        """True if the difference is within the limit; False if it is NaN."""
        return self.difference <= self.limit

    def __str__(self) -> str:
        return f'{self.measure} {self.difference:.2g}, limit {self.limit:g}'


def verify(pytorch: Predictor, predictor: Predictor, inputs: Sequence[np.ndarray]) -> Verification:
    """Compare the outputs of an exported file with those of the PyTorch model on the same inputs.

    If the file returns detections or a class map, PyTorch's outputs are converted to the same form first.

    Args:
        pytorch: The PyTorch model, which returns raw boxes and scores, or logits; see ``graph.reference``.
        predictor: The exported file.
        inputs: Batches of real images, one image each, as ``predictor.meta.input`` describes them. At least one.

    Returns:
        The comparison, with the limit for the precision of the file. Its ``difference`` is one of these, see
        ``Limits``:

        - raw outputs and logits: the largest ``outputs`` of an output in an image;
        - detections: ``unmatched``, with the numbers added up over the images;
        - class maps: the mean of ``pixels`` over the images.

    Raises:
        UserError: PyTorch's outputs are not finite, or raw outputs or logits have other shapes than PyTorch's.
    """
    limits = LIMITS[predictor.meta.precision]
    pairs = []
    for batch in inputs:
        expected = pytorch.run(batch)
        if not all(np.isfinite(value).all() for value in expected):
            raise UserError('the outputs of PyTorch are not finite: the training has probably diverged')
        pairs.append((batch, expected, predictor.run(batch)))
    if predictor.meta.kind == 'nms':
        return _compare_detections(predictor, pairs, limits)
    if predictor.meta.kind == 'class_map':
        return _compare_class_maps(predictor, pairs, limits)
    worst = 0.0
    for _, expected, actual in pairs:
        for a, b in zip(expected, actual, strict=True):
            if a.shape != b.shape:
                raise UserError(f'outputs of shape {b.shape} instead of {a.shape} as in PyTorch')
            error = np.sqrt(np.mean(np.square(a - b, dtype=np.float64)))
            scale = max(float(a.std(dtype=np.float64)), 1e-3 * float(np.abs(a).max()), 1e-12)
            worst = float(np.maximum(worst, error / scale))  # keeps NaN
    return Verification(worst, limits.outputs, 'error of the outputs relative to their standard deviation')


Pairs = Sequence[tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]]


def _compare_detections(predictor: Predictor, pairs: Pairs, limits: Limits) -> Verification:
    selection = predictor.meta.selection
    assert selection is not None
    unmatched, confident, differ = 0, 0, False
    for batch, expected, actual in pairs:
        detections = select(expected[0][0], expected[1][0], selection)
        found = Detections(actual[0], actual[1], actual[2])
        size = max(batch.shape[1:])
        matches = match_detections(detections, found, selection, size, tolerance=limits.match, margin=limits.match)
        swaps = _swaps(matches, detections, found, expected, selection.iou_thr, limits.match, size)
        unmatched += len(matches.missing) + len(matches.extra) - 2 * swaps
        confident += matches.confident
        differ |= len(np.unique(detections.scores)) > 1
    reason = '' if differ else 'PyTorch has no detections in these images, or all have one score'
    if differ and not confident:
        reason = f'no score in these images is high enough for the tolerance of {predictor.meta.precision}'
    measure = 'unmatched detections relative to the number of confident ones'
    return Verification(unmatched / max(1, confident), limits.unmatched, measure, reason)


def _swaps(
    matches: Matches,
    expected: Detections,
    actual: Detections,
    raw: Sequence[np.ndarray],
    iou_thr: float,
    tolerance: float,
    size: int,
) -> int:
    """Count the pairs of detections without a match between which non-maximum suppression can choose either way.

    PyTorch has the box that the file kept before suppression, within the tolerance, and its score is not lower than
    that of the box that PyTorch kept. Both this box and that of the file overlap with the one that PyTorch kept so
    much that one suppresses the other.

    Args:
        matches: Detections without a match.
        expected: Detections of PyTorch.
        actual: Detections of the file.
        raw: PyTorch's boxes (1, A, 4) and scores (1, A, classes) before suppression.
        iou_thr: Boxes with a larger intersection over union suppress each other.
        tolerance: Scores and boxes (relative to ``size``) are equal if they differ by at most this.
        size: Longer side of the input in pixels.
    """
    boxes, scores = raw[0][0], raw[1][0]
    missing, swaps = list(matches.missing), 0
    for i in matches.extra:
        label = int(actual.labels[i])
        if not 0 <= label < scores.shape[1]:
            continue
        difference = np.maximum(
            np.abs(boxes - actual.boxes[i]).max(axis=1) / size, np.abs(scores[:, label] - actual.scores[i])
        )
        similar = boxes[difference <= tolerance]  # not if NaN
        if not len(similar):
            continue
        kept = torch.from_numpy(expected.boxes[missing])
        overlaps = torch.minimum(
            box_iou(torch.from_numpy(actual.boxes[i : i + 1]), kept)[0],
            box_iou(torch.from_numpy(similar), kept).amax(dim=0),
        )
        for j, overlap in zip(list(missing), overlaps, strict=True):
            is_best = actual.scores[i] >= expected.scores[j] - tolerance
            if overlap > iou_thr and expected.labels[j] == label and is_best:
                missing.remove(j)
                swaps += 1
                break
    return swaps


def _compare_class_maps(predictor: Predictor, pairs: Pairs, limits: Limits) -> Verification:
    shares, classes = [], set()
    for batch, expected, actual in pairs:
        height, width = batch.shape[1:3] if predictor.meta.input.layout == 'NHWC' else batch.shape[2:]
        labels = class_map(expected[0][0], (height, width))
        classes.update(np.unique(labels).tolist())
        if actual[0][0].shape != labels.shape:
            raise UserError(f'a class map of shape {actual[0][0].shape} instead of {labels.shape} as in PyTorch')
        shares.append(float((labels != actual[0][0]).mean()))
    reason = '' if len(classes) > 1 else 'PyTorch has one class everywhere in these images'
    return Verification(float(np.mean(shares)), limits.pixels, 'share of pixels that differ', reason)


def outputs_as(kind: Kind, pytorch: Predictor, batch: np.ndarray) -> list[np.ndarray]:
    """Run PyTorch on a batch and convert its outputs to those of a file of some kind.

    Args:
        kind: Kind of the file, see ``Meta.kind``.
        pytorch: The PyTorch model, which returns raw boxes and scores, or logits; see ``graph.reference``.
        batch: A batch of one image, as ``pytorch.meta.input`` describes it.

    Returns:
        Arrays as ``Meta.kind`` describes them, in the order of ``OUTPUTS``.
    """
    values = pytorch.run(batch)
    if kind == 'nms':
        assert pytorch.meta.selection is not None
        selected = select(values[0][0], values[1][0], pytorch.meta.selection)
        return [selected.boxes, selected.scores, selected.labels]
    if kind == 'class_map':
        height, width = batch.shape[1:3] if pytorch.meta.input.layout == 'NHWC' else batch.shape[2:]
        return [class_map(values[0][0], (height, width))[None]]
    return values


def beyond_half(graph: Graph) -> dict[str, float]:
    """Find weights that overflow in fp16: larger than 65504 in absolute value, or NaN, with batch norms folded in.

    Biases and other float tensors of the graph are checked too.

    Returns:
        The largest absolute value by name of the layer, or by name of the parameter if no norm was folded into it, in
        descending order. An empty dictionary if nothing overflows.
    """
    layers: dict[str, float] = {}
    for name, tensor in graph.program().state_dict.items():
        if tensor.is_floating_point() and tensor.numel():
            largest = float(tensor.abs().max())
            if not largest <= HALF_MAX:
                layer = re.sub(r'_((folded|scaled)(_bias)?|centre)_\d+', '', name)
                layers[layer] = max(largest, layers.get(layer, 0.0))
    return dict(sorted(layers.items(), key=lambda item: -item[1]))


def check_file(
    graph: Graph, pytorch: Predictor, predictor: Predictor | None, inputs: Sequence[np.ndarray]
) -> Verification | None:
    """Compare a file with PyTorch, and refuse it if it differs by more than its precision explains.

    Args:
        graph: The graph that the file was converted from.
        pytorch: The PyTorch model, see ``verify``.
        predictor: The file; None if it cannot run on this machine.
        inputs: Batches of real images, one image each; empty if there are no images.

    Returns:
        The comparison; None if ``predictor`` is None or ``inputs`` is empty.

    Raises:
        MismatchError: The file differs from PyTorch. Or weights overflow in fp16, see ``beyond_half``, and the file was
            not compared or the comparison is inconclusive. Only fp16 files and int8 files for Core ML, which computes
            in fp16, are checked for overflow.
        UserError: See ``verify``.
    """
    result = verify(pytorch, predictor, inputs) if predictor and inputs else None
    is_verified = result is not None and not result.inconclusive
    # Core ML's int8 is that of weights: it computes in fp16.
    is_half = graph.meta.precision == 'fp16' or (graph.meta.target, graph.meta.precision) == ('coreml', 'int8')
    if is_verified and result is not None and result.passes:
        return result
    layers = beyond_half(graph) if is_half else {}
    named = first(f'{name} ({largest:.3g})' for name, largest in layers.items())
    reason = f'fp16 holds numbers up to {HALF_MAX}, and weights of these layers are larger: {named}'
    if result is not None and not result.passes:
        raise MismatchError(
            f'it differs from PyTorch by more than {graph.meta.precision} explains ({result})'
            + (f'; {reason}' if layers else '')
        )
    if layers:
        raise MismatchError(reason)
    return result
