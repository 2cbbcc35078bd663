"""SSDLite on MNv4-Conv-S beside detectors of its kind: files of one runtime, from pixels to boxes that NMS has left.

All have random weights, take the same pixels, and end in the same NMS, whose work depends on what is found: each net's
score threshold is put where as many pairs of box and class are above it.
"""

import itertools
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList

from mnv4_mm.bench.exported import ABOVE, as_loaded
from mnv4_mm.bench.measure import Pair
from mnv4_mm.config.index import REPOSITORY
from mnv4_mm.config.load import load_config
from mnv4_mm.deploy.describe import describe
from mnv4_mm.deploy.export import write
from mnv4_mm.deploy.graph import Graph, Pixels, build_graph
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.runtime import load
from mnv4_mm.runtime.meta import Input, Meta
from mnv4_mm.runtime.preprocess import prepare
from mnv4_mm.tasks import build_model

PICTURES = REPOSITORY / 'data/mini/coco/val2017'


class TorchvisionSSDLite(nn.Module):
    """torchvision's ssdlite320_mobilenet_v3_large: (1, 320, 320, 3) uint8 -> boxes (1, A, 4), scores (1, A, 90)."""

    anchors: Tensor

    def __init__(self, to: Input) -> None:
        super().__init__()
        net = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
        self.pixels, self.backbone, self.head, self.coder = Pixels(to), net.backbone, net.head, net.box_coder
        blank = torch.zeros(1, 3, 320, 320)
        with torch.no_grad():
            anchors = net.anchor_generator(ImageList(blank, [(320, 320)]), list(net.backbone(blank).values()))
        self.register_buffer('anchors', anchors[0])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        found = self.head(list(self.backbone(self.pixels(image)).values()))
        boxes = self.coder.decode_single(found['bbox_regression'][0], self.anchors)
        return boxes[None], found['cls_logits'].softmax(-1)[..., 1:]


class Yolo11n(nn.Module):
    """Ultralytics' yolo11n.yaml: (1, 320, 320, 3) uint8 -> boxes (1, A, 4), scores (1, A, 80)."""

    def __init__(self, to: Input) -> None:
        super().__init__()
        with tempfile.TemporaryDirectory() as folder:
            # It writes a settings file, looks for a network and installs what it misses, unless told not to.
            os.environ.update(
                YOLO_CONFIG_DIR=folder, YOLO_OFFLINE='true', YOLO_AUTOINSTALL='false', YOLO_VERBOSE='false'
            )
            try:
                from ultralytics.nn.tasks import DetectionModel
            except ImportError as error:
                raise UserError(
                    f'ultralytics, which is measured beside ours, cannot be imported ({error}): '
                    'pip install --no-deps -r requirements/bench.txt'
                ) from error
            net: Any = DetectionModel('yolo11n.yaml', verbose=False).eval()
        net.model[-1].export, net.model[-1].format = True, 'onnx'
        self.net = net
        self.pixels = Pixels(to)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        found = self.net(self.pixels(image)).transpose(1, 2)  # (1, A, 4 + 80): centre, width and height, scores
        half = found[..., 2:4] / 2
        return torch.cat([found[..., :2] - half, found[..., :2] + half], -1), found[..., 4:]


def detector_pairs() -> list[Pair]:
    """SSDLite on MNv4-Conv-S at 320x320 in ONNX Runtime on one thread, beside torchvision's and YOLO11n."""
    torch.manual_seed(0)
    cfg = load_config('mnv4_ssdlite_coco')
    model = as_loaded(build_model(cfg), cfg)
    meta = describe(model, TARGETS['onnx'])
    pictures = [read_image(path) for path in sorted(PICTURES.glob('*.jpg'))[:8]]
    batches = [prepare(picture, meta.input, meta.resize)[0] for picture in pictures]
    ours = _file(build_graph(model, meta).module, meta, batches)
    name = 'detector at 320x320, pixels to boxes, NMS inside, ONNX Runtime, one thread: MNv4-Conv-S SSDLite beside'
    theirs = {
        "torchvision's ssdlite320_mobilenet_v3_large": TorchvisionSSDLite(meta.input),
        'YOLO11n': Yolo11n(meta.input),
    }
    return [
        Pair(f'{name} {other}', ours, _file(module.eval(), meta, batches), wanted=1, rounds=100)
        for other, module in theirs.items()
    ]


def _file(module: nn.Module, meta: Meta, batches: list[np.ndarray]) -> Callable[[], object]:
    """Runs a net as a file of ONNX Runtime, on one picture after the other."""
    assert meta.selection is not None
    with torch.no_grad():
        scores = [module(torch.from_numpy(batch))[1].flatten() for batch in batches]
    threshold = float(torch.cat(scores).topk(ABOVE * len(batches)).values[-1])
    selection = replace(meta.selection, score_thr=threshold, min_size=-1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'net.onnx'
        write(Graph(module, replace(meta, selection=selection)), TARGETS['onnx'], path)
        session = load(path, threads=1).session
    turns = itertools.cycle(batches)
    return lambda: session(next(turns))
