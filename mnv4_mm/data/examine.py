"""Recognise and check a data set of either task."""

from pathlib import Path

from mnv4_mm.data.coco_files import CocoLayout
from mnv4_mm.data.form import DetectionData
from mnv4_mm.data.formats.recognise import check_folder, recognise
from mnv4_mm.data.prepare import examine_detection, is_checked
from mnv4_mm.data.prepare_masks import MaskLayout, examine_masks

TASKS = ('detection', 'segmentation')


def examine(root: str | Path, task: str | None = None) -> CocoLayout | MaskLayout:
    """Recognise, check and prepare a data set. A data set that cannot be trained on is returned, too.

    Args:
        root: Folder of the data set.
        task: ``detection`` or ``segmentation``. None looks for boxes first, then for masks.

    Returns:
        A ``CocoLayout`` for detection or a ``MaskLayout`` for segmentation. If ``checked.refusals()`` is not empty, the
        data cannot be trained on, and the files of its splits may be missing.

    Raises:
        UserError: The data set is not recognised, or the cache cannot be written.
    """
    root = Path(root)
    check_folder(root)
    if task == 'detection' or (task is None and is_checked(root)):
        return examine_detection(root)
    if task == 'segmentation':
        return examine_masks(root)
    data = recognise(root)
    return examine_detection(root, data=data) if isinstance(data, DetectionData) else examine_masks(root, data=data)
