"""Decode every image of a data set once, before anything is trained on it.

Only decoding tells that an image can be read: a truncated file has a valid header. Results are remembered by name, size
and modification time of the file.
"""

import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mnv4_mm.data.cache import cache_folder, write_whole
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.version import __version__

FORMAT = 1
MIN_IMAGES_FOR_PROGRESS = 500  # fewer take about a second
MISSING = 'there is no such file'


class Decoded(NamedTuple):
    """Result of decoding an image.

    Attributes:
        width: In pixels, as ``read_image`` returns it; 0 if the image cannot be read.
        height: In pixels.
        problem: Why it cannot be read; empty if it can.
        brightest: Largest value of all channels, 0 to 255.
        hash: 64 bits of the image's low frequencies (pHash): those of near-duplicates differ in few bits.
    """

    width: int
    height: int
    problem: str = ''
    brightest: int = 0
    hash: int = 0


def decode_images(root: Path, names: Iterable[str]) -> dict[str, Decoded]:
    """Decode images with the reader that trains, all that have changed since they were last decoded.

    Args:
        root: Folder of the data set.
        names: Paths of the images relative to it.

    Returns:
        Result by name. An image that cannot be read is one of the results, not an error.

    Raises:
        UserError: The cache cannot be written.
    """
    names = list(dict.fromkeys(names))
    path = cache_folder(root) / 'decoded.json'
    remembered = _read(path)
    states = {name: _state(root / name) for name in names}
    results: dict[str, Decoded] = {}
    pending: list[str] = []
    for name, state in states.items():
        if state is None:
            results[name] = Decoded(0, 0, MISSING if not (root / name).exists() else 'it is not a file')
        elif name in remembered and remembered[name][:2] == list(state):
            results[name] = Decoded(*remembered[name][2:])
        else:
            pending.append(name)
    if pending:
        try:
            results.update(_decode_all(root, pending))
        finally:  # an interrupted check continues where it was
            entries = {name: [*state, *results[name]] for name, state in states.items() if state and name in results}
            write_whole(path, json.dumps(dict(version=_version(), images={**remembered, **entries})))
    return {name: results[name] for name in names}


def _state(path: Path) -> tuple[int, int] | None:
    """Return size and modification time of a file; None if there is none, or it is no regular file."""
    try:
        state = path.stat()
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None
    return (state.st_size, state.st_mtime_ns) if stat.S_ISREG(state.st_mode) else None


def _version() -> list:
    return [FORMAT, __version__, cv2.__version__]


def _read(path: Path) -> dict[str, list]:
    """Read what earlier calls remembered; nothing if it is missing, damaged or of another version."""
    try:
        content = json.loads(path.read_bytes())
        return content['images'] if content['version'] == _version() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _decode_all(root: Path, names: Sequence[str]) -> Iterator[tuple[str, Decoded]]:
    from rich.console import Console
    from rich.progress import track

    # Threads: OpenCV decodes without Python's lock.
    pool = ThreadPoolExecutor(_cores())
    try:
        results = zip(names, pool.map(lambda name: decode(root / name), names), strict=True)
        yield from track(
            results,
            'reading images',
            total=len(names),
            console=Console(stderr=True),
            disable=len(names) < MIN_IMAGES_FOR_PROGRESS,
        )
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def decode(path: Path) -> Decoded:
    """Decode an image."""
    try:
        pixels = read_image(path)
    except UserError as error:
        return Decoded(0, 0, str(error).replace(f'{path} is ', 'it is ').replace(f'{path} ', 'it '))
    height, width = pixels.shape[:2]
    return Decoded(width, height, '', int(pixels.max()), _hash(pixels))


def _hash(pixels: np.ndarray) -> int:
    """Return imagehash's pHash of (H, W, 3) uint8 BGR, made smaller by OpenCV, which is faster than Pillow."""
    import imagehash
    from PIL import Image

    # Every few pixels suffice for the low frequencies, and take a tenth of the time of averaging all.
    sample = cv2.resize(pixels, (128, 128), interpolation=cv2.INTER_NEAREST)
    small = cv2.resize(sample, (32, 32), interpolation=cv2.INTER_AREA)
    return int(str(imagehash.phash(Image.fromarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)))), 16)
