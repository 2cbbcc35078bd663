"""Multiply-accumulates and bytes of each layer of an ONNX file, as ONNX Runtime executes it.

The source is the profile of ONNX Runtime: it lists the nodes that are executed, after batch norms are folded and
activations are fused, with the shapes and bytes of their inputs and outputs. ``torch.utils.flop_counter`` knows neither
fused nodes nor bytes, and shape inference on the exported ONNX graph does not know the fused nodes. The tests compare
the MACs with those of PyTorch.
"""

import json
import math
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Kinds of layers, with the description that the documentation prints.
KINDS: dict[str, str] = {
    'conv': 'dense k x k convolution',
    'grouped': 'grouped convolution',
    'depthwise': 'depthwise convolution',
    'pointwise': '1x1 convolution, or a matrix product with weights for each position',
    'fc': 'matrix product with weights for the whole image',
    'attention': 'matrix product of two activations',
    'elementwise': 'activation, sum or product that is not fused',
    'norm': 'norm that is not folded, softmax, mean',
    'layout': 'copy: transpose, concatenation, slice, padding, reordering',
    'other': 'everything else',
}
WITH_MACS = ('conv', 'grouped', 'depthwise', 'pointwise', 'fc', 'attention')
_VIEWS = frozenset(('Reshape', 'Squeeze', 'Unsqueeze', 'Flatten', 'Identity', 'Shape'))  # copy nothing
_CONVOLUTIONS = ('Conv', 'FusedConv', 'ConvTranspose')
_PRODUCTS = ('MatMul', 'FusedMatMul', 'Gemm', 'FusedGemm')
_NORMS = ('BatchNormalization', 'LayerNormalization', 'SkipLayerNormalization', 'InstanceNormalization',
          'GroupNormalization', 'LpNormalization', 'Softmax', 'GlobalAveragePool', 'AveragePool',
          'MaxPool')  # fmt: skip
_COPIES = ('Transpose', 'Concat', 'Slice', 'Split', 'Pad', 'Gather', 'Expand', 'Tile', 'ReorderInput',
           'ReorderOutput', 'Cast', 'Resize', 'Upsample', 'DepthToSpace', 'SpaceToDepth')  # fmt: skip
_ELEMENTWISE = ('Add', 'Sub', 'Mul', 'Div', 'Sum', 'Max', 'Min', 'Pow', 'Neg', 'Reciprocal', 'Where', 'Exp', 'Sqrt',
                'Erf', 'Tanh', 'Relu', 'LeakyRelu', 'PRelu', 'Clip', 'Sigmoid', 'HardSigmoid',
                'HardSwish', 'Softplus', 'Gelu', 'BiasGelu', 'FastGelu', 'QuickGelu')  # fmt: skip


class Layer(NamedTuple):
    """A layer of a net, or a number of equal layers.

    Attributes:
        kind: One of ``KINDS``.
        macs: Multiply-accumulates of one layer.
        weight_bytes: Bytes of the weights that one layer reads.
        activation_bytes: Bytes of the activations that one layer reads and writes.
        repeats: Number of equal layers.
    """

    kind: str
    macs: int
    weight_bytes: int
    activation_bytes: int
    repeats: int = 1

    @property
    def bytes(self) -> int:
        """Bytes of weights and activations that one layer reads and writes."""
        return self.weight_bytes + self.activation_bytes


def count_layers(path: Path, inputs: np.ndarray) -> list[Layer]:
    """Run an ONNX file once in ONNX Runtime, and count MACs and bytes of each layer that it executes.

    Args:
        path: The file.
        inputs: A batch of one image, in the shape and type of the file's only input.

    Returns:
        The distinct layers, in the order in which they are first executed. Layers of the same kind, MACs and bytes are
        merged into one ``Layer`` whose ``repeats`` is their number. Operators that copy nothing, such as Reshape, are
        left out.
    """
    # At the level `all`, ONNX Runtime pads the channels of convolutions to the CPU's vector width: MobileNetV3-L would
    # have 8 % more MACs. `extended` has the MACs of the net, but executes sums and some activations separately,
    # which `all` fuses into the convolution before them. Prepacking is off, as the profile omits prepacked weights.
    events = _profile(path, inputs, 'extended', runs=1, entries={'session.disable_prepacking': '1'})[0]
    return combine(layer for event in events if (layer := _layer(event)) is not None)


def kind_times(path: Path, inputs: np.ndarray, runs: int = 10) -> dict[str, float]:
    """Measure how long each kind of layer of an ONNX file takes in ONNX Runtime, on one thread.

    The graph is optimised at ONNX Runtime's default level, ``all``, unlike that of ``count_layers``.

    Args:
        path: The file.
        inputs: A batch of one image, in the shape and type of the file's only input.
        runs: Number of inferences; the median time of each node is taken.

    Returns:
        Milliseconds per inference for each of ``KINDS`` that the file has.
    """
    times: Counter[str] = Counter()
    for events in zip(*_profile(path, inputs, 'all', runs, {}), strict=True):
        times[_kind(events[0]['args'])] += statistics.median(event['dur'] for event in events) / 1e3
    return dict(times)


def combine(layers: Iterator[Layer]) -> list[Layer]:
    """Merge equal layers, and count them in ``repeats``.

    Args:
        layers: Layers, each with ``repeats=1``.

    Returns:
        The distinct layers in the order of their first occurrence, with the number of occurrences as ``repeats``.
    """
    return [layer._replace(repeats=repeats) for layer, repeats in Counter(layers).items()]


def _profile(path: Path, inputs: np.ndarray, level: str, runs: int, entries: dict[str, str]) -> list[list[dict]]:
    """Run an ONNX file on one thread and return the profiler's events of its nodes, one list per run."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / 'profile')
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f'ORT_ENABLE_{level.upper()}')
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        session = ort.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        name = session.get_inputs()[0].name
        warm_up = 0 if runs == 1 else 2
        for _ in range(warm_up + runs):
            session.run(None, {name: inputs})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event for event in events if event.get('cat') == 'Node' and event['name'].endswith('_kernel_time')]
    length = len(nodes) // (warm_up + runs)
    return [nodes[i * length : (i + 1) * length] for i in range(warm_up, warm_up + runs)]


def _layer(event: dict[str, Any]) -> Layer | None:
    """Return the layer of a profiler event; None for a view, which moves no bytes."""
    args = event['args']
    if args['op_name'] in _VIEWS:
        return None
    kind = _kind(args)
    bytes_moved = int(args['activation_size']) + int(args['output_size'])
    return Layer(kind, _macs(args) if kind in WITH_MACS else 0, int(args['parameter_size']), bytes_moved)


def _kind(args: dict[str, Any]) -> str:
    operator = args['op_name']
    if operator in _CONVOLUTIONS:
        weight = _shapes(args, 'input')[1]
        channels = _shapes(args, 'input')[0][1]
        groups = channels // weight[1] if operator != 'ConvTranspose' else 1
        if groups > 1:
            return 'depthwise' if weight[1] == 1 else 'grouped'
        rows = math.prod(_shapes(args, 'output')[0][2:])
        return 'conv' if math.prod(weight[2:]) > 1 else 'pointwise' if rows > 1 else 'fc'
    if operator in _PRODUCTS:
        if len(_shapes(args, 'input')) > 1 and int(args['parameter_size']) == 0:
            return 'attention'
        return 'pointwise' if math.prod(_shapes(args, 'output')[0][:-1]) > 1 else 'fc'
    if operator in _NORMS or operator.startswith('Reduce'):
        return 'norm'
    if operator in _COPIES or operator in _VIEWS:
        return 'layout'
    return 'elementwise' if operator in _ELEMENTWISE else 'other'


def _macs(args: dict[str, Any]) -> int:
    inputs, output = _shapes(args, 'input'), _shapes(args, 'output')[0]
    if args['op_name'] == 'ConvTranspose':
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if args['op_name'] in _CONVOLUTIONS:
        return math.prod(output) * math.prod(inputs[1][1:])
    first = inputs[0]
    # A fused product may take its first operand transposed.
    inner = first[-1] if len(first) == 1 or first[-2] == output[-2] else first[-2]
    return math.prod(output) * inner


def _shapes(args: dict[str, Any], side: str) -> list[Sequence[int]]:
    return [shape for entry in args[f'{side}_type_shape'] for shape in entry.values()]
