"""What talks too much."""

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


def without_telemetry(name: str) -> ModuleType:
    """Imports openvino or nncf without openvino-telemetry, which reports imports and conversions unasked.

    Both do without it where it is not installed, and for the moment of the import it is not.
    """
    if name in sys.modules:
        return sys.modules[name]
    had = sys.modules.pop('openvino_telemetry', None)
    sys.modules['openvino_telemetry'] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules['openvino_telemetry']
        if had is not None:
            sys.modules['openvino_telemetry'] = had


def coremltools() -> ModuleType:
    """Imports coremltools without its warnings of what only macOS has, and that it was not tried with this torch.

    It imports torchao, of whose types torch tells that they need no registering.
    """
    logging.getLogger('coremltools').setLevel(logging.ERROR)
    logging.getLogger('torch.utils._pytree').setLevel(logging.ERROR)
    return importlib.import_module('coremltools')


def nncf() -> ModuleType:
    """Imports nncf without telemetry, and without a line for each operation that it leaves alone."""
    module = without_telemetry('nncf')
    module.set_log_level(logging.WARNING)
    return module


@contextmanager
def no_root_log() -> Iterator[None]:
    """Drops what is logged by ``logging.error`` and the like, which also set up logging for the whole process."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    root.addFilter(_nothing)
    try:
        yield
    finally:
        root.removeFilter(_nothing)
        root.removeHandler(handler)


def _nothing(record: logging.LogRecord) -> bool:
    return False
