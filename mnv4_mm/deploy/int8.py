"""8-bit weights and activations from calibration pictures, and which layers that hurts.

Layers behind the last convolutions (boxes, softmax, selection) stay in float: they are a few numbers each, and a box's
side needs more than 256 steps. So do the layers that ``hurt`` names.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from mnv4_mm.deploy import quiet

# A layer whose weights or output keep less than this much signal over the noise of their own 8 bits stays in float. In
# dB: 20 is an error of a tenth. Weights are measured in ONNX Runtime's 7 bits; the other runtimes' 8 have 6 dB more.
LIMIT_DB = 20.0
LOOKED_AT = 8  # calibration pictures that the errors are measured on
LIST = '.layers.json'
# Operators that give the values they are given: what reads theirs rounds the same numbers.
PASSING = {'Relu', 'Clip', 'Pad', 'Reshape', 'Transpose', 'Concat', 'Resize', 'Slice', 'Split', 'Squeeze', 'Unsqueeze'}
PASSING |= {'Flatten', 'Identity', 'MaxPool'}


class Quantised(NamedTuple):
    """A net in 8 bits.

    Attributes:
        model: ``onnx.ModelProto``.
        errors: What 8 bits cost at each layer that has weights, the worst first.
        in_float: Names of all nodes that stay in float: both ends, and what ``hurt`` names.
        fragile: The layers that are the reason for what ``hurt`` names, for converters that know no names of nodes.
    """

    model: Any
    errors: list['LayerError']
    in_float: list[str]
    fragile: list['Fragile']


class Fragile(NamedTuple):
    """A layer whose own rounding hurts, to be found in a file of another format.

    Attributes:
        weights: Its float weights, in any layout; None for a product of two activations.
        product: Which of the net's products of two activations it is, counted from 0 from the pixels on.
        output: Whether it is the output's rounding that hurts, and not only the weights'.
    """

    weights: np.ndarray | None
    product: int
    output: bool


class LayerError(NamedTuple):
    """What 8 bits cost at one layer.

    Attributes:
        layer: Name of the node in the file.
        weights: Name of its weights, after the module they are of; empty where it has none.
        activation_db: Signal over noise of its output's own rounding to 8 bits, see ``Noise``; infinite: none in JSON.
        weight_db: Signal over noise of its weights' rounding to 7 bits; None where it has none.
        total_db: Of its output in the 8-bit net beside the float net: what all layers before have added, too.
        in_float: Whether it stays in float.
    """

    layer: str
    weights: str
    activation_db: float
    weight_db: float | None
    total_db: float
    in_float: bool = False

    @property
    def own_db(self) -> float:
        """The lower of what its output's and its weights' own rounding leave."""
        return min(self.activation_db, np.inf if self.weight_db is None else self.weight_db)


# ONNX Runtime logs an error for each bias that it has copied, which it does for convolutions that share one.
@quiet.no_root_log()
def quantize_onnx(model: Any, batches: Sequence[np.ndarray]) -> Quantised:
    """Quantises an ``onnx.ModelProto``: QDQ form, U8 activations, S7 weights, a scale for each channel of a weight.

    Args:
        model: The float net, from pixels to raw outputs.
        batches: Inputs, of real pictures.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(model, folder / 'given.onnx')
        quant_pre_process(folder / 'given.onnx', folder / 'float.onnx', skip_symbolic_shape=True)
        graph = onnx.load(folder / 'float.onnx').graph
        around = _around_convolutions(graph)

        def quantize(excluded: Sequence[str]) -> None:
            quantize_static(
                folder / 'float.onnx',
                folder / 'int8.onnx',
                _reader(batches),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                # 7 bits of weights. x86 without VNNI adds two products of 8 bits in 16 and cuts off what overflows, as
                # ONNX Runtime's guide to quantising says; with 8 an SSDLite lost 1.2 points of AP there, with 7 none.
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(excluded),
            )

        quantize(around)
        errors = _layer_errors(folder, batches[:LOOKED_AT])
        if kept := hurt(errors, graph):
            quantize([*around, *kept])
        errors = [error._replace(in_float=error.layer in kept) for error in errors]
        in_float = [*around, *sorted(kept)]
        return Quantised(onnx.load(folder / 'int8.onnx'), errors, in_float, _fragile(errors, graph))


def hurt(errors: Sequence[LayerError], graph: Any) -> set[str]:
    """Nodes that stay in float: layers whose own rounding leaves less than ``LIMIT_DB``.

    Where it is the output's, all that read it do so too, also behind ``PASSING``: one of them in 8 bits would round it
    again.
    """
    fragile = {one.layer for one in errors if one.own_db < LIMIT_DB}
    outputs = {one.layer for one in errors if one.activation_db < LIMIT_DB}
    values: set[str] = set()
    for node in graph.node:
        if node.name in outputs:
            values.update(node.output)
        elif values.intersection(node.input):
            fragile.add(node.name)
            if node.op_type in PASSING:
                values.update(node.output)
    return fragile


def _fragile(errors: Sequence[LayerError], graph: Any) -> list[Fragile]:
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    unweighted = {error.layer for error in errors if not error.weights}
    products = [node.name for node in graph.node if node.name in unweighted]
    return [
        Fragile(
            numpy_helper.to_array(tensors[error.weights]) if error.weights else None,
            products.index(error.layer) if not error.weights else -1,
            error.activation_db < LIMIT_DB,
        )
        for error in errors
        if error.own_db < LIMIT_DB
    ]


def write_layers(path: Path, errors: Sequence[LayerError]) -> list[Path]:
    """Writes the list of layers as JSON beside a file, if there is one; returns its path."""
    if not errors:
        return []
    lines = [
        {name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in line.items()}
        for line in (error._asdict() for error in errors)
    ]
    listed = path.with_name(path.name + LIST)
    listed.write_text(json.dumps(dict(limit_db=LIMIT_DB, layers=lines), indent=1))
    return [listed]


def quantize_openvino(model: Any, batches: Sequence[np.ndarray], in_float: Sequence[str], tail: str) -> Any:
    """Quantises an OpenVINO model likewise, by NNCF.

    Args:
        model: The float net, made from ONNX, whose node names it has.
        batches: Inputs, of real pictures.
        in_float: Nodes that stay in float, by the ONNX names.
        tail: How names of what is behind the net begin, which stays in float, too.
    """
    # A convolution with a bias becomes two operations: the sum has the node's name, the convolution this one.
    names = [name + ending for name in in_float for ending in ('', '/WithoutBiases')]
    quiet.without_telemetry('openvino')
    nncf = quiet.nncf()
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(names=names, patterns=[f'{tail}.*'], validate=False),
    )


def _reader(batches: Sequence[np.ndarray]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.left, None)
            return None if batch is None else {'image': batch}

    return Reader()


def _around_convolutions(graph: Any) -> list[str]:
    """Nodes before the first convolutions and behind the last ones."""
    heavy = ('Conv', 'MatMul', 'Gemm', 'ConvTranspose')

    def reached(nodes: Sequence[Any], read: str, write: str) -> set[str]:
        """Names of nodes that a convolution leads to, in the order of ``nodes``."""
        values: set[str] = set()
        names = set()
        for node in nodes:
            if node.op_type in heavy or values & set(getattr(node, read)):
                values.update(getattr(node, write))
                names.add(node.name)
        return names

    nodes = list(graph.node)
    inside = reached(nodes, 'input', 'output') & reached(nodes[::-1], 'output', 'input')
    return [node.name for node in nodes if node.name not in inside]


def _layer_errors(folder: Path, batches: Sequence[np.ndarray]) -> list[LayerError]:
    import onnx
    from onnxruntime.quantization import qdq_loss_debug as debug
    from onnxruntime.quantization.quant_utils import DEQUANT_OUTPUT_SUFFIX

    matched = debug.create_weight_matching(str(folder / 'float.onnx'), str(folder / 'int8.onnx'))
    float_model, int8_model = (onnx.load(folder / f'{name}.onnx') for name in ('float', 'int8'))
    nodes = list(float_model.graph.node)
    shapes = {tensor.name: tensor.dims for tensor in float_model.graph.initializer}
    readers = {name: [node for node in nodes if name in node.input] for node in nodes for name in node.output}
    layers = [node for node in nodes if node.op_type in ('Conv', 'MatMul', 'Gemm')]
    read = {name for node in layers for name in node.input[:2]}  # not biases
    weights = debug.compute_weight_error({name: pair for name, pair in matched.items() if name in read})
    made = {name for node in int8_model.graph.node for name in node.output}
    stored, rounded = [], []  # what each layer's output is called in the two nets, where it is stored
    for node in layers:
        value = node.output[0]
        while [reader.op_type in ('Relu', 'Clip') for reader in readers[value]] == [True]:
            value = readers[value][0].output[0]
        # Rounding to 8 bits takes the place of a Relu.
        names = [name + ending for ending in (DEQUANT_OUTPUT_SUFFIX, '') for name in (value, node.output[0])]
        stored.append(value)
        rounded.append(next(name for name in names if name in made))
    run, run_rounded = _values_of(float_model, stored), _values_of(int8_model, rounded)
    noises = [Noise() for _ in layers]
    for batch in batches:  # all values of a picture are large, of all pictures they would not fit
        values, others = run(batch), run_rounded(batch)
        for node, noise, name, other in zip(layers, noises, stored, rounded, strict=True):
            channels = shapes[node.input[1]][0] if node.op_type == 'Conv' else 1
            noise.add(values[name].reshape(channels, -1), others[other].reshape(channels, -1))
    errors = []
    for node, noise in zip(layers, noises, strict=True):
        named = next((name for name in node.input[:2] if name in shapes), '')
        weight = float(weights[named]) if named else None
        errors.append(LayerError(node.name, named, noise.own_db(), weight, noise.total_db()))
    return sorted(errors, key=lambda error: error.own_db)


def _values_of(model: Any, names: Sequence[str]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Runs an ``onnx.ModelProto``, and gives what it computes on the way, by name."""
    import onnx
    import onnxruntime as ort

    wanted = list(dict.fromkeys(names))
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])
    (given,) = session.get_inputs()
    return lambda batch: dict(zip(wanted, session.run(wanted, {given.name: batch}), strict=True))


class Noise:
    """What 8 bits leave of a layer's output, added up over pictures.

    The noise of its own rounding, to one scale of 256 steps for all channels, is that of each channel, relative to what
    varies in it, and at most all of it: over the whole map the largest channel would hide that others are rounded away
    (``qdq_loss_debug`` measures so).
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0  # zero is among the 256 values
        self.count = 0
        self.first: np.ndarray | None = None  # of each channel; sums are of what differs from it
        self.sum: Any = 0.0
        self.squares: Any = 0.0
        self.signal = self.error = 0.0

    def add(self, values: np.ndarray, rounded: np.ndarray) -> None:
        """Adds a picture: (C, places) float, and the same in the 8-bit net."""
        values, rounded = values.astype(np.float64), rounded.astype(np.float64)
        self.low, self.high = min(self.low, values.min()), max(self.high, values.max())
        self.first = values[:, :1] if self.first is None else self.first
        self.count += values.shape[1]
        self.sum = self.sum + (values - self.first).sum(axis=1)
        self.squares = self.squares + ((values - self.first) ** 2).sum(axis=1)
        self.signal += float((values**2).sum())
        self.error += float(((values - rounded) ** 2).sum())

    def own_db(self) -> float:
        """Signal over noise of its own rounding, in dB."""
        step = (self.high - self.low) / 255
        variance = self.squares / self.count - (self.sum / self.count) ** 2
        variance = variance[variance > 0]
        if not len(variance) or not step:
            return float('inf')
        return float(-10 * np.log10(np.minimum(1, step**2 / 12 / variance).mean()))

    def total_db(self) -> float:
        """Signal over noise of the 8-bit net beside the float net, in dB."""
        return 10 * float(np.log10(self.signal / self.error)) if self.signal and self.error else float('inf')
