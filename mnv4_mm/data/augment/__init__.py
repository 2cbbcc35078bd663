"""Image augmentation for detection and segmentation. Importing this package registers it."""

from mnv4_mm.data.augment.ssd import SegAugmentation, SSDAugmentation

__all__ = ['SSDAugmentation', 'SegAugmentation']
