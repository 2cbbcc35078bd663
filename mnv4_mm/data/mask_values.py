"""The values of a data set's masks. Each mask is decoded once, and its values are remembered.

Which value is which class is decided from the values of all masks (``data/formats/mask_rules.py``). Imports neither
torch nor OpenMMLab.
"""

import contextlib
import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from mnv4_mm.data.decode_once import decode_once, reason
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_mask

FORMAT = 2
MAX_COUNTED = 1024  # most values or colours of a mask that are remembered; more cannot be classes
PNG = b'\x89PNG\r\n\x1a\n'
Colour = tuple[int, int, int]


class MaskValues(NamedTuple):
    """Result of decoding a mask.

    Attributes:
        width: Width in pixels; 0 if the mask cannot be read.
        height: Height in pixels; 0 if the mask cannot be read.
        problem: Why the mask cannot be read; empty if it can.
        counts: Number of pixels of each value: a grey value, an index of a palette, or a colour as ``pack`` returns it.
            Only the most frequent ``MAX_COUNTED`` values are included.
        is_coloured: True if the values are packed colours.
        palette: Packed colour of each value in ``counts``. Empty if the mask has no palette.
        is_plain: True if mmseg reads the stored values unchanged: indices of a palette of 1 to 8 bits, or 8-bit grey
            values, but not from a JPEG file.
        is_jpeg: True for a JPEG file, whose lossy compression changes values.
        distinct: Number of distinct values, including those that are not in ``counts``.
    """

    width: int
    height: int
    problem: str = ''
    counts: Mapping[int, int] = MappingProxyType({})
    is_coloured: bool = False
    palette: Mapping[int, int] = MappingProxyType({})
    is_plain: bool = False
    is_jpeg: bool = False
    distinct: int = 0

    def colours(self) -> Mapping[int, int]:
        """Return the number of pixels of each packed colour; grey values are colours with equal parts."""
        if self.is_coloured:
            return self.counts
        result: dict[int, int] = {}
        for value, count in self.counts.items():
            colour = self.palette.get(value, pack((value, value, value)))
            result[colour] = result.get(colour, 0) + count
        return result


class DecodedMask(NamedTuple):
    """Pixels of a mask.

    Attributes:
        values: (H, W) integers: grey values, indices of a palette, or packed colours.
        is_coloured: True if the values are packed colours.
        palette: (256,) int64, packed colour of each index. None if the mask has no palette.
        is_plain: See ``MaskValues``.
        is_jpeg: True for a JPEG file.
    """

    values: np.ndarray
    is_coloured: bool = False
    palette: np.ndarray | None = None
    is_plain: bool = False
    is_jpeg: bool = False

    def as_colours(self) -> np.ndarray:
        """Return (H, W) packed colours."""
        if self.is_coloured:
            return self.values
        if self.palette is not None:
            return self.palette[self.values]
        return self.values.astype(np.int64) * 0x010101


def pack(colour: Sequence[int]) -> int:
    """Return (red, green, blue) as one integer, ``0xRRGGBB``."""
    red, green, blue = (int(part) for part in colour)
    return red << 16 | green << 8 | blue


def unpack(colour: int) -> Colour:
    """Return (red, green, blue) of a packed colour."""
    return colour >> 16, colour >> 8 & 255, colour & 255


def decode_masks(root: Path, names: Iterable[str]) -> dict[str, MaskValues]:
    """Decode masks and count their values. Results of unchanged masks are taken from the cache.

    Args:
        root: Folder of the data set.
        names: Paths of the masks relative to ``root``.

    Returns:
        Result by name, in the order of ``names``. A mask that cannot be read is not an error: the ``problem`` of its
        result says why.

    Raises:
        UserError: The cache cannot be written.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='PIL')  # damaged metadata, large images
        return decode_once(
            root,
            names,
            count_values,
            restore=_from_json,
            failed=lambda problem: MaskValues(0, 0, problem),
            what='masks',
            version=[FORMAT, Image.__version__],
        )


def _from_json(entry: list) -> MaskValues:
    values = MaskValues(*entry)
    counts, palette = ({int(key): value for key, value in part.items()} for part in (values.counts, values.palette))
    return values._replace(counts=counts, palette=palette)


def count_values(path: str) -> MaskValues:
    """Decode a mask file and count its values. If it cannot be read, the result has a ``problem``."""
    try:
        mask = read_values(path)
    except UserError as error:
        return MaskValues(0, 0, reason(error, path))
    height, width = mask.values.shape
    if mask.values.dtype == np.uint8:
        # OpenCV counts without Python's lock, but in float32, which is exact up to 2**24 only.
        is_small = mask.values.size < 2**24
        every: np.ndarray = (
            cv2.calcHist([mask.values], [0], None, [256], [0, 256]).ravel()
            if is_small
            else np.bincount(mask.values.ravel(), minlength=256)
        )
        keys = np.flatnonzero(every)
        counts = every[keys]
    else:
        keys, counts = np.unique(mask.values, return_counts=True)
    distinct = len(keys)
    if distinct > MAX_COUNTED:
        order = np.argsort(-counts, kind='stable')[:MAX_COUNTED]
        keys, counts = keys[order], counts[order]
    palette = {} if mask.palette is None else {int(key): int(mask.palette[key]) for key in keys}
    return MaskValues(
        width,
        height,
        '',
        {int(key): int(count) for key, count in zip(keys, counts, strict=True)},
        mask.is_coloured,
        palette,
        mask.is_plain,
        mask.is_jpeg,
        distinct,
    )


def read_values(path: str | Path) -> DecodedMask:
    """Read a mask: grey values of 1 to 16 bits, indices of a palette, or colours.

    Grey values of 1, 2 or 4 bits are returned as stored; Pillow would scale them to 0 to 255. A mask with three equal
    channels is read as grey. Alpha is dropped, but a mask in which only alpha differs between pixels is an error.

    Raises:
        UserError: The file is not a readable image, its values are not integers, or only its alpha differs.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return _decoded(image, _stored_bits(path))
    except UserError:
        raise
    except (OSError, SyntaxError, EOFError, struct.error) as error:
        if is_png(path):  # OpenCV refuses it too, and libpng prints lines of its own
            raise UserError(f'{path} is not a readable mask: {" ".join(str(error).split())}') from error
        return DecodedMask(read_mask(path))
    # Pillow refuses long text chunks and very large images; OpenCV's limits are higher.
    except (ValueError, Image.DecompressionBombError):
        return DecodedMask(read_mask(path))


def is_png(path: str | Path) -> bool:
    with contextlib.suppress(OSError), open(path, 'rb') as file:
        return file.read(8) == PNG
    return False


def _stored_bits(path: str | Path) -> int:
    """Return the bit depth of a grey PNG; 8 for other files."""
    with open(path, 'rb') as file:
        start = file.read(26)
    return start[24] if start[:4] == b'\x89PNG' and len(start) == 26 and start[25] == 0 else 8


def _check_alpha(image: Image.Image) -> None:
    """Refuse a mask in which only alpha differs between pixels.

    Raises:
        UserError: All pixels have one colour, and their alpha differs.
    """
    if image.mode not in ('RGBA', 'LA', 'PA'):
        return
    channels = np.asarray(image).reshape(-1, len(image.getbands()))
    *are_equal, is_alpha_equal = channels.min(0) == channels.max(0)
    if all(are_equal) and not is_alpha_equal:
        raise UserError(
            f'{image.filename} has one colour, and only its alpha (transparency) differs between pixels. Alpha is not '  # type: ignore[attr-defined]
            'read: save it as a mask of one channel'
        )


def _decoded(image: Image.Image, bits: int) -> DecodedMask:
    is_jpeg = image.format in ('JPEG', 'MPO')
    if image.mode in ('F', 'CMYK', 'YCbCr', 'LAB', 'HSV'):
        if not is_jpeg:
            raise UserError(f'{image.filename} has {image.mode} pixels; a mask has integers or RGB colours')  # type: ignore[attr-defined]
        image = image.convert('RGB')
    if image.mode == 'P':
        values = np.asarray(image)
        raw = image.getpalette('RGB') or []
        palette = np.zeros((256, 3), np.int64)
        palette[: len(raw) // 3] = np.array(raw, np.int64).reshape(-1, 3)
        return DecodedMask(values, palette=palette @ [1 << 16, 1 << 8, 1], is_plain=True)
    _check_alpha(image)
    if image.mode in ('RGB', 'RGBA', 'RGBX', 'RGBa', 'PA', 'La'):
        pixels = np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))
        red, green, blue = (pixels[..., i] for i in range(3))
        if np.array_equal(red, green) and np.array_equal(green, blue):
            return DecodedMask(np.ascontiguousarray(red), is_jpeg=is_jpeg)
        packed = red.astype(np.int32) << 16 | green.astype(np.int32) << 8 | blue
        return DecodedMask(packed, is_coloured=True, is_jpeg=is_jpeg)
    if image.mode == 'LA':
        return DecodedMask(np.asarray(image)[..., 0].copy(), is_jpeg=is_jpeg)
    values = np.asarray(image)
    if image.mode == '1':
        return DecodedMask(values.astype(np.uint8))
    if bits in (2, 4):
        return DecodedMask(values // (255 // (2**bits - 1)))
    return DecodedMask(values, is_plain=image.mode == 'L' and not is_jpeg, is_jpeg=is_jpeg)
