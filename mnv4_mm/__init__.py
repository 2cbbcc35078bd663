"""MobileNetV4 for OpenMMLab. Importing the package registers everything: the one target of ``custom_imports``.

Where OpenMMLab is not installed nothing is registered, and only ``mnv4_mm.deploy.targets``, which runs exported files,
can be used.
"""

from importlib.util import find_spec

from mnv4_mm.version import __version__

__all__ = ['__version__']

if find_spec('mmengine') is not None:
    from mnv4_mm import engine, models
    from mnv4_mm.data import augment, coco_dataset

    __all__ += ['augment', 'coco_dataset', 'engine', 'models']
