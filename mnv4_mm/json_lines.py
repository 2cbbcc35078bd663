"""Files of JSON Lines, which several processes may append to and any of them may be killed. Imports nothing heavy."""

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mnv4_mm.errors import UserError


def append_line(path: Path, value: Any) -> None:
    """Append a value to a file that other processes may append to at the same time.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        with locked(path):
            _end_last_line(path)
            with path.open('a', encoding='utf-8') as file:
                file.write(as_line(value))
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror or error}') from error


def as_line(value: Any) -> str:
    """Return a value as a line of JSON, with the line break at its end."""
    return json.dumps(value, separators=(',', ':')) + '\n'


def read_whole_lines(path: Path) -> list[Any]:
    """Return the values of a file. Lines that are not JSON, such as one cut off by a kill, are skipped.

    Returns:
        The values; an empty list if there is no such file.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        lines = path.read_text(encoding='utf-8', errors='replace').splitlines() if path.exists() else []
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror or error}') from error
    values = []
    for line in lines:
        try:
            values.append(json.loads(line))
        except ValueError:
            continue
    return values


def locked(path: Path) -> AbstractContextManager:
    """Return the lock that each process holds while it writes to a file."""
    from filelock import FileLock

    return FileLock(path.with_name(f'.{path.name}.lock'))


def _end_last_line(path: Path) -> None:
    """End the last line, or remove it if it is incomplete: a process was killed, or the disk full, during writing."""
    content = path.read_bytes() if path.is_file() else b''
    whole = content.rfind(b'\n') + 1
    if whole == len(content):
        return
    try:
        json.loads(content[whole:])
    except ValueError:
        os.truncate(path, whole)
    else:
        with path.open('ab') as file:
            file.write(b'\n')
