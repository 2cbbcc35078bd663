"""Import runtimes without their telemetry and noise."""

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from mnv4_mm.quiet import errors_only

# Logs a deprecation when ExecuTorch or torchao is imported, which concerns their code only.
PYTREE = 'torch.utils._pytree'


def without_telemetry(name: str) -> ModuleType:
    """Import openvino or one of its modules without openvino-telemetry, which reports imports and conversions unasked.

    OpenVINO works without openvino-telemetry, which is made unavailable for the duration of the import.

    Args:
        name: Name of the module to import.
    """
    if name in sys.modules:
        return sys.modules[name]
    telemetry = sys.modules.pop('openvino_telemetry', None)
    sys.modules['openvino_telemetry'] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules['openvino_telemetry']
        if telemetry is not None:
            sys.modules['openvino_telemetry'] = telemetry


def coremltools() -> ModuleType:
    """Import coremltools without its warnings about macOS-only libraries and untested versions of torch.

    coremltools imports torchao and ExecuTorch if they are installed. Torch then logs a message about the registration
    of types, and ExecuTorch causes a ``DeprecationWarning``; both are suppressed.
    """
    with errors_only('coremltools', PYTREE), warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        return importlib.import_module('coremltools')


@contextmanager
def without_native_stderr() -> Iterator[None]:
    """Discard what native code writes to standard error. Exceptions are raised as usual."""
    stderr = 2  # native code does not know sys.stderr
    try:
        saved = os.dup(stderr)
    except OSError:  # it is closed
        yield
        return
    try:
        with open(os.devnull, 'wb') as null:
            os.dup2(null.fileno(), stderr)
        yield
    finally:
        os.dup2(saved, stderr)
        os.close(saved)
