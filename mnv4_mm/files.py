"""Atomic writing of files. Imports nothing heavy."""

from pathlib import Path
from uuid import uuid4

from mnv4_mm.errors import UserError


def write_whole(path: Path, content: str | bytes, *, hint: str = '') -> None:
    """Write a file atomically, so that no process ever sees a part of it. Missing folders are created.

    Args:
        path: The file.
        content: Text, which is encoded as UTF-8, or bytes.
        hint: Text appended to the error message.

    Raises:
        UserError: The file cannot be written. An existing file of that name is kept.
    """
    part = path.with_name(f'.{uuid4().hex}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror or error}{hint}') from error
