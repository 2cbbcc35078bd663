"""Exported files on one thread: from a picture to boxes beside mmdet, and the class map beside enlarging all logits."""

import itertools
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import torch
from mmdet.apis import inference_detector
from mmengine.config import Config
from mmengine.registry import DefaultScope
from onnx import parser
from torch import nn

from mnv4_mm.bench.measure import Pair
from mnv4_mm.config.index import REPOSITORY
from mnv4_mm.config.load import load_config
from mnv4_mm.deploy.describe import describe
from mnv4_mm.deploy.export import write
from mnv4_mm.deploy.graph import build_graph
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.deploy.targets.onnx import OPSET, class_map
from mnv4_mm.images import read_image
from mnv4_mm.runtime import load
from mnv4_mm.runtime.meta import Precision
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.preprocess import prepare
from mnv4_mm.tasks import build_model

PICTURES = REPOSITORY / 'data/mini/coco/train2017'
ABOVE = 500  # pairs of box and class above the threshold, in a picture


def predictor_pairs() -> list[Pair]:
    """SSDLite at 320x320 from a JPEG file to boxes: our file, NMS inside, and mmdet with the same weights."""
    model = lively_detector('mnv4_ssdlite_coco')
    predictor = as_file(model)
    in_8_bits = [
        as_file(model, name, 'int8') for name in ('onnx', 'openvino') if not TARGETS[name].absent(convert=True)
    ]
    pictures = itertools.cycle(sorted(PICTURES.glob('*.jpg')))

    def ours(file: Predictor) -> Callable[[], object]:
        return lambda: file(next(pictures))

    def mmdets() -> None:
        with one_thread(), DefaultScope.overwrite_default_scope('mmdet'):
            inference_detector(model, str(next(pictures)))

    image = read_image(next(pictures))
    batch, _ = prepare(image, predictor.meta.input, predictor.meta.resize)

    def bare() -> None:
        read_image(next(pictures))
        predictor.session(batch)

    name = 'SSDLite MNv4-Conv-S, 320x320, JPEG to boxes, one thread'
    return [
        Pair(f'{name}: onnx against mmdet', ours(predictor), mmdets, wanted=4),
        *(Pair(f'{name}: {one.meta.target} in int8 against mmdet', ours(one), mmdets) for one in in_8_bits),
        Pair(f'{name}: onnx against decoding and the bare session', ours(predictor), bare, wanted=0.8),
    ]


def lively_detector(name: str) -> Any:
    """An untrained SSDLite that finds as much as a trained one: norms that fit the pictures, scores that differ.

    As many pairs of box and class are above the threshold as ``ABOVE`` says: what selecting costs depends on it.
    """
    torch.manual_seed(0)
    cfg = load_config(name)
    model: Any = build_model(cfg)
    pictures = [cv2.resize(read_image(path), (320, 320)) for path in sorted(PICTURES.glob('*.jpg'))[:8]]
    batch = torch.from_numpy(np.stack(pictures)[..., ::-1].transpose(0, 3, 1, 2).copy()).float()
    batch = (batch - 120) / 58
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        model.train()(batch, mode='tensor')
        classes = model.bbox_head.cls_out_channels
        last = [
            [one for one in level.modules() if isinstance(one, nn.Conv2d)][-1] for level in model.bbox_head.cls_convs
        ]
        factor = 2 / float(_class_logits(model.eval(), batch, classes).std())
        for convolution in last:
            convolution.weight *= factor
        logits = _class_logits(model, batch, classes)
        low, high = 0.0, 20.0  # of the background's logit
        while high - low > 1e-3:
            middle = (low + high) / 2
            logits[:, -1] += middle
            above = (logits.softmax(1)[:, :-1] > model.bbox_head.test_cfg.score_thr).sum() / len(pictures)
            logits[:, -1] -= middle
            low, high = (middle, high) if above > ABOVE else (low, middle)
        for convolution in last:
            assert convolution.bias is not None
            convolution.bias[classes - 1 :: classes] += low
    return as_loaded(model, cfg)


def as_loaded(model: Any, cfg: Config) -> Any:
    """An untrained detector with what ``apis.model.load_model`` would read from a checkpoint."""
    model.cfg, model.checkpoint_meta = cfg, {}
    model.dataset_meta = dict(classes=tuple(map(str, range(model.bbox_head.num_classes))))
    return model


def _class_logits(model: Any, batch: torch.Tensor, classes: int) -> torch.Tensor:
    """(anchors of all levels and pictures, classes)."""
    levels = model(batch, mode='tensor')[0]
    return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, classes) for level in levels])


def as_file(model: Any, name: str = 'onnx', precision: Precision = 'fp32') -> Predictor:
    """A model as a file of a runtime, on one thread."""
    target = TARGETS[name]
    meta = describe(model, target, precision=precision)
    some = sorted(PICTURES.glob('*.jpg'))[:8] if precision == 'int8' else []
    batches = [prepare(read_image(path), meta.input, meta.resize)[0] for path in some]
    with TemporaryDirectory() as folder:
        path = Path(folder) / f'net{target.suffix}'
        write(build_graph(model, meta), target, path, batches)
        return load(path, threads=1)


class one_thread:  # noqa: N801 (a context, spelled as one)
    """Holds torch on one thread."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def class_map_pairs(classes: int = 150, side: int = 64, factor: int = 8) -> list[Pair]:
    """The end of a segmenter's file: the class of each pixel of logits that are enlarged.

    The logits are smooth, as a net's are: a quarter of the squares between four places has several best classes.
    """
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randn((1, classes, 5, 5), generator=rng)
    logits = nn.functional.interpolate(coarse, (side, side), mode='bicubic').numpy()
    whole = f"""
    whole (float[1, {classes}, h, w] all_logits) => (int64[1, H, W] class_map)
    <float[4] scales = {{1, 1, {factor}, {factor}}}>
    {{
        full = Resize <mode = "linear"> (all_logits, , scales)
        class_map = ArgMax <axis = 1, keepdims = 0> (full)
    }}"""
    ours, theirs = (_run(text, logits) for text in (class_map(factor, classes), whole))
    assert (ours()[0] == theirs()[0]).mean() > 0.9999
    size = side * factor
    return [
        Pair(
            f'class map, {classes} classes, {side}x{side} logits to {size}x{size}, one thread: against enlarging all',
            ours,
            theirs,
        )
    ]


def _run(text: str, logits: np.ndarray) -> Callable[[], list[np.ndarray]]:
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {OPSET}]>\n{text}')
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    return lambda: session.run(None, {'all_logits': logits})
