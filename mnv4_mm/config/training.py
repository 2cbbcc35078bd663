"""The config that a training run uses."""

import copy
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config

from mnv4_mm.config.anchors import set_levels
from mnv4_mm.config.backbone import set_backbone
from mnv4_mm.config.batch_norm import check_batch_norms
from mnv4_mm.config.components import check_components
from mnv4_mm.config.data import checkpoint_split, restore_data, set_data, set_data_roots
from mnv4_mm.config.input_size import set_size
from mnv4_mm.config.launcher import set_launcher
from mnv4_mm.config.load import load_config, set_options
from mnv4_mm.config.optimizer import set_fused, set_learning_rate_scaling, set_precision
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.qat import set_qat, set_qat_schedule
from mnv4_mm.config.resume import set_resume
from mnv4_mm.config.rules import TRAINING_PARTS, check_complete
from mnv4_mm.config.schedule import set_length
from mnv4_mm.config.small_data import set_scaled_rate, set_small_data
from mnv4_mm.config.supernet import check_supernet, set_supernet
from mnv4_mm.config.teacher import set_distillation_defaults, set_teacher
from mnv4_mm.config.values import check_values
from mnv4_mm.config.weights import set_weights
from mnv4_mm.errors import UserError
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.checkpoint import read_checkpoint, read_newest
from mnv4_mm.weights.work_dir import list_checkpoints


def training_config(
    config: str | Path | Config,
    options: TrainOptions,
    *,
    on_gpu: bool = False,
    log: Callable[[str], object] = print,
) -> Config:
    """Return the config that ``train`` runs.

    ``options.cfg_options`` take precedence over all other options. ``options.fit_anchors`` is not applied here, because
    it needs checked data: ``train`` calls ``fit_anchors``.

    Args:
        config: Name or path of a config, or a loaded one, which is not changed.
        options: Options of training.
        on_gpu: True if training runs on a GPU.
        log: Called with one line for each default that is derived from the user's data.

    Raises:
        UserError: The config, an option or the data is invalid, or they do not fit each other.
    """
    cfg = copy.deepcopy(config) if isinstance(config, Config) else load_config(config)
    check_complete(cfg, TRAINING_PARTS)
    check_components(cfg, options.cfg_options or {})
    cfg.work_dir = options.work_dir or options.default_work_dir(cfg.filename or 'config')
    if options.qat:
        set_qat(cfg, options)
    if options.space:
        set_supernet(cfg, options)
    if options.backbone:
        set_backbone(cfg, options.backbone)
    if options.weights:
        set_weights(cfg, options.weights)
    if options.data:
        previous = _split_of_run(cfg, options)
        layout = task_of(cfg).find(options.data, allow_dropped=options.allow_dropped, previous=previous)
        set_data(cfg, layout, options.allow_dropped)
        if options.qat:
            set_scaled_rate(cfg, options, log)
        else:
            images = task_of(cfg).count_images(layout.train)
            set_small_data(cfg, images, options, log, resumes=_resumes(cfg, options))
    else:
        restore_data(cfg)
    if options.allow_dropped:
        cfg.merge_from_dict({'default_hooks.skipped_images': dict(type='SkippedImagesHook', allowed=1.0)})
    if options.levels:
        set_levels(cfg, options.levels)
    if options.size:
        set_size(cfg, options.size)
    if options.epochs:
        set_length(cfg, options.epochs, 'epochs')
    if options.iters:
        set_length(cfg, options.iters, 'iters')
    if options.qat:
        set_qat_schedule(cfg, options, log)
    if options.amp or options.amp_dtype:
        set_precision(cfg, options.amp_dtype or ('fp16' if on_gpu else 'bf16'), on_gpu)
    if options.channels_last is not None:
        cfg.channels_last = options.channels_last
    if options.compiled:
        cfg.merge_from_dict({'default_hooks.compile': dict(type='CompileHook')})
    if options.auto_scale_lr:
        set_learning_rate_scaling(cfg)
    if options.teacher:
        set_teacher(cfg, options.teacher, options.teacher_config)
    set_launcher(cfg, options.launcher, on_gpu)
    cfg_options = options.cfg_options or {}
    set_options(cfg, cfg_options)
    check_values(cfg, cfg_options)
    if not isinstance(cfg.work_dir, str):
        raise UserError(f'work_dir must be a path, got {cfg.work_dir!r}')
    # These depend on values that cfg_options may set: the optimizer, the work directory and the data's folder.
    set_distillation_defaults(cfg)
    set_fused(cfg, options.fused)
    set_resume(cfg, options.resume, cfg_options)
    check_supernet(cfg, options)
    check_batch_norms(cfg)
    return set_data_roots(cfg)


def _resumes(cfg: Config, options: TrainOptions) -> bool:
    """Return True if there is a checkpoint that ``--resume`` continues."""
    if isinstance(options.resume, bool):
        return options.resume and bool(list_checkpoints(_work_dir(cfg, options)))
    return True


def _split_of_run(cfg: Config, options: TrainOptions) -> dict[str, str]:
    """Return the split of the run that ``--resume`` or ``--qat`` continues; empty for a new run."""
    if options.qat:
        return checkpoint_split(read_checkpoint(options.qat))
    if not options.resume:
        return {}
    if isinstance(options.resume, bool):
        checkpoint = read_newest(_work_dir(cfg, options), log=lambda line: None)  # logged when the run loads it
    else:
        checkpoint = read_checkpoint(options.resume)
    return checkpoint_split(checkpoint) if checkpoint else {}


def _work_dir(cfg: Config, options: TrainOptions) -> str:
    return (options.cfg_options or {}).get('work_dir', cfg.work_dir)
