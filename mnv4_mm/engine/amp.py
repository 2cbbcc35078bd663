"""Mixed precision in bfloat16."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.losses import FocalLoss
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmseg.models.losses import FocalLoss as SegmentationFocalLoss
from torch import nn


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """Optimiser wrapper that runs the forward pass under bfloat16 autocast, on CPU or GPU.

    mmengine's ``AmpOptimWrapper`` requires a GPU and scales the loss. bfloat16 has the range of float32, so that no
    loss scaling is needed. Two faults of libraries are avoided, see ``compute_focal_loss_in_float32`` and
    ``widen_narrow_maps``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        prepare_for_bfloat16(model)
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


def prepare_for_bfloat16(model: nn.Module) -> None:
    """Add the hooks that training in bfloat16 needs. They change nothing in float32; a second call has no effect."""
    compute_focal_loss_in_float32(model)
    widen_narrow_maps(model)


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


def widen_narrow_maps(model: nn.Module) -> None:
    """Make the strided depthwise convolutions of a model append a column of zeros to feature maps of one column.

    On a CPU, oneDNN's bfloat16 gradient of the weights of such a convolution contains uninitialised memory for
    channels-last feature maps of one column: values of 1e4 and more, or NaN (torch 2.14.1; no public issue was found).
    It is right for two columns. The output and the gradients are the same with the column of zeros, because these
    convolutions pad by half their kernel with zeros, so that the output has one column in both cases. A second call of
    this function has no effect.

    Args:
        model: Model whose convolutions get a forward pre-hook, in place.
    """
    for part in model.modules():
        if (
            isinstance(part, nn.Conv2d)
            and part.groups == part.in_channels > 1
            and part.stride[1] > 1
            and part.padding_mode == 'zeros'
            and part.padding[1] == part.dilation[1] * (part.kernel_size[1] - 1) / 2
            and _widen not in part._forward_pre_hooks.values()
        ):
            part.register_forward_pre_hook(_widen)


def _widen(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x = inputs[0]
    return (F.pad(x, (0, 1)), *inputs[1:]) if x.shape[-1] == 1 and x.device.type == 'cpu' else inputs


def _to_float32(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].float(), *inputs[1:]) if inputs else inputs
