"""Transforms that read images and masks by ``mnv4_mm.images`` instead of OpenMMLab's readers.

Configs, and checkpoints with them, name OpenMMLab's ``LoadImageFromFile`` and ``LoadAnnotations``: mmdet's
``DetInferencer``, mmseg's ``MMSegInferencer`` and mmdeploy look for these names in a pipeline. ``with_one_reader``
replaces them when a data loader is built.
"""

from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from mnv4_mm.data.augment.seg import build_label_table
from mnv4_mm.images import read_image, read_mask


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Read an image by ``read_image``, as training, checks, inference and exported files do.

    Required key: ``img_path``.

    Added keys: ``img``, (H, W, 3) BGR; ``img_shape`` and ``ori_shape``, (H, W).

    Args:
        to_float32: True for float32 pixels, 0 to 255; otherwise they are uint8.

    Raises:
        UserError: The file is missing or not a readable image.
    """

    def __init__(self, to_float32: bool = False) -> None:
        self.to_float32 = to_float32

    def transform(self, results: dict) -> dict:
        pixels = read_image(results['img_path'])
        shape = pixels.shape[:2]
        results.update(img=pixels.astype(np.float32) if self.to_float32 else pixels, img_shape=shape, ori_shape=shape)
        return results


@TRANSFORMS.register_module()
class LoadMask(BaseTransform):
    """Read the mask of an image in the same way as ``SegAugmentation`` and the data check.

    Required keys: ``seg_map_path``, ``reduce_zero_label``; ``label_map`` is optional.

    Added keys: ``gt_seg_map``, (H, W) uint8, with a label for each pixel. ``'gt_seg_map'`` is appended to the list
    ``seg_fields``.

    The labels are the same as from mmseg's ``LoadAnnotations``, except that mask values above 255 are an error here.
    mmseg takes them modulo 256.

    Raises:
        UserError: The file is missing, is not a readable mask or has values above 255.
    """

    def transform(self, results: dict) -> dict:
        table = build_label_table(bool(results['reduce_zero_label']), results.get('label_map') or {})
        results['gt_seg_map'] = cv2.LUT(read_mask(results['seg_map_path']), table)
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results


def with_one_reader(config: Any, scope: str | None) -> Any:
    """Return a copy of a config with ``LoadImage`` and ``LoadMask`` as readers, also in nested data sets.

    A transform with other settings, such as a storage service or another decoder, is not replaced. Only ``to_float32``
    of ``LoadImageFromFile`` is supported. Settings that are None are ignored.

    Args:
        config: Config of a data loader or a data set. Built objects in the config are not copied.
        scope: Default scope, ``mmdet`` or ``mmseg``; None if there is none. ``LoadAnnotations`` without a prefix is
            replaced for ``mmseg`` only, because mmdet's ``LoadAnnotations`` reads no image files.
    """
    if isinstance(config, dict):
        name = config.get('type')
        settings = {key: value for key, value in config.items() if key != 'type' and value is not None}
        if name in ('LoadImageFromFile', 'mmcv.LoadImageFromFile') and settings.keys() <= {'to_float32'}:
            return dict(settings, type='LoadImage')
        if not settings and (name == 'mmseg.LoadAnnotations' or (name == 'LoadAnnotations' and scope == 'mmseg')):
            return dict(type='LoadMask')
        return type(config)({key: with_one_reader(value, scope) for key, value in config.items()})
    if isinstance(config, list | tuple):
        return type(config)(with_one_reader(value, scope) for value in config)
    return config
