"""Sensitivity of each layer to 8-bit quantisation, and the choice of layers that stay in float.

Sensitivity is a signal-to-quantisation-noise ratio (SQNR) in dB. Layers below ``MIN_SQNR_DB`` stay in float.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Layers whose weights or output have a lower SQNR stay in float. 20 dB is an error of a tenth of the signal. Weights
# are measured with the 7 bits that ONNX Runtime uses; with the 8 bits of other runtimes the SQNR is 6 dB higher.
MIN_SQNR_DB = 20.0
MAX_IMAGES = 8  # calibration images used to measure sensitivity
LAYERS_SUFFIX = '.layers.json'
# Operators that copy values: a layer that reads their output rounds the same numbers.
COPYING_OPS = {'Relu', 'Clip', 'Pad', 'Reshape', 'Transpose', 'Concat', 'Resize', 'Slice', 'Split', 'Squeeze'}
COPYING_OPS |= {'Unsqueeze', 'Flatten', 'Identity', 'MaxPool'}


class LayerSensitivity(NamedTuple):
    """SQNR of one layer.

    Attributes:
        layer: Name of the ONNX node.
        weights: Name of its weights, which contains the name of the module; empty if it has none.
        activation_db: SQNR in dB of rounding its output to 8 bits, see ``QuantizationNoise``. Infinity is written to
            JSON as null.
        weight_db: SQNR in dB of rounding its weights to 7 bits; None if it has none.
        total_db: SQNR in dB of its output in the quantised net, which includes the noise of all layers before it.
        in_float: True if the layer stays in float.
    """

    layer: str
    weights: str
    activation_db: float
    weight_db: float | None
    total_db: float
    in_float: bool = False

    @property
    def lowest_db(self) -> float:
        """The lower one of ``activation_db`` and ``weight_db``."""
        return min(self.activation_db, np.inf if self.weight_db is None else self.weight_db)

    @property
    def is_sensitive(self) -> bool:
        return self.lowest_db < MIN_SQNR_DB


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


class QuantizationNoise:
    """Signal and quantisation noise of the output of a layer, summed over images.

    Rounding noise assumes one scale of 256 steps for all channels. It is measured for each channel relative to the
    variance of that channel, and is at most 1: measured over the whole feature map, as ``qdq_loss_debug`` does, the
    largest channel would hide that small ones are rounded away.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0  # the quantised range always includes zero
        self.count = 0
        self.offset: np.ndarray | None = None  # of each channel, for numerically stable sums
        self.sum: Any = 0.0
        self.squares: Any = 0.0
        self.signal = self.error = 0.0

    def add(self, values: np.ndarray, quantized: np.ndarray) -> None:
        """Add an image.

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
        """Return the SQNR in dB of rounding this output alone; infinity if every channel is constant."""
        step = (self.high - self.low) / 255
        variance = self.squares / self.count - (self.sum / self.count) ** 2
        variance = variance[variance > 0]
        if not len(variance) or not step:
            return float('inf')
        return float(-10 * np.log10(np.minimum(1, step**2 / 12 / variance).mean()))

    def total_db(self) -> float:
        """Return the SQNR in dB of the quantised net at this output; infinity if there is no noise, or no signal."""
        return 10 * float(np.log10(self.signal / self.error)) if self.signal and self.error else float('inf')


def measure_sensitivity(float_path: Path, int8_path: Path, batches: Sequence[np.ndarray]) -> list[LayerSensitivity]:
    """Measure the sensitivity of all convolutions and matrix products of an ONNX file.

    Args:
        float_path: The float net.
        int8_path: The same net, quantised in QDQ form by ``quantize_static``.
        batches: Inputs made of real images, one image each.

    Returns:
        The layers, the most sensitive one first; ``in_float`` is not yet set.
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
    run_float, run_int8 = _intermediate_values(float_model, float_names), _intermediate_values(int8_model, int8_names)
    noises = [QuantizationNoise() for _ in layers]
    for batch in batches:  # one by one: the feature maps of all images would not fit into memory
        float_values, quantized_values = run_float(batch), run_int8(batch)
        for node, noise, float_name, int8_name in zip(layers, noises, float_names, int8_names, strict=True):
            channels = shapes[node.input[1]][0] if node.op_type == 'Conv' else 1
            values, quantized = float_values[float_name], quantized_values[int8_name]
            noise.add(values.reshape(channels, -1), quantized.reshape(channels, -1))
    sensitivities = []
    for node, noise in zip(layers, noises, strict=True):
        weights = next((name for name in node.input[:2] if name in shapes), '')
        weight = float(weight_db[weights]) if weights else None
        sensitivities.append(LayerSensitivity(node.name, weights, noise.rounding_db(), weight, noise.total_db()))
    return sorted(sensitivities, key=lambda layer: layer.lowest_db)


def nodes_in_float(layers: Sequence[LayerSensitivity], graph: Any) -> set[str]:
    """Return the names of the nodes that stay in float because of sensitive layers.

    If the output of a layer is sensitive, all nodes that read it stay in float as well, directly or through
    ``COPYING_OPS``: a reader in 8 bits would round the output again.

    Args:
        layers: Sensitivity of the layers.
        graph: ``onnx.GraphProto`` of the float net.
    """
    names = {layer.layer for layer in layers if layer.is_sensitive}
    sensitive_outputs = {layer.layer for layer in layers if layer.activation_db < MIN_SQNR_DB}
    values: set[str] = set()
    for node in graph.node:
        if node.name in sensitive_outputs:
            values.update(node.output)
        elif values.intersection(node.input):
            names.add(node.name)
            if node.op_type in COPYING_OPS:
                values.update(node.output)
    return names


def sensitive_layers(layers: Sequence[LayerSensitivity], graph: Any) -> list[SensitiveLayer]:
    """Describe the sensitive layers for converters that do not know the names of ONNX nodes.

    Args:
        layers: Sensitivity of the layers.
        graph: ``onnx.GraphProto`` of the float net.
    """
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    without_weights = {layer.layer for layer in layers if not layer.weights}
    products = [node.name for node in graph.node if node.name in without_weights]
    return [
        SensitiveLayer(
            numpy_helper.to_array(tensors[layer.weights]) if layer.weights else None,
            products.index(layer.layer) if not layer.weights else -1,
            layer.activation_db < MIN_SQNR_DB,
        )
        for layer in layers
        if layer.is_sensitive
    ]


def write_layers(path: Path, layers: Sequence[LayerSensitivity]) -> list[Path]:
    """Write the sensitivity of the layers of an exported file as JSON beside it.

    Args:
        path: The exported file.
        layers: Sensitivity of its layers; nothing is written if empty.

    Returns:
        A list of the path of the JSON file; empty if nothing was written.
    """
    if not layers:
        return []
    # JSON has no infinity.
    rows = [
        {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in row.items()}
        for row in (layer._asdict() for layer in layers)
    ]
    json_path = path.with_name(path.name + LAYERS_SUFFIX)
    json_path.write_text(json.dumps(dict(limit_db=MIN_SQNR_DB, layers=rows), indent=1))
    return [json_path]


def _intermediate_values(model: Any, names: Sequence[str]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return a function that runs an ``onnx.ModelProto`` and returns intermediate values by name."""
    import onnx
    import onnxruntime as ort

    outputs = list(dict.fromkeys(names))
    existing = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in existing)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])
    (model_input,) = session.get_inputs()
    return lambda batch: dict(zip(outputs, session.run(outputs, {model_input.name: batch}), strict=True))
