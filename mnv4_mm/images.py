"""The one reader and writer of image files: for training, data checks, inference and exported files.

Importing it needs numpy and OpenCV. Pillow is imported for two things that OpenCV does not offer: the size of an image
without decoding it, and the indices of a palette PNG. Neither is needed to run an exported file.

The content of a file decides about its format, not its suffix:

==========================  ==========================================================================================
file                        ``read_image``
==========================  ==========================================================================================
EXIF orientation            applied for JPEG, PNG and TIFF; OpenCV does not read it from WebP
alpha (also grey + alpha)   dropped; of TIFF, libtiff blends it with black
16 bits                     scaled to 8 bits, as OpenCV does: the high byte of PNG, rounded for TIFF with colours
float, 32 bits              an error
grey, palette, 1 bit        the colours they stand for
CMYK JPEG                   converted to BGR
animated, several pages     the first frame
truncated, empty, no image  an error
zero width or height        an error
over 2**30 pixels           an error; so is a side over 2**20 pixels, and an image that memory does not suffice for
non-ASCII or long path      read; an error if the operating system refuses it
==========================  ==========================================================================================

mmcv's ``LoadImageFromFile``, which the test pipelines of configs use, returns the same pixels for every file read here.
"""

import contextlib
import struct
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from mnv4_mm.errors import UserError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
UNREADABLE = 'not a readable image: truncated, damaged or of an unknown format'
MAX_PIXELS, MAX_SIDE = 2**30, 2**20  # OpenCV's defaults
JPEG, PNG = b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n'
# Formats whose channels have 8 bits, or 16 as PNG may: all that is not among them can hold floats.
INTEGERS = (JPEG, PNG, b'RIFF', b'BM', b'GIF8')
# EXIF: the tag, the orientations that swap width and height, and the formats of which OpenCV reads it.
ORIENTATION, TRANSPOSED, ORIENTED = 0x0112, (5, 6, 7, 8), ('JPEG', 'MPO', 'PNG', 'TIFF')


def read_image(path: str | Path, reduction: int = 1) -> np.ndarray:
    """Read an image file as 8-bit BGR; the table above says what becomes of unusual files.

    Args:
        path: Image file.
        reduction: 1, 2, 4 or 8: divide both sides by this and round up. Of a JPEG no more is decoded than that needs.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        UserError: There is no such file, or it is not a readable image.
    """
    data = _read_bytes(path)
    start = data[:8].tobytes()
    if start == PNG:
        _check_png_size(data, path)  # libpng would print lines of its own
    if not start.startswith(INTEGERS):
        values = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, path)
        if values.dtype not in (np.uint8, np.uint16):
            raise UserError(f'{path} has {values.dtype} values; images of 8 or 16 bits are read')
    if reduction == 1 or start.startswith(JPEG):
        return _decode(data, REDUCED[reduction], path)
    pixels = _decode(data, cv2.IMREAD_COLOR, path)
    height, width = pixels.shape[:2]
    return cv2.resize(pixels, (-(-width // reduction), -(-height // reduction)), interpolation=cv2.INTER_AREA)


def image_size(path: str | Path) -> tuple[int, int]:
    """Return width and height in pixels of an image as ``read_image`` returns it, read from its header.

    Truncated files are not noticed. Without Pillow, or where Pillow cannot read the header, the image is decoded.

    Raises:
        UserError: There is no such file, or it is not a readable image.
    """
    size = _header_size(path)
    if size is None:
        height, width = read_image(path).shape[:2]
        return width, height
    _check_size(*size, path)
    return size


def check_image_file(path: str | Path) -> None:
    """Check that a file exists, is not empty and begins as a known image format does, without decoding it.

    Raises:
        UserError: It does not.
    """
    _read_bytes(path, count=1)
    with _silent_opencv:
        is_image = cv2.haveImageReader(str(path))
    if not is_image:
        raise UserError(f'{path} is {UNREADABLE}')


def read_mask(path: str | Path) -> np.ndarray:
    """Read a segmentation mask as (H, W) uint8 values; of a palette PNG, the indices.

    Raises:
        UserError: It is not a readable image of one channel.
    """
    data = _read_bytes(path)
    values = _decode(data, cv2.IMREAD_UNCHANGED, path)
    if values.ndim == 3:  # OpenCV returns the colours of a palette PNG
        from PIL import Image

        try:
            with Image.open(path) as image:
                values = np.array(image)
        except OSError:
            raise UserError(f'{path} is {UNREADABLE}') from None
    if values.ndim == 3:
        raise UserError(f'{path} has {values.shape[2]} channels; a mask has one')
    return values.astype(np.uint8, copy=False)


def write_image(path: str | Path, pixels: np.ndarray) -> None:
    """Write (H, W, 3) uint8 BGR; the suffix is the format, and missing folders are made.

    Raises:
        UserError: It cannot be written.
    """
    path = Path(path)
    try:
        with _silent_opencv:
            done, data = cv2.imencode(path.suffix, pixels)
    except cv2.error as error:
        raise UserError(f'{path} cannot be written: {_reason(error)}') from error
    if not done:
        raise UserError(f'{path} cannot be written: OpenCV cannot encode {pixels.shape} {pixels.dtype}')
    _write_bytes(path, data.tobytes())


def write_mask(path: str | Path, values: np.ndarray, palette: Sequence[Sequence[int]]) -> None:
    """Write values as a palette PNG, which shows their colours and keeps the values as indices; folders are made.

    Args:
        path: PNG file.
        values: (H, W), integers from 0. More than 256 values are written as 16-bit grey, without colours.
        palette: RGB of each value, 0 to 255.

    Raises:
        UserError: It cannot be written.
    """
    is_deep = len(palette) > 256
    done, encoded = cv2.imencode('.png', values.astype(np.uint16 if is_deep else np.uint8))
    if not done:
        raise UserError(f'{path} cannot be written: OpenCV cannot encode {values.shape} {values.dtype}')
    data = encoded.tobytes()
    if not is_deep:
        # OpenCV writes no palettes. Indices are stored as grey values are: the header and the palette are what differs.
        length = len(PNG) + 25  # signature and IHDR: length, type, 13 bytes, CRC
        header = bytearray(data[len(PNG) + 8 : length - 4])
        header[9] = 3  # colour type: palette
        colours = bytes(int(value) for colour in palette for value in colour)
        data = PNG + _png_chunk(b'IHDR', bytes(header)) + _png_chunk(b'PLTE', colours) + data[length:]
    _write_bytes(Path(path), data)


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def _read_bytes(path: str | Path, count: int = -1) -> np.ndarray:
    try:
        data = np.fromfile(path, np.uint8, count)
    except FileNotFoundError:
        raise UserError(f'no image {path}') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror or error}') from error
    except ValueError as error:  # a zero byte in the path
        raise UserError(f'{path!r} cannot be read: {error}') from error
    if not data.size:
        raise UserError(f'{path} is empty')
    return data


def _write_bytes(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror or error}') from error


def _decode(data: np.ndarray, flags: int, path: str | Path) -> np.ndarray:
    try:
        with _silent_opencv:
            pixels = cv2.imdecode(data, flags)
    except cv2.error as error:
        raise UserError(f'{path} is not a readable image: {_reason(error)}') from error
    if pixels is None or not pixels.size:
        raise UserError(f'{path} is {UNREADABLE}')
    return pixels


def _reason(error: cv2.error) -> str:
    if 'CV_IO_MAX_IMAGE' in str(error):
        return f'over {MAX_PIXELS} pixels, or over {MAX_SIDE} along one side'
    return ' '.join(str(getattr(error, 'err', error)).split())


def _check_size(width: int, height: int, path: str | Path) -> None:
    if not width or not height:
        raise UserError(f'{path} is not a readable image: its size is {width}x{height}')
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise UserError(
            f'{path} is not a readable image: {width}x{height} is over {MAX_PIXELS} pixels, or over {MAX_SIDE} along '
            'one side'
        )


def _check_png_size(data: np.ndarray, path: str | Path) -> None:
    if data.size >= 24:
        width, height = struct.unpack('>II', data[16:24].tobytes())
        _check_size(width, height, path)


def _header_size(path: str | Path) -> tuple[int, int] | None:
    """Width and height by Pillow; None if it cannot tell."""
    try:
        from PIL import Image
    except ImportError:
        return None
    # Pillow's limit is lower than OpenCV's, and read_image has the messages for what it cannot read.
    ignored = (Image.DecompressionBombError, Image.DecompressionBombWarning, OSError, ValueError)
    with contextlib.suppress(*ignored), Image.open(path) as image:
        # Of a TIFF the size in the file: newer versions of Pillow turn ``size`` by its orientation.
        tags = getattr(image, 'tag_v2', None)  # TIFF only
        width, height = (tags[256], tags[257]) if tags else image.size
        is_transposed = image.format in ORIENTED and image.getexif().get(ORIENTATION) in TRANSPOSED
        return (height, width) if is_transposed else (width, height)
    return None


class _SilentOpenCV:
    """Keep OpenCV's log from stderr: this module reports each error once. Threads may enter it at the same time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.level = 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.depth:
                self.level = cv2.setLogLevel(0)
            self.depth += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.depth -= 1
            if not self.depth:
                cv2.setLogLevel(self.level)


_silent_opencv = _SilentOpenCV()
