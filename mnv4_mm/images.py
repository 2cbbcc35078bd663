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
    """Read a segmentation mask as mmseg does: of a palette image the indices, of a 1-bit image 0 and 1.

    Args:
        path: Image file of one channel. More than 8 bits are read if all values fit into 8 bits.

    Returns:
        (H, W) uint8.

    Raises:
        UserError: It is not a readable image of one channel, or has values other than the integers 0 to 255.
    """
    data = _read_bytes(path)
    values = _decode(data, cv2.IMREAD_UNCHANGED, path)
    if values.ndim == 3 or not _is_grey_png(data):
        # OpenCV returns the colours of a palette image, and 0 and 255 of a 1-bit image.
        from PIL import Image

        try:
            with Image.open(path) as image:
                values = np.array(image)
        # What Pillow refuses and OpenCV reads: damaged parts, unusual formats, sizes.
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f'{path} is not a readable mask: {" ".join(str(error).split())}') from None
    if values.ndim == 3:
        raise UserError(f'{path} has {values.shape[2]} channels; a mask has one')
    if values.dtype.kind == 'f':
        raise UserError(f'{path} has {values.dtype} values; a mask has integers')
    if values.dtype.itemsize > 1 and not 0 <= values.min() <= values.max() <= 255:
        extreme = values.max() if values.max() > 255 else values.min()
        raise UserError(f'{path} has the value {extreme}; masks hold 0 to 255, of which 255 is unlabelled')
    return values.astype(np.uint8, copy=False)


def _is_grey_png(data: np.ndarray) -> bool:
    """True for a PNG of one channel with 8 or 16 bits, whose values OpenCV returns as they are."""
    return data[:8].tobytes() == PNG and data[24] >= 8 and data[25] == 0


def write_image(path: str | Path, pixels: np.ndarray) -> None:
    """Write (H, W, 3) uint8 BGR; the suffix is the format, and missing folders are made.

    Raises:
        UserError: It cannot be written.
    """
    path = Path(path)
    _write_bytes(path, _encode(path.suffix, pixels, path))


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
    data = _encode('.png', values.astype(np.uint16 if is_deep else np.uint8), path)
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


def _encode(suffix: str, pixels: np.ndarray, path: str | Path) -> bytes:
    if not pixels.size:
        raise UserError(f'{path} cannot be written: its size is {"x".join(map(str, pixels.shape[1::-1]))}')
    try:
        with _silent_opencv:
            done, data = cv2.imencode(suffix, pixels)
    except cv2.error as error:
        raise UserError(f'{path} cannot be written: {_reason(error)}') from error
    if not done:
        raise UserError(f'{path} cannot be written: OpenCV cannot encode {pixels.shape} {pixels.dtype}')
    return data.tobytes()


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
        from PIL.TiffImagePlugin import TiffImageFile
    except ImportError:
        return None
    # Pillow's limit is lower than OpenCV's, and read_image has the messages for what it cannot read.
    ignored = (Image.DecompressionBombError, Image.DecompressionBombWarning, OSError, ValueError)
    with contextlib.suppress(*ignored), Image.open(path) as image:
        # Of a TIFF the size in the file: newer versions of Pillow turn ``size`` by its orientation.
        width, height = (image.tag_v2[256], image.tag_v2[257]) if isinstance(image, TiffImageFile) else image.size
        is_transposed = image.format in ORIENTED and image.getexif().get(ORIENTATION) in TRANSPOSED
        return (height, width) if is_transposed else (width, height)
    return None


# OpenCV 4.14 has moved it. Both return the previous level.
_set_log_level = cv2.setLogLevel if hasattr(cv2, 'setLogLevel') else cv2.utils.logging.setLogLevel  # type: ignore[attr-defined]


class _SilentOpenCV:
    """Keep OpenCV's log from stderr: this module reports each error once. Threads may enter it at the same time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.level = 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.depth:
                self.level = _set_log_level(0)
            self.depth += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.depth -= 1
            if not self.depth:
                _set_log_level(self.level)


_silent_opencv = _SilentOpenCV()
