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
    loss scaling is needed. Focal losses are computed in float32, see ``compute_focal_loss_in_float32``. On the CPU,
    strided depthwise convolutions get feature maps of at least two columns, see ``widen_narrow_maps``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        compute_focal_loss_in_float32(model)
        device = next(model.parameters()).device.type
        if device == 'cpu':
            widen_narrow_maps(model)
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


def widen_narrow_maps(model: nn.Module) -> None:
    """Make the strided depthwise convolutions of a model append a column of zeros to feature maps of one column.

    oneDNN's bfloat16 gradient of the weights of such a convolution is wrong for channels-last maps of one column: it
    contains values of memory that nobody has written, from 1e4 to NaN. It is right for two columns. The output and
    the gradients are those of one column, because such a convolution pads with zeros and has an output of one column
    for both. A second call of this function has no effect.

    Args:
        model: Model whose convolutions get a forward pre-hook, in place. Only those that pad by half their kernel do.
    """
    for part in model.modules():
        if (
            isinstance(part, nn.Conv2d)
            and part.groups == part.in_channels > 1
            and part.stride[1] > 1
            and part.padding[1] == part.dilation[1] * (part.kernel_size[1] - 1) / 2
            and _widen not in part._forward_pre_hooks.values()
        ):
            part.register_forward_pre_hook(_widen)


def _widen(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x = inputs[0]
    return (F.pad(x, (0, 1)), *inputs[1:]) if x.shape[-1] == 1 else inputs


def _to_float32(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].float(), *inputs[1:]) if inputs else inputs
