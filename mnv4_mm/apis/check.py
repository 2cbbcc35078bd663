"""Check a data set before anything is trained on it."""

from pathlib import Path

from mnv4_mm.config.check import TASK_OF_SCOPE
from mnv4_mm.data.checked import CheckedData
from mnv4_mm.data.coco_files import CocoLayout
from mnv4_mm.data.examine import TASKS, examine
from mnv4_mm.data.prepare import check_fixed_folder, write_fixed
from mnv4_mm.data.prepare_masks import write_fixed as write_fixed_masks
from mnv4_mm.errors import UserError


def check(
    data: str | Path,
    *,
    task: str | None = None,
    config: str | None = None,
    fix: str | Path | None = None,
) -> CheckedData:
    """Recognise and check a data set: every image is decoded, every box or mask is checked.

    The data set is never changed. A second check of unchanged data takes less than a second.

    Args:
        data: Folder of the data set.
        task: ``detection`` or ``segmentation``. If None, the task of ``config`` or, without a config, the task that the
            data set is recognised for.
        config: Path or name of a config. The ``notes`` of the result then also describe what the config would train on,
            unless the data cannot be trained on.
        fix: New or empty folder for a cleaned copy of the data set, without the broken parts.

    Returns:
        Findings and statistics. ``refusals()`` lists the reasons why the data cannot be trained on.

    Raises:
        UserError: The data set is not recognised, ``task`` is unknown, the config is missing, is for another task or
            would train on nothing, or ``fix`` cannot be written or would hold nothing that can be trained on.
    """
    if task is not None and task not in TASKS:
        raise UserError(f'the task must be {" or ".join(TASKS)}, got {task!r}')
    if fix is not None:
        check_fixed_folder(Path(data), fix)
    if config is not None:
        task = _task_of(config, task)
    layout = examine(data, task)
    checked: CheckedData = layout.checked
    if config is not None and not checked.refusals(allow_dropped=True):
        from mnv4_mm.config.data import data_notes

        checked = checked.with_notes(data_notes(config, layout))
    if fix is not None:
        checked.require_usable(allow_dropped=True)
        if isinstance(layout, CocoLayout):
            write_fixed(layout, fix)
        else:
            write_fixed_masks(layout.root, fix, allow_dropped=True)
    return checked


def _task_of(config: str, task: str | None) -> str:
    from mnv4_mm.config.load import load_config

    scope = load_config(config).get('default_scope')
    if scope not in TASK_OF_SCOPE:
        raise UserError(f'config {config} is for neither detection nor segmentation')
    if task not in (None, TASK_OF_SCOPE[scope]):
        raise UserError(f'config {config} is for {TASK_OF_SCOPE[scope]}, not for {task}')
    return TASK_OF_SCOPE[scope]
