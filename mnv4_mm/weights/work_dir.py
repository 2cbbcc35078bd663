"""Choose a checkpoint in the work directory of a run. Nothing heavy is imported."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_checkpoint

ContentT = TypeVar('ContentT')

# Checkpoints of CheckpointHook that can be resumed; checkpoints of the best score hold weights only.
_RESUMABLE = re.compile(r'(?:epoch|iter)_(\d+)\.pth')


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints from which a run can be resumed, the newest first.

    These are the files ``epoch_<n>.pth`` and ``iter_<n>.pth``, and the file named in ``last_checkpoint``. They are not
    read and may be damaged. The file named in ``last_checkpoint`` comes first, unless checkpoints of later epochs or
    iterations were written after it: a run may have been killed between writing a checkpoint and updating
    ``last_checkpoint``.

    Args:
        folder: Work directory of the run.

    Returns:
        Paths of the checkpoints; an empty list if there are none.
    """
    folder = Path(folder)
    steps = {path: int(match[1]) for path in folder.glob('*.pth') if (match := _RESUMABLE.fullmatch(path.name))}
    files = sorted(steps, key=lambda path: steps[path], reverse=True)
    pointer = folder / 'last_checkpoint'
    text = pointer.read_text(encoding='utf-8', errors='replace').strip() if pointer.is_file() else ''
    last = folder / Path(text).name  # the text names another folder if this one has been moved or copied
    # Unlike Path.is_file, os.path.isfile returns False for a damaged text that cannot be a path.
    if not os.path.isfile(last):
        last = Path(text)
    if not (text and os.path.isfile(last)):
        return files
    found = _RESUMABLE.fullmatch(last.name)
    later = [
        path
        for path in files
        if found and steps[path] > int(found[1]) and path.stat().st_mtime_ns >= last.stat().st_mtime_ns
    ]
    others = [path for path in files if path not in later and path.resolve() != last.resolve()]
    return [*later, last, *others]


def find_checkpoint(path: str | Path, best: bool = True, log: Callable[[str], object] = print) -> Path:
    """Return the best or the last undamaged checkpoint of a work directory.

    Args:
        path: Work directory; a file is checked and returned as it is.
        best: Prefer the best checkpoint to the last one. If several are named ``best_*.pth``, the newest is used.
        log: See ``first_readable``.

    Raises:
        UserError: The path does not exist, the file is damaged, or the work directory has no undamaged checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f'no work directory or checkpoint {path}')
    if not path.is_dir():
        return check_checkpoint(path)
    bests = sorted(path.glob('best_*.pth'), key=lambda file: file.stat().st_mtime, reverse=True) if best else []
    found = first_readable([*bests, *list_checkpoints(path)], check_checkpoint, 'used instead:', log)
    if found is None:
        raise UserError(f'no checkpoint in {path}: name the work directory of a run that has saved one, or a .pth file')
    return found


def first_readable(
    paths: Sequence[Path], read: Callable[[Path], ContentT], use: str, log: Callable[[str], object] = print
) -> ContentT | None:
    """Read the first checkpoint that can be read.

    Args:
        paths: Checkpoints of a run.
        read: Reads or checks a checkpoint, and raises ``UserError`` if it is damaged.
        use: What the file that was read is used for if others were skipped: the text before its path in the last line.
        log: Function that is called with a line of text for each unreadable file that is skipped, and with one more
            line for the file used instead.

    Returns:
        What ``read`` returns; None if there are no checkpoints.

    Raises:
        UserError: There are checkpoints, and none can be read.
    """
    problems = []
    for path in paths:
        try:
            content = read(path)
        except UserError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            log(f'warning: skipped: {problem}')
        if problems:
            log(f'warning: {use} {path}')
        return content
    if problems:
        raise UserError(f'no checkpoint in {paths[0].parent} can be read: {"; ".join(problems)}')
    return None
