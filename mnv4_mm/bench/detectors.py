"""Speed of SSDLite with MNv4-Conv-S against detectors of similar size: ONNX files, from pixels to boxes after NMS.

All nets have random weights, take the same pixels and end in the same NMS. The cost of NMS depends on the number of
candidates, so the score threshold of each net is chosen to give all of them the same number.
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

from mnv4_mm.bench.exported import CANDIDATES, add_metadata
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

IMAGES = REPOSITORY / 'data/mini/coco/val2017'


class TorchvisionSSDLite(nn.Module):
    """torchvision's ``ssdlite320_mobilenet_v3_large`` up to NMS.

    Takes pixels (1, 320, 320, 3) uint8 in the channel order of ``to``. Returns boxes (1, A, 4) as (x1, y1, x2, y2) in
    pixels of the input, and scores (1, A, 90).

    Args:
        to: Size, layout and normalisation of the input.
    """

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
        outputs = self.head(list(self.backbone(self.pixels(image)).values()))
        boxes = self.coder.decode_single(outputs['bbox_regression'][0], self.anchors)
        return boxes[None], outputs['cls_logits'].softmax(-1)[..., 1:]


class Yolo11n(nn.Module):
    """Ultralytics' ``yolo11n.yaml`` up to NMS.

    Takes pixels (1, 320, 320, 3) uint8 in the channel order of ``to``. Returns boxes (1, A, 4) as (x1, y1, x2, y2) in
    pixels of the input, and scores (1, A, 80).

    Args:
        to: Size, layout and normalisation of the input.

    Raises:
        UserError: See ``import_ultralytics``.
    """

    def __init__(self, to: Input) -> None:
        super().__init__()
        net: Any = import_ultralytics()('yolo11n.yaml', verbose=False).eval()
        net.model[-1].export, net.model[-1].format = True, 'onnx'
        self.net = net
        self.pixels = Pixels(to)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.net(self.pixels(image)).transpose(1, 2)  # (1, A, 4 + 80): centre, width and height, scores
        half = outputs[..., 2:4] / 2
        return torch.cat([outputs[..., :2] - half, outputs[..., :2] + half], -1), outputs[..., 4:]


def import_ultralytics() -> Any:
    """Import Ultralytics' ``DetectionModel`` without its settings file, network access and automatic installations.

    The environment variables that switch these off stay set afterwards.

    Raises:
        UserError: Ultralytics cannot be imported.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(YOLO_CONFIG_DIR=folder, YOLO_OFFLINE='true', YOLO_AUTOINSTALL='false', YOLO_VERBOSE='false')
        try:
            from ultralytics.nn.tasks import DetectionModel
        except ImportError as error:
            raise UserError(
                f'ultralytics, the baseline of this benchmark, cannot be imported ({error}): '
                'pip install --no-deps -r requirements/bench.txt'
            ) from error
    return DetectionModel


def detector_pairs() -> list[Pair]:
    """Return pairs that time SSDLite with MNv4-Conv-S against torchvision's SSDLite and against YOLO11n.

    All are ONNX files with an input of 320x320 pixels, run by ONNX Runtime on one thread.
    """
    torch.manual_seed(0)
    cfg = load_config('mnv4_ssdlite_coco')
    model = add_metadata(build_model(cfg), cfg)
    meta = describe(model, TARGETS['onnx'])
    images = [read_image(path) for path in sorted(IMAGES.glob('*.jpg'))[:8]]
    batches = [prepare(image, meta.input, meta.resize)[0] for image in images]
    ours = _session(build_graph(model, meta).module, meta, batches)
    name = 'detector at 320x320, pixels to boxes, NMS inside, ONNX Runtime, one thread: MNv4-Conv-S SSDLite against'
    baselines = {
        "torchvision's ssdlite320_mobilenet_v3_large": TorchvisionSSDLite(meta.input),
        'YOLO11n': Yolo11n(meta.input),
    }
    return [
        Pair(f'{name} {baseline}', ours, _session(module.eval(), meta, batches), target=1, rounds=100)
        for baseline, module in baselines.items()
    ]


def _session(module: nn.Module, meta: Meta, batches: list[np.ndarray]) -> Callable[[], object]:
    """Export a net with NMS to ONNX, and return a function that runs the file on the next batch.

    The score threshold gives ``CANDIDATES`` candidates per batch on average.
    """
    assert meta.selection is not None
    with torch.no_grad():
        scores = [module(torch.from_numpy(batch))[1].flatten() for batch in batches]
    threshold = float(torch.cat(scores).topk(CANDIDATES * len(batches)).values[-1])
    selection = replace(meta.selection, score_thr=threshold, min_size=-1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'net.onnx'
        write(Graph(module, replace(meta, selection=selection)), TARGETS['onnx'], path)
        session = load(path, threads=1).session
    next_batch = itertools.cycle(batches)
    return lambda: session(next(next_batch))
