"""Augmentation as one warp and one pass over the colours: SSD's for detection, mmseg's for segmentation.

Both give what the chain of mmdet's or mmseg's transforms gives, drawn from the same distributions, and cost a fraction:
the picture is moved once, from the window that is kept into the size that is wanted, and its colours are changed there.
A draw is a tuple of plain numbers, apart from what is done with it, so that tests can hand one draw to both.
"""

from typing import NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import TRANSFORMS

from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image, read_mask

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels
JPEG = ('.jpg', '.jpeg')  # of other files OpenCV decodes all before it reduces them
TRIES = 50  # crops that MinIoURandomCrop tries before it draws another IoU
CROPS = 10  # crops that mmseg's RandomCrop draws anew before it takes what it has


class Colour(NamedTuple):
    """Changes of colour, in the order in which they are made; None leaves one out.

    Attributes:
        brightness: Added to the values, 0 to 255.
        contrast: Factor.
        contrast_last: Whether contrast comes after saturation and hue instead of before.
        saturation: Factor.
        hue: Added, in degrees (detection) or in units of 2 degrees (segmentation, whose values are bytes).
        channels: Order of the channels B, G, R afterwards.
    """

    brightness: float | None
    contrast: float | None
    contrast_last: bool
    saturation: float | None
    hue: float | None
    channels: tuple[int, ...] = (0, 1, 2)


class Expansion(NamedTuple):
    """The canvas of SSD's "zoom out": ``ratio`` times the picture's sides, the picture at (left, top) in pixels."""

    ratio: float
    left: int
    top: int


class SSDDraw(NamedTuple):
    """What chance decides for one picture of SSD's augmentation.

    Attributes:
        expansion: The canvas; None leaves the picture as it is.
        patch: What is cut out of the canvas; None is all of it.
        flip: Whether left and right are exchanged.
        colour: Changes of colour.
    """

    expansion: Expansion | None
    patch: Box | None
    flip: bool
    colour: Colour


@TRANSFORMS.register_module()
class SSDAugmentation(BaseTransform):
    """Reads a picture and gives it SSD's augmentation.

    In place of mmdet's LoadImageFromFile, Expand, MinIoURandomCrop, Resize (keep_ratio=False), RandomFlip and
    PhotoMetricDistortion, and after LoadAnnotations: boxes are exactly theirs, pictures but for the pixels' rounding.
    JPEG files of which a half, a quarter or an eighth is enough are decoded at that size.

    Takes ``img_path``, ``height``, ``width``, ``gt_bboxes``, ``gt_bboxes_labels`` and ``gt_ignore_flags``; gives
    ``img`` as (H, W, 3) float32 BGR, a view of (3, H, W), and the boxes in its pixels.

    Args:
        scale: Width and height of the result in pixels.
        mean: Colour of the canvas, RGB, 0 to 255.
        expand_ratio: Range of the canvas' sides, in sides of the picture.
        expand_prob: Share of the pictures that are put on a canvas.
        min_ious: What a crop's IoU with every box must be; one is chosen, or none, or the crop is left out.
        min_crop_size: Least side of a crop, in sides of the canvas.
        flip_prob: Share of the pictures whose left and right are exchanged.
        brightness_delta: Greatest change of brightness.
        contrast_range: Range of the factor of contrast.
        saturation_range: Range of the factor of saturation.
        hue_delta: Greatest change of hue in degrees.
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
        self.fill = tuple(int(value) for value in mean[::-1])  # mmdet's canvas is of bytes
        self.expand_ratio = expand_ratio
        self.expand_prob = expand_prob
        self.modes = (1, *min_ious, 0)  # 1: the whole canvas
        self.min_crop_size = min_crop_size
        self.flip_prob = flip_prob
        self.brightness_delta = brightness_delta
        self.contrast_range = contrast_range
        self.saturation_range = saturation_range
        self.hue_delta = hue_delta

    def transform(self, results: dict) -> dict:
        boxes = results['gt_bboxes'].numpy()
        path, height, width = results['img_path'], results['height'], results['width']
        draw = self.draw(height, width, boxes)
        picture, reduction = read_reduced(path, window(height, width, draw), self.scale)
        if picture.shape[:2] != (-(-height // reduction), -(-width // reduction)):
            # As mmdet, go by the picture and not by what the annotation says of its size.
            picture, reduction = read_image(path), 1
            results['height'], results['width'] = height, width = picture.shape[:2]
            draw = self.draw(height, width, boxes)
        return self.apply(results, picture, draw, reduction)

    def draw(self, height: int, width: int, boxes: np.ndarray) -> SSDDraw:
        """Draws for a picture of a size in pixels with ``boxes`` (N, 4)."""
        random, uniform = np.random.random_sample, np.random.uniform
        expansion, canvas = None, (height, width)
        if random() <= self.expand_prob:
            ratio = uniform(*self.expand_ratio)
            left, top = int(uniform(0, width * ratio - width)), int(uniform(0, height * ratio - height))
            expansion, canvas = Expansion(ratio, left, top), (int(height * ratio), int(width * ratio))
            boxes = boxes + np.array([left, top, left, top])
        patch = self._draw_patch(*canvas, boxes)
        chosen = random(5) < 0.5
        colour = Colour(
            brightness=uniform(-self.brightness_delta, self.brightness_delta) if chosen[0] else None,
            contrast=uniform(*self.contrast_range) if chosen[1] else None,
            contrast_last=random() < 0.5,
            saturation=uniform(*self.saturation_range) if chosen[2] else None,
            hue=uniform(-self.hue_delta, self.hue_delta) if chosen[3] else None,
            channels=tuple(np.random.permutation(3).tolist()) if chosen[4] else (0, 1, 2),
        )
        return SSDDraw(expansion, patch, random() < self.flip_prob, colour)

    def _draw_patch(self, height: int, width: int, boxes: np.ndarray) -> Box | None:
        """MinIoURandomCrop's choice; its tries, which do not depend on each other, are made side by side."""
        low = self.min_crop_size
        while (mode := self.modes[np.random.randint(len(self.modes))]) != 1:
            part = np.random.random_sample((4, TRIES))
            w, h = width * (low + (1 - low) * part[0]), height * (low + (1 - low) * part[1])
            x, y = part[2] * (width - w), part[3] * (height - h)
            patches = np.array([x, y, x + w, y + h]).astype(np.int64)
            fits = (h >= 0.5 * w) & (h <= 2 * w) & (patches[0] < patches[2]) & (patches[1] < patches[3])
            if len(boxes):
                fits &= inside(patches, boxes).any(1)
                if mode:
                    fits &= ious(patches, boxes).min(1) >= mode
            if fits.any():
                x1, y1, x2, y2 = patches[:, fits.argmax()].tolist()
                return x1, y1, x2, y2
        return None

    def apply(self, results: dict, picture: np.ndarray, draw: SSDDraw, reduction: int = 1) -> dict:
        """Does what was drawn to a picture, (H, W, 3) uint8 BGR, which may be reduced, and to its boxes."""
        height, width = results['height'], results['width']
        x1, y1, x2, y2 = window(height, width, draw)
        boxes = results['gt_bboxes'].numpy() - np.array([x1, y1, x1, y1], np.float32)
        if draw.patch is not None:
            kept = inside(np.array([[0], [0], [x2 - x1], [y2 - y1]]), boxes)[0]
            boxes = boxes[kept]
            results['gt_bboxes_labels'] = results['gt_bboxes_labels'][kept]
            results['gt_ignore_flags'] = results['gt_ignore_flags'][kept]
        scale = (self.scale[0] / (x2 - x1), self.scale[1] / (y2 - y1))
        boxes = (boxes * np.array(scale * 2, np.float32)).clip(0, np.array(self.scale * 2, np.float32))
        if draw.flip:
            boxes[:, [0, 2]] = self.scale[0] - boxes[:, [2, 0]]
        pixels = warp(picture, (x1, y1, x2, y2), self.scale, self.fill, reduction)
        if draw.flip:
            pixels = cv2.flip(pixels, 1)
        results.update(
            img=distort(pixels, draw.colour),
            img_shape=self.scale[::-1],
            ori_shape=(height, width),
            scale=self.scale,
            scale_factor=scale,
            keep_ratio=False,
            gt_bboxes=HorizontalBoxes(torch.from_numpy(boxes)),
            flip=draw.flip,
            flip_direction='horizontal' if draw.flip else None,
        )
        return results


def window(height: int, width: int, draw: SSDDraw) -> Box:
    """What a draw cuts out, in pixels of the picture, over whose edges it may reach."""
    ratio, left, top = draw.expansion or (1, 0, 0)
    x1, y1, x2, y2 = draw.patch or (0, 0, int(width * ratio), int(height * ratio))
    return x1 - left, y1 - top, x2 - left, y2 - top


def read_reduced(path: str, box: Box, scale: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Reads a picture whose part ``box`` will be brought to ``scale``, decoding no more of it than that needs.

    Returns:
        (H, W, 3) uint8 BGR, and the 1, 2, 4 or 8 by which it is reduced: the greatest that need not be enlarged again.
    """
    shrinks = min((box[2] - box[0]) / scale[0], (box[3] - box[1]) / scale[1])
    factors = (1, 2, 4, 8) if path.lower().endswith(JPEG) else (1,)
    reduction = max(factor for factor in factors if factor == 1 or factor <= shrinks)
    return read_image(path, reduction), reduction


def ious(patches: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of each of (4, P) with each of (N, 4), (P, N)."""
    x1, y1, x2, y2 = patches[:, :, None]
    a1, b1, a2, b2 = boxes.T[:, None]
    common = (np.minimum(x2, a2) - np.maximum(x1, a1)).clip(0) * (np.minimum(y2, b2) - np.maximum(y1, b1)).clip(0)
    return common / np.maximum((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - common, 1e-6)


def inside(patches: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether each of (4, P) holds the centre of each of (N, 4), (P, N)."""
    x1, y1, x2, y2 = patches[:, :, None]
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    return (x > x1) & (y > y1) & (x < x2) & (y < y2)


def warp(
    picture: np.ndarray, box: Box, scale: tuple[int, int], fill: tuple[int, ...], reduction: int = 1
) -> np.ndarray:
    """Brings a window of a picture to a size, as cv2.resize does of the window cut out of a canvas.

    Args:
        picture: (H, W, 3) uint8, the whole picture.
        box: The window in pixels of the unreduced picture; over its edges is ``fill``.
        scale: Width and height of the result.
        fill: Colour of the canvas, in the order of the picture's channels.
        reduction: By what the picture has been reduced.
    """
    x1, y1, x2, y2 = box
    height, width = picture.shape[:2]
    if x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height and reduction == 1:
        return cv2.resize(picture[y1:y2, x1:x2], scale)
    # Along each axis: position in the picture = step * position in the result + start, at the pixels' centres.
    steps, starts, low, high = [], [], [], []
    for first, last, length, wanted in ((x1, x2, width, scale[0]), (y1, y2, height, scale[1])):
        step = (last - first) / wanted / reduction
        start = 0.5 * step - 0.5 + first / reduction
        steps.append(step)
        starts.append(start)
        # Where it shows: beyond, by more than a pixel, there is nothing but the canvas.
        low.append(min(wanted, max(0, int(np.ceil((-1 - start) / step)))))
        high.append(max(low[-1], min(wanted, int(np.floor((length - start) / step)) + 1)))
    shown = (high[0] - low[0], high[1] - low[1])
    if not all(shown):
        return np.full((scale[1], scale[0], 3), fill, np.uint8)
    matrix = np.array([[steps[0], 0, starts[0] + low[0] * steps[0]], [0, steps[1], starts[1] + low[1] * steps[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    part = cv2.warpAffine(picture, matrix, shown, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)
    margins = (low[1], scale[1] - high[1], low[0], scale[0] - high[0])  # top, bottom, left, right
    return cv2.copyMakeBorder(part, *margins, cv2.BORDER_CONSTANT, value=fill)


def distort(picture: np.ndarray, colour: Colour) -> np.ndarray:
    """Does what mmdet's PhotoMetricDistortion does, in floating point and not cut off at 0 and 255.

    Args:
        picture: (H, W, 3) uint8 BGR.
        colour: What to do.

    Returns:
        (H, W, 3) float32, see ``planar``.
    """
    pixels = picture.astype(np.float32)
    if colour.brightness is not None:
        pixels += np.float32(colour.brightness)
    contrast = 1 if colour.contrast is None else colour.contrast
    # HSV and back gives the same pixel unless all its values are negative, which mmdet's transform changes too.
    if colour.saturation is not None or colour.hue is not None or (colour.brightness or 0) < 0:
        cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV, dst=pixels)
        saturation = 1 if colour.saturation is None else colour.saturation
        # Of degrees above 360 OpenCV takes the rest, of negative ones not.
        hue = (colour.hue or 0) % 360
        # Before or after, contrast is a factor on the value and leaves hue and saturation alone.
        cv2.transform(pixels, np.array([[1, 0, 0, hue], [0, saturation, 0, 0], [0, 0, contrast, 0]]), dst=pixels)
        if saturation > 1:
            channel = cv2.extractChannel(pixels, 1)
            cv2.insertChannel(cv2.threshold(channel, 1, 1, cv2.THRESH_TRUNC, dst=channel)[1], pixels, 1)
        cv2.cvtColor(pixels, cv2.COLOR_HSV2BGR, dst=pixels)
    elif contrast != 1:
        pixels *= np.float32(contrast)
    return planar(pixels, colour.channels)


def planar(pixels: np.ndarray, channels: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    """The same picture with its channels one after another in memory, as a net takes them: packing it copies nothing.

    Args:
        pixels: (H, W, 3).
        channels: Channel of ``pixels`` that comes first, second, third.

    Returns:
        (H, W, 3), a view of (3, H, W).
    """
    planes = np.empty((3, *pixels.shape[:2]), pixels.dtype)
    cv2.split(pixels, [planes[channels.index(i)] for i in range(3)])
    return planes.transpose(1, 2, 0)


class SegDraw(NamedTuple):
    """What chance decides for one picture of segmentation's augmentation.

    Attributes:
        size: Width and height in pixels to which the whole picture is scaled.
        crop: What is kept of the scaled picture.
        flip: Whether left and right are exchanged.
        colour: Changes of colour.
    """

    size: tuple[int, int]
    crop: Box
    flip: bool
    colour: Colour


@TRANSFORMS.register_module()
class SegAugmentation(BaseTransform):
    """Reads a picture and its mask and gives them the augmentation of mmseg's ADE20K configs.

    In place of mmseg's LoadImageFromFile, LoadAnnotations, RandomResize (keep_ratio=True), RandomCrop, RandomFlip and
    PhotoMetricDistortion. The crop is taken from the unscaled picture, at whole pixels, so it lies up to half a pixel
    of the picture beside mmseg's, picture and mask alike; saturation and hue share one way to HSV and back. JPEG files
    of which a half, a quarter or an eighth is enough are decoded at that size.

    Takes ``img_path``, ``seg_map_path``, ``reduce_zero_label`` and ``label_map``; gives ``img`` as (H, W, 3) uint8 BGR,
    a view of (3, H, W), and ``gt_seg_map`` (H, W) uint8, of the crop's size or, where the scaled picture is smaller, of
    its.

    Args:
        scale: Longest and shortest side of a scaled picture in pixels, before the ratio.
        ratio_range: Range of the factor on ``scale``.
        crop_size: Height and width of the crop in pixels.
        cat_max_ratio: A crop of whose labelled pixels a class has more is drawn anew, up to ten times.
        flip_prob: Share of the pictures whose left and right are exchanged.
        brightness_delta: Greatest change of brightness.
        contrast_range: Range of the factor of contrast.
        saturation_range: Range of the factor of saturation.
        hue_delta: Greatest change of hue in units of 2 degrees.
        ignore_index: Value of unlabelled pixels.
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
        table = labels(bool(results['reduce_zero_label']), results.get('label_map') or {})
        draw = self.draw(mask, table)
        height, width = mask.shape
        picture, reduction = read_reduced(path, (0, 0, width, height), draw.size)
        if picture.shape[:2] != (-(-height // reduction), -(-width // reduction)):
            raise UserError(f'{path} and {results["seg_map_path"]} are not of the same size')
        return self.apply(results, picture, mask, table, draw)

    def draw(self, mask: np.ndarray, table: np.ndarray) -> SegDraw:
        """Draws for a picture with a mask (H, W) uint8, whose values stand for the labels of ``table``."""
        random, uniform = np.random.random_sample, np.random.uniform
        height, width = mask.shape
        ratio = uniform(*self.ratio_range)
        scale = (int(self.scale[0] * ratio), int(self.scale[1] * ratio))
        size = mmcv.rescale_size((width, height), scale)
        wanted = (min(self.crop_size[1], size[0]), min(self.crop_size[0], size[1]))
        for _ in range(CROPS + 1):
            x, y = (int(np.random.randint(0, size[axis] - wanted[axis] + 1)) for axis in (0, 1))
            crop = (x, y, x + wanted[0], y + wanted[1])
            if self.cat_max_ratio >= 1 or self.is_mixed(mask[source(crop, size, mask.shape)], table):
                break
        chosen = random(4) < 0.5
        colour = Colour(
            brightness=uniform(-self.brightness_delta, self.brightness_delta) if chosen[0] else None,
            contrast=uniform(*self.contrast_range) if chosen[1] else None,
            contrast_last=random() < 0.5,
            saturation=uniform(*self.saturation_range) if chosen[2] else None,
            hue=int(np.random.randint(-self.hue_delta, self.hue_delta)) if chosen[3] else None,
        )
        return SegDraw(size, crop, random() < self.flip_prob, colour)

    def is_mixed(self, mask: np.ndarray, table: np.ndarray) -> bool:
        """Whether a part of a mask has two classes or more, and none too large a share of the labelled pixels.

        Counted on every second pixel of every second row, which decides as all of them but at the very limit.
        """
        values = cv2.calcHist([mask[::2, ::2]], [0], None, [256], [0, 256]).ravel()
        counts = np.bincount(table, values, minlength=256)
        counts[self.ignore_index] = 0
        return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < self.cat_max_ratio

    def apply(self, results: dict, picture: np.ndarray, mask: np.ndarray, table: np.ndarray, draw: SegDraw) -> dict:
        """Does what was drawn to a picture, (H, W, 3) uint8 BGR, which may be reduced, and its mask, (H, W) uint8."""
        shape = (draw.crop[3] - draw.crop[1], draw.crop[2] - draw.crop[0])
        pixels, truth = (part[source(draw.crop, draw.size, part.shape)] for part in (picture, mask))
        # Colours are changed where there are fewer pixels: a value changes alike before and after it is enlarged.
        enlarges = truth.size < shape[0] * shape[1]
        if enlarges:
            pixels = distort_bytes(pixels, draw.colour)
        pixels = cv2.resize(pixels, shape[::-1])
        truth = cv2.LUT(cv2.resize(truth, shape[::-1], interpolation=cv2.INTER_NEAREST), table)
        if not enlarges:
            pixels = distort_bytes(pixels, draw.colour)
        if draw.flip:
            pixels, truth = cv2.flip(pixels, 1), cv2.flip(truth, 1)
        results.setdefault('seg_fields', []).append('gt_seg_map')
        results.update(
            img=planar(pixels),
            gt_seg_map=truth,
            ori_shape=mask.shape,
            img_shape=shape,
            scale=draw.size,
            scale_factor=(draw.size[0] / mask.shape[1], draw.size[1] / mask.shape[0]),
            keep_ratio=True,
            flip=draw.flip,
            flip_direction='horizontal' if draw.flip else None,
        )
        return results


def labels(reduce_zero_label: bool, label_map: dict[int, int]) -> np.ndarray:
    """The label of each value of a mask, (256,) uint8, as mmseg's LoadAnnotations changes them."""
    reduced = [255, *range(254), 255] if reduce_zero_label else range(256)
    return np.array([label_map.get(label, label) for label in reduced], np.uint8)


def source(crop: Box, size: tuple[int, int], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of a picture (H, W, ...) that a crop of the picture scaled to ``size`` (width, height) shows."""
    x, y = shape[1] / size[0], shape[0] / size[1]
    x1, y1, x2, y2 = round(crop[0] * x), round(crop[1] * y), round(crop[2] * x), round(crop[3] * y)
    return slice(y1, max(y2, y1 + 1)), slice(x1, max(x2, x1 + 1))


def distort_bytes(picture: np.ndarray, colour: Colour) -> np.ndarray:
    """Does what mmseg's PhotoMetricDistortion does, whose values are bytes after each step.

    Args:
        picture: (H, W, 3) uint8 BGR.
        colour: What to do.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    values = np.arange(256, dtype=np.float32)
    first = _bytes(values + np.float32(colour.brightness or 0))
    last = _bytes(values * np.float32(1 if colour.contrast is None else colour.contrast))
    if not colour.contrast_last:
        first, last = last[first], _bytes(values)
    if colour.saturation is None and colour.hue is None:
        return _look_up(picture, last[first])
    pixels = cv2.cvtColor(_look_up(picture, first), cv2.COLOR_BGR2HSV)
    if colour.saturation is not None:
        _look_up_channel(pixels, 1, _bytes(values * np.float32(colour.saturation)))
    if colour.hue is not None:
        _look_up_channel(pixels, 0, _bytes((values + colour.hue) % 180))
    return _look_up(cv2.cvtColor(pixels, cv2.COLOR_HSV2BGR), last)


def _bytes(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)


def _look_up(pixels: np.ndarray, table: np.ndarray) -> np.ndarray:
    return pixels if (table == np.arange(256)).all() else cv2.LUT(pixels, table)


def _look_up_channel(pixels: np.ndarray, channel: int, table: np.ndarray) -> None:
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(pixels, channel), table), pixels, channel)
