"""Picture files: the size their header says, reading, writing."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base

from mnv4_mm.errors import UserError

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
# EXIF orientations that swap width and height; mmcv turns pictures as EXIF says.
ORIENTATION, TURNED = Base.Orientation, (5, 6, 7, 8)


def shown_size(path: Path) -> tuple[int, int]:
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


def read_picture(path: Path) -> np.ndarray:
    """Reads a picture as (H, W, 3) uint8 BGR, turned as its EXIF data says.

    Raises:
        UserError: it is not a readable picture.
    """
    data = np.fromfile(path, np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if pixels is None:
        raise UserError(f'{path} is not a readable picture')
    return pixels


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 BGR; folders are made.

    Raises:
        UserError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), pixels):
        raise UserError(f'{path} cannot be written')
