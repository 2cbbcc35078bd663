"""Mixed precision in bfloat16."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.models.losses import FocalLoss
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmseg.models.losses import FocalLoss as SegmentationFocalLoss
from torch import nn


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """Optimiser wrapper that runs the forward pass under bfloat16 autocast, on CPU or GPU.

    mmengine's ``AmpOptimWrapper`` requires a GPU and scales the loss. bfloat16 has the range of float32, so that no
    loss scaling is needed. Focal losses are computed in float32, see ``compute_focal_loss_in_float32``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        compute_focal_loss_in_float32(model)
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


def compute_focal_loss_in_float32(model: nn.Module) -> None:
    """Make the focal losses of a model convert their predictions to float32.

    mmcv's CUDA kernel of the focal loss does not support bfloat16 (open-mmlab/mmcv#3061). A forward pre-hook on each
    focal loss converts the predictions, which are its first argument. A second call of this function has no effect.

    Args:
        model: Model of mmdet or mmseg. Hooks are added to its focal losses in place.
    """
    for part in model.modules():
        is_focal = isinstance(part, FocalLoss | SegmentationFocalLoss)
        if is_focal and _to_float32 not in part._forward_pre_hooks.values():
            part.register_forward_pre_hook(_to_float32)


def _to_float32(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].float(), *inputs[1:]) if inputs else inputs
