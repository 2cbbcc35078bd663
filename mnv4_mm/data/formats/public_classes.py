"""Class names of public segmentation data sets whose files do not hold them."""

import re
from collections.abc import Iterable

# mmseg.datasets.PascalVOCDataset: the index is the mask value, 255 is unlabelled.
VOC_CLASSES = (
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable',
    'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
)  # fmt: skip
# cityscapesScripts, helpers/labels.py: the index is the trainId, 255 is unlabelled.
CITYSCAPES_CLASSES = (
    'road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light', 'traffic sign', 'vegetation', 'terrain',
    'sky', 'person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle',
)  # fmt: skip
# The id of each of these classes in *_labelIds.png. The other ids, 0 to 33, are not evaluated.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_UNUSED_IDS = tuple(sorted(set(range(34)) - set(CITYSCAPES_IDS)))
# The 11 classes that SegNet reduced CamVid to: the index is the mask value, 11 is unlabelled.
CAMVID_CLASSES = (
    'sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist',
)  # fmt: skip

# Frames are named after the four sequences of CamVid, and images of VOC after year and number.
_CAMVID_NAME = re.compile(r'(0001TP|0006R0|0016E5|Seq05VD)_f?\d{5,6}$')
_VOC_NAME = re.compile(r'20\d\d_\d{6}$')


def are_camvid(stems: Iterable[str]) -> bool:
    """Return True if all images are named as in CamVid, e.g. ``0001TP_006690``.

    Args:
        stems: File names of the images without folder and suffix. If there are none, the result is False.
    """
    return _all_match(_CAMVID_NAME, stems)


def are_voc(stems: Iterable[str]) -> bool:
    """Return True if all images are named as in Pascal VOC, e.g. ``2007_000027``.

    Args:
        stems: File names of the images without folder and suffix. If there are none, the result is False.
    """
    return _all_match(_VOC_NAME, stems)


def _all_match(pattern: re.Pattern[str], stems: Iterable[str]) -> bool:
    matches = [bool(pattern.match(stem)) for stem in stems]
    return bool(matches) and all(matches)
