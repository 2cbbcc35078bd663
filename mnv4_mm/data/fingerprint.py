"""Fingerprints of images and their ground truth, which show that one of them has changed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnv4_mm.digest import file_digest

HASHED = 2**16  # bytes at the start of an image that are hashed


def fingerprint(info: Mapping[str, Any]) -> list[Any]:
    """Return the name, the size and a digest of an image file, and its ground truth, as values of JSON.

    Only the first 64 KiB of the image are hashed, so that COCO takes minutes instead of an hour.

    Args:
        info: Image of a data set of mmdet or mmseg, as its ``get_data_info`` returns it.

    Returns:
        Name, number of bytes, SHA-256, and the boxes (``[[bbox, label, ignore_flag], ...]``) or, for segmentation, the
            SHA-256 of the mask.
    """
    image = Path(info['img_path'])
    labels = (
        file_digest(info['seg_map_path']).hexdigest()
        if info.get('seg_map_path')
        else [[box['bbox'], box['bbox_label'], box['ignore_flag']] for box in info['instances']]
    )
    with image.open('rb') as file:
        start = hashlib.sha256(file.read(HASHED)).hexdigest()
    return [image.name, image.stat().st_size, start, labels]
