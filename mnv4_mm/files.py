"""Atomic writing of files. Imports nothing heavy."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from mnv4_mm.errors import UserError

PART_SUFFIX = '.part'  # of files that are being written


def write_whole(path: Path, content: str | bytes, *, hint: str = '') -> None:
    """Write a file atomically, so that no process ever sees a part of it. Missing folders are created.

    Args:
        path: The file.
        content: Text, which is encoded as UTF-8, or bytes.
        hint: Text appended to the error message.

    Raises:
        UserError: The file cannot be written. An existing file of that name is kept.
    """
    try:
        with replacing(path) as part:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror or error}{hint}') from error


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Provide a temporary path in the folder of a file, and rename it to that file after the ``with`` block.

    If the block raises an exception, the temporary file is removed, and an existing file is left as it was. Missing
    folders are created.

    Args:
        path: The file.
        sync: Wait until the file is on the disk before it is renamed, and the renaming after it. The file is then
            complete even if the computer loses power.

    Raises:
        OSError: The file cannot be written or renamed.
    """
    part = path.with_name(f'.{uuid4().hex}.{os.getpid()}{PART_SUFFIX}')
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        if sync:
            _sync(part)
        part.replace(path)
        if sync:
            _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
