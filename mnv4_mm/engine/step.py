"""Faster training steps with the same results: memory format and compilation."""

from collections.abc import Callable
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn


def use_channels_last(model: nn.Module) -> bool:
    """Store weights, images and feature maps of a model in channels-last memory layout, (N, H, W, C).

    Shapes and results do not change. The convolution kernels use this layout internally, so that conversions are saved.
    Call this function before the model is wrapped for distributed training, because the gradient buffers of the wrapper
    take the layout of the weights.

    Args:
        model: Model of mmdet or mmseg; changed in place.

    Returns:
        True if the model has been changed. False if it has no ``backbone``, or if there is no GPU and the model has a
            layer for which oneDNN corrupts memory in this layout. In the latter case a warning is logged.
    """
    unsafe = [name for name, part in model.named_modules() if _corrupts_memory(part)]
    if unsafe and not torch.cuda.is_available():
        MMLogger.get_current_instance().warning(
            f'channels_last is not used: oneDNN would write the gradient of {unsafe[0]} beyond its memory '
            '(uxlfoundation/oneDNN#6035)'
        )
        return False
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, nn.Module):
        return False
    model.to(memory_format=torch.channels_last)
    backbone.register_forward_pre_hook(_to_channels_last)
    return True


def align_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Convert the loaded state of an optimiser (momentum, ...) to the memory layout of its parameters.

    torch keeps the layout in which the state was saved, but its fused kernels assume that state and parameter have the
    same layout.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _corrupts_memory(part: nn.Module) -> bool:
    """Return True for a strided 1x1 convolution of fewer than 16 input channels per group, as in FastViT's stem.

    On CPUs, its backward pass in channels-last layout corrupts memory (uxlfoundation/oneDNN#6035): the process crashes
    without a message, or continues with wrong numbers. No MobileNetV4 has such a layer.
    """
    if not isinstance(part, nn.Conv2d) or part.kernel_size != (1, 1):
        return False
    return max(part.stride) > 1 and part.in_channels // part.groups < 16


def _to_channels_last(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous(memory_format=torch.channels_last) for x in inputs)


@HOOKS.register_module()
class CompileHook(Hook):
    """Compile a model before training (see ``compile_parts``)."""

    def before_train(self, runner: Runner) -> None:
        compile_parts(runner.model.module if is_model_wrapper(runner.model) else runner.model)


def compile_parts(model: nn.Module) -> None:
    """Compile the forward functions of backbone, neck and head with ``torch.compile``, for training only.

    Losses and targets are not compiled, because their shapes depend on the number of boxes. Validation is not compiled
    either, because its images may all differ in size. mmengine's option ``compile`` is not used, because it compiles
    the whole training step, which is then recompiled again and again. Parameter names, and so checkpoints, do not
    change.

    Args:
        model: Model of mmdet or mmseg; changed in place. Parts that the model does not have are skipped.
    """
    for name in ('backbone', 'neck', 'bbox_head', 'decode_head'):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            # Not part.compile(), because mmseg calls `forward` of a head directly.
            setattr(part, 'forward', _compiled(part, part.forward))  # noqa: B010 (mypy: a method)


def _compiled(part: nn.Module, plain: Callable) -> Callable:
    compiled = torch.compile(plain)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if part.training else plain)(*args, **kwargs)

    return forward
