"""The ``distillation`` settings of a config, which ``engine.distillation`` uses."""

import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.classes import checkpoint_classes, dataset_classes
from mnv4_mm.config.load import load_config
from mnv4_mm.data.formats.configured import innermost_dataset
from mnv4_mm.engine.distillation import NAME, SETTINGS, attach_teacher
from mnv4_mm.engine.runner import quiet_losses
from mnv4_mm.errors import UserError
from mnv4_mm.tasks import build_model, task_of
from mnv4_mm.weights.checkpoint import Checkpoint, read_checkpoint, tensors_only

# Loss -> weight of each pair of feature maps. For detectors as in the configs of MMRazor 1.0 (`configs/distill`). With
# its 10, CWD of the feature maps that segmenters read outweighs the cross entropy thirty times (docs/distillation.md).
WEIGHTS = {'mmdet': {'cwd': 10.0, 'pkd': 6.0}, 'mmseg': {'cwd': 0.1, 'pkd': 0.1}}
# PKD was designed for detectors, whose feature maps may differ in scale; channel-wise distillation (CWD) was designed
# for dense prediction.
DEFAULT_LOSS = {'mmdet': 'pkd', 'mmseg': 'cwd'}
# Segmenters with a teacher of the same classes distil the class scores alone, as MMRazor's. Its weight is 5 at a
# temperature of 1; these values did better in one run (docs/distillation.md).
SCORES = {'weight': 0.0, 'logits_weight': 3.0, 'temperature': 4.0}
_CHOICES = (*SETTINGS, 'bf16')
_TEACHER = ('checkpoint', 'sha256', 'scope', 'classes', 'model')


def set_teacher(cfg: Config, teacher: str | Path, config: str | Path | None = None) -> Config:
    """Set the teacher of a training run.

    Args:
        cfg: A config; changed in place.
        teacher: Checkpoint of a model of the same task.
        config: Path or name of the teacher's config; the one in its checkpoint if None.

    Returns:
        ``cfg``.

    Raises:
        UserError: The checkpoint or the teacher's config cannot be read, the teacher's config has no model, or the
            teacher is of another task.
    """
    checkpoint = read_checkpoint(teacher)
    taught = load_config(config) if config else _config_of(checkpoint)
    if not isinstance(taught.get('model'), dict):
        raise UserError(f'--teacher: the config of {checkpoint.path} has no model')
    if taught.get('default_scope') != cfg.get('default_scope'):
        raise UserError(
            f'--teacher {checkpoint.path} has default_scope {taught.get("default_scope")!r}, and this config has '
            f'{cfg.get("default_scope")!r}: a {task_of(cfg).name} model needs a teacher of the same task'
        )
    model = taught.model.to_dict()
    if taught.get('data_preprocessor'):
        model.setdefault('data_preprocessor', taught.data_preprocessor.to_dict())
    cfg[NAME] = dict(
        checkpoint=os.fspath(teacher),
        sha256=checkpoint.sha256,
        scope=taught.default_scope,
        classes=checkpoint_classes(checkpoint),
        model=model,
        loss=None,
        weight=None,
        temperature=None,
        logits_weight=None,
        bf16=None,
    )
    return cfg


def set_distillation_defaults(cfg: Config) -> Config:
    """Check the ``distillation`` settings of a config, and fill in the defaults.

    The defaults depend on the task, on the loss, and on whether the teacher has the classes of the data. A config
    without ``distillation`` is returned as it is. Call this function after ``--cfg-options`` have been set, because
    they may change these settings.

    Raises:
        UserError: A value is not allowed, or there are settings without a teacher.
    """
    settings: Any = cfg.get(NAME)
    if settings is None:
        return cfg
    if not hasattr(settings, 'keys') or not set(_TEACHER) <= settings.keys():
        raise UserError(f'{NAME} has no effect without a teacher: add --teacher CHECKPOINT')
    if unknown := sorted(settings.keys() - {*_CHOICES, *_TEACHER}):
        raise UserError(f'{NAME}.{unknown[0]} is unknown: use one of {", ".join(_CHOICES)}')
    chosen = any(settings[name] is not None for name in ('loss', *SCORES))
    if cfg.default_scope == 'mmseg' and not chosen and _same_classes(cfg):
        settings.update(SCORES)
    weights = WEIGHTS[cfg.default_scope]
    if settings.loss is None:
        settings.loss = DEFAULT_LOSS[cfg.default_scope]
    if settings.loss not in weights:
        raise UserError(f'{NAME}.loss must be one of {", ".join(weights)}, got {settings.loss!r}')
    for name, default in (('weight', weights[settings.loss]), ('temperature', 1.0), ('logits_weight', 0.0)):
        if settings[name] is None:
            settings[name] = default
    for name in ('weight', 'temperature', 'logits_weight'):
        value, positive = settings[name], name == 'temperature'
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float('inf')
        if not number or (positive and value == 0):
            kind = 'a positive number' if positive else 'a number of at least 0'
            raise UserError(f'{NAME}.{name} must be {kind}, got {value!r}')
    if settings.bf16 not in (None, True, False):
        raise UserError(f'{NAME}.bf16 must be True, False or None, got {settings.bf16!r}')
    return cfg


def check_teacher(cfg: Config) -> str | None:
    """Check that the teacher of a config fits the student, by building both.

    Args:
        cfg: The config of a training run, with the final classes of the data.

    Returns:
        One line that describes the distillation; None if there is no teacher.

    Raises:
        UserError: The teacher does not fit the student.
    """
    settings = cfg.get(NAME)
    if settings is None:
        return None
    if settings.logits_weight and not _same_classes(cfg):
        difference = _difference(settings.checkpoint, settings.classes, _classes(cfg))
        raise UserError(
            f'{NAME}.logits_weight needs a teacher of the same classes in the same order: {difference}; set it to 0 to '
            'distil feature maps only'
        )
    with tensors_only(), quiet_losses():
        distiller = attach_teacher(build_model(cfg), settings)
    parts = []
    if settings.weight:
        strides = ', '.join(f'{stride:g}' for stride in distiller.strides)
        parts.append(f'{settings.loss}, weight {settings.weight:g}, feature maps of output stride {strides}')
    if settings.logits_weight:
        parts.append(f'logits with weight {settings.logits_weight:g}')
    return f'distillation from {settings.checkpoint}: {", ".join(parts) or "all weights are 0"}'


def check_same_teacher(cfg: Config, checkpoint: Checkpoint) -> None:
    """Check that a run is resumed with the teacher that it was started with.

    Raises:
        UserError: The run was started with another teacher or other settings, or only one of the config and the
            checkpoint has a teacher.
    """
    had: Any = checkpoint.content.get(NAME)
    settings = cfg.get(NAME)
    if had and not settings:
        raise UserError(f'{checkpoint.path} was trained with a teacher: continue it with the same --teacher')
    if settings and not had:
        raise UserError(
            f'{checkpoint.path} was trained without a teacher: continue it without --teacher, or start a new run from '
            f'its weights with --cfg-options load_from={checkpoint.path}'
        )
    if had and had['teacher'] != settings.sha256:
        raise UserError(
            f'{checkpoint.path} was trained with another teacher than {settings.checkpoint} (SHA-256 '
            f'{had["teacher"][:12]}..., not {settings.sha256[:12]}...): continue it with the same one'
        )
    changed = [name for name in SETTINGS if had and had['settings'][name] != settings[name]]
    if changed:
        name = changed[0]
        raise UserError(
            f'{checkpoint.path} was trained with {NAME}.{name}={had["settings"][name]}, not {settings[name]}: continue '
            'it with the same value'
        )


def _config_of(checkpoint: Checkpoint) -> Config:
    if not isinstance(checkpoint.meta.get('cfg'), str):
        raise UserError(
            f'--teacher {checkpoint.path} carries no config: name the one it was trained with by --teacher-config'
        )
    return checkpoint_config(checkpoint)


def _classes(cfg: Config) -> tuple[str, ...] | None:
    return dataset_classes(cfg, innermost_dataset(cfg.train_dataloader.dataset))


def _same_classes(cfg: Config) -> bool:
    """Return True if the teacher has the classes of the data, in the same order."""
    taught = cfg[NAME].classes
    return bool(taught) and _classes(cfg) == tuple(taught)


def _difference(teacher: str, taught: Sequence[str] | None, classes: Sequence[str] | None) -> str:
    """Describe the first difference between the classes of a teacher and those of the data."""
    if not taught or not classes:
        return f'{"the data set" if taught else teacher} names no classes'
    pairs = zip_longest(taught, classes, fillvalue='missing')
    label, (theirs, ours) = next((label, pair) for label, pair in enumerate(pairs) if pair[0] != pair[1])
    return f'label {label} is {theirs} in {teacher} and {ours} in the data ({len(taught)} and {len(classes)} classes)'
