"""Exported ONNX files whose nets cost almost nothing, but whose results depend on the image."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mnv4_mm.digest import file_digest
from mnv4_mm.runtime.meta import Input, Meta, Resize, Selection, sidecar

CLASSES = ('cat', 'dog', 'cow')


def write_detector(path: Path, kind: str = 'nms', size: tuple[int, int] | None = (32, 32)) -> Path:
    """Write a file with five boxes per image, whose scores follow from the mean of each channel.

    Args:
        path: ONNX file to write.
        kind: ``nms`` or ``raw``.
        size: Size of the input; None for any size and any number of images.
    """
    boxes = np.array([[0, 0, 8, 8], [4, 4, 20, 20], [10, 2, 30, 9], [1, 12, 9, 31], [16, 16, 32, 32]], np.float32)
    count, sides = (1, list(size)) if size else ('N', ['H', 'W'])
    nodes = [
        helper.make_node('Cast', ['image'], ['pixels'], to=TensorProto.FLOAT),
        helper.make_node('ReduceMean', ['pixels', 'plane'], ['means'], keepdims=1),  # (N, 1, 1, 3)
        helper.make_node('Mul', ['means', 'factors'], ['products']),  # (N, 1, 5, 3)
        helper.make_node('Sin', ['products'], ['waves']),
        helper.make_node('Abs', ['waves'], ['all']),
        helper.make_node('Squeeze', ['all', 'one'], ['scores' if kind == 'raw' else 'raw_scores']),  # (N, 5, 3)
    ]
    values = dict(
        plane=np.array([1, 2]), one=np.array([1]), factors=(1 + np.arange(15, dtype=np.float32)).reshape(1, 1, 5, 3) / 7
    )
    if kind == 'raw':
        # Boxes are repeated for each image.
        nodes += [
            helper.make_node('Shape', ['image'], ['count'], start=0, end=1),
            helper.make_node('Concat', ['count', 'ones'], ['repeats'], axis=0),
            helper.make_node('Tile', ['anchors', 'repeats'], ['boxes']),
        ]
        values |= dict(anchors=boxes[None], ones=np.array([1, 1]))
        outputs = dict(boxes=([count, 5, 4], TensorProto.FLOAT), scores=([count, 5, 3], TensorProto.FLOAT))
    else:
        nodes += [
            helper.make_node('ReduceMax', ['raw_scores', 'last'], ['best'], keepdims=0),
            helper.make_node('Squeeze', ['best', 'zero'], ['unsorted']),
            helper.make_node('TopK', ['unsorted', 'five'], ['scores', 'order'], axis=0),
            helper.make_node('Gather', ['anchors', 'order'], ['boxes']),
            helper.make_node('Gather', ['numbers', 'order'], ['labels']),
        ]
        values |= dict(
            last=np.array([2]), zero=np.array([0]), five=np.array([5]), anchors=boxes, numbers=np.array([0, 1, 2, 0, 1])
        )
        outputs = dict(
            boxes=([5, 4], TensorProto.FLOAT), scores=([5], TensorProto.FLOAT), labels=([5], TensorProto.INT64)
        )
    selection = Selection(score_thr=0.1, iou_thr=0.6, max_per_img=10, min_size=0.0, candidates=1000)
    resize = Resize('stretch' if size else 'letterbox', (0, 0, 0), None if size else (64, 48))
    return _write(path, kind, [count, *sides, 3], nodes, values, outputs, size, resize, selection)


def write_segmenter(path: Path) -> Path:
    """Write a file whose class map has one of three classes for each pixel, by its brightness."""
    nodes = [
        helper.make_node('Cast', ['image'], ['pixels'], to=TensorProto.FLOAT),
        helper.make_node('ReduceMean', ['pixels', 'last'], ['grey'], keepdims=0),
        helper.make_node('Div', ['grey', 'step'], ['steps']),
        helper.make_node('Cast', ['steps'], ['class_map'], to=TensorProto.UINT8),
    ]
    values = dict(last=np.array([3]), step=np.array(85.5, np.float32))
    outputs = dict(class_map=([1, 32, 32], TensorProto.UINT8))
    resize = Resize('letterbox', (0, 0, 0))
    return _write(path, 'class_map', [1, 32, 32, 3], nodes, values, outputs, (32, 32), resize, None)


def _write(path, kind, shape, nodes, values, outputs, size, resize, selection) -> Path:
    graph = helper.make_graph(
        nodes,
        'stub',
        [helper.make_tensor_value_info('image', TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(name, kind, sides) for name, (sides, kind) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10), path)
    meta = Meta(
        task='segmentation' if selection is None else 'detection',
        kind=kind,
        target='onnx',
        precision='fp32',
        classes=CLASSES,
        input=Input(size, 'NHWC', 'uint8', 'RGB', False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        resize=resize,
        selection=selection,
        category_ids=None if selection is None else (3, 7, 9),
        first_value=1 if selection is None else 0,
        files={path.name: file_digest(path).hexdigest()},
    )
    sidecar(path).write_text(meta.to_json())
    return path
