"""Post-training quantisation to 8 bits with calibration images, in ONNX's QDQ form.

Steps are tried one after the other, and each is kept if it raises the signal-to-noise ratio of the net's outputs on
calibration images. Operators before the first and after the last convolutions (normalisation, box decoding, softmax,
selection) always stay in float: they take little time, and box coordinates need more than 256 steps.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from mnv4_mm.deploy import quiet
from mnv4_mm.deploy.calibration import evenly
from mnv4_mm.deploy.layers_file import Step
from mnv4_mm.deploy.ranges import Range, clip_ranges, measure_ranges
from mnv4_mm.deploy.rounding import RoundedConvolution, round_adaptively
from mnv4_mm.deploy.sensitivity import (
    MAX_FLOAT_SHARE,
    MAX_IMAGES,
    LayerSensitivity,
    SensitiveLayer,
    float_candidates,
    measure_sensitivity,
    net_db,
    nodes_in_float,
    sensitive_layers,
)

MAX_CLIPPING_IMAGES = 16  # calibration images used to choose ranges of least error
MAX_ROUNDING_IMAGES = 16  # and to round weights
MIN_GAIN_DB = 1.0  # that more layers in float must bring


class QuantizedModel(NamedTuple):
    """A net in 8 bits.

    The lists are empty if the scales of the net have been trained, see ``trained_onnx``.

    Attributes:
        model: ``onnx.ModelProto`` in QDQ form.
        layers: Sensitivity of each convolution and matrix product, the most sensitive one first.
        sensitive: The layers that stay in float because they are sensitive, described for converters that rename nodes.
        steps: The steps that were tried, in order.
        is_equalised: True if ``quantize_onnx`` chose the net with equalised channels.
        chosen: Names of the ONNX nodes of ``sensitive``.
        rounded: The adaptively rounded convolutions; empty if that step was not kept.
    """

    model: Any
    layers: list[LayerSensitivity]
    sensitive: list[SensitiveLayer]
    steps: list[Step]
    is_equalised: bool
    chosen: frozenset[str] = frozenset()
    rounded: Sequence[RoundedConvolution] = ()


class _Net(NamedTuple):
    """A float net that ``_try`` quantises.

    Attributes:
        model: ``onnx.ModelProto``, optimised and with the shapes of its values.
        path: ONNX file of ``model``.
        ranges: Smallest and largest element of each value of the net, by name.
        outer: Names of the nodes before the first and after the last convolutions.
        weight_bits: Bits of a quantised weight, 7 or 8.
    """

    model: Any
    path: Path
    ranges: Mapping[str, Range]
    outer: list[str]
    weight_bits: int


class _Trial(NamedTuple):
    """A quantised net and its measured layers. ``chosen`` has the names of the sensitive layers in float."""

    net: _Net
    ranges: Mapping[str, Range]
    chosen: set[str]
    model: Any
    layers: list[LayerSensitivity]

    @property
    def output_db(self) -> float:
        return net_db(self.layers, self.net.model.graph)


# ONNX Runtime copies a bias that several convolutions share, and logs an error for each copy.
@quiet.no_root_log()
def quantize_onnx(
    model: Any,
    batches: Sequence[np.ndarray],
    equalised: Any = None,
    *,
    plain: bool = False,
    for_converter: bool = False,
    max_float_share: float = MAX_FLOAT_SHARE,
) -> QuantizedModel:
    """Quantise an ``onnx.ModelProto`` to QDQ form: uint8 activations, 7-bit weights with a scale per output channel.

    Some converters have a quantiser of their own, which measures ranges and rounds weights to 8 bits. For them, the
    result tells which float net to give to this quantiser: with or without equalised channels, with which weights, and
    which layers should stay in float.

    Args:
        model: The float net, from pixels to raw outputs. Its input is named ``image``.
        batches: Inputs made of real images, one image each, for calibration.
        equalised: The same net after ``equalise``, which is used if its outputs have a higher SQNR; None to leave that
            step out.
        plain: Leave out all steps that raise the accuracy, and ignore ``equalised``. Weights are rounded to nearest,
            and activations are quantised over the range from their smallest to their largest value.
        for_converter: The result is for a converter with a quantiser of its own. Weights have 8 bits, and the step that
            clips ranges is left out.
        max_float_share: Largest share of the MACs of the net, from 0 to 1, that may be computed in float for the sake
            of sensitive layers, see ``float_candidates``.

    Returns:
        The quantised net with the steps that were kept, and the sensitivity of its layers.
    """
    with TemporaryDirectory() as folder:
        bits = 8 if for_converter else 7
        rounded: list[RoundedConvolution] = []
        net = _prepare(model, batches, Path(folder) / 'plain', bits)
        best = _try(net, net.ranges, set(), batches)
        base = best.layers
        steps = [Step('plain', best.output_db, True)]

        def consider(name: str, trial: _Trial, min_gain: float = 0.0) -> None:
            nonlocal best
            is_better = trial.output_db > best.output_db + min_gain
            steps.append(Step(name, trial.output_db, is_better))
            best = trial if is_better else best

        if not plain:
            if equalised is not None:
                other = _prepare(equalised, batches, Path(folder) / 'equalised', bits)
                consider('channels equalised', _try(other, other.ranges, set(), batches))
            if not for_converter:
                clipped = clip_ranges(best.net.model, best.ranges, evenly(batches, MAX_CLIPPING_IMAGES))
                consider('ranges of least error', _try(best.net, clipped, set(), batches))
            base = best.layers
            for chosen in float_candidates(base, best.net.model.graph, max_float_share):
                plural = 's' if len(chosen) > 1 else ''
                trial = _try(best.net, best.ranges, chosen, batches, base)
                consider(f'{len(chosen)} sensitive layer{plural} in float', trial, MIN_GAIN_DB)
            copied = type(best.model)()
            copied.CopyFrom(best.model)
            images = evenly(batches, MAX_ROUNDING_IMAGES)
            rounded = round_adaptively(best.net.model, copied, images, keep_largest=for_converter)
            consider('weights rounded adaptively', _measure(best._replace(model=copied), batches))
            rounded = rounded if steps[-1].used else []
        graph = best.net.model.graph
        base_layers = {layer.layer: layer for layer in base}  # without those that are in float, which have no noise
        kept = nodes_in_float(base, graph, best.chosen)
        layers = [
            base_layers[layer.layer]._replace(total_db=layer.total_db, in_float=layer.layer in kept)
            for layer in best.layers
        ]
        layers.sort(key=lambda layer: layer.lowest_db)
        sensitive = sensitive_layers(layers, graph, best.chosen)
        return QuantizedModel(
            best.model,
            layers,
            sensitive,
            steps,
            best.net is not net,
            frozenset(best.chosen),
            rounded,
        )


def _prepare(model: Any, batches: Sequence[np.ndarray], folder: Path, weight_bits: int) -> _Net:
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder.mkdir()
    original, path = folder / 'original.onnx', folder / 'float.onnx'
    onnx.save(model, original)
    quant_pre_process(original, path, skip_symbolic_shape=True)
    prepared = onnx.load(path)
    outer = _nodes_before_and_behind_convolutions(prepared.graph)
    return _Net(prepared, path, measure_ranges(prepared, batches), outer, weight_bits)


def _try(
    net: _Net,
    ranges: Mapping[str, Range],
    chosen: set[str],
    batches: Sequence[np.ndarray],
    layers: Sequence[LayerSensitivity] = (),
) -> _Trial:
    """Quantise a net and measure it.

    Args:
        net: The net.
        ranges: Ranges of its values.
        chosen: Names of the sensitive layers that stay in float.
        batches: See ``quantize_onnx``.
        layers: Sensitivity of the layers, if any stay in float.
    """
    kept = nodes_in_float(layers, net.model.graph, chosen)
    model = _rounded(net.model, ranges, [*net.outer, *sorted(kept)], net.weight_bits)
    return _measure(_Trial(net, ranges, chosen, model, []), batches)


def _measure(trial: _Trial, batches: Sequence[np.ndarray]) -> _Trial:
    import onnx

    path = trial.net.path.with_name('int8.onnx')
    onnx.save(trial.model, path)
    return trial._replace(layers=measure_sensitivity(trial.net.path, path, evenly(batches, MAX_IMAGES)))


def _rounded(model: Any, ranges: Mapping[str, Range], float_nodes: Sequence[str], weight_bits: int) -> Any:
    """Return a copy of an ``onnx.ModelProto`` in QDQ form, by ONNX Runtime's quantiser."""
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    copied = type(model)()
    copied.CopyFrom(model)
    # Not quantize_static, which measures ranges itself each time.
    data = TensorsData(
        CalibrationMethod.MinMax,
        {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()},
    )
    quantizer = QDQQuantizer(
        copied,
        per_channel=True,
        # For ONNX Runtime, 7-bit weights. x86 without VNNI adds two products of 8 bits in 16 bits, which saturates, as
        # the quantisation guide of ONNX Runtime explains. With 8 bits an SSDLite lost 1.2 points of AP there, with 7
        # bits none.
        reduce_range=weight_bits == 7,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=data,
        nodes_to_quantize=[],
        nodes_to_exclude=list(float_nodes),
        op_types_to_quantize=list({*QLinearOpsRegistry, *QDQRegistry}),
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def trained_onnx(model: Any) -> QuantizedModel:
    """Prepare a net in QDQ form with trained scales for ``store_weights_unsigned``, in place.

    Each tensor of integers gets a zero point of its own, because torch's exporter shares equal ones. Tensors that no
    node reads are removed, and so are the entries of stored tensors in the list of value types.

    Args:
        model: ``onnx.ModelProto`` as ``torch.onnx.export`` writes it.

    Returns:
        The net, without layers and steps, because nothing was measured.
    """
    import onnx

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    # torch's exporter stores equal tensors once. Weights that become unsigned need zero points of their own.
    for node in model.graph.node:
        weights, zeros = (tensors.get(name) for name in node.input[::2]) if len(node.input) == 3 else (None, None)
        if node.op_type == 'DequantizeLinear' and weights is not None and zeros is not None:
            node.input[2] = f'{weights.name}_zero_point'
            if node.input[2] not in tensors:
                own = onnx.TensorProto()
                own.CopyFrom(zeros)
                own.name = node.input[2]
                tensors[own.name] = own
    read = {name for node in model.graph.node for name in node.input}
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensor for name, tensor in tensors.items() if name in read)
    # torch lists the types of stored tensors too, and those of weights are about to change.
    values = [value for value in model.graph.value_info if value.name not in tensors]
    del model.graph.value_info[:]
    model.graph.value_info.extend(values)
    return QuantizedModel(model, [], [], [], is_equalised=False)


def store_weights_unsigned(model: Any) -> None:
    """Store the int8 weights of some convolutions as uint8 with a zero point of 128, in place.

    The dequantised weights stay the same. This works around a bug: OpenCV 5.0 runs convolutions with int8 weights by
    its own 8-bit kernel. If the number of output positions (height times width) is not a multiple of 8, the last
    positions are wrong, without an error: the last 4 of 10x10, all of 2x2 (related: opencv/opencv#28798). OpenCV runs
    convolutions with uint8 weights in float. Convolutions with a multiple of 8 positions keep int8 weights, because
    ONNX Runtime needs 1.6 times as long for a net with uint8 weights.

    Args:
        model: ``onnx.ModelProto`` in QDQ form.
    """
    from onnx import numpy_helper, shape_inference

    graph = shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        # If the shape is unknown, positions is 0 (unknown length) or 1 (no shape), and the weights become uint8.
        positions = int(np.prod(shapes.get(node.output[0], [])[2:])) if node.op_type == 'Conv' else 8
        maker = makers.get(node.input[1]) if node.op_type == 'Conv' else None
        if maker is None or (positions and positions % 8 == 0) or maker.op_type != 'DequantizeLinear':
            continue
        for name in maker.input[::2]:  # the weights and their zero points
            values = numpy_helper.to_array(tensors[name])
            if values.dtype == np.int8:  # not yet converted for a level that shares them
                unsigned = (values.astype(np.int16) + 128).astype(np.uint8)
                tensors[name].CopyFrom(numpy_helper.from_array(unsigned, name))


def _nodes_before_and_behind_convolutions(graph: Any) -> list[str]:
    """Return the names of the nodes that are not between two layers (convolutions or matrix products).

    These are the nodes before the first layer and after the last ones.
    """
    convolutions = ('Conv', 'MatMul', 'Gemm', 'ConvTranspose')

    def connected(nodes: Sequence[Any], read: str, write: str) -> set[str]:
        """Return the names of the convolutions and of all nodes reached from them, following the order of ``nodes``."""
        values: set[str] = set()
        names = set()
        for node in nodes:
            if node.op_type in convolutions or values & set(getattr(node, read)):
                values.update(getattr(node, write))
                names.add(node.name)
        return names

    nodes = list(graph.node)
    inside = connected(nodes, 'input', 'output') & connected(nodes[::-1], 'output', 'input')
    return [node.name for node in nodes if node.name not in inside]
