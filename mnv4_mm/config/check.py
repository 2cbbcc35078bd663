"""Checks of a config, its options and its data before mmengine is imported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnv4_mm.config.index import find_config, find_data
from mnv4_mm.config.options import ConfigOptions, TrainOptions, check_launcher
from mnv4_mm.config.rules import (
    TRAINING_PARTS,
    check_backbone_name,
    check_backbone_of,
    check_complete,
    check_fittable,
    check_keys,
    check_levels,
    check_sizable,
    check_unit,
)
from mnv4_mm.config.source import merge_values, read_source
from mnv4_mm.data.formats.configured import FIND, HINTS, coco_split, innermost_dataset, mask_split
from mnv4_mm.paths import check_data

_SPLIT: dict[str, Any] = {'mmdet': coco_split, 'mmseg': mask_split}


def check_config(config: str | None, options: ConfigOptions) -> Mapping[str, Any]:
    """Check a config, and the options that depend on it.

    Args:
        config: Name or path of a config; None for the one in a checkpoint.
        options: Options of training or evaluation.

    Returns:
        Top-level values of the config. Empty if ``config`` is None, or cannot be read without mmengine; the checks
            that depend on it are then made when the config is loaded.

    Raises:
        UserError: The config is missing or broken, an option is unknown or does not fit, or this process was not
            started by ``options.launcher``.
    """
    source = read_source(find_config(config)) if config else None
    check_launcher(options.launcher)
    if options.backbone:
        check_backbone_name(options.backbone)
    if source is None:
        return {}
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
    return source


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
            check_data([find_data(part) for part in split if isinstance(part, Path)], HINTS[scope])
