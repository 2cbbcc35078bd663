"""Picture files: the size their header says, reading, writing."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base

from mnv4_mm.errors import UserError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
# EXIF orientations that swap width and height; mmcv turns pictures as EXIF says.
ORIENTATION, TURNED = Base.Orientation, (5, 6, 7, 8)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of a picture turned as its EXIF data says, read from its header.

    Raises:
        UserError: there is no such file, or it is not a readable picture.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            return (height, width) if picture.getexif().get(ORIENTATION) in TURNED else (width, height)
    except FileNotFoundError:
        raise UserError(f'no picture {path}') from None
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f'{path} is not a readable picture') from error


def read_image(path: str | Path, reduction: int = 1) -> np.ndarray:
    """Reads a picture as (H, W, 3) uint8 BGR, turned as its EXIF data says.

    Args:
        path: Its file.
        reduction: Of a JPEG file only as much is decoded as sides divided by this, 1, 2, 4 or 8, and rounded up, need.

    Raises:
        UserError: it is not a readable picture.
    """
    data = np.fromfile(path, np.uint8)
    pixels = cv2.imdecode(data, REDUCED[reduction]) if data.size else None
    if pixels is None:
        raise UserError(f'{path} is not a readable picture')
    return pixels


def read_mask(path: str | Path) -> np.ndarray:
    """Reads a mask as (H, W) uint8 of its values; of an indexed picture, the indices.

    Raises:
        UserError: it is not a readable picture of one channel.
    """
    data = np.fromfile(path, np.uint8)
    values = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if values is None:
        raise UserError(f'{path} is not a readable picture')
    if values.ndim == 3:  # OpenCV gives an indexed picture's colours
        with Image.open(path) as picture:
            values = np.array(picture)
    if values.ndim == 3:
        raise UserError(f'{path} has {values.shape[2]} channels; a mask has one')
    return values.astype(np.uint8, copy=False)


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 BGR; folders are made.

    Raises:
        UserError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), pixels):
        raise UserError(f'{path} cannot be written')
