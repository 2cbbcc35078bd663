"""Files of scores in JSON Lines, whose first line says what was scored. Imports nothing heavy."""

from pathlib import Path
from typing import Any

from mnv4_mm.errors import UserError
from mnv4_mm.json_lines import append_line, read_whole_lines

SCORED = 'scored.jsonl'  # of ``run``
RANKED = 'ranked.jsonl'  # of ``rank``


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
                f'{path} was made with other settings ({key}): repeat the command that made it, or name another folder '
                'by --out'
            )
    return lines[1:]


def open_scores(path: Path, **about: Any) -> list[dict[str, Any]]:
    """Return the scores of a file, like ``read_scores``. If the file does not exist, write its first line.

    Raises:
        UserError: The first line has other values, or the file cannot be written.
    """
    scores = read_scores(path, **about)
    if not read_whole_lines(path):
        append_line(path, about)
    return scores
