"""Suppress lines that dependencies print and users cannot act on. Imports nothing heavy."""

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from typing import TextIO

# A debug message that the forks of mmdet and mmseg print when their data sets are imported.
MISSING_OPTIONAL = ('Could not import OneDL',)
# Printed by pycocotools' COCO, which mmdet builds for data sets and metrics.
READING_ANNOTATIONS = ('loading annotations into memory...', 'Done (t=', 'creating index...', 'index created!')


@contextlib.contextmanager
def without_lines(prefixes: tuple[str, ...]) -> Iterator[None]:
    """Drop the lines that begin with one of ``prefixes`` from ``sys.stdout`` within this context.

    Every other line is written as soon as it is complete.
    """
    output = _LineFilter(sys.stdout, prefixes)
    try:
        with contextlib.redirect_stdout(output):
            yield
    finally:
        output.finish()


@contextlib.contextmanager
def errors_only(*loggers: str) -> Iterator[None]:
    """Drop what the named loggers log below the level of errors within this context."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class _LineFilter(io.TextIOBase):
    def __init__(self, target: TextIO, prefixes: tuple[str, ...]) -> None:
        self.target = target
        self.prefixes = prefixes
        self.pending = ''

    def write(self, text: str) -> int:
        *lines, self.pending = (self.pending + text).split('\n')
        for line in lines:
            if not line.startswith(self.prefixes):
                self.target.write(f'{line}\n')
        return len(text)

    def flush(self) -> None:
        self.target.flush()

    def isatty(self) -> bool:
        return self.target.isatty()

    def finish(self) -> None:
        """Write the rest of the output if it does not end with a newline."""
        if not self.pending.startswith(self.prefixes):
            self.target.write(self.pending)
