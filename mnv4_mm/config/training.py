"""The config that a training run uses: precision, optimiser, launcher."""

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS

from mnv4_mm.config.backbone import fit_backbone
from mnv4_mm.config.data import fit_data
from mnv4_mm.config.load import merge_options
from mnv4_mm.config.schedule import fit_length
from mnv4_mm.errors import UserError
from mnv4_mm.tasks.task import Layout


def merge_train_arguments(
    cfg: Config,
    name: str,
    *,
    work_dir: str | None = None,
    resume: bool | str = False,
    amp: bool = False,
    amp_dtype: str | None = None,
    channels_last: bool | None = None,
    fused: bool | None = None,
    compiled: bool = False,
    on_gpu: bool = False,
    backbone: str | None = None,
    layout: Layout | None = None,
    options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
    auto_scale_lr: bool = False,
    epochs: int | None = None,
    iters: int | None = None,
) -> Config:
    """The config that ``tools/train.py`` runs. ``options`` are merged last: what a user spells out wins.

    Args:
        cfg: A loaded config.
        name: Its name, for the default work directory ``work_dirs/<name>[_<backbone>][_<data>]``.
        work_dir: Where to write instead.
        resume: Continue: the work directory's last checkpoint if True, else this checkpoint.
        amp: See ``fit_precision``.
        amp_dtype: See ``fit_precision``.
        channels_last: Whether maps lie as (N, H, W, C) in memory; the config's own choice if left out.
        fused: See ``fit_optimizer``.
        compiled: Compile backbone, neck and head by ``torch.compile``.
        on_gpu: Whether training will run on a GPU.
        backbone: See ``fit_backbone``.
        layout: A user's data set, see ``fit_data``.
        options: See ``merge_options``.
        launcher: mmengine's launcher: none, pytorch, slurm or mpi.
        auto_scale_lr: Scale the learning rate by real batch size / ``auto_scale_lr.base_batch_size``.
        epochs: See ``fit_length``.
        iters: See ``fit_length``.
    """
    parts = [name]
    if backbone:
        cfg = fit_backbone(cfg, backbone)
        parts.append(backbone)
    if layout:
        cfg = fit_data(cfg, layout)
        parts.append(layout.root.resolve().name)
    cfg = copy.deepcopy(cfg)
    for length, unit in ((epochs, 'epochs'), (iters, 'iters')):
        cfg = fit_length(cfg, length, unit) if length is not None else cfg
    if amp or amp_dtype:
        cfg = fit_precision(cfg, amp_dtype or ('fp16' if on_gpu else 'bf16'), on_gpu)
    if channels_last is not None:
        cfg.channels_last = channels_last
    if compiled:
        cfg.default_hooks.compile = dict(type='CompileHook')
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError(f'--auto-scale-lr: {name} names no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    cfg = fit_launcher(cfg, launcher, on_gpu)
    cfg.work_dir = work_dir or str(Path('work_dirs') / '_'.join(parts))
    cfg.resume = bool(resume)
    if isinstance(resume, str):
        cfg.load_from = resume
    # Last: the optimiser may be one of the options.
    return fit_optimizer(merge_options(cfg, options or {}), fused)


def fit_precision(cfg: Config, dtype: str, on_gpu: bool) -> Config:
    """Mixed precision: ``fp16`` with loss scaling, which needs a GPU, or ``bf16``.

    Raises:
        UserError: another type, or fp16 without a GPU.
    """
    if dtype not in ('fp16', 'bf16'):
        raise UserError(f'--amp-dtype must be fp16 or bf16, got {dtype!r}')
    if dtype == 'fp16' and not on_gpu:
        raise UserError('--amp-dtype fp16 needs a GPU; a CPU has bf16')
    cfg = copy.deepcopy(cfg)
    for key in ('loss_scale', 'dtype', 'use_fp64'):  # of a wrapper that the config has already
        cfg.optim_wrapper.pop(key, None)
    fp16 = dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16')
    cfg.optim_wrapper.update(fp16 if dtype == 'fp16' else dict(type='Bf16OptimWrapper'))
    return cfg


def fit_optimizer(cfg: Config, fused: bool | None) -> Config:
    """Lets torch's optimiser update all parameters in one kernel.

    Args:
        cfg: A config.
        fused: Whether to; if left out, wherever the optimiser can and the config does not say otherwise.

    Raises:
        UserError: it is asked for and the optimiser cannot.
    """
    cfg = copy.deepcopy(cfg)
    optimizer = cfg.optim_wrapper.optimizer
    known = OPTIMIZERS.get(optimizer.type) if isinstance(optimizer.get('type'), str) else optimizer.get('type')
    can = known is not None and 'fused' in inspect.signature(known).parameters
    if fused and not can:
        raise UserError(f'--fused: {optimizer.get("type")} has no fused form')
    if fused is not None and can:
        optimizer.fused = fused
    elif can and not optimizer.keys() & {'fused', 'foreach', 'differentiable'}:
        optimizer.fused = True
    return cfg


def fit_launcher(cfg: Config, launcher: str, on_gpu: bool) -> Config:
    """Says how the processes are started. In a checkpoint's own config that is how its training was.

    Args:
        cfg: A config.
        launcher: mmengine's launcher: none, pytorch, slurm or mpi.
        on_gpu: Whether they run on GPUs.
    """
    cfg = copy.deepcopy(cfg)
    cfg.launcher = launcher
    if launcher == 'none':
        return cfg
    cfg.env_cfg.dist_cfg.backend = 'nccl' if on_gpu else 'gloo'
    if on_gpu:
        cfg.sync_bn = 'torch'
        if 'device_ids' in (cfg.get('model_wrapper_cfg') or {}):
            cfg.pop('model_wrapper_cfg')  # it was trained on CPUs
    else:  # mmengine would wrap the model for GPU LOCAL_RANK
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
        others = [hook for hook in cfg.get('custom_hooks', []) if hook['type'] != 'SameBuffersHook']
        cfg.custom_hooks = [*others, dict(type='SameBuffersHook')]
    return cfg
