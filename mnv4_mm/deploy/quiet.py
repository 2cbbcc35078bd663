"""Suppress telemetry and noisy third-party logging of converters."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mnv4_mm.runtime.quiet import coremltools, without_telemetry

__all__ = ['coremltools', 'no_root_log', 'without_telemetry']


@contextmanager
def no_root_log() -> Iterator[None]:
    """Drop everything logged to the root logger, and prevent ``logging.error`` from adding a handler to it."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    root.addFilter(_drop)
    try:
        yield
    finally:
        root.removeFilter(_drop)
        root.removeHandler(handler)


def _drop(record: logging.LogRecord) -> bool:
    return False
