"""Importing what talks too much."""

import importlib
import logging
import sys
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
