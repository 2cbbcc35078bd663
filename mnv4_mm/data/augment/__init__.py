"""Image augmentation for detection and segmentation. Importing this package registers the transforms."""

from mnv4_mm.data.augment.load import LoadImage, LoadMask
from mnv4_mm.data.augment.seg import SegAugmentation
from mnv4_mm.data.augment.ssd import SSDAugmentation

__all__ = ['LoadImage', 'LoadMask', 'SSDAugmentation', 'SegAugmentation']
