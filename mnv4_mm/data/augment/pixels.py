"""Pixel operations shared by the augmentations: reduced JPEG decoding, warping, colour distortion, planar layout."""

from typing import NamedTuple

import cv2
import numpy as np

from mnv4_mm.images import JPEG_SUFFIXES, read_image

Box = tuple[int, int, int, int]  # (x1, y1, x2, y2) in pixels


class ColourDistortion(NamedTuple):
    """Parameters of a colour distortion, in the order of the operations. None skips an operation.

    Attributes:
        brightness: Offset added to the pixel values, which are in [0, 255].
        contrast: Factor on the pixel values.
        contrast_last: True if contrast comes after saturation and hue, False if it comes before them.
        saturation: Factor on the saturation.
        hue: Offset of the hue: in degrees for float pixels (detection), in units of 2 degrees for uint8 pixels
            (segmentation).
        channels: For each output channel, the index of the B, G, R input channel that it takes.
    """

    brightness: float | None
    contrast: float | None
    contrast_last: bool
    saturation: float | None
    hue: float | None
    channels: tuple[int, ...] = (0, 1, 2)


def read_reduced(path: str, box: Box, scale: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Read an image whose region ``box`` will be resized to ``scale``, at a reduced size if that is large enough.

    Args:
        path: Image file. It is reduced only if its name ends in ``.jpg`` or ``.jpeg``.
        box: Region of the full-size image, (x1, y1, x2, y2) in pixels.
        scale: Target width and height in pixels.

    Returns:
        The image, (H, W, 3) uint8 BGR, and the factor by which its sides were reduced. The factor is the largest of 1,
        2, 4 and 8 with which the reduced region is at least as large as ``scale``, or 1 if there is no such factor.

    Raises:
        UserError: The file is missing or not a readable image.
    """
    shrink = min((box[2] - box[0]) / scale[0], (box[3] - box[1]) / scale[1])
    # OpenCV decodes files of other formats in full before it reduces them.
    factors = (1, 2, 4, 8) if path.lower().endswith(JPEG_SUFFIXES) else (1,)
    reduction = max(factor for factor in factors if factor == 1 or factor <= shrink)
    return read_image(path, reduction), reduction


def warp(image: np.ndarray, box: Box, scale: tuple[int, int], fill: tuple[int, ...], reduction: int = 1) -> np.ndarray:
    """Crop a region of an image and resize it, with the same result as ``cv2.resize`` of a region of a padded image.

    Args:
        image: (H, W, 3) uint8, the whole image at full size or reduced.
        box: Region in pixels of the image before reduction, (x1, y1, x2, y2). It may extend beyond the image.
        scale: Width and height of the result in pixels.
        fill: Colour beyond the edges of the image, in the order of its channels.
        reduction: Factor by which the sides of ``image`` were reduced when it was decoded.

    Returns:
        (height of ``scale``, width of ``scale``, 3) uint8.
    """
    x1, y1, x2, y2 = box
    height, width = image.shape[:2]
    if x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height and reduction == 1:
        return cv2.resize(image[y1:y2, x1:x2], scale)
    # On each axis, with pixel centres: position in the image = step * position in the result + start.
    steps, starts, low, high = [], [], [], []
    for first, last, length, target in ((x1, x2, width, scale[0]), (y1, y2, height, scale[1])):
        step = (last - first) / target / reduction
        start = 0.5 * step - 0.5 + first / reduction
        steps.append(step)
        starts.append(start)
        # Range of the result in which the image is visible. More than a pixel beyond it there is only ``fill``.
        low.append(min(target, max(0, int(np.ceil((-1 - start) / step)))))
        high.append(max(low[-1], min(target, int(np.floor((length - start) / step)) + 1)))
    visible = (high[0] - low[0], high[1] - low[1])
    if not all(visible):
        return np.full((scale[1], scale[0], 3), fill, np.uint8)
    matrix = np.array([[steps[0], 0, starts[0] + low[0] * steps[0]], [0, steps[1], starts[1] + low[1] * steps[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    part = cv2.warpAffine(image, matrix, visible, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)
    margins = (low[1], scale[1] - high[1], low[0], scale[0] - high[0])  # top, bottom, left, right
    return cv2.copyMakeBorder(part, *margins, cv2.BORDER_CONSTANT, value=fill)


def distort_float(image: np.ndarray, colour: ColourDistortion) -> np.ndarray:
    """Distort colours like mmdet's ``PhotoMetricDistortion``: in floating point, not clipped to [0, 255].

    Args:
        image: (H, W, 3) uint8 BGR.
        colour: Parameters. ``hue`` is in degrees. ``contrast_last`` makes no difference.

    Returns:
        (H, W, 3) float32 in planar layout (see ``to_planar``), BGR with the channels permuted by ``colour.channels``.
    """
    pixels = image.astype(np.float32)
    if colour.brightness is not None:
        pixels += np.float32(colour.brightness)
    contrast = 1 if colour.contrast is None else colour.contrast
    # A conversion to HSV and back returns the same pixel unless all its values are negative. mmdet's transform
    # changes such pixels too, so they are converted here as well.
    if colour.saturation is not None or colour.hue is not None or (colour.brightness or 0) < 0:
        cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV, dst=pixels)
        saturation = 1 if colour.saturation is None else colour.saturation
        # OpenCV wraps hues above 360 degrees, but not negative ones.
        hue = (colour.hue or 0) % 360
        # Contrast is a factor on the value alone, so that it does not matter whether it comes before or after
        # the changes of saturation and hue.
        cv2.transform(pixels, np.array([[1, 0, 0, hue], [0, saturation, 0, 0], [0, 0, contrast, 0]]), dst=pixels)
        if saturation > 1:
            channel = cv2.extractChannel(pixels, 1)
            cv2.insertChannel(cv2.threshold(channel, 1, 1, cv2.THRESH_TRUNC, dst=channel)[1], pixels, 1)
        cv2.cvtColor(pixels, cv2.COLOR_HSV2BGR, dst=pixels)
    elif contrast != 1:
        pixels *= np.float32(contrast)
    return to_planar(pixels, colour.channels)


def distort_uint8(image: np.ndarray, colour: ColourDistortion) -> np.ndarray:
    """Distort colours like mmseg's ``PhotoMetricDistortion``, which truncates to uint8 after each operation.

    ``colour.channels`` is not used: mmseg does not permute channels.

    Args:
        image: (H, W, 3) uint8 BGR.
        colour: Parameters; ``hue`` is in units of 2 degrees.

    Returns:
        (H, W, 3) uint8 BGR; ``image`` itself if nothing changes.
    """
    values = np.arange(256, dtype=np.float32)
    first = _to_uint8(values + np.float32(colour.brightness or 0))
    last = _to_uint8(values * np.float32(1 if colour.contrast is None else colour.contrast))
    if not colour.contrast_last:
        first, last = last[first], _to_uint8(values)
    if colour.saturation is None and colour.hue is None:
        return _look_up(image, last[first])
    pixels = cv2.cvtColor(_look_up(image, first), cv2.COLOR_BGR2HSV)
    if colour.saturation is not None:
        _look_up_channel(pixels, 1, _to_uint8(values * np.float32(colour.saturation)))
    if colour.hue is not None:
        _look_up_channel(pixels, 0, _to_uint8((values + colour.hue) % 180))
    return _look_up(cv2.cvtColor(pixels, cv2.COLOR_HSV2BGR), last)


def to_planar(pixels: np.ndarray, channels: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    """Store the channels of an image one after another in memory, as a model takes them.

    Packing the image into a tensor then needs no copy.

    Args:
        pixels: (H, W, 3).
        channels: For each output channel, the index of the input channel that it takes.

    Returns:
        (H, W, 3), a view of a contiguous (3, H, W) array.
    """
    planes = np.empty((3, *pixels.shape[:2]), pixels.dtype)
    cv2.split(pixels, [planes[channels.index(i)] for i in range(3)])
    return planes.transpose(1, 2, 0)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)


def _look_up(pixels: np.ndarray, table: np.ndarray) -> np.ndarray:
    return pixels if (table == np.arange(256)).all() else cv2.LUT(pixels, table)


def _look_up_channel(pixels: np.ndarray, channel: int, table: np.ndarray) -> None:
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(pixels, channel), table), pixels, channel)
