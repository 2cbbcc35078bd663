"""ONNX, for ONNX Runtime. The selection of boxes (NMS), or the class map, can be part of the file."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnv4_mm.deploy.layers_file import write_layers
from mnv4_mm.deploy.quantize import QuantizedModel, quantize_onnx, store_weights_unsigned, trained_onnx
from mnv4_mm.deploy.rounding import RoundedConvolution
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.runtime.meta import META_KEY, OUTPUTS, Precision, Selection
from mnv4_mm.runtime.results import corner_weights

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from mnv4_mm.deploy.graph import Graph

OPSET = 18  # the lowest that torch's exporter writes without rewriting
TAIL = 'tail_'  # prefix of the names of nodes after the net


class Onnx(Target):
    name = 'onnx'
    converter = ('onnx', 'onnxscript')
    kinds = ('nms', 'raw', 'class_map', 'logits')
    precisions = ('fp32', 'fp16', 'int8')
    dynamic = True
    distributions = ('onnx', 'onnxruntime')

    def convert(
        self, graph: 'Graph', path: Path, precision: Precision, calibration: Sequence[np.ndarray] = ()
    ) -> list[Path]:
        model, quantised = to_onnx(graph, precision, calibration)
        if quantised:
            store_weights_unsigned(model)
        entry = model.metadata_props.add()
        entry.key, entry.value = META_KEY, graph.meta.to_json()
        path.write_bytes(model.SerializeToString())
        return [path, *write_layers(path, quantised, graph.calibration)]


def to_onnx(
    graph: 'Graph', precision: Precision = 'fp32', calibration: Sequence[np.ndarray] = ()
) -> tuple[Any, QuantizedModel | None]:
    """Convert a graph to ONNX.

    Args:
        graph: The model. ``graph.meta.kind`` decides which outputs the result has.
        precision: Precision of the result, ``fp32``, ``fp16`` or ``int8``. ``graph.meta.precision`` is ignored.
        calibration: See ``Target.convert``.

    Returns:
        The ``onnx.ModelProto``, and the result of ``to_int8``. The latter is None if the precision is not int8.
    """
    import onnx

    quantised = None
    if precision == 'int8':
        quantised = to_int8(graph, calibration)
        model = quantised.model
    else:
        model = _exported(graph)
    if precision == 'fp16':
        from onnxruntime.transformers.float16 import convert_float_to_float16

        # Not by onnxconverter-common: files of multi-scale nets that it converts do not load.
        model = convert_float_to_float16(model, keep_io_types=True)
    if graph.meta.kind == 'nms':
        assert graph.meta.selection is not None
        model = _append(model, selection(graph.meta.selection), ('boxes', 'scores'))
    elif graph.meta.kind == 'class_map':
        model = _append(model, class_map(graph.output_stride(), len(graph.meta.classes)), ('logits',))
    onnx.checker.check_model(model, full_check=True)
    return model, quantised


def to_int8(graph: 'Graph', calibration: Sequence[np.ndarray], *, for_converter: bool = False) -> QuantizedModel:
    """Quantise a graph to int8, in ONNX's QDQ form.

    The steps that raise the accuracy are left out if ``graph.plain_int8`` is True. A net that has been fine-tuned for
    int8 keeps its trained scales.

    Args:
        graph: The model.
        calibration: See ``Target.convert``. Ignored if the net has been fine-tuned for int8.
        for_converter: See ``quantize_onnx``.

    Returns:
        The quantised net. Its outputs are raw boxes and scores, or logits, even if ``graph.meta.kind`` is ``nms`` or
        ``class_map``. If the net has been fine-tuned for int8, no sensitivities of layers are listed.
    """
    if graph.has_integers:
        return trained_onnx(_exported(graph))
    equalised = None if graph.plain_int8 else _exported(graph, calibration).SerializeToString()
    images = tuple((batch.tobytes(), batch.shape, batch.dtype.str) for batch in calibration)
    model = _exported(graph).SerializeToString()
    quantised = _quantised(model, equalised, images, graph.plain_int8, for_converter)
    own = type(quantised.model)()
    own.CopyFrom(quantised.model)
    return quantised._replace(model=own)


@functools.lru_cache(maxsize=2)
def _quantised(
    model: bytes,
    equalised: bytes | None,
    images: tuple[tuple[bytes, tuple[int, ...], str], ...],
    plain: bool,
    for_converter: bool,
) -> QuantizedModel:
    """Quantise a net. Two results are kept, because several runtimes take the same one."""
    import onnx

    batches = [np.frombuffer(values, dtype).reshape(shape).copy() for values, shape, dtype in images]
    other = None if equalised is None else onnx.load_from_string(equalised)
    return quantize_onnx(onnx.load_from_string(model), batches, other, plain=plain, for_converter=for_converter)


def float_program(
    graph: 'Graph', precision: Precision, calibration: Sequence[np.ndarray] = ()
) -> tuple['ExportedProgram', QuantizedModel | None]:
    """Return the float net for a converter that does its own quantisation.

    For int8, ``to_int8`` first quantises the net, to find out which layers should stay in float, and whether equalised
    channels and adaptively rounded weights raise the accuracy.

    Args:
        graph: The model.
        precision: Precision of the file.
        calibration: See ``Target.convert``.

    Returns:
        The float net, with equalised channels and rounded weights if ``to_int8`` chose them, and the result of
        ``to_int8``. The latter is None if the precision is not int8.
    """
    images, quantised = _plan(graph, precision, calibration)
    return graph.program(images, quantised.rounded if quantised else ()), quantised


def float_onnx(
    graph: 'Graph', precision: Precision, calibration: Sequence[np.ndarray] = ()
) -> tuple[Any, QuantizedModel | None]:
    """Return what ``float_program`` does, with the net as an ``onnx.ModelProto``."""
    images, quantised = _plan(graph, precision, calibration)
    return _exported(graph, images, quantised.rounded if quantised else ()), quantised


def _plan(
    graph: 'Graph', precision: Precision, calibration: Sequence[np.ndarray]
) -> tuple[Sequence[np.ndarray], QuantizedModel | None]:
    """Return the images with which channels are to be equalised, and the result of ``to_int8``."""
    quantised = to_int8(graph, calibration, for_converter=True) if precision == 'int8' else None
    return calibration if quantised is not None and quantised.is_equalised else (), quantised


def _exported(
    graph: 'Graph', calibration: Sequence[np.ndarray] = (), rounded: Sequence[RoundedConvolution] = ()
) -> Any:
    """Convert a graph; for the arguments see ``Graph.program``."""
    import torch

    from mnv4_mm.deploy.qdq import translations

    prefix = 'raw_' if graph.meta.kind in ('nms', 'class_map') else ''
    names = OUTPUTS['raw' if graph.meta.task == 'detection' else 'logits']
    program = torch.onnx.export(
        graph.program(calibration, rounded),
        input_names=['image'],
        output_names=[prefix + name for name in names],
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
        custom_translation_table=translations(),
    )
    assert program is not None
    return program.model_proto


def _append(model: Any, tail: str, values: Sequence[str]) -> Any:
    """Append a graph in ONNX's text form to a model. ``values`` names the outputs of the model that it reads."""
    import onnx
    from onnx import compose, parser

    text = f'<ir_version: {model.ir_version}, opset_import: ["" : {OPSET}]>\n{tail}'
    behind = compose.add_prefix(parser.parse_model(text), TAIL, rename_inputs=False, rename_outputs=False)
    merged = compose.merge_models(model, behind, io_map=[(f'raw_{name}', f'all_{name}') for name in values])
    # merge_models lists the operator sets of both models, which other readers than ONNX Runtime may refuse.
    versions = {entry.domain: entry.version for entry in merged.opset_import}
    del merged.opset_import[:]
    merged.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())
    return merged


def selection(limits: Selection) -> str:
    """Return the ONNX graph, in text form, that selects detections like ``results.select``.

    The limit ``Selection.candidates`` is not applied. The inputs of the graph are boxes (1, A, 4) as (x1, y1, x2, y2)
    and scores (1, A, classes). The outputs are boxes (K, 4), scores (K,) and labels (K,), best first.

    Args:
        limits: Thresholds and limits.
    """
    return f"""
    selection (float[1, A, 4] all_boxes, float[1, A, C] all_scores)
        => (float[K, 4] boxes, float[K] scores, int64[K] labels)
    <
        int64[1] most = {{{limits.max_per_img}}},
        float[1] iou_thr = {{{limits.iou_thr}}}, float[1] score_thr = {{{limits.score_thr}}},
        float[1] min_size = {{{limits.min_size}}}, float[1] zero = {{0}},
        int64[1] first = {{0}}, int64[1] middle = {{2}},
        int64[1] end = {{4}}, int64[1] last_axis = {{2}}, int64[1] class_axis = {{1}},
        int64 class_column = {{1}}, int64 anchor_column = {{2}}
    >
    {{
        by_class = Transpose <perm = [0, 2, 1]> (all_scores)
        low = Slice (all_boxes, first, middle, last_axis)
        high = Slice (all_boxes, middle, end, last_axis)
        sides = Sub (high, low)
        side = ReduceMin <keepdims = 0> (sides, last_axis)
        is_large = Greater (side, min_size)
        large = Unsqueeze (is_large, class_axis)
        candidates = Where (large, by_class, zero)
        kept = NonMaxSuppression (all_boxes, candidates, most, iou_thr, score_thr)
        score = GatherND (candidates, kept)
        count = Shape (score)
        some = Min (count, most)
        scores, order = TopK (score, some)
        best = Gather <axis = 0> (kept, order)
        anchor = Gather <axis = 1> (best, anchor_column)
        labels = Gather <axis = 1> (best, class_column)
        box = Squeeze (all_boxes, first)
        boxes = Gather <axis = 0> (box, anchor)
    }}"""


def class_map(factor: int, classes: int) -> str:
    """Return the ONNX graph, in text form, that computes the class map of logits like ``results.class_map``.

    The input of the graph is logits (1, classes, h, w). The output is class_map (1, h * factor, w * factor), uint8 or,
    for more than 256 classes, int32.

    Args:
        factor: Output stride of the logits in pixels, 1 or an even number.
        classes: Number of classes.
    """
    kind, number = ('uint8', 2) if classes <= 256 else ('int32', 6)
    if factor == 1:
        return f"""
        class_map (float[1, C, h, w] all_logits) => ({kind}[1, H, W] class_map)
        {{
            best = ArgMax <axis = 1, keepdims = 0> (all_logits)
            class_map = Cast <to = {number}> (best)
        }}"""
    end = 2**31  # larger than any class map
    weights = corner_weights(factor)
    values = ', '.join(f'{value:.9g}' for value in weights.ravel())
    return f"""
    class_map (float[1, C, h, w] all_logits) => ({kind}[1, H, W] class_map)
    <
        float[{len(weights)}, 4] weights = {{{values}}},
        int64[8] around = {{0, 1, 1, 0, 0, 1, 1, 0}}, int64[2] lines = {{-1, {classes}}},
        int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] three = {{3}},
        int64[2] both = {{0, 1}}, int64[2] both_behind = {{1, 2}},
        int64[2] n0 = {{0, 0}}, int64[2] n1 = {{0, 1}}, int64[2] n2 = {{1, 0}}, int64[2] n3 = {{1, 1}},
        int64[2] e0 = {{-1, -1}}, int64[2] e1 = {{-1, {end}}}, int64[2] e2 = {{{end}, -1}},
        int64[2] e3 = {{{end}, {end}}},
        int64[3] fill = {{1, 1, {factor**2}}}, int64[1] factor = {{{factor}}},
        int64[2] edge = {{{factor // 2}, {factor // 2}}}, int64[2] far_edge = {{-{factor // 2}, -{factor // 2}}}
    >
    {{
        places = Transpose <perm = [0, 2, 3, 1]> (all_logits)
        padded = Pad <mode = "edge"> (places, around)
        shape = Shape (padded)
        grid = Slice (shape, one, three)
        width = Slice (grid, one, two)
        flat = Reshape (padded, lines)
        best = ArgMax <axis = 1, keepdims = 0> (flat)
        map = Reshape (best, grid)
        c0 = Slice (map, n0, e0, both)
        c1 = Slice (map, n1, e1, both)
        c2 = Slice (map, n2, e2, both)
        c3 = Slice (map, n3, e3, both)
        s1 = Equal (c0, c1)
        s2 = Equal (c0, c2)
        s3 = Equal (c0, c3)
        s12 = And (s1, s2)
        same = And (s12, s3)
        mixed = Not (same)
        cells_mixed = NonZero (mixed)
        at = Transpose <perm = [1, 0]> (cells_mixed)
        row = Slice (at, zero, one, one)
        column = Slice (at, one, two, one)
        before = Mul (row, width)
        corner = Add (before, column)
        below = Add (width, one)
        steps = Concat <axis = 0> (zero, one, width, below)
        corners = Add (corner, steps)
        values = Gather <axis = 0> (flat, corners)
        between = MatMul (weights, values)
        labels = ArgMax <axis = 2, keepdims = 0> (between)
        c0_deep = Unsqueeze (c0, two)
        filled = Expand (c0_deep, fill)
        cells = ScatterND (filled, at, labels)
        small = Cast <to = {number}> (cells)
        many = Sub (grid, one)
        rows = Slice (many, zero, one)
        columns = Slice (many, one, two)
        split = Concat <axis = 0> (rows, columns, factor, factor)
        tiles = Reshape (small, split)
        ordered = Transpose <perm = [0, 2, 1, 3]> (tiles)
        height_full = Mul (rows, factor)
        width_full = Mul (columns, factor)
        joined = Concat <axis = 0> (one, height_full, width_full)
        full = Reshape (ordered, joined)
        class_map = Slice (full, edge, far_edge, both_behind)
    }}"""
