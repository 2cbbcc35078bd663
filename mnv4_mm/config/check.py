"""Checks of a config, its options and its data before mmengine is imported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnv4_mm.config.index import find_config, find_data
from mnv4_mm.config.options import ConfigOptions, EvaluateOptions, TrainOptions, check_launcher
from mnv4_mm.config.rules import (
    TRAINING_PARTS,
    check_backbone_name,
    check_backbone_of,
    check_complete,
    check_fittable,
    check_inference,
    check_keys,
    check_levels,
    check_same_task,
    check_sizable,
    check_unit,
)
from mnv4_mm.config.source import merge_values, read_checkpoint_source, read_source
from mnv4_mm.config.values import check_values
from mnv4_mm.data.documents import PARSED_BYTES, check_json
from mnv4_mm.data.formats.configured import FIND, HINTS, coco_split, innermost_dataset, mask_split
from mnv4_mm.data.formats.recognise import Task, check_folder, recognise
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_data

_SPLIT: dict[str, Any] = {'mmdet': coco_split, 'mmseg': mask_split}
TASK_OF_SCOPE: dict[str, Task] = {'mmdet': 'detection', 'mmseg': 'segmentation'}


def check_config(config: str | None, options: ConfigOptions, checkpoint: str | Path | None = None) -> Mapping[str, Any]:
    """Check a config, and the options that depend on it.

    Args:
        config: Name or path of a config; None for the one in ``checkpoint``.
        options: Options of training or evaluation.
        checkpoint: ``.pth`` file, for evaluation. If ``config`` is given, only the tasks are compared.

    Returns:
        Top-level values of the config. Empty if there is none, or it cannot be read without mmengine; the checks that
            depend on it are then made when the config is loaded.

    Raises:
        UserError: The config is missing or broken, an option is unknown or does not fit, or this process was not
            started by ``options.launcher``.
    """
    carried = read_checkpoint_source(Path(checkpoint)) if checkpoint else None
    source = read_source(find_config(config)) if config else carried
    check_launcher(options.launcher)
    if options.backbone:
        check_backbone_name(options.backbone)
    if source is None:
        return {}
    if carried and checkpoint:
        check_same_task(source, carried, checkpoint)
    if isinstance(options, EvaluateOptions) and options.inference:
        check_inference(source)
    if options.backbone:
        check_backbone_of(source)
    if isinstance(options, TrainOptions):
        check_complete(source, TRAINING_PARTS)
        if options.levels:
            check_levels(source, options.levels)
        if options.size:
            check_sizable(source)
        if options.fit_anchors:
            check_fittable(source)
    for unit in ('epochs', 'iters'):
        if getattr(options, unit, None):  # options of training only
            check_unit(source, unit)
    check_keys(options.cfg_options or {}, source)
    _check_values(source, options)
    return source


def _check_values(source: Mapping[str, Any], options: ConfigOptions) -> None:
    """Check the values of a config with its backbone and ``--cfg-options``.

    Args:
        source: Top-level values of a config.
        options: Options of training or evaluation. What only training uses is not checked for an evaluation, unless an
            option sets it.

    Raises:
        UserError: See ``check_values``.
    """
    values = dict(source)
    if getattr(options, 'qat', None):
        values.pop('model', None)  # replaced by that of a checkpoint, which is not read here
    elif options.backbone:
        is_timm = options.backbone.startswith('timm:')
        backbone = dict(type='TimmFeatures') if is_timm else dict(arch=options.backbone.removeprefix('mnv4_'))
        values['model'] = {**values['model'], 'backbone': {**values['model']['backbone'], **backbone}}
    cfg_options = options.cfg_options or {}
    try:
        values = merge_values(values, cfg_options)
    # mmengine reports the mistake when it sets these values.
    except (KeyError, TypeError):
        return
    check_values(values, cfg_options, only_options=not isinstance(options, TrainOptions))


def check_config_data(source: Mapping[str, Any], options: ConfigOptions, loaders: Sequence[str]) -> None:
    """Check the data set of ``--data`` or, without that option, the data that the config names.

    Args:
        source: Top-level values of a config; nothing is checked if they are empty, or their ``default_scope`` is
            neither mmdet nor mmseg.
        options: Options of training or evaluation.
        loaders: Names of the data loaders whose data is needed.

    Raises:
        UserError: Data is missing or broken.
    """
    try:
        source = merge_values(source, options.cfg_options or {})
    # mmengine reports the mistake when it sets these values.
    except (KeyError, TypeError):
        return
    scope = source.get('default_scope')
    if scope not in FIND:
        return
    if options.data:
        FIND[scope](options.data, allow_dropped=options.allow_dropped)
        return
    if source.get('own_data'):
        FIND[scope](str(find_data(Path(source['own_data']['root']))), allow_dropped=options.allow_dropped)
        return
    for loader in loaders:
        settings = source.get(loader)
        dataset = settings.get('dataset') if isinstance(settings, dict) else None
        if not isinstance(dataset, dict):
            continue
        split = _SPLIT[scope](innermost_dataset(dataset))
        if split is not None:
            paths = [find_data(part) for part in split if isinstance(part, Path)]
            check_data(paths, HINTS[scope])
            for path in paths:
                if path.suffix == '.json' and path.is_file():
                    check_json(path)


def check_checkpoint_data(source: Mapping[str, Any], data: str | None) -> None:
    """Read the annotations of the data set on which a checkpoint is evaluated, to report mistakes early.

    Masks, images and annotations of more than ``PARSED_BYTES`` are left to the evaluation, which also knows the classes
    of the checkpoint and the split that it was trained with.

    Args:
        source: Top-level values of the config in the checkpoint; may be empty.
        data: Folder of the data set; None for the one in ``own_data`` of the config, if it has one.

    Raises:
        UserError: The data set is missing, broken, or not one for the task of the checkpoint.
    """
    task = TASK_OF_SCOPE.get(source.get('default_scope', ''))
    if data:
        _check_annotations(Path(data), task)
    elif source.get('own_data'):
        try:
            _check_annotations(find_data(Path(source['own_data']['root'])), task)
        except UserError as error:
            raise own_data_error(error) from error


def _check_annotations(root: Path, task: Task | None) -> None:
    check_folder(root)
    texts = (path for suffix in ('json', 'xml', 'txt') for path in root.rglob(f'*.{suffix}'))
    if task != 'segmentation' and sum(path.stat().st_size for path in texts if path.is_file()) <= PARSED_BYTES:
        recognise(root, task)


def own_data_error(error: UserError, remedy: str = 'if it is in another folder, name that by --data') -> UserError:
    """Return the error for a data set that the config in a checkpoint names and that cannot be used."""
    return UserError(f'the data set of this config: {error}; {remedy}')
