"""Checkpoints of small untrained nets with useful outputs: norms that fit real images, and distinct scores."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import nn

from mnv4_mm.config.backbone import with_backbone
from mnv4_mm.config.data import innermost_dataset
from mnv4_mm.config.load import load_config
from mnv4_mm.tasks import build_model
from mnv4_mm.weights.checkpoint import tensors_only

Maker = Callable[..., Path]


@pytest.fixture(scope='session')
def photos(repository) -> list[Path]:
    """Real images of several sizes."""
    return sorted((repository / 'data/mini/coco/val2017').glob('*.jpg'))[:6]


@pytest.fixture(scope='session')
def make_checkpoint(once, tmp_path_factory, photos) -> Maker:
    """Return a function that writes a checkpoint of a config, as train.py does (once for all workers)."""

    def make(name: str, backbone: str | None = None) -> Path:
        key = f'lively {name} {backbone or ""}'.strip().replace(':', ' ').replace('/', ' ')
        made = once(key, lambda folder: write(name, backbone, folder)) / 'net.pth'
        return Path(shutil.copy(made, tmp_path_factory.mktemp('checkpoint')))

    def write(name: str, backbone: str | None, folder: Path) -> None:
        cfg = load_config(name)
        if backbone:
            cfg = with_backbone(cfg, backbone)
        cfg.model.backbone.pop('init_cfg', None)
        folder.mkdir(exist_ok=True)
        save_lively(cfg, photos, folder / 'net.pth')

    return make


@pytest.fixture(scope='session')
def write_checkpoint(photos) -> Callable[[Config, Path], None]:
    """Return a function that writes a checkpoint of a loaded config."""
    return lambda cfg, path: save_lively(cfg, photos, path)


@pytest.fixture(scope='session')
def ssdlite(make_checkpoint) -> Path:
    return make_checkpoint('mnv4_ssdlite_coco-mini')


@pytest.fixture(scope='session')
def lraspp(make_checkpoint) -> Path:
    return make_checkpoint('mnv4_lraspp_ade20k-mini')


@pytest.fixture(scope='session')
def sensitive_net() -> tuple[nn.Module, list[np.ndarray]]:
    """A net of three convolutions, the second of which has one channel a thousand times as large, and its inputs."""
    torch.manual_seed(0)
    # The last one has padding, which some converters turn into an operator of its own.
    last = nn.Conv2d(8, 8, 3, stride=2, padding=1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), last, nn.Softmax(1))
    with torch.no_grad():
        net.get_parameter('2.weight')[0] *= 1000
        net.get_parameter('3.weight')[:, 0] /= 1000
    rng = np.random.default_rng(0)
    return net.eval(), [rng.uniform(0, 1, (1, 3, 32, 32)).astype(np.float32) for _ in range(4)]


def save_lively(cfg: Config, photos: list[Path], path: Path) -> None:
    torch.manual_seed(0)
    with tensors_only():
        model: Any = build_model(cfg)
    part = 'bbox_head' if 'bbox_head' in cfg.model else 'decode_head'
    head = getattr(model, part)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.1)
            module.momentum = None  # the mean over all batches
    steps = innermost_dataset(cfg.test_dataloader.dataset).pipeline
    # Detectors at the size of their config; segmenters at a smaller one, for speed.
    size = next(step.scale for step in steps if step.type == 'Resize') if part == 'bbox_head' else (160, 160)
    images = [cv2.resize(np.asarray(cv2.imread(str(photo))), size) for photo in photos]
    batch = torch.from_numpy(np.stack(images)[..., ::-1].transpose(0, 3, 1, 2).copy()).float()
    batch = (batch - 120) / 58
    with torch.no_grad():
        model.train().extract_feat(batch)
        head(model.extract_feat(batch))
        model.eval()
        maps = model.extract_feat(batch)
        logits = (
            torch.cat([level.flatten() for level in head(maps)[0]]) if part == 'bbox_head' else head(maps).flatten()
        )
        factor, bias = 2 / float(logits.std()), 0.0
        if part == 'bbox_head' and head.use_sigmoid_cls:
            # One score in 200 reaches the threshold, and the largest is below 1.
            threshold = math.log(head.test_cfg.score_thr / (1 - head.test_cfg.score_thr))
            low, high = float(logits.sort().values[-len(logits) // 200]), float(logits.max())
            factor = (2 - threshold) / (high - low)
            bias = threshold - factor * low
        for convolution in class_convolutions(head):
            convolution.weight *= factor
            if convolution.bias is not None:
                convolution.bias.mul_(factor).add_(bias)
    dataset = innermost_dataset(cfg.test_dataloader.dataset)
    count = head.num_classes
    # Checkpoint and data are matched by the names of classes.
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
        published = registry.get(dataset.type).METAINFO.get('classes', ())
    names = published if len(published) == count else [f'class {i}' for i in range(count)]
    classes = tuple(dataset.get('metainfo', {}).get('classes') or names)
    palette = [(i, 255 - i, i // 2) for i in range(count)]
    meta = dict(classes=classes, palette=palette, reduce_zero_label=part == 'decode_head')
    state = model.eval().state_dict()
    torch.save(dict(state_dict=state, meta=dict(cfg=cfg.pretty_text, dataset_meta=meta)), path)


def class_convolutions(head: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions whose outputs are class scores."""
    names = ('rtm_cls', 'retina_cls', 'conv_seg', 'cls_convs')
    part = next(getattr(head, name) for name in names if hasattr(head, name))
    levels = list(part) if isinstance(part, nn.ModuleList) else [part]
    last = [[module for module in level.modules() if isinstance(module, nn.Conv2d)][-1] for level in levels]
    return list(dict.fromkeys(last))  # levels may share one
