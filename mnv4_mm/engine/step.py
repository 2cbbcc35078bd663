"""What makes a training step fast without changing what it computes: memory format and compilation."""

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
    """Lays out weights, pictures and with them all maps as (N, H, W, C) in memory; shapes and results stay.

    Convolutions of this shape are computed so in any case: laid out so, nothing is copied to and fro. It must come
    before the model is wrapped for several processes, whose buffers for gradients take the layout of the weights.

    Returns:
        Whether it has been done. A model without a backbone is left as it is, and so, with a line in the log, is a net
            that oneDNN would ruin.
    """
    ruined = [name for name, part in model.named_modules() if _is_ruined(part)]
    if ruined and not torch.cuda.is_available():
        MMLogger.get_current_instance().warning(
            f'channels_last is left out: the gradient of {ruined[0]} would be written beyond its memory '
            '(uxlfoundation/oneDNN#6035)'
        )
        return False
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, nn.Module):
        return False
    model.to(memory_format=torch.channels_last)
    backbone.register_forward_pre_hook(_lay_out)
    return True


def lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Lays out what an optimiser has loaded (momentum, ...) as the parameters it is of.

    torch keeps the layout in which it was saved, and its fused kernels take both for one memory of the same order.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _is_ruined(part: nn.Module) -> bool:
    """A strided 1x1 convolution of fewer than 16 channels, as in FastViT's stem (uxlfoundation/oneDNN#6035).

    No MobileNetV4 has one. On CPUs, channels last, its backward pass corrupts memory: the process ends without a word,
    or goes on with wrong numbers.
    """
    if not isinstance(part, nn.Conv2d) or part.kernel_size != (1, 1):
        return False
    return max(part.stride) > 1 and part.in_channels // part.groups < 16


def _lay_out(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous(memory_format=torch.channels_last) for x in inputs)


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles a model when training begins, see ``compile_parts``."""

    def before_train(self, runner: Runner) -> None:
        compile_parts(runner.model.module if is_model_wrapper(runner.model) else runner.model)


def compile_parts(model: nn.Module) -> None:
    """Compiles backbone, neck and head by ``torch.compile``, for training only.

    Losses and targets, whose shapes depend on the number of boxes, are left as they are, and so is validation, whose
    pictures may all differ in size: mmengine's ``compile`` takes the whole step and compiles again and again.
    Parameters keep their names, so checkpoints do not change.
    """
    for name in ('backbone', 'neck', 'bbox_head', 'decode_head'):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            # Not part.compile(): mmseg calls a head's `forward` itself.
            setattr(part, 'forward', _compiled(part, part.forward))  # noqa: B010 (mypy: a method)


def _compiled(part: nn.Module, plain: Callable) -> Callable:
    compiled = torch.compile(plain)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if part.training else plain)(*args, **kwargs)

    return forward
