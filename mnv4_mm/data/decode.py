"""Decode every image of a data set once, before anything is trained on it.

Only decoding shows whether an image can be read: a truncated file has a valid header.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mnv4_mm.data.decode_once import decode_once, reason
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image

FORMAT = 2
SAMPLE = 128  # rows and columns of the image from which brightness and pHash are computed


class Decoded(NamedTuple):
    """Result of decoding an image.

    Attributes:
        width: Width of the decoded image in pixels; 0 if the image cannot be read.
        height: Height of the decoded image in pixels; 0 if the image cannot be read.
        problem: Why the image cannot be read; empty if it can.
        brightest: Largest value of any channel, 0 to 255, in a sample of the pixels.
        hash: pHash of the image, 64 bits from its low frequencies. Near-duplicates differ in few bits.
    """

    width: int
    height: int
    problem: str = ''
    brightest: int = 0
    hash: int = 0


def decode_images(root: Path, names: Iterable[str]) -> dict[str, Decoded]:
    """Decode images with the reader that training uses. Results of unchanged images are taken from the cache.

    Args:
        root: Folder of the data set.
        names: Paths of the images relative to ``root``.

    Returns:
        Result by name, in the order of ``names``. An image that cannot be read is no error: the ``problem`` of its
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


def decode(path: str) -> Decoded:
    """Decode an image file. If it cannot be read, the result has a ``problem``."""
    try:
        pixels = read_image(path)
    except UserError as error:
        return Decoded(0, 0, reason(error, path))
    height, width = pixels.shape[:2]
    # A sample of the pixels suffices for brightness and pHash, and takes a tenth of the time.
    sample = cv2.resize(pixels, (SAMPLE, SAMPLE), interpolation=cv2.INTER_NEAREST)
    return Decoded(width, height, '', int(sample.max()), _hash(sample))


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
