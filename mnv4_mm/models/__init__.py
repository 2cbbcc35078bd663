"""Backbones and heads. Importing this package registers them."""

from mnv4_mm.models.heads import GlobalLRASPPHead, SeparableConv2d, SeparableRetinaHead, SSDLiteHead
from mnv4_mm.models.mobilenetv4 import MobileNetV4
from mnv4_mm.models.timm_features import TimmFeatures

__all__ = ['GlobalLRASPPHead', 'MobileNetV4', 'SSDLiteHead', 'SeparableConv2d', 'SeparableRetinaHead', 'TimmFeatures']
