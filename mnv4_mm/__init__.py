"""MobileNetV4 for OpenMMLab. Importing the package registers everything: the one target of ``custom_imports``."""

from mnv4_mm import data, engine, models
from mnv4_mm.version import __version__

__all__ = ['__version__', 'data', 'engine', 'models']
