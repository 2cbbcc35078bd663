"""Speed of the training pipelines, from image file to augmented image, against OpenMMLab's and decoding alone."""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, DefaultScope

from mnv4_mm.bench.measure import Pair
from mnv4_mm.config.data import innermost_dataset, with_data
from mnv4_mm.config.index import REPOSITORY
from mnv4_mm.config.load import load_config
from mnv4_mm.images import read_image, read_mask
from mnv4_mm.tasks import task_of

# Pipelines of mmdet's SSDLite config and mmseg's ADE20K configs, which our two augmentations replace.
MMDET: list[dict[str, Any]] = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Expand', mean=[123.675, 116.28, 103.53], to_rgb=True, ratio_range=(1, 4)),
    dict(type='MinIoURandomCrop', min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3),
    dict(type='Resize', scale=(320, 320), keep_ratio=False),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='PhotoMetricDistortion',
        brightness_delta=32,
        contrast_range=(0.5, 1.5),
        saturation_range=(0.5, 1.5),
        hue_delta=18,
    ),
    dict(type='PackDetInputs'),
]
MMSEG: list[dict[str, Any]] = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]


def augmentation_pairs() -> list[Pair]:
    """Return pairs that time our training pipelines for SSD and for segmentation, on one core.

    Each call is a pass over all images of a small data set. The baselines are the pipeline of mmdet or mmseg, and
    decoding alone.
    """
    pairs = []
    for name, config, data, openmmlab_pipeline, target in (
        ('SSD', 'mnv4_ssdlite_coco', 'data/mini/coco', MMDET, 5.0),
        ('segmentation', 'mnv4_lraspp_ade20k', 'data/mini/ade', MMSEG, 3.0),
    ):
        passes = _passes(config, data, openmmlab_pipeline)
        kind = f'{name} pipeline, {passes.images} images'
        pairs.append(Pair(f"{kind}, against OpenMMLab's", passes.ours, passes.openmmlab, target, rounds=10))
        pairs.append(Pair(f'{kind}, against decoding alone', passes.ours, passes.decoding, 0.5, rounds=10))
    return pairs


class _Passes(NamedTuple):
    """Passes over a data set.

    Attributes:
        ours: With the pipeline of our config.
        openmmlab: With the pipeline of mmdet or mmseg.
        decoding: Decoding only.
        images: Number of images in the data set.
    """

    ours: Callable[[], None]
    openmmlab: Callable[[], None]
    decoding: Callable[[], None]
    images: int


def _passes(config: str, data: str, openmmlab_pipeline: list[dict]) -> _Passes:
    cfg = load_config(config)
    task = task_of(cfg)
    cfg = with_data(cfg, task.find(str(REPOSITORY / data)))
    with DefaultScope.overwrite_default_scope(cfg.default_scope), contextlib.redirect_stdout(io.StringIO()):
        dataset = DATASETS.build(innermost_dataset(cfg.train_dataloader.dataset))
        openmmlab = Compose(openmmlab_pipeline)
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]

    def run_all(pipeline: Callable[[dict], Any]) -> Callable[[], None]:
        def run() -> None:
            with one_core():
                for info in infos:
                    pipeline({**info, 'seg_fields': []})

        return run

    def decode(info: dict) -> None:
        read_image(info['img_path'])
        if info.get('seg_map_path'):
            read_mask(info['seg_map_path'])

    np.random.seed(0)
    return _Passes(run_all(dataset.pipeline), run_all(openmmlab), run_all(decode), len(infos))


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Context manager in which OpenCV and torch use one core only, as in a data loader's worker."""
    before = (torch.get_num_threads(), cv2.getNumThreads())
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
