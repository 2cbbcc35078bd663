"""Decode every image of a data set once, before anything is trained on it.

Only decoding shows whether an image can be read: a truncated file has a valid header.
"""

import os
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mnv4_mm.data.decode_once import decode_once, reason
from mnv4_mm.data.formats.files import amount, first
from mnv4_mm.errors import UserError
from mnv4_mm.image_headers import read_header
from mnv4_mm.images import MAX_BYTES, decode_image, read_image

FORMAT = 3
SAMPLE = 128  # rows and columns of the image from which brightness and pHash are computed


class Decoded(NamedTuple):
    """Result of decoding an image.

    Attributes:
        width: Width of the decoded image in pixels; 0 if the image cannot be read.
        height: Height of the decoded image in pixels; 0 if the image cannot be read.
        problem: Why the image cannot be read; empty if it can.
        brightest: Largest value of any channel, 0 to 255, in a sample of the pixels.
        hash: pHash of the image, 64 bits from its low frequencies. Near-duplicates differ in few bits.
        orientation: EXIF orientation, 1 to 8; 1 if the image is stored as it is decoded.
    """

    width: int
    height: int
    problem: str = ''
    brightest: int = 0
    hash: int = 0
    orientation: int = 1


def decode_images(root: Path, names: Iterable[str]) -> dict[str, Decoded]:
    """Decode images with the reader that training uses. Results of unchanged images are taken from the cache.

    Args:
        root: Folder of the data set.
        names: Paths of the images relative to ``root``.

    Returns:
        Result by name, in the order of ``names``. An image that cannot be read is not an error: the ``problem`` of its
        result says why.

    Raises:
        UserError: The cache cannot be written.
    """
    return decode_once(
        root,
        names,
        decode,
        restore=lambda values: Decoded(*values),
        failed=lambda problem: Decoded(0, 0, problem),
        what='images',
        version=[FORMAT, cv2.__version__],
    )


def note_turned(
    decoded: Mapping[str, Decoded], names: Iterable[str], unsized: AbstractSet[str] = frozenset()
) -> list[str]:
    """Return a note, or none, on images that EXIF turns and whose labels may be those of the stored image.

    Where the labels state the size of the turned image, and the stored image has another, the labels are of the turned
    one, and there is nothing to say.

    Args:
        decoded: Result of decoding each image.
        names: Images with labels.
        unsized: Those of them whose labels state no size.
    """
    turned = []
    for name in names:
        image = decoded[name]
        is_clear = image.orientation > 4 and image.width != image.height and name not in unsized
        if image.orientation > 1 and not is_clear:
            turned.append(name)
    if not turned:
        return []
    return [f'{amount(len(turned), "image")} turned by EXIF, and labels read as of the turned image: {first(turned)}']


def decode(path: str) -> Decoded:
    """Decode an image file. If it cannot be read, the result has a ``problem``."""
    try:
        pixels, orientation = _read(path)
    except UserError as error:
        return Decoded(0, 0, reason(error, path))
    height, width = pixels.shape[:2]
    # A sample of the pixels suffices for brightness and pHash, and takes a tenth of the time.
    sample = cv2.resize(pixels, (SAMPLE, SAMPLE), interpolation=cv2.INTER_NEAREST)
    return Decoded(width, height, '', int(sample.max()), _hash(sample), orientation)


def _read(path: str) -> tuple[np.ndarray, int]:
    """Read an image and its EXIF orientation. Opening the file for each would take a hundredth of the check's time."""
    try:
        with open(path, 'rb') as file:
            data = file.read() if os.fstat(file.fileno()).st_size <= MAX_BYTES else b''
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from error
    pixels = decode_image(data, path) if data else read_image(path)  # which says why the file is refused
    header = read_header(np.frombuffer(data, np.uint8))
    return pixels, header.orientation if header else 1


def _hash(sample: np.ndarray) -> int:
    """Return the pHash of (H, W, 3) uint8 BGR as an integer: one bit for each of the 8 x 8 lowest frequencies.

    It equals ``imagehash.phash``, but takes half the time, which counts because every image of a data set is hashed.
    """
    small = cv2.resize(cv2.cvtColor(sample, cv2.COLOR_BGR2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    low: np.ndarray = cv2.dct(small.astype(np.float64))[:8, :8]
    low[0] *= 2**0.5  # imagehash's transform is not orthonormal
    low[:, 0] *= 2**0.5
    # Above the lower one of the two middle values: the same bits as above their mean, which np.median takes longer for.
    return int.from_bytes(np.packbits(low > np.partition(low, 31, axis=None)[31]).tobytes(), 'big')
