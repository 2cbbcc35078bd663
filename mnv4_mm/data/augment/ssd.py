"""SSD's augmentation for detection as one warp and one pass over the colours.

The result is that of mmdet's chain of transforms, with parameters from the same distributions. The augmentation takes a
fraction of the time, because the visible region is resized once, directly to the target size, and colours are distorted
only at that size.

``sample_params`` is separate from ``apply`` so that tests can run mmdet's chain with the same random parameters.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import TRANSFORMS

from mnv4_mm.data.augment.pixels import Box, ColourDistortion, distort_float, read_reduced, warp
from mnv4_mm.images import read_image

CROP_ATTEMPTS = 50  # crops that mmdet's MinIoURandomCrop tries before it samples another minimum IoU


class Expansion(NamedTuple):
    """Canvas of SSD's "zoom out" augmentation.

    Attributes:
        ratio: Side of the canvas, as a multiple of the image's side.
        left: Horizontal position of the image on the canvas in pixels.
        top: Vertical position of the image on the canvas in pixels.
    """

    ratio: float
    left: int
    top: int


class SSDParams(NamedTuple):
    """Random parameters of SSD's augmentation for one image.

    Attributes:
        expansion: Canvas; None keeps the image as it is.
        crop: Region to keep, (x1, y1, x2, y2) in pixels of the canvas; None keeps the whole canvas.
        flip: True to flip horizontally.
        colour: Colour distortion.
    """

    expansion: Expansion | None
    crop: Box | None
    flip: bool
    colour: ColourDistortion


@TRANSFORMS.register_module()
class SSDAugmentation(BaseTransform):
    """Read an image and apply SSD's augmentation (arXiv 1512.02325) to it and its boxes.

    Replaces mmdet's LoadImageFromFile, Expand, MinIoURandomCrop, Resize (keep_ratio=False), RandomFlip and
    PhotoMetricDistortion; it comes after LoadAnnotations. Boxes are the same as in mmdet's chain. Images are the same
    up to rounding, except for JPEG files. A JPEG file is decoded at 1/2, 1/4 or 1/8 of its size if the region to keep
    is then still at least as large as ``scale``.

    Required keys: ``img_path``, ``height``, ``width``, ``gt_bboxes``, ``gt_bboxes_labels``, ``gt_ignore_flags``.

    Added or modified keys: ``img``, (H, W, 3) float32 in planar layout (see ``to_planar``), BGR unless the distortion
    permutes the channels; ``gt_bboxes``, (x1, y1, x2, y2) in pixels of ``img``; ``gt_bboxes_labels`` and
    ``gt_ignore_flags`` of the boxes that remain; ``ori_shape``, ``img_shape``, ``scale``, ``scale_factor``,
    ``keep_ratio``, ``flip`` and ``flip_direction``, as mmdet's transforms record them; ``height`` and ``width``, if the
    size of the image file differs from that in its annotation.

    Args:
        scale: Width and height of the result in pixels.
        mean: Colour of the canvas, RGB, 0 to 255.
        expand_ratio: Range of the canvas's sides, as multiples of the image's sides.
        expand_prob: Probability of placing the image on a canvas.
        min_ious: Minimum IoUs between a crop and every box. Each image gets, at random, a crop with one of these
            minimums, a crop without a minimum, or no crop.
        min_crop_size: Smallest side of a crop, as a fraction of the canvas's side.
        flip_prob: Probability of a horizontal flip.
        brightness_delta: Largest change of pixel values, which are in [0, 255].
        contrast_range: Range of the contrast factor.
        saturation_range: Range of the saturation factor.
        hue_delta: Largest change of hue in degrees.

    Raises:
        UserError: The file is missing or not a readable image.
    """

    def __init__(
        self,
        scale: tuple[int, int],
        mean: tuple[float, float, float],
        expand_ratio: tuple[float, float] = (1, 4),
        expand_prob: float = 0.5,
        min_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        flip_prob: float = 0.5,
        brightness_delta: float = 32,
        contrast_range: tuple[float, float] = (0.5, 1.5),
        saturation_range: tuple[float, float] = (0.5, 1.5),
        hue_delta: float = 18,
    ) -> None:
        self.scale = (scale[0], scale[1])
        self.fill = tuple(int(value) for value in mean[::-1])  # mmdet's canvas is uint8
        self.expand_ratio = expand_ratio
        self.expand_prob = expand_prob
        self.modes = (1, *min_ious, 0)  # 1 keeps the whole canvas, 0 crops without a minimum IoU
        self.min_crop_size = min_crop_size
        self.flip_prob = flip_prob
        self.brightness_delta = brightness_delta
        self.contrast_range = contrast_range
        self.saturation_range = saturation_range
        self.hue_delta = hue_delta

    def transform(self, results: dict) -> dict:
        boxes = results['gt_bboxes'].numpy()
        path, height, width = results['img_path'], results['height'], results['width']
        params = self.sample_params(height, width, boxes)
        image, reduction = read_reduced(path, crop_window(height, width, params), self.scale)
        if image.shape[:2] != (-(-height // reduction), -(-width // reduction)):
            # Like mmdet, trust the size of the image rather than the size in its annotation.
            image, reduction = read_image(path), 1
            results['height'], results['width'] = height, width = image.shape[:2]
            params = self.sample_params(height, width, boxes)
        return self.apply(results, image, params, reduction)

    def sample_params(self, height: int, width: int, boxes: np.ndarray) -> SSDParams:
        """Sample the random parameters for an image.

        Args:
            height: Height of the image in pixels.
            width: Width of the image in pixels.
            boxes: (N, 4), (x1, y1, x2, y2) in pixels.
        """
        random, uniform = np.random.random_sample, np.random.uniform
        expansion, canvas = None, (height, width)
        if random() <= self.expand_prob:
            ratio = uniform(*self.expand_ratio)
            left, top = int(uniform(0, width * ratio - width)), int(uniform(0, height * ratio - height))
            expansion, canvas = Expansion(ratio, left, top), (int(height * ratio), int(width * ratio))
            boxes = boxes + np.array([left, top, left, top])
        crop = self._sample_crop(*canvas, boxes)
        enabled = random(5) < 0.5
        colour = ColourDistortion(
            brightness=uniform(-self.brightness_delta, self.brightness_delta) if enabled[0] else None,
            contrast=uniform(*self.contrast_range) if enabled[1] else None,
            contrast_last=random() < 0.5,
            saturation=uniform(*self.saturation_range) if enabled[2] else None,
            hue=uniform(-self.hue_delta, self.hue_delta) if enabled[3] else None,
            channels=tuple(np.random.permutation(3).tolist()) if enabled[4] else (0, 1, 2),
        )
        return SSDParams(expansion, crop, random() < self.flip_prob, colour)

    def _sample_crop(self, height: int, width: int, boxes: np.ndarray) -> Box | None:
        """Sample a crop like MinIoURandomCrop. The attempts are independent, so all are evaluated at once."""
        low = self.min_crop_size
        while (min_iou := self.modes[np.random.randint(len(self.modes))]) != 1:
            part = np.random.random_sample((4, CROP_ATTEMPTS))
            w, h = width * (low + (1 - low) * part[0]), height * (low + (1 - low) * part[1])
            x, y = part[2] * (width - w), part[3] * (height - h)
            crops = np.array([x, y, x + w, y + h]).astype(np.int64)  # (4, CROP_ATTEMPTS)
            valid = (h >= 0.5 * w) & (h <= 2 * w) & (crops[0] < crops[2]) & (crops[1] < crops[3])
            if len(boxes):
                valid &= contains_centres(crops, boxes).any(1)
                if min_iou:
                    valid &= pairwise_iou(crops, boxes).min(1) >= min_iou
            if valid.any():
                x1, y1, x2, y2 = crops[:, valid.argmax()].tolist()
                return x1, y1, x2, y2
        return None

    def apply(self, results: dict, image: np.ndarray, params: SSDParams, reduction: int = 1) -> dict:
        """Apply the given parameters to an image and its boxes.

        Args:
            results: Results of the pipeline, updated in place. The required keys are those of the class except
                ``img_path``; ``height`` and ``width`` are those of the full-size image.
            image: (H, W, 3) uint8 BGR, at full size or reduced.
            params: Random parameters as from ``sample_params``.
            reduction: Factor by which the sides of ``image`` were reduced when it was decoded.

        Returns:
            ``results`` with the keys that the class adds.
        """
        height, width = results['height'], results['width']
        x1, y1, x2, y2 = crop_window(height, width, params)
        boxes = results['gt_bboxes'].numpy() - np.array([x1, y1, x1, y1], np.float32)
        if params.crop is not None:
            kept = contains_centres(np.array([[0], [0], [x2 - x1], [y2 - y1]]), boxes)[0]
            boxes = boxes[kept]
            results['gt_bboxes_labels'] = results['gt_bboxes_labels'][kept]
            results['gt_ignore_flags'] = results['gt_ignore_flags'][kept]
        scale = (self.scale[0] / (x2 - x1), self.scale[1] / (y2 - y1))
        boxes = (boxes * np.array(scale * 2, np.float32)).clip(0, np.array(self.scale * 2, np.float32))
        if params.flip:
            boxes[:, [0, 2]] = self.scale[0] - boxes[:, [2, 0]]
        pixels = warp(image, (x1, y1, x2, y2), self.scale, self.fill, reduction)
        if params.flip:
            pixels = cv2.flip(pixels, 1)
        results.update(
            img=distort_float(pixels, params.colour),
            img_shape=self.scale[::-1],
            ori_shape=(height, width),
            scale=self.scale,
            scale_factor=scale,
            keep_ratio=False,
            gt_bboxes=HorizontalBoxes(torch.from_numpy(boxes)),
            flip=params.flip,
            flip_direction='horizontal' if params.flip else None,
        )
        return results


def crop_window(height: int, width: int, params: SSDParams) -> Box:
    """Return the region of an image that is kept. The region may extend beyond the image.

    Args:
        height: Height of the full-size image in pixels.
        width: Width of the full-size image in pixels.
        params: Random parameters, of which the expansion and the crop are used.

    Returns:
        (x1, y1, x2, y2) in pixels of the full-size image.
    """
    ratio, left, top = params.expansion or (1, 0, 0)
    x1, y1, x2, y2 = params.crop or (0, 0, int(width * ratio), int(height * ratio))
    return x1 - left, y1 - top, x2 - left, y2 - top


def pairwise_iou(crops: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the IoU of each crop with each box.

    Args:
        crops: (4, P), the rows are x1, y1, x2 and y2.
        boxes: (N, 4), (x1, y1, x2, y2).

    Returns:
        (P, N), 0 to 1.
    """
    x1, y1, x2, y2 = crops[:, :, None]
    a1, b1, a2, b2 = boxes.T[:, None]
    overlap = (np.minimum(x2, a2) - np.maximum(x1, a1)).clip(0) * (np.minimum(y2, b2) - np.maximum(y1, b1)).clip(0)
    return overlap / np.maximum((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - overlap, 1e-6)


def contains_centres(crops: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return whether each crop contains the centre of each box. A centre on the edge of a crop is outside.

    Args:
        crops: (4, P), the rows are x1, y1, x2 and y2.
        boxes: (N, 4), (x1, y1, x2, y2).

    Returns:
        (P, N) bool.
    """
    x1, y1, x2, y2 = crops[:, :, None]
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    return (x > x1) & (y > y1) & (x < x2) & (y < y2)
