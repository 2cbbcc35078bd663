"""Sensitivity of each layer to 8-bit quantisation, and the layers that may stay in float.

Sensitivity is a signal-to-quantisation-noise ratio (SQNR) in dB.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mnv4_mm.deploy.onnx_values import intermediate_values
from mnv4_mm.errors import UserError

Name = TypeVar('Name')

# Layers whose weights and output have a higher SQNR are not tried in float. 20 dB is an error of a tenth of the signal.
# Weights are measured with 7 bits for ONNX Runtime and OpenVINO. For other formats they are measured with 8 bits, with
# which the SQNR is 6 dB higher.
MAX_SQNR_DB = 25.0
MAX_FLOAT_SHARE = 0.05  # of the MACs of the net
MAX_IMAGES = 8  # calibration images used to measure sensitivity
# Operators that copy values: a layer that reads their output rounds the same numbers.
COPYING_OPS = {'Relu', 'Clip', 'Pad', 'Reshape', 'Transpose', 'Concat', 'Resize', 'Slice', 'Split', 'Squeeze'}
COPYING_OPS |= {'Unsqueeze', 'Flatten', 'Identity', 'MaxPool'}


class LayerSensitivity(NamedTuple):
    """SQNR of one layer.

    Attributes:
        layer: Name of the ONNX node.
        weights: Name of its weights, which contains the name of the module; an empty string if it has none.
        activation_db: SQNR in dB of rounding its output to 8 bits, see ``QuantizationNoise``. Infinity is written to
            JSON as null.
        weight_db: SQNR in dB of rounding its weights to 7 or 8 bits; None if it has none, or is in float.
        total_db: SQNR in dB of its output in the quantised net, which includes the noise of all layers before it.
        macs: Multiply-accumulate operations for one image.
        in_float: True if the layer stays in float.
    """

    layer: str
    weights: str
    activation_db: float
    weight_db: float | None
    total_db: float
    macs: int
    in_float: bool = False

    @property
    def lowest_db(self) -> float:
        """The lower of ``activation_db`` and ``weight_db``; ``activation_db`` if ``weight_db`` is None."""
        return min(self.activation_db, np.inf if self.weight_db is None else self.weight_db)

    @property
    def is_output_sensitive(self) -> bool:
        """True if rounding its output alone makes it sensitive: ``activation_db`` is below ``MAX_SQNR_DB``."""
        return self.activation_db < MAX_SQNR_DB


class SensitiveLayer(NamedTuple):
    """Description of a sensitive layer by which converters for other formats find it.

    Attributes:
        weights: Its float weights, in any layout; None for a product of two activations.
        product: Position among the products of two activations, counted from 0 at the input; -1 if it has weights.
        output: True if its output is sensitive, and not only its weights.
    """

    weights: np.ndarray | None
    product: int
    output: bool


def find_layers(
    layer: SensitiveLayer, stored: Mapping[Name, np.ndarray], place: str, tolerance: float = 1e-5
) -> list[Name]:
    """Find a sensitive layer in a converted net by the values of its weights.

    Converters rename layers and transpose matrices.

    Args:
        layer: The layer, which has weights.
        stored: Weights of each layer of the converted net, flat and in ascending order.
        place: What the converted net is, for the error message.
        tolerance: Largest difference of a weight, relative to that weight plus the largest one.

    Returns:
        The names of the layer; several if levels of the feature pyramid share it.

    Raises:
        UserError: The layer is not in the converted net.
    """
    assert layer.weights is not None
    values = np.sort(layer.weights, axis=None)
    largest = tolerance * np.abs(values).max()
    found = [
        name
        for name, one in stored.items()
        if one.size == values.size and np.allclose(one, values, rtol=tolerance, atol=largest)
    ]
    if not found:
        raise UserError(f'a layer with weights of shape {layer.weights.shape} that stays in float is not in {place}')
    return found


class QuantizationNoise:
    """Signal and quantisation noise of the output of a layer, summed over images.

    The noise of rounding is computed for one scale of 256 steps for all channels. For each channel it is divided by the
    variance of the channel, limited to 1, and then averaged over the channels. ONNX Runtime's ``qdq_loss_debug``
    measures noise over the whole feature map instead. There, large channels would hide small ones that are rounded to
    zero.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0  # the quantised range always includes zero
        self.count = 0
        self.offset: np.ndarray | None = None  # of each channel, for numerically stable sums
        self.sum: Any = 0.0
        self.squares: Any = 0.0
        self.signal = self.error = 0.0

    def add(self, values: np.ndarray, quantized: np.ndarray) -> None:
        """Add the output for an image.

        Args:
            values: Output of the layer in the float net, (C, positions).
            quantized: Output of the layer in the quantised net, (C, positions).
        """
        values, quantized = values.astype(np.float64), quantized.astype(np.float64)
        self.low, self.high = min(self.low, values.min()), max(self.high, values.max())
        self.offset = values[:, :1] if self.offset is None else self.offset
        self.count += values.shape[1]
        self.sum = self.sum + (values - self.offset).sum(axis=1)
        self.squares = self.squares + ((values - self.offset) ** 2).sum(axis=1)
        self.signal += float((values**2).sum())
        self.error += float(((values - quantized) ** 2).sum())

    def rounding_db(self) -> float:
        """Return the SQNR in dB if only this output is rounded; infinity if every channel is constant."""
        step = (self.high - self.low) / 255
        variance = self.squares / self.count - (self.sum / self.count) ** 2
        variance = variance[variance > 0]
        if not len(variance) or not step:
            return float('inf')
        return float(-10 * np.log10(np.minimum(1, step**2 / 12 / variance).mean()))

    def total_db(self) -> float:
        """Return the SQNR in dB of this output in the quantised net; infinity if there is no noise, or no signal."""
        return 10 * float(np.log10(self.signal / self.error)) if self.signal and self.error else float('inf')


def measure_sensitivity(float_path: Path, int8_path: Path, batches: Sequence[np.ndarray]) -> list[LayerSensitivity]:
    """Measure the sensitivity of all convolutions and matrix products of an ONNX file.

    Args:
        float_path: The float net.
        int8_path: The same net, quantised in QDQ form.
        batches: Inputs made of real images, one image each.

    Returns:
        The layers, the most sensitive one first. ``in_float`` is False for all of them.
    """
    import onnx
    from onnxruntime.quantization import qdq_loss_debug as debug
    from onnxruntime.quantization.quant_utils import DEQUANT_OUTPUT_SUFFIX

    matched = debug.create_weight_matching(str(float_path), str(int8_path))
    float_model, int8_model = onnx.load(float_path), onnx.load(int8_path)
    nodes = list(float_model.graph.node)
    shapes = {tensor.name: tensor.dims for tensor in float_model.graph.initializer}
    readers = {name: [node for node in nodes if name in node.input] for node in nodes for name in node.output}
    layers = [node for node in nodes if node.op_type in ('Conv', 'MatMul', 'Gemm')]
    weight_names = {name for node in layers for name in node.input[:2]}  # not biases
    weight_db = debug.compute_weight_error({name: pair for name, pair in matched.items() if name in weight_names})
    int8_values = {name for node in int8_model.graph.node for name in node.output}
    float_names, int8_names = [], []  # name of the output of each layer in the two nets
    for node in layers:
        value = node.output[0]
        while [reader.op_type in ('Relu', 'Clip') for reader in readers[value]] == [True]:
            value = readers[value][0].output[0]
        # In the quantised net, rounding may have replaced the Relu.
        names = [name + suffix for suffix in (DEQUANT_OUTPUT_SUFFIX, '') for name in (value, node.output[0])]
        float_names.append(value)
        int8_names.append(next(name for name in names if name in int8_values))
    inputs = [node.input[0] for node in layers]
    run_float = intermediate_values(float_model, [*float_names, *inputs])
    run_int8 = intermediate_values(int8_model, int8_names)
    noises = [QuantizationNoise() for _ in layers]
    macs: dict[str, int] = {}
    for batch in batches:  # one by one: the feature maps of all images would not fit into memory
        float_values, quantized_values = run_float(batch), run_int8(batch)
        for node, noise, float_name, int8_name in zip(layers, noises, float_names, int8_names, strict=True):
            channels = shapes[node.input[1]][0] if node.op_type == 'Conv' else 1
            values, quantized = float_values[float_name], quantized_values[int8_name]
            noise.add(values.reshape(channels, -1), quantized.reshape(channels, -1))
            products = (
                np.prod(shapes[node.input[1]][1:]) if node.op_type == 'Conv' else float_values[node.input[0]].shape[-1]
            )
            macs[node.name] = int(values.size * products)
    sensitivities = []
    for node, noise in zip(layers, noises, strict=True):
        weights = next((name for name in node.input[:2] if name in shapes), '')
        weight = float(weight_db[weights]) if weights in weight_db else None  # a layer in float has none
        sensitivities.append(
            LayerSensitivity(node.name, weights, noise.rounding_db(), weight, noise.total_db(), macs[node.name])
        )
    return sorted(sensitivities, key=lambda layer: layer.lowest_db)


def float_candidates(
    layers: Sequence[LayerSensitivity], graph: Any, max_share: float = MAX_FLOAT_SHARE
) -> Iterator[set[str]]:
    """Yield growing sets of sensitive layers that may stay in float.

    A layer may stay in float if its SQNR is below ``MAX_SQNR_DB`` and ``max_share`` is not exceeded. The sets have the
    most sensitive 1, 2, 4, ... of these layers, and the last one has all of them.

    Args:
        layers: Sensitivity of the layers, the most sensitive one first.
        graph: ``onnx.GraphProto`` of the float net.
        max_share: Largest share of the MACs of the net, from 0 to 1, that may be in float. The MACs of layers that read
            a sensitive output count too.

    Yields:
        Names of the ONNX nodes of the layers. Nothing is yielded if no layer may stay in float.
    """
    macs = {layer.layer: layer.macs for layer in layers}
    chosen: list[str] = []
    for layer in layers:
        kept = nodes_in_float(layers, graph, {*chosen, layer.layer})
        fits = sum(macs.get(name, 0) for name in kept) <= max_share * sum(macs.values())
        if layer.lowest_db < MAX_SQNR_DB and fits:  # a large layer does not keep smaller ones out
            chosen.append(layer.layer)
    sizes = {2**i for i in range(len(chosen).bit_length())} | {len(chosen)}
    yield from (set(chosen[:size]) for size in sorted(sizes) if 0 < size <= len(chosen))


def nodes_in_float(layers: Sequence[LayerSensitivity], graph: Any, chosen: Collection[str]) -> set[str]:
    """Return the names of all nodes that stay in float if some sensitive layers do.

    If the output of a layer is sensitive, all nodes that read this output directly or through ``COPYING_OPS`` stay in
    float as well: a reader in 8 bits would round the output again.

    Args:
        layers: Sensitivity of the layers.
        graph: ``onnx.GraphProto`` of the float net.
        chosen: Names of the sensitive layers that stay in float. The result includes them.
    """
    names = set(chosen)
    sensitive_outputs = {layer.layer for layer in layers if layer.layer in chosen and layer.is_output_sensitive}
    values: set[str] = set()
    for node in graph.node:
        if node.name in sensitive_outputs:
            values.update(node.output)
        elif values.intersection(node.input):
            names.add(node.name)
            if node.op_type in COPYING_OPS:
                values.update(node.output)
    return names


def sensitive_layers(layers: Sequence[LayerSensitivity], graph: Any, chosen: Collection[str]) -> list[SensitiveLayer]:
    """Describe the layers kept in float by their weights, for converters that rename nodes.

    Args:
        layers: Sensitivity of the layers.
        graph: ``onnx.GraphProto`` of the float net.
        chosen: Names of the layers that stay in float.

    Returns:
        The descriptions, in the order of ``layers``.
    """
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    without_weights = {layer.layer for layer in layers if not layer.weights}
    products = [node.name for node in graph.node if node.name in without_weights]
    return [
        SensitiveLayer(
            numpy_helper.to_array(tensors[layer.weights]) if layer.weights else None,
            products.index(layer.layer) if not layer.weights else -1,
            layer.is_output_sensitive,
        )
        for layer in layers
        if layer.layer in chosen
    ]


def net_db(layers: Sequence[LayerSensitivity], graph: Any) -> float:
    """Return the SQNR in dB of the outputs of a quantised net.

    The outputs are those of the last layers, which no other layer follows. Their noise-to-signal ratios are averaged.

    Args:
        layers: Sensitivity of the layers.
        graph: ``onnx.GraphProto`` of the float net.

    Returns:
        The SQNR; infinity if there is no noise.
    """
    names = {layer.layer for layer in layers}
    read: set[str] = set()  # values that a layer reads, directly or not
    last = set()
    for node in reversed(graph.node):
        is_read = bool(read.intersection(node.output))
        if node.name in names and not is_read:
            last.add(node.name)
        if node.name in names or is_read:
            read.update(node.input)
    noises = [10 ** (-layer.total_db / 10) for layer in layers if layer.layer in last]
    return float(-10 * np.log10(np.mean(noises))) if any(noises) else float('inf')
