"""A picture file or array -> what goes into an exported file. Needs numpy and OpenCV only."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Input, Resize

JPEG = b'\xff\xd8'  # how such a file begins


class Placement(NamedTuple):
    """Where a picture lies in the input.

    Attributes:
        original: Height and width of the picture in pixels.
        placed: Height and width it has in the input, whose top left corner is its own.
    """

    original: tuple[int, int]
    placed: tuple[int, int]


def read_image(path: str | Path) -> np.ndarray:
    """Reads a picture as (H, W, 3) uint8 BGR, turned as its EXIF data says.

    Raises:
        UserError: it is no readable picture of 8 bits, or has an alpha channel.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from error
    pixels = None
    try:
        # As colours a picture is turned by EXIF, but alpha and 16 bits are lost without a word; a JPEG has none.
        if data.size and data[:2].tobytes() != JPEG:
            given = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
            if given is not None and given.ndim == 3:
                check_image(given, str(path))
            elif given is not None and given.dtype != np.uint8:
                raise UserError(f'{path} must have 8 bits a channel, got {given.dtype}')
        if data.size:
            pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise UserError(f'{path} is not a readable picture: {error.err}') from error
    if pixels is None:
        raise UserError(f'{path} is {"not a readable picture" if data.size else "empty"}')
    return pixels


def check_image(image: np.ndarray, name: str = 'a picture') -> None:
    """Checks that an array is (H, W, 3) uint8.

    Raises:
        UserError: it is not.
    """
    if image.ndim == 3 and image.shape[2] == 4:
        raise UserError(f'{name} has 4 channels: put it on a background first, (H, W, 3) is needed')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(f'{name} must be (H, W, 3) uint8 and not empty, got {image.shape} {image.dtype}')


def prepare(image: np.ndarray, to: Input, resize: Resize) -> tuple[np.ndarray, Placement]:
    """Resizes, fills, and lays out a picture.

    Args:
        image: (H, W, 3) uint8 BGR.
        to: What the file takes.
        resize: How it is brought to its size.

    Returns:
        The input, a batch of one, and where in it the picture is.

    Raises:
        UserError: it is not such a picture.
    """
    check_image(image)
    height, width = image.shape[:2]
    if resize.mode == 'stretch':
        assert to.size is not None
        placed = to.size
    else:
        placed = _fitted(height, width, to, resize)
    if placed != (height, width):
        image = cv2.resize(image, placed[::-1], interpolation=cv2.INTER_LINEAR)
    if to.channel_order == 'RGB':
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    size = to.size or tuple(-(-side // to.divisor) * to.divisor for side in placed)
    if size != placed:
        canvas = np.empty((*size, 3), np.uint8)
        canvas[: placed[0], placed[1] :] = resize.pad
        canvas[placed[0] :] = resize.pad
        canvas[: placed[0], : placed[1]] = image
        image = canvas
    batch = image[None]
    if to.normalise:
        batch = (batch - np.array(to.mean, np.float32)) / np.array(to.std, np.float32)
    if to.layout == 'NCHW':
        batch = batch.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(batch, to.dtype), Placement((height, width), placed)


def _fitted(height: int, width: int, to: Input, resize: Resize) -> tuple[int, int]:
    """Height and width of a picture made as large as fits, rounded as mmcv does."""
    if to.size:
        factor = min(to.size[0] / height, to.size[1] / width)
    else:
        assert resize.scale is not None
        factor = min(max(resize.scale) / max(height, width), min(resize.scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
