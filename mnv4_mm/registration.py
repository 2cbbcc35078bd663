"""Registration of the package's models, data sets, transforms, hooks and metrics with OpenMMLab.

Importing OpenMMLab takes seconds, and ``mnv4 --help``, an argument check or an exported file do not need it. Therefore
``import mnv4_mm`` registers at once only if mmengine is imported already, as it is for ``custom_imports`` of a config.
Otherwise it registers as soon as the first import of mmengine has finished: a later ``custom_imports`` would have no
effect, because Python does not execute ``mnv4_mm`` again.
"""

import importlib
import logging
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmseg')
# Importing these modules registers their classes.
MODULES = (
    'mnv4_mm.models.heads', 'mnv4_mm.models.mobilenetv4', 'mnv4_mm.models.timm_features',
    'mnv4_mm.data.coco_dataset', 'mnv4_mm.data.relabelled', 'mnv4_mm.data.augment.load', 'mnv4_mm.data.augment.seg',
    'mnv4_mm.data.augment.ssd', 'mnv4_mm.engine.amp', 'mnv4_mm.engine.buffers', 'mnv4_mm.engine.checkpoints',
    'mnv4_mm.engine.coco_metric', 'mnv4_mm.engine.curves', 'mnv4_mm.engine.distillation', 'mnv4_mm.engine.guards',
    'mnv4_mm.engine.iou', 'mnv4_mm.engine.measured', 'mnv4_mm.engine.overlay', 'mnv4_mm.engine.progress',
    'mnv4_mm.engine.qat', 'mnv4_mm.engine.runner', 'mnv4_mm.engine.sandwich', 'mnv4_mm.engine.step',
    'mnv4_mm.transfer.controls',
)  # fmt: skip


def register() -> None:
    """Register the classes of ``MODULES`` now if mmengine is imported, otherwise as soon as its import has finished."""
    if sys.modules.get('mmengine') and not _importing():
        _import_modules()
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def _import_modules() -> None:
    for name in MODULES:
        importlib.import_module(name)


def _importing(finished: str = '') -> bool:
    """Return whether an import of OpenMMLab or of a module of this package is still in progress.

    Registering during such an import could need a name that a partly executed module does not define yet.

    Args:
        finished: Name of a module that has just been executed and is not counted.
    """
    return any(
        name != finished and getattr(getattr(module, '__spec__', None), '_initializing', False)
        for name, module in list(sys.modules.items())
        if _is_watched(name)
    )


def _is_watched(name: str) -> bool:
    return name in OPENMMLAB or name.startswith('mnv4_mm.')


class _Watcher(MetaPathFinder):
    """Import hook that registers when the outermost import of OpenMMLab has finished, and then removes itself.

    It watches modules of this package too, because one of them may have started the import of OpenMMLab.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not _is_watched(fullname):
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, 'find_spec'))
        spec = next((spec for finder in others if (spec := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            self._watch(fullname, spec.loader)
        return spec

    def _watch(self, name: str, loader: Any) -> None:
        # The method is replaced on this loader instead of wrapping the loader, to keep its other methods (source,
        # resources).
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            del loader.exec_module
            if self not in sys.meta_path or not sys.modules.get('mmengine') or _importing(finished=name):
                return
            sys.meta_path.remove(self)
            try:
                _import_modules()
            # The program that imports mmengine may not use this package. So an OpenMMLab that is incomplete, or has
            # versions that do not fit (mmdet asserts the version of mmcv), must not break that import.
            except Exception as error:
                logging.getLogger('mnv4_mm').warning(
                    'mnv4_mm is not registered with OpenMMLab (%s: %s); `mnv4 env` lists what is missing',
                    type(error).__name__,
                    error,
                )

        loader.exec_module = exec_module
