"""The one reader and writer of image files: for training, data checks, inference and exported files.

Importing it needs numpy and OpenCV. Pillow is imported only to read masks that OpenCV would convert, such as palette
PNGs; running an exported file does not need it.

The format is determined by the content of a file, not by its suffix:

==========================  ==========================================================================================
file                        ``read_image``
==========================  ==========================================================================================
orientation                 applied: EXIF of JPEG, PNG, WebP and TIFF, rotation and reflection of AVIF; EXIF that is
                            damaged or not EXIF at all is ignored
alpha (also grey + alpha)   dropped; of TIFF, libtiff blends it with black
16 bits                     scaled to 8 bits, as OpenCV does: the high byte of PNG, rounded for colour TIFF. White is
                            the largest 16-bit value, so 12-bit values of a sensor become nearly black; the data check
                            notices this by ``image_facts``
float, 32 bits              an error
grey, palette, 1 bit        converted to BGR
CMYK JPEG                   converted to BGR
animated, several pages     the first frame
text, colour profile        not read
truncated, empty, no image  an error
zero width or height        an error
over 2**28 pixels           an error before memory is allocated; so is a side over 2**20 pixels
over 2**31 bytes            an error; so is a path that is not a regular file, and an image too large for the memory
non-ASCII or long path      read; an error if the operating system refuses it
==========================  ==========================================================================================

mmcv's ``LoadImageFromFile`` returns the same pixels for every file read here, except that it ignores the orientation of
WebP and AVIF. The transform ``LoadImage`` replaces it in the pipelines of configs.
"""

import errno
import mmap
import os
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.image_headers import PNG, Header, read_header

# An image whose largest value, of 255, is at most this is nearly black. 12-bit values in a 16-bit file reach 15.
DARK = 31
JPEG_SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif')
IMAGE_SUFFIXES = (*JPEG_SUFFIXES, '.png', '.bmp', '.webp', '.avif', '.gif', '.tif', '.tiff')
# Suffixes of image formats that are not read. Such files are named in messages instead of being ignored.
UNREAD_SUFFIXES = (
    '.heic', '.heif', '.hif', '.jxl', '.jp2', '.j2k', '.ppm', '.pgm', '.pbm', '.tga', '.psd', '.exr',
    '.hdr', '.dng', '.cr2', '.cr3', '.nef', '.arw', '.dcm',
)  # fmt: skip
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm')
REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
LFS = b'version https://git-lfs'  # begins the text file that Git LFS puts in the place of a file
HEIC = (b'ftypheic', b'ftypheix', b'ftyphevc', b'ftypmif1', b'ftypmsf1')  # bytes 4 to 12 of photos of phones
MAX_PIXELS, MAX_SIDE = 2**28, 2**20  # OpenCV's own limit is 2**30 pixels, decoded 3 GB
MAX_BYTES = 2**31  # an image of MAX_PIXELS pixels never needs more
# EXIF orientation -> function that turns the pixels upright.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.flip(cv2.transpose(pixels), -1),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


class ImageFacts(NamedTuple):
    """Facts about an image file that a check of a data set needs.

    Attributes:
        width: Width in pixels, as ``read_image`` returns the image.
        height: Height in pixels, as ``read_image`` returns the image.
        channels: Stored channels: 1 for grey, 2 for grey and alpha, 3 for colour, 4 for colour and alpha or for CMYK;
            None for formats whose header is not read.
        bits: Bits per channel, 8 or 16.
        max_value: Largest value of all channels but alpha, not scaled to 8 bits.
        orientation: EXIF orientation, 1 to 8; 1 for an image that is stored upright.
    """

    width: int
    height: int
    channels: int | None
    bits: int
    max_value: int
    orientation: int


def read_image(path: str | Path, reduction: int = 1) -> np.ndarray:
    """Read an image file as 8-bit BGR. The module docstring lists how unusual files are read.

    Args:
        path: Image file.
        reduction: Divide both sides by 1, 2, 4 or 8 and round up. A JPEG is decoded directly at this size, which is
            faster.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        UserError: There is no such file, or it is not a readable image.
    """
    data = _read_bytes(path)
    return _decode_checked(data, _checked_header(data, path), path, reduction)


class Reduced(NamedTuple):
    """An image, a JPEG possibly decoded at a reduced size.

    Attributes:
        pixels: (H, W, 3) uint8 BGR.
        size: Height and width of the whole image.
        reduction: Factor by which both sides were divided, 1, 2, 4 or 8, and rounded up.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    reduction: int


def read_for_resize(
    image: str | Path | bytes, resized: Callable[[int, int], tuple[int, int]], name: str | Path = ''
) -> Reduced:
    """Read an image that will be scaled down, a JPEG at a half, quarter or eighth of its size if that is large enough.

    This takes about a third of the time for most JPEG files, and two thirds for progressive ones. The pixels are about
    averages over squares of the whole image.

    Args:
        image: Image file, or the content of one.
        resized: Function from height and width of the image to the height and width that it will be resized to.
        name: Name of the image for messages; not needed for a file.

    Raises:
        UserError: There is no such file, or it is not a readable image.
    """
    if isinstance(image, bytes):
        data = _content(image, name)
    else:
        name, data = image, _read_bytes(image)
    header = _checked_header(data, name)
    if header is None or header.format != 'JPEG':
        pixels = _decode_checked(data, header, name)
        return Reduced(pixels, pixels.shape[:2], 1)
    width, height = _shown_size(header)
    smallest = resized(height, width)

    def suits(factor: int) -> bool:
        # If a side is no multiple, the last row or column stands for fewer pixels: the first one after turning.
        divides = height % factor == width % factor == 0
        is_large = -(-height // factor) >= smallest[0] and -(-width // factor) >= smallest[1]
        return factor == 1 or (is_large and (divides or header.orientation == 1))

    reduction = max(filter(suits, REDUCED))
    return Reduced(_decode_image(data, header, name, reduction), (height, width), reduction)


def decode_image(data: bytes, name: str | Path) -> np.ndarray:
    """Decode the content of an image file exactly as ``read_image`` does.

    Args:
        data: Content of the file.
        name: Name of the image, for messages.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        UserError: It is not a readable image.
    """
    content = _content(data, name)
    return _decode_checked(content, _checked_header(content, name), name)


def _content(data: bytes, name: str | Path) -> np.ndarray:
    _check_length(len(data), name)
    return np.frombuffer(data, np.uint8)


def _decode_checked(data: np.ndarray, header: Header | None, path: str | Path, reduction: int = 1) -> np.ndarray:
    if header is None or header.format == 'TIFF':  # other formats have no floats
        _decode_deep(data, header, path)
    return _decode_image(data, header, path, reduction)


def image_facts(path: str | Path) -> ImageFacts:
    """Decode an image file as ``read_image`` does, and return the facts about it.

    Raises:
        UserError: There is no such file, or it is not a readable image.
    """
    data = _read_bytes(path)
    header = _checked_header(data, path)
    is_integer = header is not None and header.format != 'TIFF' and header.bits == 8
    deep = None if is_integer else _decode_deep(data, header, path)
    pixels = _decode_image(data, header, path)
    values = pixels if deep is None else deep
    height, width = pixels.shape[:2]
    return ImageFacts(
        width=width,
        height=height,
        channels=header.channels if header else None,
        bits=8 * values.itemsize,
        max_value=int(values.max()),
        orientation=header.orientation if header else 1,
    )


def image_size(path: str | Path) -> tuple[int, int]:
    """Return width and height in pixels of the image that ``read_image`` returns, from the header of the file.

    Truncation is not detected. If the header cannot be read, the image is decoded.

    Raises:
        UserError: There is no such file, or it is not a readable image.
    """
    data = _read_bytes(path, mapped=True)
    header = _checked_header(data, path)
    if header is None:
        height, width = read_image(path).shape[:2]
        return width, height
    return _shown_size(header)


def exif_orientation(path: str | Path) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 if it has none. 5 to 8 swap width and height.

    Raises:
        UserError: There is no such file, or it cannot be read.
    """
    header = read_header(_read_bytes(path, mapped=True))
    return header.orientation if header else 1


def unread_format(path: str | Path) -> UserError:
    """Return an error for a file with one of ``UNREAD_SUFFIXES``."""
    return UserError(f'{path} is not a readable image: {Path(path).suffix[1:].upper()} is not read; convert it to JPEG')


def check_image_file(path: str | Path) -> None:
    """Check, without decoding, that a file exists, has the signature of an image format and is within the limits.

    Raises:
        UserError: The file is missing, of an unknown format or over the limits.
    """
    data = _read_bytes(path, mapped=True)
    _checked_header(data, path)
    with _silent_opencv:
        is_image = cv2.haveImageReader(str(path))
    if not is_image:
        raise _unreadable(data, path)


def read_mask(path: str | Path) -> np.ndarray:
    """Read a segmentation mask as mmseg does: a palette image as its indices, a 1-bit image as 0 and 1.

    Args:
        path: Image file of one channel. It may have more than 8 bits if all values fit into 8 bits.

    Returns:
        (H, W) uint8.

    Raises:
        UserError: The file is not a readable image of one channel, or has values other than the integers 0 to 255.
    """
    data = _read_bytes(path)
    header = _checked_header(data, path)
    values = _decode(_pixel_data(data, header), cv2.IMREAD_UNCHANGED, path)
    if values.ndim == 3 or not _is_grey_png(data):
        # OpenCV returns colours for a palette image, and 0 and 255 for a 1-bit image.
        from PIL import Image

        try:
            with Image.open(path) as image:
                values = np.array(image)
        # OpenCV reads some files that Pillow refuses: damaged ones, unusual formats, large sizes.
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
    """Return True for a PNG of one channel with 8 or 16 bits, whose values OpenCV returns unchanged."""
    return data[:8].tobytes() == PNG and data[24] >= 8 and data[25] == 0


def write_image(path: str | Path, pixels: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 BGR image in the format of the suffix. Missing folders are created.

    Raises:
        UserError: The file cannot be written.
    """
    path = Path(path)
    write_whole(path, _encode(path.suffix, pixels, path))


def write_mask(path: str | Path, values: np.ndarray, palette: Sequence[Sequence[int]]) -> None:
    """Write a mask as a palette PNG, which stores the values and which viewers show in colour.

    Missing folders are created.

    Args:
        path: PNG file.
        values: (H, W), integers from 0.
        palette: RGB of each value, 0 to 255. With more than 256 colours, 16-bit grey is written instead.

    Raises:
        UserError: The file cannot be written.
    """
    is_deep = len(palette) > 256
    data = _encode('.png', values.astype(np.uint16 if is_deep else np.uint8), path)
    if not is_deep:
        # OpenCV writes no palettes. PNG stores indices like grey values, so a new header and a palette are enough.
        length = len(PNG) + 25  # signature and IHDR: length, type, 13 bytes, CRC
        header = bytearray(data[len(PNG) + 8 : length - 4])
        header[9] = 3  # colour type: palette
        colours = bytes(int(value) for colour in palette for value in colour)
        data = PNG + _png_chunk(b'IHDR', bytes(header)) + _png_chunk(b'PLTE', colours) + data[length:]
    write_whole(Path(path), data)


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def _read_bytes(path: str | Path, mapped: bool = False) -> np.ndarray:
    """Return the content of a file, (N,) uint8. If ``mapped``, it is memory-mapped instead of read."""
    try:
        _check_file(os.stat(path), path)  # before opening: a named pipe would wait for a writer
        with open(path, 'rb') as file:
            if mapped:
                return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            return np.fromfile(file, np.uint8)
    except FileNotFoundError:
        raise UserError(f'no image {path}') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror or error}') from error
    except UserError:
        raise
    except ValueError as error:  # a zero byte in the path
        raise UserError(f'{path!r} cannot be read: {error}') from error


def _check_file(status: os.stat_result, path: str | Path) -> None:
    if not stat.S_ISREG(status.st_mode):  # reading /dev/zero would never end
        kind = os.strerror(errno.EISDIR) if stat.S_ISDIR(status.st_mode) else 'it is not a file'
        raise UserError(f'{path} cannot be read: {kind}')
    _check_length(status.st_size, path)


def _check_length(length: int, path: str | Path) -> None:
    if not length:
        raise UserError(f'{path} is empty')
    if length > MAX_BYTES:
        raise UserError(f'{path} is refused: it has {length} bytes; an image may have {MAX_BYTES}')


def _unreadable(data: np.ndarray, path: str | Path) -> UserError:
    if data[4:12].tobytes() in HEIC:
        return UserError(f'{path} is not a readable image: HEIC is not read; convert it to JPEG')
    if data[: len(LFS)].tobytes() == LFS:
        return UserError(f'{path} is not a readable image: it is a pointer of Git LFS; get the file by `git lfs pull`')
    return UserError(f'{path} is not a readable image: truncated, damaged or of an unknown format')


def _decode(data: np.ndarray, flags: int, path: str | Path) -> np.ndarray:
    try:
        with _silent_opencv:
            pixels = cv2.imdecode(data, flags)
    except cv2.error as error:
        raise UserError(f'{path} is not a readable image: {_reason(error)}') from error
    if pixels is None or not pixels.size:
        raise _unreadable(data, path)
    return pixels


def _encode(suffix: str, pixels: np.ndarray, path: str | Path) -> bytes:
    if not pixels.size:
        raise UserError(f'{path} cannot be written: its size is {"x".join(map(str, pixels.shape[1::-1]))}')
    try:
        with _silent_opencv:
            # OpenCV does not know all suffixes of JPEG.
            done, data = cv2.imencode('.jpg' if suffix.lower() in JPEG_SUFFIXES else suffix, pixels)
    except cv2.error as error:
        raise UserError(f'{path} cannot be written: {_reason(error)}') from error
    if not done:
        raise UserError(f'{path} cannot be written: OpenCV cannot encode {pixels.shape} {pixels.dtype}')
    return data.tobytes()


def _reason(error: cv2.error) -> str:
    if 'CV_IO_MAX_IMAGE' in str(error):
        return 'its size is over the limits of OpenCV'
    return ' '.join(str(getattr(error, 'err', error)).split())


def _checked_header(data: np.ndarray, path: str | Path) -> Header | None:
    """Read the header of an image and check its size; None if the format is unknown or the header is damaged.

    Raises:
        UserError: The size is zero or too large, or a PNG's header is damaged.
    """
    header = read_header(data)
    if header is None:
        if data[:8].tobytes() == PNG:
            raise _unreadable(data, path)
        return None
    _, width, height, *_ = header
    if not width or not height:
        raise UserError(f'{path} is not a readable image: its size is {width}x{height}')
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise UserError(
            f'{path} is not a readable image: {width}x{height} is over {MAX_PIXELS} pixels, or over {MAX_SIDE} along '
            'one side; cut it into tiles'
        )
    return header


def _shown_size(header: Header) -> tuple[int, int]:
    """Return width and height of an image after its orientation is applied."""
    return (header.height, header.width) if header.orientation >= 5 else (header.width, header.height)


def _decode_deep(data: np.ndarray, header: Header | None, path: str | Path) -> np.ndarray:
    """Decode an image of 8 or 16 bits to (H, W, 3) without scaling its values.

    Raises:
        UserError: The values have more bits, or are floats.
    """
    pixels = _pixel_data(data, header)
    try:
        values = _decode(pixels, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, path)
    except UserError:  # OpenCV does not convert grey floats to colours
        values = _decode(pixels, cv2.IMREAD_UNCHANGED, path)
        if values.dtype in (np.uint8, np.uint16):
            raise
    if values.dtype not in (np.uint8, np.uint16):
        raise UserError(f'{path} has {values.dtype} values; only 8- and 16-bit images are supported')
    return values


def _pixel_data(data: np.ndarray, header: Header | None) -> np.ndarray:
    """Return the content of a file without the PNG chunks that decoding does not need."""
    if header is None or not header.parts or sum(end - start for start, end in header.parts) == data.size:
        return data
    return np.concatenate([data[start:end] for start, end in header.parts])


def _decode_image(data: np.ndarray, header: Header | None, path: str | Path, reduction: int = 1) -> np.ndarray:
    is_jpeg = header is not None and header.format == 'JPEG'
    # For other formats OpenCV decodes all pixels and drops most of them; averaging them below is better.
    flags = REDUCED[reduction if is_jpeg else 1]
    if header is None or header.format == 'TIFF':  # OpenCV applies a TIFF's orientation always
        pixels = _decode(data, flags, path)
    else:
        pixels = _decode(_pixel_data(data, header), flags | cv2.IMREAD_IGNORE_ORIENTATION, path)
        if header.orientation in TURNS:
            pixels = TURNS[header.orientation](pixels)
    height, width = pixels.shape[:2]
    if header is not None:
        expected = tuple(-(-side // reduction) if is_jpeg else side for side in _shown_size(header))
        if (width, height) != expected:
            raise UserError(
                f'{path} is damaged: its header says {"x".join(map(str, expected))} pixels, but it has {width}x{height}'
            )
    if reduction == 1 or is_jpeg:
        return pixels
    return cv2.resize(pixels, (-(-width // reduction), -(-height // reduction)), interpolation=cv2.INTER_AREA)


# OpenCV 4.14 has moved this function. Old and new return the previous level.
_set_log_level = cv2.setLogLevel if hasattr(cv2, 'setLogLevel') else cv2.utils.logging.setLogLevel  # type: ignore[attr-defined]


class _SilentOpenCV:
    """Silence OpenCV's log, because this module reports the errors itself. Safe for concurrent threads."""

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
