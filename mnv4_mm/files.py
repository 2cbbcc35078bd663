"""Writing of files so that they are never seen in part. Imports nothing heavy."""

from pathlib import Path
from uuid import uuid4

from mnv4_mm.errors import UserError


def write_whole(path: Path, content: str | bytes, *, hint: str = '') -> None:
    """Write a file so that it is never seen in part, also by other processes. Missing folders are made.

    Args:
        path: The file.
        content: What to write. Text is encoded as UTF-8.
        hint: End of the message if it cannot be written.

    Raises:
        UserError: It cannot be written. An older file of that name is left as it is.
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
