"""Recognise and check a data set of either task."""

from pathlib import Path
from typing import Any

from mnv4_mm.data.form import DetectionData
from mnv4_mm.data.formats.recognise import check_folder, recognise
from mnv4_mm.data.prepare import examine_detection, prepared_folder

TASKS = ('detection', 'segmentation')


def examine(root: str | Path, task: str | None = None) -> Any:
    """Recognise, check and prepare a data set, also one that cannot be trained on.

    Args:
        root: Its folder.
        task: ``detection`` or ``segmentation``; by what is in the folder if None.

    Returns:
        ``CocoLayout`` or, for segmentation, the layout of masks. Its ``checked`` says whether it can be trained on; if
            not, the files of its splits may be missing.

    Raises:
        UserError: It is not recognised.
    """
    root = Path(root)
    check_folder(root)
    task = task or next((name for name in TASKS if _is_checked(root, name)), None)
    if task == 'detection':
        return examine_detection(root)
    if task == 'segmentation':
        return _examine_masks(root)
    data = recognise(root)
    return examine_detection(root, data=data) if isinstance(data, DetectionData) else _examine_masks(root)


def _is_checked(root: Path, task: str) -> bool:
    with prepared_folder(root, task) as folder:
        return (folder / 'checked.json').is_file()


def _examine_masks(root: Path) -> Any:
    from mnv4_mm.data.prepare_masks import examine_masks

    return examine_masks(root)
