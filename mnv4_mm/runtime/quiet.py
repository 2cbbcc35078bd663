"""Import runtimes without their telemetry and noise."""

import importlib
import logging
import sys
import warnings
from types import ModuleType


def without_telemetry(name: str) -> ModuleType:
    """Import openvino without openvino-telemetry, which reports imports and conversions unasked.

    It works without that package, which is hidden from it for the duration of the import.
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

    It imports torchao and ExecuTorch where they are installed: torch then logs that types need no registration, and
    ExecuTorch reads its files by a function that Python has deprecated. The levels of two loggers, coremltools' and
    that of ``torch.utils._pytree``, stay at ERROR afterwards.
    """
    logging.getLogger('coremltools').setLevel(logging.ERROR)
    logging.getLogger('torch.utils._pytree').setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        return importlib.import_module('coremltools')
