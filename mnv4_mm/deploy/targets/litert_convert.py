"""Convert a graph saved by torch.export to a ``.tflite`` file. A script for the environment of ``make litert``.

Run as ``python -I litert_convert.py JOB.json`` with the file that ``litert.convert`` writes. It imports nothing of this
package, which is not installed there.
"""

import copy
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

os.environ['LITERT_TORCH_SHOW_PROGRESS'] = 'n'
SIGNATURE = 'serving_default'  # litert-torch's name of the only signature
INPUT = 'image'
# Operators that copy the values of their inputs, like sensitivity.COPYING_OPS.
COPYING_OPS = (
    'RELU',
    'RELU6',
    'PAD',
    'PADV2',
    'RESHAPE',
    'TRANSPOSE',
    'CONCATENATION',
    'RESIZE_NEAREST_NEIGHBOR',
    'RESIZE_BILINEAR',
    'SLICE',
    'STRIDED_SLICE',
    'SPLIT',
    'SQUEEZE',
    'EXPAND_DIMS',
    'MAX_POOL_2D',
    'MAXIMUM',
    'MINIMUM',
)
WEIGHTED = ('CONV_2D', 'DEPTHWISE_CONV_2D', 'FULLY_CONNECTED', 'BATCH_MATMUL')


class Named(torch.nn.Module):
    """Wrapper of a net that returns its outputs by name. The converted file keeps the names.

    Args:
        net: Net that returns a sequence of tensors.
        names: Names of the tensors, in this order.
    """

    def __init__(self, net: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.net = net
        self.names = names

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(self.names, self.net(image), strict=True))


def convert(program: torch.export.ExportedProgram, outputs: list[str]) -> bytes:
    """Convert a net to a float ``.tflite`` file.

    Args:
        program: A net with one input, named ``image`` in the file.
        outputs: Names of the outputs, in the order in which the net returns them.

    Returns:
        The content of the file.
    """
    import litert_torch

    assert program.example_inputs is not None
    (image,) = program.example_inputs[0]
    # Decomposed first: litert-torch exports it again, and torch's detach_ cannot be exported twice.
    net = program.run_decompositions({}).module()
    with torch.no_grad():
        model = litert_torch.convert(Named(net, outputs), sample_kwargs={INPUT: image})
    return model.model_content()


def half(content: bytes) -> bytes:
    """Store the weights of a float file as fp16. XNNPACK converts these weights to fp32 when it loads the file.

    Args:
        content: A float file.

    Returns:
        The content of the fp16 file.
    """
    from ai_edge_quantizer import quantizer

    maker = quantizer.Quantizer(content)
    for name in WEIGHTED:
        if name != 'BATCH_MATMUL':  # a product of two activations
            operation = quantizer.qtyping.TFLOperationName(name)
            maker.add_weight_only_config(
                '.*', operation, num_bits=16, algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING
            )
    return bytes(maker.quantize(enable_progress_report=False).quantized_model)


def named(content: bytes, layers: dict[str, np.ndarray]) -> bytes:
    """Name the operators of a float file after the layers of the net, instead of by numbers.

    LiteRT identifies an operator by the name of its output tensor. An operator with weights gets the name of its layer,
    any other the name of the layer before it and its kind, such as ``backbone.conv_stem/PAD``. The inputs and outputs
    of the graph keep their names.

    Args:
        content: A float file.
        layers: Weights by name of the layer.

    Returns:
        The content of the file with these names.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    known = {name: _relative(values) for name, values in layers.items()}
    # Inputs and outputs keep their names.
    names = {int(i): INPUT for i in graph.inputs}
    taken = {graph.tensors[i].name.decode() for i in (*graph.inputs, *graph.outputs)}
    for operator in graph.operators:
        kind = flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)
        constants = [_sorted(model, graph.tensors[i]) for i in operator.inputs if i >= 0] if kind in WEIGHTED else []
        layer = next(
            (name for values in constants if values is not None for name, one in known.items() if _equal(one, values)),
            None,
        )
        before = next((names[i] for i in operator.inputs if i in names), INPUT)
        for i in operator.outputs:
            names[i] = layer or before.partition('/')[0]
            name = layer or f'{names[i]}/{kind}'
            count = 1
            while name in taken:
                count += 1
                name = f'{layer or names[i]}/{kind}_{count}'
            taken.add(name)
            if i not in graph.outputs:
                graph.tensors[i].name = name.encode()
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def int8(content: bytes, calibration: list[np.ndarray], in_float: list[str]) -> bytes:
    """Quantise weights (per channel) and activations to int8. The inputs and outputs of the file keep their types.

    Args:
        content: A float file.
        calibration: Inputs of the net, on which the ranges of activations are measured.
        in_float: Operators that stay in float, by the names of their output tensors.

    Returns:
        The content of the int8 file, after ``without_cast``.
    """
    from ai_edge_quantizer import quantizer, recipe

    maker = quantizer.Quantizer(content, recipe.static_wi8_ai8())
    kinds = quantizer.qtyping.TFLOperationName
    names = '|'.join(re.escape(name) for name in in_float)
    for where, kind in ((f'^({names});', kinds.ALL_SUPPORTED), ('.*', kinds.INPUT), ('.*', kinds.OUTPUT)):
        maker.update_quantization_recipe(where, kind, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)
    batches = [{INPUT: batch} for batch in calibration]
    statistics = maker.calibrate({SIGNATURE: batches}, num_threads=os.cpu_count() or 1)
    model = _read(content)
    if (cast := _cast_of_pixels(model)) is not None:
        graph = model.subgraphs[0]
        name = graph.tensors[graph.operators[cast].outputs[0]].name.decode()
        statistics[name] = dict(
            min=np.full_like(statistics[name]['min'], 0), max=np.full_like(statistics[name]['max'], 255)
        )
    return without_cast(bytes(maker.quantize(statistics, enable_progress_report=False).quantized_model))


def without_cast(content: bytes) -> bytes:
    """Remove the conversion of uint8 pixels to float, so that they are quantised to int8 directly.

    The int8 numbers stay the same. NPUs have an operator from uint8 to int8, but none from uint8 to float.

    Args:
        content: An int8 file.

    Returns:
        The content of the changed file. The given content if the file has no such conversion, or if anything other than
        a single ``QUANTIZE`` reads the float values.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = _read(content)
    cast = _cast_of_pixels(model)
    if cast is None:
        return content
    graph = model.subgraphs[0]
    (pixels,), (values,) = graph.operators[cast].inputs, graph.operators[cast].outputs
    readers = [operator for operator in graph.operators if values in operator.inputs]
    if [_kind(model, operator) for operator in readers] != ['QUANTIZE']:
        return content
    readers[0].inputs = [pixels]
    quantized = graph.tensors[readers[0].outputs[0]].quantization
    for tensor in graph.tensors:
        if tensor.type == graph.tensors[pixels].type:  # the input and what reshapes it
            tensor.quantization = copy.copy(quantized)
            tensor.quantization.scale, tensor.quantization.zeroPoint = np.ones(1, np.float32), np.zeros(1, np.int64)
    del graph.operators[cast]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _read(content: bytes) -> Any:
    from ai_edge_litert.tools import flatbuffer_utils

    return flatbuffer_utils.read_model_from_bytearray(bytearray(content))


def _kind(model: Any, operator: Any) -> str:
    from ai_edge_litert.tools import flatbuffer_utils

    return flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)


def _cast_of_pixels(model: Any) -> int | None:
    """Return the position of the operator that makes float numbers of uint8 pixels; None if there is none."""
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    uint8 = schema.TensorType.UINT8
    casts = [
        i
        for i, operator in enumerate(graph.operators)
        if _kind(model, operator) == 'CAST' and graph.tensors[operator.inputs[0]].type == uint8
    ]
    return casts[0] if len(casts) == 1 else None


def ends(content: bytes) -> list[str]:
    """Return the output tensors of the operators before the first and after the last convolutions or matrix products.

    These operators prepare the pixels or decode boxes. They cost little, and the 256 steps of int8 are too coarse for
    box corners in pixels.

    Args:
        content: A float file.

    Returns:
        Names of the tensors.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    kinds = [flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex) for operator in graph.operators]
    behind: set[int] = set()  # tensors that depend on an operator with weights
    before: set[int] = set()  # tensors that an operator with weights depends on
    for operator, kind in zip(graph.operators, kinds, strict=True):
        if kind in WEIGHTED or behind.intersection(operator.inputs):
            behind.update(operator.outputs)
    for operator, kind in reversed(list(zip(graph.operators, kinds, strict=True))):
        if kind in WEIGHTED or before.intersection(operator.outputs):
            before.update(operator.inputs)
    names = []
    for operator, kind in zip(graph.operators, kinds, strict=True):
        inside = behind.intersection(operator.outputs) and before.intersection(operator.outputs)
        if kind not in WEIGHTED and not inside:
            names += [graph.tensors[i].name.decode() for i in operator.outputs]
    return names


def sensitive(content: bytes, layers: list[dict], weights: dict[str, np.ndarray]) -> list[str]:
    """Return the output tensors of sensitive layers, and of all operators that read a sensitive output.

    An operator that reads a sensitive output through operators in ``COPYING_OPS`` is included too.

    Args:
        content: A float file.
        layers: ``product`` and ``output`` of each sensitive layer, see ``SensitiveLayer``.
        weights: Weights of ``layers[i]`` under the key ``str(i)``; products of two activations have none.

    Returns:
        Names of the tensors.

    Raises:
        ValueError: A layer is not in the file.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    kinds = [flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex) for operator in graph.operators]
    # Weights are identified by their values: sorted, as the layout differs, and relative, as the converter scales them.
    constants = {i: _sorted(model, graph.tensors[i]) for operator in graph.operators for i in operator.inputs}
    weighted = [operator for operator, kind in zip(graph.operators, kinds, strict=True) if kind in WEIGHTED]
    products = [one for one in weighted if all(constants[i] is None for i in one.inputs)]
    outputs: set[int] = set()  # outputs of operators that stay in float
    unrounded: set[int] = set()  # sensitive outputs: the operators that read them stay in float too
    for number, layer in enumerate(layers):
        if str(number) in weights:
            values = _relative(weights[str(number)])
            operators = [one for one in weighted if any(_equal(values, constants[i]) for i in one.inputs)]
        else:
            operators = products[layer['product'] :][:1]
        if not operators:
            raise ValueError(f'layer {number} of those that stay in float is not in the file')
        for operator in operators:
            outputs.update(operator.outputs)
            unrounded.update(operator.outputs if layer['output'] else [])
    for operator, kind in zip(graph.operators, kinds, strict=True):
        if unrounded.intersection(operator.inputs):
            outputs.update(operator.outputs)
            unrounded.update(operator.outputs if kind in COPYING_OPS else [])
    return [graph.tensors[i].name.decode() for i in sorted(outputs)]


def _sorted(model: Any, tensor: Any) -> np.ndarray | None:
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data) or tensor.type != 0:  # 0: float32
        return None
    return _relative(np.frombuffer(bytes(data), np.float32))


def _relative(values: np.ndarray) -> np.ndarray:
    return np.sort(values, axis=None) / max(np.abs(values).max(), 1e-30)


def _equal(a: np.ndarray, b: np.ndarray | None) -> bool:
    return b is not None and a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-6)


def with_metadata(content: bytes, name: str, text: str) -> bytes:
    """Return the content of a file with a text added to its metadata.

    Args:
        content: Content of the ``.tflite`` file.
        name: Name of the entry in the metadata.
        text: The text.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(text.encode(), np.uint8)
    entry.name, entry.buffer = name, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    program = torch.export.load(job['program'])
    content = convert(program, job['outputs'])
    tensors = program.state_dict
    content = named(content, {layer: tensors[name].detach().numpy() for name, layer in job['layers'].items()})
    if job['precision'] == 'fp16':
        content = half(content)
    elif job['precision'] == 'int8':
        with np.load(job['calibration'], allow_pickle=False) as batches, np.load(job['weights']) as weights:
            in_float = [*ends(content), *sensitive(content, job['sensitive'], dict(weights))]
            content = int8(content, list(batches.values()), in_float)
    Path(job['path']).write_bytes(with_metadata(content, 'mnv4_mm', job['description']))


if __name__ == '__main__':
    main()
