"""Post-training quantisation to 8 bits with calibration images, by ONNX Runtime and by NNCF (OpenVINO).

Two kinds of layers stay in float:

- Layers before the first and behind the last convolutions (normalisation, box decoding, softmax, selection). They take
  little time, and box coordinates need more than 256 steps.
- Sensitive layers, which ``sensitivity`` finds.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from mnv4_mm.deploy import quiet
from mnv4_mm.deploy.sensitivity import (
    MAX_IMAGES,
    LayerSensitivity,
    SensitiveLayer,
    measure_sensitivity,
    nodes_in_float,
    sensitive_layers,
)


class QuantizedModel(NamedTuple):
    """A net in 8 bits.

    Attributes:
        model: ``onnx.ModelProto``.
        layers: Sensitivity of each convolution and matrix product, the most sensitive one first.
        float_nodes: Names of all nodes that stay in float: those before the first or behind the last convolution,
            and those that ``nodes_in_float`` selects.
        sensitive: The sensitive layers, described for converters that do not know the names of ONNX nodes.
    """

    model: Any
    layers: list[LayerSensitivity]
    float_nodes: list[str]
    sensitive: list[SensitiveLayer]


# ONNX Runtime copies a bias that several convolutions share, and logs an error for each copy.
@quiet.no_root_log()
def quantize_onnx(model: Any, batches: Sequence[np.ndarray]) -> QuantizedModel:
    """Quantise an ``onnx.ModelProto`` to QDQ form: uint8 activations, 7-bit weights with a scale per output channel.

    Args:
        model: The float net, from pixels to raw outputs. Its input is named ``image``.
        batches: Inputs made of real images, one image each, for calibration.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as folder:
        original_path, float_path, int8_path = (Path(folder) / f'{name}.onnx' for name in ('original', 'float', 'int8'))
        onnx.save(model, original_path)
        quant_pre_process(original_path, float_path, skip_symbolic_shape=True)
        graph = onnx.load(float_path).graph
        outer_nodes = _nodes_before_and_behind_convolutions(graph)

        def quantize(float_nodes: Sequence[str]) -> None:
            quantize_static(
                float_path,
                int8_path,
                _calibration_reader(batches),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                # 7-bit weights. x86 without VNNI adds two products of 8 bits in 16 bits, which saturates, as the
                # quantisation guide of ONNX Runtime explains. With 8 bits an SSDLite lost 1.2 points of AP there, with
                # 7 bits none.
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(float_nodes),
            )

        quantize(outer_nodes)
        layers = measure_sensitivity(float_path, int8_path, batches[:MAX_IMAGES])
        kept = nodes_in_float(layers, graph)
        float_nodes = [*outer_nodes, *sorted(kept)]
        if kept:
            quantize(float_nodes)
        layers = [layer._replace(in_float=layer.layer in kept) for layer in layers]
        quantized = onnx.load(int8_path)
        _store_weights_unsigned(quantized)
        return QuantizedModel(quantized, layers, float_nodes, sensitive_layers(layers, graph))


def _store_weights_unsigned(model: Any) -> None:
    """Store the int8 weights of some convolutions as uint8 with a zero point of 128, in place. No weight changes.

    OpenCV 5.0 runs convolutions with int8 weights by its own 8-bit kernel. If the number of output positions is not a
    multiple of 8, the last ones are wrong, without an error: the last 4 of 10x10, all of 2x2 (related:
    opencv/opencv#28798). It runs convolutions with uint8 weights in float. Convolutions with a multiple of 8 positions
    keep int8 weights, because ONNX Runtime needs 1.6 times as long for a net with uint8 weights.
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


def quantize_openvino(model: Any, batches: Sequence[np.ndarray], float_nodes: Sequence[str], tail: str) -> Any:
    """Quantise an OpenVINO model with NNCF, keeping the same layers in float as ``quantize_onnx``.

    Args:
        model: The float net, converted from ONNX, with the names of the ONNX nodes.
        batches: Inputs made of real images, one image each, for calibration.
        float_nodes: Names of the ONNX nodes that stay in float.
        tail: Prefix of the names of the operations behind the net, which stay in float as well.
    """
    # OpenVINO splits a convolution with a bias: the addition gets the name of the node, the convolution this suffix.
    names = [name + suffix for name in float_nodes for suffix in ('', '/WithoutBiases')]
    quiet.without_telemetry('openvino')
    nncf = quiet.nncf()
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(names=names, patterns=[f'{tail}.*'], validate=False),
    )


def _calibration_reader(batches: Sequence[np.ndarray]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {'image': batch}

    return Reader()


def _nodes_before_and_behind_convolutions(graph: Any) -> list[str]:
    """Return the names of the nodes before the first convolutions and behind the last ones."""
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
