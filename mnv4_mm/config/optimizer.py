"""Optimizer, learning rate and precision of a config."""

import inspect

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS

from mnv4_mm.config.components import find_component
from mnv4_mm.config.nested import on_copy
from mnv4_mm.config.rules import check_precision
from mnv4_mm.errors import UserError


def set_precision(cfg: Config, dtype: str, on_gpu: bool) -> Config:
    """Train in mixed precision.

    Args:
        cfg: A config.
        dtype: ``fp16`` (with loss scaling, needs a GPU) or ``bf16``.
        on_gpu: True if training runs on a GPU.

    Raises:
        UserError: ``dtype`` is ``fp16``, and there is no GPU.
    """
    check_precision(dtype, on_gpu)
    for key in ('loss_scale', 'dtype', 'use_fp64'):  # settings of the wrapper that is replaced
        cfg.optim_wrapper.pop(key, None)
    fp16 = dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16')
    cfg.optim_wrapper.update(fp16 if dtype == 'fp16' else dict(type='Bf16OptimWrapper'))
    return cfg


def set_fused(cfg: Config, fused: bool | None) -> Config:
    """Choose whether torch's optimizer updates all parameters in one kernel.

    Args:
        cfg: A config.
        fused: The value to set. If None, it is set to True where the optimizer supports it, unless the config sets
            ``fused``, ``foreach`` or ``differentiable``.

    Raises:
        UserError: The type of the optimizer is unknown; or ``fused`` is True, and the optimizer does not support it.
    """
    optimizer = cfg.optim_wrapper.optimizer
    kind = optimizer.get('type')
    if isinstance(kind, str):
        kind = find_component('optim_wrapper.optimizer', kind, OPTIMIZERS, cfg.get('default_scope'))
    supported = kind is not None and 'fused' in inspect.signature(kind).parameters
    if fused and not supported:
        raise UserError(f'--fused: {optimizer.get("type")} has no fused form')
    if fused is not None and supported:
        optimizer.fused = fused
    elif supported and not optimizer.keys() & {'fused', 'foreach', 'differentiable'}:
        optimizer.fused = True
    return cfg


def set_learning_rate_scaling(cfg: Config) -> Config:
    """Let mmengine's ``Runner.scale_lr`` multiply the learning rate by batch size / ``auto_scale_lr.base_batch_size``.

    Raises:
        UserError: The config has no ``base_batch_size``.
    """
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise UserError('--auto-scale-lr: the config has no auto_scale_lr.base_batch_size')
    cfg.auto_scale_lr.enable = True
    return cfg


with_precision = on_copy(set_precision)
with_fused = on_copy(set_fused)
