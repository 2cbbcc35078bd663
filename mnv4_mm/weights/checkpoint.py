"""Read checkpoint files safely, and write them atomically.

Files are read as tensors and plain values only; objects that would run code when unpickled are refused.
"""

import errno
import io
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from mnv4_mm.digest import file_digest
from mnv4_mm.errors import UserError
from mnv4_mm.files import replacing
from mnv4_mm.paths import check_checkpoint
from mnv4_mm.weights.work_dir import first_readable, list_checkpoints


def _history_statistic(owner: Any, name: str) -> Any:
    """Replace ``getattr``, with which HistoryBuffer's pickled state looks up its four statistics.

    The built-in would give access to every method of every type allowed here, e.g. ``ndarray.tofile``.
    """
    if owner is not HistoryBuffer or name not in ('mean', 'max', 'min', 'current'):
        raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r}) is not one of HistoryBuffer's statistics")
    return getattr(HistoryBuffer, name)


_array, _scalar = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
# Types that mmengine's Runner writes besides tensors and plain containers. mmengine's own loader falls back to
# unpickling anything (upstream either refuses or unpickles, open-mmlab/mmengine#1655); a run needs these types only.
RUNNER_TYPES: list[Any] = [
    HistoryBuffer,
    (_history_statistic, 'builtins.getattr'),
    np.dtype,
    np.ndarray,
    *(type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'int32', 'uint8', 'bool')),
    # numpy 1 and 2 write different module names for the same two functions.
    *((_array, f'{module}._reconstruct') for module in ('numpy._core.multiarray', 'numpy.core.multiarray')),
    *((_scalar, f'{module}.scalar') for module in ('numpy._core.multiarray', 'numpy.core.multiarray')),
]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Content of a checkpoint file.

    Functions that need a checkpoint take this object in place of a path, so that a command reads the file once.

    Attributes:
        path: The file.
        content: Checkpoint of mmengine's Runner (``state_dict``, ``meta``, ...) or a bare ``state_dict``.
    """

    path: Path
    content: dict[str, Any]

    @property
    def meta(self) -> dict[str, Any]:
        """Metadata written by the Runner: ``cfg``, ``dataset_meta``, ``epoch``, ...; empty if there is none."""
        return self.content.get('meta', {})

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return file_digest(self.path).hexdigest()


def read_checkpoint(source: str | Path | Checkpoint, map_location: Any = 'cpu') -> Checkpoint:
    """Read a checkpoint file as tensors, plain containers and the types that mmengine's Runner writes.

    Args:
        source: The file. A checkpoint that has been read already is returned as it is.
        map_location: Device of the tensors, see ``torch.load``; not used if the checkpoint has been read already.

    Raises:
        UserError: The file is missing, damaged, compressed, not a checkpoint, or holds objects that would run code when
            read.
    """
    if isinstance(source, Checkpoint):
        return source
    path = check_checkpoint(source)
    try:
        with torch.serialization.safe_globals(RUNNER_TYPES):
            content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f'{path} is refused: it is not a checkpoint, is damaged, or holds objects that would run code when read; '
            f'only tensors and plain values are loaded ({reason(error)})'
        ) from error
    # The unpickler can raise any exception for bytes that are not a checkpoint.
    except Exception as error:
        raise UserError(f'{path} is not a readable checkpoint, perhaps cut short: {reason(error)}') from error
    if not isinstance(content, dict) or not isinstance(content.get('meta', {}), dict):
        raise UserError(f'{path} is not a checkpoint: its content is not a dict, or its meta is not')
    return Checkpoint(path, content)


def read_newest(folder: str | Path, log: Callable[[str], object] = print) -> Checkpoint | None:
    """Read the newest checkpoint of a run that can be read.

    Args:
        folder: Work directory of the run.
        log: See ``first_readable``.

    Returns:
        The checkpoint; None if the run has not written any.

    Raises:
        UserError: There are checkpoints, and none can be read.
    """
    return first_readable(list_checkpoints(folder), read_checkpoint, 'the run continues from', log)


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically.

    Raises:
        UserError: The disk is full, or the file cannot be written.
    """
    buffer = io.BytesIO()  # torch reports a full disk as a RuntimeError if it writes the file itself
    torch.save(content, buffer)
    # Not Path.write_bytes, which keeps the view in a variable: if writing fails, Python 3.12.1 crashes when it
    # collects the traceback (python/cpython#111049).
    with written_atomically(path) as part, part.open('wb') as file:
        file.write(buffer.getbuffer())


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        UserError: The disk is full, or the file cannot be written.
    """
    with written_atomically(path) as part:
        part.write_text(text, encoding='utf-8')


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Provide a temporary path, to which the ``with`` block writes the file.

    After the block, the file is synced to the disk and renamed to ``path``. If the block raises an error, ``path`` is
    left as it was.

    Raises:
        UserError: The disk is full, or the file cannot be written. An existing file of that name is kept.
    """
    try:
        with replacing(path, sync=True) as part:
            yield part
    except OSError as error:
        raise UserError(cannot_be_written(path, error, path.parent)) from error


def cannot_be_written(path: str | Path, error: OSError, work_dir: str | Path) -> str:
    """Return the error message for a run that stops because a file cannot be written.

    The message names the newest checkpoint and says how to continue the run.

    Args:
        path: The file or folder.
        error: Error of the operating system.
        work_dir: Folder of the run's checkpoints.
    """
    last = next(iter(list_checkpoints(work_dir)), None)
    kept = f'the last complete checkpoint is {last}' if last else 'no checkpoint has been written yet'
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = 'Free some space' if is_full else 'Make sure that the run can write there'
    reason = error.strerror or error
    return f'{path} cannot be written: {reason}; {kept}. {advice}, and continue with the same command and --resume'


@contextmanager
def tensors_only() -> Iterator[None]:
    """Make every ``torch.load`` within this context use ``weights_only=True``, also when mmengine or mmdet calls it.

    mmengine falls back to unpickling anything if safe loading fails. torch's environment variable
    ``TORCH_FORCE_WEIGHTS_ONLY_LOAD``, which is set within the context, prevents this fallback.
    """
    switch = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    before = os.environ.get(switch)
    os.environ[switch] = '1'
    try:
        yield
    finally:
        os.environ.pop(switch)
        if before is not None:
            os.environ[switch] = before


def reason(error: Exception) -> str:
    """Return the message of an error on one line, truncated to 300 characters.

    An empty message is replaced by the name of the error's type. If torch refuses an object because of
    ``weights_only``, the long message is replaced by the name of the object.
    """
    text = ' '.join(str(error).split()) or type(error).__name__
    refused = re.search(r'GLOBAL (\S+)', text)
    text = f'it names {refused.group(1)}' if refused else text
    return text if len(text) <= 300 else f'{text[:297]}...'
