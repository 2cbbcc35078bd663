"""The augmentation of mmseg's ADE20K configs as one crop, one resize and one pass over the colours.

The result equals that of mmseg's chain of transforms except for the three differences that ``SegAugmentation`` lists.
The random parameters have the same distributions. The augmentation takes a fraction of the time, because the crop is
taken from the unscaled image, so that only the crop is resized and distorted.

``sample_params`` is separate from ``apply`` so that tests can run mmseg's chain with the same random parameters.
"""

from typing import NamedTuple

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from mnv4_mm.data.augment.pixels import Box, ColourDistortion, distort_uint8, read_reduced, to_planar
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_mask

MAX_RESAMPLES = 10  # crops that mmseg's RandomCrop rejects before it takes the next one, whatever its classes


class SegParams(NamedTuple):
    """Random parameters of the segmentation augmentation for one image.

    Attributes:
        size: Width and height in pixels to which the whole image is scaled.
        crop: Region of the scaled image to keep, (x1, y1, x2, y2) in pixels.
        flip: True to flip horizontally.
        colour: Colour distortion.
    """

    size: tuple[int, int]
    crop: Box
    flip: bool
    colour: ColourDistortion


@TRANSFORMS.register_module()
class SegAugmentation(BaseTransform):
    """Read an image and its mask and apply the augmentation of mmseg's ADE20K configs.

    Replaces mmseg's LoadImageFromFile, LoadAnnotations, RandomResize (keep_ratio=True), RandomCrop, RandomFlip and
    PhotoMetricDistortion. There are three differences. The crop is taken from the unscaled image at whole pixels, so
    that image and mask are both shifted by up to half a pixel of the unscaled image. Saturation and hue share one
    conversion to HSV and back. A JPEG file is decoded at 1/2, 1/4 or 1/8 of its size if that is still at least the size
    to which it is scaled.

    Required keys: ``img_path``, ``seg_map_path``, ``reduce_zero_label``; ``label_map`` is optional.

    Added keys: ``img``, (H, W, 3) uint8 BGR, in planar layout (see ``to_planar``); ``gt_seg_map``, (H, W) uint8, which
    ``seg_fields`` then lists; ``ori_shape``, ``img_shape``, ``scale``, ``scale_factor``, ``keep_ratio``, ``flip`` and
    ``flip_direction``, as mmseg's transforms record them. Each of H and W is that of ``crop_size``, or that of the
    scaled image if the latter is smaller.

    Args:
        scale: Limits of the longer and the shorter side of the scaled image in pixels, in any order, before
            ``ratio_range`` is applied. The image is scaled to the largest size within them.
        crop_size: Height and width of the crop in pixels.
        ratio_range: Range of the factor on ``scale``.
        cat_max_ratio: Limit on the share of one class among the labelled pixels of a crop. A crop that reaches it or
            has a single class is sampled again, up to ten times. 1 accepts every crop.
        flip_prob: Probability of a horizontal flip.
        brightness_delta: Largest change of pixel values, which are in [0, 255].
        contrast_range: Range of the contrast factor.
        saturation_range: Range of the saturation factor.
        hue_delta: Largest change of hue in units of 2 degrees.
        ignore_index: Label of unlabelled pixels.

    Raises:
        UserError: A file is missing or not readable, or image and mask differ in size.
    """

    def __init__(
        self,
        scale: tuple[int, int],
        crop_size: tuple[int, int],
        ratio_range: tuple[float, float] = (0.5, 2.0),
        cat_max_ratio: float = 1.0,
        flip_prob: float = 0.5,
        brightness_delta: float = 32,
        contrast_range: tuple[float, float] = (0.5, 1.5),
        saturation_range: tuple[float, float] = (0.5, 1.5),
        hue_delta: int = 18,
        ignore_index: int = 255,
    ) -> None:
        self.scale = tuple(scale)
        self.crop_size = tuple(crop_size)
        self.ratio_range = ratio_range
        self.cat_max_ratio = cat_max_ratio
        self.flip_prob = flip_prob
        self.brightness_delta = brightness_delta
        self.contrast_range = contrast_range
        self.saturation_range = saturation_range
        self.hue_delta = hue_delta
        self.ignore_index = ignore_index

    def transform(self, results: dict) -> dict:
        path, mask = str(results['img_path']), read_mask(results['seg_map_path'])
        label_table = build_label_table(bool(results['reduce_zero_label']), results.get('label_map') or {})
        params = self.sample_params(mask, label_table)
        height, width = mask.shape
        image, reduction = read_reduced(path, (0, 0, width, height), params.size)
        if image.shape[:2] != (-(-height // reduction), -(-width // reduction)):
            raise UserError(f'{path} and {results["seg_map_path"]} are not of the same size')
        return self.apply(results, image, mask, label_table, params)

    def sample_params(self, mask: np.ndarray, label_table: np.ndarray) -> SegParams:
        """Sample the random parameters for an image.

        Args:
            mask: (H, W) uint8, the mask at full size. Its size is that of the image.
            label_table: (256,) uint8, the label of each mask value (see ``build_label_table``).
        """
        random, uniform = np.random.random_sample, np.random.uniform
        height, width = mask.shape
        ratio = uniform(*self.ratio_range)
        scale = (int(self.scale[0] * ratio), int(self.scale[1] * ratio))
        size = mmcv.rescale_size((width, height), scale)
        crop_width, crop_height = min(self.crop_size[1], size[0]), min(self.crop_size[0], size[1])
        for _ in range(MAX_RESAMPLES + 1):
            x = int(np.random.randint(0, size[0] - crop_width + 1))
            y = int(np.random.randint(0, size[1] - crop_height + 1))
            crop = (x, y, x + crop_width, y + crop_height)
            if self.cat_max_ratio >= 1 or self.is_balanced(mask[source_slices(crop, size, mask.shape)], label_table):
                break
        enabled = random(4) < 0.5
        colour = ColourDistortion(
            brightness=uniform(-self.brightness_delta, self.brightness_delta) if enabled[0] else None,
            contrast=uniform(*self.contrast_range) if enabled[1] else None,
            contrast_last=random() < 0.5,
            saturation=uniform(*self.saturation_range) if enabled[2] else None,
            hue=int(np.random.randint(-self.hue_delta, self.hue_delta)) if enabled[3] else None,
        )
        return SegParams(size, crop, random() < self.flip_prob, colour)

    def is_balanced(self, mask: np.ndarray, label_table: np.ndarray) -> bool:
        """Return True if a mask has at least two classes, each below ``cat_max_ratio`` of the labelled pixels.

        Only every second pixel of every second row is counted. Counting all pixels would give another result only if
        the share of a class is very close to the limit.

        Args:
            mask: (H, W) uint8, the part of the mask to examine.
            label_table: (256,) uint8, the label of each mask value (see ``build_label_table``).
        """
        value_counts = cv2.calcHist([mask[::2, ::2]], [0], None, [256], [0, 256]).ravel()
        counts = np.bincount(label_table, value_counts, minlength=256)
        counts[self.ignore_index] = 0
        return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < self.cat_max_ratio

    def apply(
        self, results: dict, image: np.ndarray, mask: np.ndarray, label_table: np.ndarray, params: SegParams
    ) -> dict:
        """Apply the given parameters to an image and its mask.

        Args:
            results: Results of the pipeline, updated in place. No key is required.
            image: (H', W', 3) uint8 BGR, at full size or reduced.
            mask: (H, W) uint8, the mask at full size.
            label_table: (256,) uint8, the label of each mask value (see ``build_label_table``).
            params: Random parameters as from ``sample_params``.

        Returns:
            ``results`` with the keys that the class adds.
        """
        shape = (params.crop[3] - params.crop[1], params.crop[2] - params.crop[0])
        pixels, labels = (part[source_slices(params.crop, params.size, part.shape)] for part in (image, mask))
        # Distort before or after resizing, whichever has fewer pixels: the distortion treats each pixel alone.
        enlarges = labels.size < shape[0] * shape[1]
        if enlarges:
            pixels = distort_uint8(pixels, params.colour)
        pixels = cv2.resize(pixels, shape[::-1])
        labels = cv2.LUT(cv2.resize(labels, shape[::-1], interpolation=cv2.INTER_NEAREST), label_table)
        if not enlarges:
            pixels = distort_uint8(pixels, params.colour)
        if params.flip:
            pixels, labels = cv2.flip(pixels, 1), cv2.flip(labels, 1)
        results.setdefault('seg_fields', []).append('gt_seg_map')
        results.update(
            img=to_planar(pixels),
            gt_seg_map=labels,
            ori_shape=mask.shape,
            img_shape=shape,
            scale=params.size,
            scale_factor=(params.size[0] / mask.shape[1], params.size[1] / mask.shape[0]),
            keep_ratio=True,
            flip=params.flip,
            flip_direction='horizontal' if params.flip else None,
        )
        return results


def build_label_table(reduce_zero_label: bool, label_map: dict[int, int]) -> np.ndarray:
    """Return a lookup table from mask values to labels, as mmseg's ``LoadAnnotations`` assigns them.

    Args:
        reduce_zero_label: True if the value 0 is unlabelled and the first class has the value 1. Labels are then values
            minus 1, and 0 becomes 255.
        label_map: Maps labels to new labels, after the reduction by ``reduce_zero_label``. Other labels are kept.

    Returns:
        (256,) uint8, the label of each mask value.
    """
    reduced = [255, *range(254), 255] if reduce_zero_label else range(256)
    return np.array([label_map.get(label, label) for label in reduced], np.uint8)


def source_slices(crop: Box, size: tuple[int, int], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the rows and columns of an unscaled image that a crop of the scaled image shows.

    Args:
        crop: (x1, y1, x2, y2) in pixels of the scaled image.
        size: Width and height of the scaled image in pixels.
        shape: Shape of the unscaled image, (H, W, ...).

    Returns:
        Slices of rows and of columns, each at least one pixel long.
    """
    x, y = shape[1] / size[0], shape[0] / size[1]
    x1, y1, x2, y2 = round(crop[0] * x), round(crop[1] * y), round(crop[2] * x), round(crop[3] * y)
    return slice(y1, max(y2, y1 + 1)), slice(x1, max(x2, x1 + 1))
