"""Adaptive rounding: choose 8-bit weights that minimise the error of a layer's output, not of each weight.

Weights are rounded one by one, and those that are not yet rounded are changed to compensate for the error, as in GPTQ
(arXiv 2210.17323). This needs the second moments of a layer's inputs on real images and no training; AdaRound (arXiv
2004.10568) minimises the same error by gradient descent. The mean error that remains is subtracted from the bias.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mnv4_mm.deploy.onnx_values import attributes, intermediate_values

DAMPING = 0.01  # of the mean second moment, added to the diagonal
MAX_POSITIONS = 128  # of a feature map that are used, per image


class RoundedConvolution(NamedTuple):
    """Rounded weights of a convolution, for converters with a quantiser of their own.

    Attributes:
        name: Name of the weights in the float net.
        rounded: The rounded weights in float, (C', ...): integers times a scale per output channel.
        shift: What the rounding adds to the bias, (C',).
    """

    name: str
    rounded: np.ndarray
    shift: np.ndarray


def round_adaptively(
    float_model: Any, model: Any, batches: Sequence[np.ndarray], *, keep_largest: bool = False
) -> list[RoundedConvolution]:
    """Replace the quantised weights of convolutions by adaptively rounded ones, and correct the biases, in place.

    Args:
        float_model: ``onnx.ModelProto`` of the float net.
        model: ``onnx.ModelProto`` of the same net in QDQ form, written by ONNX Runtime's quantiser. Its weights and
            biases are changed, and its scales are kept.
        batches: Inputs made of real images, one image each.
        keep_largest: Keep the largest weight of each channel, so that a quantiser that reads the rounded weights
            computes the same scales.

    Returns:
        The rounded convolutions, without those whose weights are also used in float.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    floats = {tensor.name: tensor for tensor in float_model.graph.initializer}
    convolutions = {node.name: node for node in model.graph.node if node.op_type == 'Conv'}
    groups: dict[str, list[tuple[Any, Any]]] = {}  # by weights: the levels of a pyramid may share them
    for node in float_model.graph.node:
        if (quantized := convolutions.get(node.name)) is None:
            continue
        maker = makers.get(quantized.input[1])
        if maker is not None and maker.op_type == 'DequantizeLinear' and node.input[1] in floats:
            groups.setdefault(maker.input[0], []).append((node, quantized))
    moments = _second_moments(float_model, [node for group in groups.values() for node, _ in group], batches)
    result = []
    for name, group in groups.items():
        weight = numpy_helper.to_array(floats[group[0][0].input[1]]).astype(np.float64)
        maker = makers[group[0][1].input[1]]
        stored, scale = (numpy_helper.to_array(constants[value]) for value in maker.input[:2])
        pooled = [moments[node.name] for node, _ in group]
        moment, mean = (np.mean([one[i] for one in pooled], 0) for i in range(2))
        rows = weight.reshape(len(weight), -1)
        scales = np.broadcast_to(scale, len(rows)).astype(np.float64)
        limit = max(int(np.abs(stored.astype(int)).max()), 1)
        levels = round_rows(rows, scales, moment, limit, keep_largest=keep_largest)
        rounded = levels.reshape(stored.shape).astype(stored.dtype)
        constants[name].CopyFrom(numpy_helper.from_array(rounded, name))
        # The biases take the mean error.
        error = ((rows - levels * scales[:, None]) * mean).sum(1)
        biases = [makers.get(quantized.input[2]) for _, quantized in group if len(quantized.input) > 2]
        for bias, step in {tuple(bias.input[:2]) for bias in biases if bias is not None}:
            values = numpy_helper.to_array(constants[bias])
            shift = np.round(error / numpy_helper.to_array(constants[step])).astype(values.dtype)
            constants[bias].CopyFrom(numpy_helper.from_array(values + shift, bias))
        source = group[0][0].input[1]
        if sum(source in node.input for node in float_model.graph.node) == len(group):
            in_float = (levels * scales[:, None]).reshape(weight.shape).astype(np.float32)
            result.append(RoundedConvolution(source, in_float, error))
    return result


def round_rows(
    weights: np.ndarray, scales: np.ndarray, moments: np.ndarray, limit: int, *, keep_largest: bool = False
) -> np.ndarray:
    """Round the weights of each output channel to multiples of its scale.

    Args:
        weights: Weights of each output channel, (O, K).
        scales: Scale of each output channel, (O,).
        moments: Second moments of the K inputs of an output position, (K, K), or (O, K, K) if each output channel has
            inputs of its own.
        limit: Largest absolute value of the result.
        keep_largest: Round the largest weight of each channel to nearest.

    Returns:
        The weights in units of their scales, integers stored as float, (O, K).
    """
    count = weights.shape[1]
    moments = np.broadcast_to(moments, (len(weights) if moments.ndim == 3 else 1, count, count)).copy()
    diagonal = np.einsum('oii->oi', moments)
    diagonal += DAMPING * diagonal.mean(1, keepdims=True) + 1e-12
    inverse = np.linalg.cholesky(np.linalg.inv(moments)).swapaxes(1, 2)  # upper triangular
    rest = weights.copy()
    levels = np.zeros_like(weights)
    largest = np.abs(weights).argmax(1) if keep_largest else np.full(len(weights), -1)
    for i in range(count):
        to_round = np.where(largest == i, weights[:, i], rest[:, i])
        levels[:, i] = np.clip(np.round(to_round / scales), -limit, limit)
        error = (rest[:, i] - levels[:, i] * scales) / inverse[:, i, i]
        rest[:, i + 1 :] -= error[:, None] * inverse[:, i, i + 1 :]
    return levels


def _second_moments(
    model: Any, nodes: Sequence[Any], batches: Sequence[np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return second moments and means of the inputs of each output position of convolutions, by name of the node."""
    import torch
    from torch.nn import functional as F

    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    run = intermediate_values(model, [node.input[0] for node in nodes])
    sums: dict[str, Any] = {}
    generator = np.random.default_rng(0)
    for batch in batches:
        values = run(batch)
        for node in nodes:
            options = attributes(node)
            x = torch.from_numpy(values[node.input[0]])
            groups, kernel = options.get('group', 1), tuple(shapes[node.input[1]][2:])
            pads = options.get('pads', [0, 0, 0, 0])
            x = F.pad(x, (pads[1], pads[3], pads[0], pads[2]))
            columns = F.unfold(
                x, kernel, dilation=options.get('dilations', [1, 1]), stride=options.get('strides', [1, 1])
            )[0]  # (C * kh * kw, positions)
            if columns.shape[1] > MAX_POSITIONS:
                columns = columns[:, generator.choice(columns.shape[1], MAX_POSITIONS, replace=False)]
            columns = columns.unflatten(0, (groups, -1))  # (groups, K, positions)
            moment = ((columns @ columns.transpose(1, 2)).double(), columns.double().sum(2), columns.shape[2])
            sums[node.name] = [a + b for a, b in zip(sums.get(node.name, (0, 0, 0)), moment, strict=True)]
    result = {}
    for node in nodes:
        moment, total, count = sums[node.name]
        outputs, groups = shapes[node.input[1]][0], len(moment)
        moment, mean = (moment / count).numpy(), (total / count).numpy()
        if groups == 1:
            result[node.name] = moment[0], mean
        else:
            result[node.name] = moment.repeat(outputs // groups, 0), mean.repeat(outputs // groups, 0)
    return result
