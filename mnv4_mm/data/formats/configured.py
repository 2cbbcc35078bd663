"""Find the files that the config of a data set names.

The functions take plain dicts as well as mmengine's ``ConfigDict``. This module imports neither torch nor OpenMMLab.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mnv4_mm.data.coco_files import Split
from mnv4_mm.data.mask_split import MaskSplit
from mnv4_mm.data.prepare import prepare_detection
from mnv4_mm.data.prepare_masks import prepare_masks

# By default_scope of a config: the function that prepares a data set given by --data, and advice for users who do not
# have the benchmark's data.
FIND: dict[str, Callable[..., Any]] = {'mmdet': prepare_detection, 'mmseg': prepare_masks}
HINTS = {
    scope: f'fetch it with `mnv4 download {data}`, name the folder of your own data by --data, or try '
    f'`mnv4 train {config}` in a clone of the repository, which has the data of -mini configs'
    for scope, data, config in (
        ('mmdet', 'coco2017', 'mnv4_ssdlite_coco-mini'),
        ('mmseg', 'ade20k', 'mnv4_lraspp_ade20k-mini'),
    )
}


def coco_split(dataset: Mapping[str, Any]) -> Split | None:
    """Return the annotation file and the image folder that the config of a detection data set names.

    The ``type`` of the data set is not checked.

    Args:
        dataset: Config of the data set itself, without wrappers (see ``innermost_dataset``).

    Returns:
        The paths, relative to ``data_root`` if the config has one. None if ``ann_file`` or ``data_prefix['img']`` is
        missing or not a string.
    """
    file, folder = dataset.get('ann_file'), (dataset.get('data_prefix') or {}).get('img')
    if not (isinstance(file, str) and isinstance(folder, str)):
        return None
    # Joined as mmengine's BaseDataset does.
    root = Path(dataset.get('data_root') or '')
    return Split(root / file, root / folder)


def mask_split(dataset: Mapping[str, Any], suffix: str = '.jpg', mask_suffix: str = '.png') -> MaskSplit | None:
    """Return the image and mask folders that the config of a segmentation data set names.

    The ``type`` of the data set is not checked.

    Args:
        dataset: Config of the data set itself, without wrappers (see ``innermost_dataset``).
        suffix: End of the images' file names.
        mask_suffix: End of the masks' file names.

    Returns:
        The folders, relative to ``data_root`` if the config has one, with ``ann_file`` as the list of names if there is
        one. None if ``data_prefix['img_path']`` or ``data_prefix['seg_map_path']`` is missing or not a string.
    """
    prefix = dataset.get('data_prefix') or {}
    if not all(isinstance(prefix.get(key), str) for key in ('img_path', 'seg_map_path')):
        return None
    # Joined as mmseg's BaseSegDataset does.
    root = Path(dataset.get('data_root') or '')
    listed = root / dataset['ann_file'] if dataset.get('ann_file') else None
    return MaskSplit(root / prefix['img_path'], root / prefix['seg_map_path'], suffix, mask_suffix, listed)


def innermost_dataset(dataset: Any) -> Any:
    """Return the config of the data set inside wrappers that have a key ``dataset``, such as RepeatDataset.

    A config without such a wrapper is returned unchanged, and so is a ConcatDataset, whose key is ``datasets``.
    """
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset
