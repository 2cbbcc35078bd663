"""Recognising, checking, reading, augmenting and drawing data sets."""

from mnv4_mm.data.augment.ssd import SegAugmentation, SSDAugmentation
from mnv4_mm.data.coco_dataset import CachedCocoDataset

__all__ = ['CachedCocoDataset', 'SSDAugmentation', 'SegAugmentation']
