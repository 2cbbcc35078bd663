"""Cost of distillation: a training step of an MNv4-Conv-S student with and without an MNv4-Conv-M teacher."""

import copy
from typing import Any

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mnv4_mm.bench.measure import Pair
from mnv4_mm.config.backbone import with_backbone
from mnv4_mm.config.load import load_config
from mnv4_mm.config.optimizer import with_fused, with_precision
from mnv4_mm.config.teacher import DEFAULT_LOSS, SCORES, WEIGHTS
from mnv4_mm.engine.distillation import add_teacher
from mnv4_mm.engine.step import use_channels_last
from mnv4_mm.tasks import build_model

TARGET = 1 / 1.5


class Step:
    """A training step of a config's model on a batch of noise. Calling it runs a step.

    Args:
        name: Name of the config.
        batch: Batch size.
        size: Height and width of the images in pixels.
        taught: Add a teacher with MNv4-Conv-M to distil from.
        backbone: Backbone that replaces the config's; None to keep it.
        device: Device to train on.
        dtype: Data type of mixed precision, ``fp16`` or ``bf16``; None to train in float32.
    """

    def __init__(
        self,
        name: str,
        batch: int,
        size: int,
        taught: bool = False,
        *,
        backbone: str | None = 'mnv4_conv_s',
        device: str = 'cpu',
        dtype: str | None = None,
    ) -> None:
        torch.manual_seed(0)
        cfg = load_config(name)
        cfg = with_fused(with_backbone(cfg, backbone) if backbone else cfg, None)
        if dtype:
            cfg = with_precision(cfg, dtype, device != 'cpu')
        model: Any = build_model(cfg)
        self.model = model
        if taught:
            teacher = build_model(with_backbone(load_config(name), 'mnv4_conv_m'))
            use_channels_last(teacher)
            loss = DEFAULT_LOSS[cfg.default_scope]
            defaults = SCORES if cfg.default_scope == 'mmseg' else {'weight': WEIGHTS['mmdet'][loss]}
            add_teacher(self.model, teacher, loss=loss, **defaults)
        use_channels_last(self.model)
        self.model.to(device).train()
        self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)
        if cfg.default_scope == 'mmdet':
            self.data = demo_mm_inputs(batch, [[3, size, size]] * batch, num_classes=80)
        else:
            preprocessor: Any = self.model.data_preprocessor
            preprocessor.size = (size, size)
            self.data = _segmentation_batch(batch, size)
        # Copying a batch from the host would take longer than a step; data loaders do that in the meantime.
        self.data = self.model.data_preprocessor.cast_data(self.data)

    def __call__(self) -> None:
        self.model.train_step(copy.deepcopy(self.data), self.optimizer)


def distillation_pairs(batch: int = 8, size: int = 320) -> list[Pair]:
    """Return pairs that time a training step with a teacher against the same step without a teacher.

    The target allows the step with a teacher to take 1.5 times as long.

    Args:
        batch: Batch size.
        size: Height and width of the images in pixels.
    """
    return [
        Pair(
            f'step of {head}, batch {batch}, {size}x{size}: taught by Conv-M, against not',
            Step(name, batch, size, True),
            Step(name, batch, size, False),
            TARGET,
            rounds=6,
        )
        for head, name in (('SSDLite', 'mnv4_ssdlite_coco'), ('LR-ASPP', 'mnv4_lraspp_ade20k'))
    ]


def _segmentation_batch(batch: int, size: int) -> dict[str, Any]:
    shape = dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size))
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 150, (1, size, size))), metainfo=shape)
        for _ in range(batch)
    ]
    return dict(
        inputs=[torch.randint(0, 256, (3, size, size), dtype=torch.uint8) for _ in samples], data_samples=samples
    )
