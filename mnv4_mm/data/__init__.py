"""Recognising, checking, reading, augmenting and drawing data sets."""

from mnv4_mm.data.coco_dataset import CachedCocoDataset
from mnv4_mm.data.transforms import SegAugmentation, SSDAugmentation

__all__ = ['CachedCocoDataset', 'SSDAugmentation', 'SegAugmentation']
