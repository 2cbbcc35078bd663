"""MobileNetV4 for OpenMMLab: train, evaluate, export and run detectors and segmenters.

``custom_imports = dict(imports=['mnv4_mm'])`` in a config registers the package's models, data sets, transforms, hooks
and metrics (see ``registration``). The import is light: torch and OpenMMLab are imported when a function that needs
them is first used.
"""

from typing import TYPE_CHECKING

from mnv4_mm.lazy import lazy_names
from mnv4_mm.registration import register
from mnv4_mm.version import __version__

if TYPE_CHECKING:
    from mnv4_mm.apis.check import check
    from mnv4_mm.apis.evaluate import evaluate_files as evaluate
    from mnv4_mm.apis.infer import infer
    from mnv4_mm.apis.load import load
    from mnv4_mm.deploy.compare import compare
    from mnv4_mm.deploy.export import export
    from mnv4_mm.deploy.qat import train
    from mnv4_mm.report.training import write_report

__all__ = ['__version__', 'check', 'compare', 'evaluate', 'export', 'infer', 'load', 'train', 'write_report']

# Name -> module and attribute.
_FUNCTIONS = {
    'check': ('mnv4_mm.apis.check', 'check'),
    'train': ('mnv4_mm.deploy.qat', 'train'),
    'evaluate': ('mnv4_mm.apis.evaluate', 'evaluate_files'),
    'infer': ('mnv4_mm.apis.infer', 'infer'),
    'export': ('mnv4_mm.deploy.export', 'export'),
    'compare': ('mnv4_mm.deploy.compare', 'compare'),
    'load': ('mnv4_mm.apis.load', 'load'),
    'write_report': ('mnv4_mm.report.training', 'write_report'),
}
__getattr__, __dir__ = lazy_names(__name__, _FUNCTIONS)

register()
