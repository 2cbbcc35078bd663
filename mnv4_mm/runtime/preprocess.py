"""Preprocessing: an image -> the input of an exported file."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mnv4_mm.errors import UserError
from mnv4_mm.images import read_for_resize, read_image
from mnv4_mm.runtime.meta import Input, Resize


class Placement(NamedTuple):
    """Size of an image before and after resizing to the input. The image is placed at the input's top left corner.

    Attributes:
        original: Height and width of the image in pixels.
        placed: Height and width of the resized image in the input.
        size: Height and width of the input.
    """

    original: tuple[int, int]
    placed: tuple[int, int]
    size: tuple[int, int]


def to_pixels(image: np.ndarray | str | Path) -> np.ndarray:
    """Read an image file, or check an image in memory. Used for PyTorch and for exported files.

    Args:
        image: (H, W, 3) uint8 BGR, as OpenCV reads, of any size; or the path of an image file.

    Returns:
        (H, W, 3) uint8 BGR; an array is returned as it is, not copied.

    Raises:
        UserError: The array has another shape or type or is empty, or the file is not a readable image.
    """
    pixels = image if isinstance(image, np.ndarray) else read_image(image)
    check_image(pixels)
    return pixels


def check_image(image: np.ndarray) -> None:
    """Check that an array is (H, W, 3) uint8.

    Raises:
        UserError: The array has another shape or type, or is empty.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(
            f'an image must be (H, W, 3) uint8 BGR and not empty, got {image.shape} {image.dtype}; mnv4_mm.images.'
            'read_image converts files with alpha, one channel or 16 bits to this form'
        )


def prepare_reduced(
    image: str | Path | bytes, to: Input, resize: Resize, name: str | Path = ''
) -> tuple[np.ndarray, Placement]:
    """Read an image by ``images.read_for_resize``, and prepare it as ``prepare`` does.

    Args:
        image: Image file, or the content of one.
        to: Input of the model.
        resize: Resizing of images to the size of the input.
        name: Name of the image for messages; not needed for a file.

    Returns:
        As ``prepare``. The ``Placement`` has the size of the whole image.

    Raises:
        UserError: There is no such file, or it is not a readable image.
    """
    pixels, original, reduction = read_for_resize(image, lambda height, width: _placed(height, width, to, resize), name)
    if any(side % reduction for side in original):
        # The last row or column stands for fewer pixels of the image than the others.
        placed = _placed(*original, to, resize)
        y, x = (side / reduction / length for side, length in zip(original, placed, strict=True))
        matrix = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        pixels = cv2.warpAffine(pixels, matrix, placed[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return prepare(pixels, to, resize, original)


def is_reduced(image: str | Path, to: Input, resize: Resize) -> bool:
    """Return True if ``prepare_reduced`` decodes an image file at a reduced size."""
    return read_for_resize(image, lambda height, width: _placed(height, width, to, resize)).reduction > 1


def prepare(
    image: np.ndarray, to: Input, resize: Resize, original: tuple[int, int] | None = None
) -> tuple[np.ndarray, Placement]:
    """Resize an image to the input of a model, pad it, and convert it to the input's layout and type.

    Args:
        image: (H, W, 3) uint8 BGR.
        to: Input of the model.
        resize: Resizing of images to the size of the input.
        original: Height and width of the whole image if ``image`` has been made smaller.

    Returns:
        The input batch, (1, H, W, 3) or (1, 3, H, W) in the layout and type of ``to``, and the image's ``Placement`` in
        the input, which converts results back to pixels of the image.

    Raises:
        UserError: The image has another shape or type, or is empty.
    """
    check_image(image)
    height, width = original or image.shape[:2]
    placed = _placed(height, width, to, resize)
    if placed != image.shape[:2]:
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
    return np.ascontiguousarray(batch, to.dtype), Placement((height, width), placed, (size[0], size[1]))


def _placed(height: int, width: int, to: Input, resize: Resize) -> tuple[int, int]:
    """Return height and width of an image in the input: stretched, or the largest that fits, rounded as mmcv does."""
    if resize.mode == 'stretch':
        assert to.size is not None
        return to.size
    if to.size:
        factor = min(to.size[0] / height, to.size[1] / width)
    else:
        assert resize.scale is not None
        factor = min(max(resize.scale) / max(height, width), min(resize.scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
