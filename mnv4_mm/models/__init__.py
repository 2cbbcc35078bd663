"""Backbones and heads. A class is imported, and thereby registered with mmengine, when its name is first accessed.

``registration`` imports all of them as soon as mmengine has been imported.
"""

from typing import TYPE_CHECKING

from mnv4_mm.lazy import lazy_names

if TYPE_CHECKING:
    from mnv4_mm.models.heads import GlobalLRASPPHead, SeparableConv2d, SeparableRetinaHead, SSDLiteHead
    from mnv4_mm.models.mobilenetv4 import MobileNetV4
    from mnv4_mm.models.timm_features import TimmFeatures

__all__ = ['GlobalLRASPPHead', 'MobileNetV4', 'SSDLiteHead', 'SeparableConv2d', 'SeparableRetinaHead', 'TimmFeatures']

# Name -> module and attribute.
_CLASSES = {
    'GlobalLRASPPHead': ('mnv4_mm.models.heads', 'GlobalLRASPPHead'),
    'MobileNetV4': ('mnv4_mm.models.mobilenetv4', 'MobileNetV4'),
    'SSDLiteHead': ('mnv4_mm.models.heads', 'SSDLiteHead'),
    'SeparableConv2d': ('mnv4_mm.models.heads', 'SeparableConv2d'),
    'SeparableRetinaHead': ('mnv4_mm.models.heads', 'SeparableRetinaHead'),
    'TimmFeatures': ('mnv4_mm.models.timm_features', 'TimmFeatures'),
}
__getattr__, __dir__ = lazy_names(__name__, _CLASSES)
