"""Checks of a config's data before mmengine is imported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnv4_mm.config.index import find_data
from mnv4_mm.config.source import read_source
from mnv4_mm.data.formats.configured import FIND, HINTS, coco_split, innermost_dataset, mask_split
from mnv4_mm.paths import check_data

_SPLIT: dict[str, Any] = {'mmdet': coco_split, 'mmseg': mask_split}


def check_config_data(path: Path, data: str | None, loaders: Sequence[str]) -> None:
    """Check the data set of ``--data`` or, without one, that the files which a config names exist.

    Configs that cannot be read without mmengine are not checked here: the check with mmengine follows in any case.

    Args:
        path: Config file.
        data: Folder of a user's data set.
        loaders: Names of the data loaders whose data is needed.

    Raises:
        UserError: Data is missing or broken.
    """
    source = read_source(path) or {}
    scope = source.get('default_scope')
    if scope not in FIND:
        return
    if data:
        FIND[scope](data)
        return
    for loader in loaders:
        dataset = source.get(loader, {}).get('dataset')
        split = _SPLIT[scope](innermost_dataset(dataset)) if isinstance(dataset, dict) else None
        if split is not None:
            check_data([find_data(part) for part in split if isinstance(part, Path)], HINTS[scope])
