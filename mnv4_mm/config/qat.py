"""The ``qat`` settings of a config, with which ``engine.qat`` builds a net for quantisation-aware training in int8."""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.config import Config

from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.classes import checkpoint_classes, dataset_classes, listed
from mnv4_mm.config.data import LOADERS, dataset_split
from mnv4_mm.config.input_size import set_size
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.data.formats.configured import innermost_dataset
from mnv4_mm.engine.qat import NAME
from mnv4_mm.errors import UserError
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.checkpoint import Checkpoint, read_checkpoint

SHARE = 10  # the fine-tuning has a tenth of the steps of the training, and a tenth of its learning rate


def qat_settings(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the ``qat`` settings of a checkpoint that has been fine-tuned for int8; None for any other checkpoint.

    Raises:
        UserError: The config inside has more than plain values and registered types.
    """
    text = checkpoint.meta.get('cfg')
    # Reading the whole config takes longer than the search.
    if not isinstance(text, str) or not re.search(rf'^{NAME} = ', text, re.MULTILINE):
        return None
    return checkpoint_config(checkpoint)[NAME].to_dict()


def copy_qat_settings(cfg: Config, checkpoint: Checkpoint) -> Config:
    """Copy the ``qat`` settings of a checkpoint to a config.

    The model is then built with the same fake quantisation as in training. If the checkpoint has not been fine-tuned
    for int8, ``qat`` is removed from the config.

    Args:
        cfg: Config to evaluate the checkpoint with, which may differ from the one in the checkpoint; changed in place.
        checkpoint: The checkpoint.

    Returns:
        ``cfg``.
    """
    settings = qat_settings(checkpoint)
    if settings is None:
        cfg.pop(NAME, None)
    else:
        cfg[NAME] = settings
    return cfg


def set_qat(cfg: Config, options: TrainOptions) -> Config:
    """Replace the model of a config by that of the checkpoint of ``--qat``, and add the ``qat`` settings.

    The input size of a detector becomes that of the checkpoint. The settings of the optimizer are adapted
    to the names that parameters have after ``quantize_model``.

    Args:
        cfg: A config; changed in place.
        options: Options of training.

    Returns:
        ``cfg``.

    Raises:
        UserError: The checkpoint cannot be read, carries no config, is of another task or head, or has been fine-tuned
            already.
    """
    assert options.qat is not None
    checkpoint = read_checkpoint(options.qat)
    trained = checkpoint_config(checkpoint)
    if NAME in trained:
        raise UserError(
            f'--qat {checkpoint.path} has been fine-tuned for int8 already: --qat takes the checkpoint that it was '
            f'started from, {trained[NAME].checkpoint}; --resume continues an interrupted run'
        )
    if trained.get('default_scope') != cfg.get('default_scope'):
        raise UserError(
            f'--qat {checkpoint.path} has default_scope {trained.get("default_scope")!r}, and this config has '
            f'{cfg.get("default_scope")!r}: name a config of the same task, best the one it was trained with'
        )
    heads = [one.model.get('bbox_head') or one.model.get('decode_head') or {} for one in (trained, cfg)]
    if heads[0].get('type') != heads[1].get('type'):
        raise UserError(
            f'--qat {checkpoint.path} has the head {heads[0].get("type")}, and this config has {heads[1].get("type")}: '
            'name the config that it was trained with'
        )
    if 'input_size' in cfg and 'input_size' in trained and tuple(cfg.input_size) != tuple(trained.input_size):
        width, height = trained.input_size
        set_size(cfg, (height, width))
    cfg.model = trained.model
    _adapt_optimizer(cfg)
    cfg.model.backbone.pop('init_cfg', None)
    cfg[NAME] = dict(checkpoint=os.fspath(options.qat), sha256=checkpoint.sha256, in_float=[], unrounded=[])
    return cfg


def set_qat_schedule(cfg: Config, options: TrainOptions, log: Callable[[str], object]) -> Config:
    """Set the schedule of a quantisation-aware fine-tuning, and log it.

    The length is a tenth of the steps of the training that the checkpoint of ``--qat`` comes from. The learning rate
    starts at a tenth of that in the config and follows a cosine decay without warm-up. ``--epochs``, ``--iters`` and
    ``--cfg-options`` take precedence. If the config switches to another training pipeline for its last epochs (RTMDet),
    this pipeline is used from the start.

    Args:
        cfg: A config with the data of the run; changed in place.
        options: Options of training.
        log: Called with one line that describes the schedule.

    Returns:
        ``cfg``.
    """
    assert options.qat is not None

    given = options.cfg_options or {}

    def is_set(part: str) -> bool:
        return any(key.startswith(part) for key in given)

    for unit in ('max_epochs', 'max_iters'):
        if f'train_cfg.{unit}' in given and unit in cfg.train_cfg:
            cfg.train_cfg[unit] = given[f'train_cfg.{unit}']
    by_epoch = 'max_epochs' in cfg.train_cfg
    if options.epochs or options.iters or is_set('train_cfg.max_'):
        chosen = ['{} {}'.format(*_length(cfg))]
    else:
        total = _steps(read_checkpoint(options.qat), cfg)
        steps = max(1, total // SHARE)
        if by_epoch:
            _count_in_iterations(cfg)
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=steps, val_interval=steps)
        by_epoch = False
        cfg.merge_from_dict({'default_hooks.checkpoint.interval': max(1, steps // 4)})
        chosen = [f'{steps} steps, a tenth of the {total} of the training']
    rate = cfg.optim_wrapper.optimizer.get('lr')
    if rate is not None and not is_set('optim_wrapper'):
        cfg.optim_wrapper.optimizer.lr = rate / SHARE
        chosen.append(f'learning rate {rate / SHARE:g}, a tenth of that of the config')
    if not is_set('param_scheduler'):
        # No warm-up, whose number of steps is made for a whole training.
        last = _length(cfg)[0]
        decay = dict(type='CosineAnnealingLR', eta_min_ratio=0.02, by_epoch=by_epoch, begin=0, end=last, T_max=last)
        cfg.param_scheduler = [decay | (dict(convert_to_iter_based=True) if by_epoch else {})]
        chosen.append('cosine decay without warm-up')
    _use_last_stage(cfg)
    log(f'int8 fine-tuning of {options.qat}: {", ".join(chosen)}')
    return cfg


def _adapt_optimizer(cfg: Config) -> None:
    """Adapt ``optim_wrapper`` to the names that parameters have after ``quantize_model``."""
    cfg.optim_wrapper.setdefault('constructor', 'ParametrizedOptimWrapperConstructor')
    paramwise = cfg.optim_wrapper.get('paramwise_cfg') or {}
    keys = paramwise.get('custom_keys')
    if keys:
        names = {'backbone': 'net.backbone', 'neck': 'net.neck', 'decode_head': 'net.head', 'bbox_head': 'net.head'}
        paramwise['custom_keys'] = {re.sub(r'^\w+', lambda m: names.get(m[0], m[0]), key): keys[key] for key in keys}


def check_same_qat(cfg: Config, checkpoint: Checkpoint) -> Config:
    """Check that the checkpoint from which a run resumes or starts fits ``--qat``, and use the same layers in float.

    Args:
        cfg: Config of a training run. ``qat.in_float`` and ``qat.unrounded`` are set to those of the checkpoint.
        checkpoint: Checkpoint that the run resumes or takes its weights from.

    Returns:
        ``cfg``.

    Raises:
        UserError: Only one of the config and the checkpoint is for int8, or their ``qat`` settings name different
            float checkpoints.
    """
    had, settings = qat_settings(checkpoint), cfg.get(NAME)
    if had is None and settings is None:
        return cfg
    if settings is None:
        raise UserError(
            f'{checkpoint.path} has been fine-tuned for int8, and a training in float cannot start from it: continue '
            f'its run with the same --qat, or start from {had and had["checkpoint"]}'
        )
    if had is None:
        raise UserError(f'{checkpoint.path} was trained in float: continue it without --qat')
    if had['sha256'] != settings.sha256:
        raise UserError(
            f'{checkpoint.path} was started from another checkpoint than --qat {settings.checkpoint}: from '
            f'{had["checkpoint"]} with SHA-256 {had["sha256"][:12]}...; continue it with the same one'
        )
    cfg[NAME].update(in_float=had['in_float'], unrounded=had['unrounded'])
    return cfg


def check_qat_classes(cfg: Config) -> None:
    """Check that the data of a ``--qat`` run have the classes of its float checkpoint, in any order.

    Raises:
        UserError: They have other classes.
    """
    path = cfg[NAME].checkpoint
    trained_on = checkpoint_classes(read_checkpoint(path))
    for loader in LOADERS:
        classes = dataset_classes(cfg, innermost_dataset(cfg[loader].dataset)) if cfg.get(loader) else None
        if trained_on and classes and sorted(trained_on) != sorted(classes):
            raise UserError(
                f'--qat {path} was trained on other classes than the data has: {listed(trained_on, classes)} there, '
                f'{listed(classes, trained_on)} here; name the config and the --data that it was trained with'
            )


def _length(cfg: Config) -> tuple[int, str]:
    unit = 'epochs' if 'max_epochs' in cfg.train_cfg else 'iters'
    return cfg.train_cfg[f'max_{unit}'], unit


def _steps(checkpoint: Checkpoint, cfg: Config) -> int:
    """Return the number of steps of the training that a checkpoint comes from."""
    trained = checkpoint_config(checkpoint)
    length, unit = _length(trained)
    if unit == 'iters':
        return length
    epoch, step = (checkpoint.meta.get(key) for key in ('epoch', 'iter'))
    if epoch and step:
        return length * step // epoch
    loader = cfg.train_dataloader
    images = task_of(cfg).count_images(dataset_split(cfg, 'train_dataloader')) * loader.dataset.get('times', 1)
    return length * max(1, images // loader.get('batch_size', 1))


def _count_in_iterations(cfg: Config) -> None:
    """Convert a config from epochs to iterations, because a tenth of a short training is less than an epoch."""
    cfg.merge_from_dict(
        {
            'default_hooks.checkpoint.by_epoch': False,
            'default_hooks.logger.log_metric_by_epoch': False,
            'log_processor.by_epoch': False,
        }
    )
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)


def _use_last_stage(cfg: Config) -> None:
    """Use the pipeline of the last epochs from the start, if the training changes its pipeline (RTMDet)."""
    hooks: list[Mapping[str, Any]] = []
    for hook in cfg.get('custom_hooks', []):
        if 'switch_epoch' not in hook:
            hooks.append(hook)
        elif 'switch_pipeline' in hook:
            cfg.train_dataloader.dataset.pipeline = hook['switch_pipeline']
    cfg.custom_hooks = hooks
