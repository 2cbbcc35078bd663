"""Files of scores in JSON Lines, whose first line says what was scored. Imports nothing heavy."""

from pathlib import Path
from typing import Any

from filelock import FileLock

from mnv4_mm.errors import UserError
from mnv4_mm.json_lines import append_line, read_whole_lines

SCORED = 'scored.jsonl'  # of ``run``
RANKED = 'ranked.jsonl'  # of ``rank``
# What differs if a value of the first line does; of others, the option of this name.
DIFFERENT = dict(supernet='another supernet', images='other images, other ground truth or another --images')


def read_scores(path: Path, **about: Any) -> list[dict[str, Any]]:
    """Return the scores of a file; none if it does not exist.

    Args:
        path: The file.
        **about: Values that its first line must have.

    Raises:
        UserError: The first line has other values.
    """
    lines = [line for line in read_whole_lines(path) if isinstance(line, dict)]
    for key, value in about.items():
        if lines and lines[0].get(key) != value:
            raise UserError(
                f'{path} was made with {DIFFERENT.get(key, f"another --{key}")}: name another folder by --out'
            )
    return lines[1:]


def open_scores(path: Path, **about: Any) -> list[dict[str, Any]]:
    """Return the scores of a file, like ``read_scores``. If the file does not exist, write its first line.

    Raises:
        UserError: The first line has other values, or the file cannot be written.
    """
    try:
        with FileLock(path.with_name(f'.{path.name}.open.lock')):  # two processes must not both write it
            scores = read_scores(path, **about)
            if not read_whole_lines(path):
                append_line(path, about)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror or error}') from error
    return scores
