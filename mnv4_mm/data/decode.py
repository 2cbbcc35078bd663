"""Decode every image of a data set once, before anything is trained on it.

Only decoding tells that an image can be read: a truncated file has a valid header. Results are remembered by name, size
and times of the file.
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

FORMAT = 2
MIN_IMAGES_FOR_PROGRESS = 500  # fewer take about a second
MISSING = 'there is no such file'
BLOCK = 16  # images that a thread decodes in turn
SAMPLE = 128  # rows and columns that are looked at


class Decoded(NamedTuple):
    """Result of decoding an image.

    Attributes:
        width: In pixels, as ``read_image`` returns it; 0 if the image cannot be read.
        height: In pixels.
        problem: Why it cannot be read; empty if it can.
        brightest: Largest value of all channels, 0 to 255, in every few pixels.
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
    folder = os.fspath(root)
    path = cache_folder(root) / 'decoded.json'
    remembered = _read(path)
    states = {name: _state(os.path.join(folder, name)) for name in names}
    results: dict[str, Decoded] = {}
    pending: list[str] = []
    for name, state in states.items():
        if state is None:
            exists = os.path.lexists(os.path.join(folder, name)) if '\0' not in name else False
            results[name] = Decoded(0, 0, 'it is not a file' if exists else MISSING)
        elif name in remembered and remembered[name][:3] == list(state):
            results[name] = Decoded(*remembered[name][3:])
        else:
            pending.append(name)
    if pending:
        try:
            results.update(_decode_all(folder, pending))
        finally:  # an interrupted check continues where it was
            entries = {name: [*state, *results[name]] for name, state in states.items() if state and name in results}
            write_whole(path, json.dumps(dict(version=_version(), images={**remembered, **entries})))
    return {name: results[name] for name in states}


def _state(path: str) -> tuple[int, int, int] | None:
    """Return size, modification and change time of a file; None if there is none, or it is no regular file."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None
    return (state.st_size, state.st_mtime_ns, state.st_ctime_ns) if stat.S_ISREG(state.st_mode) else None


def _version() -> list:
    return [FORMAT, __version__, cv2.__version__]


def _read(path: Path) -> dict[str, list]:
    """Read what earlier calls remembered; nothing if it is missing, damaged or of another version."""
    try:
        content = json.loads(path.read_bytes())
        return content['images'] if content['version'] == _version() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _decode_all(folder: str, names: Sequence[str]) -> Iterator[tuple[str, Decoded]]:
    from rich.console import Console
    from rich.progress import Progress

    def decode_some(some: Sequence[str]) -> list[Decoded]:
        return [decode(os.path.join(folder, name)) for name in some]

    blocks = [names[start : start + BLOCK] for start in range(0, len(names), BLOCK)]
    pool = ThreadPoolExecutor(cores())  # threads: OpenCV decodes without Python's lock
    progress = Progress(console=Console(stderr=True), disable=len(names) < MIN_IMAGES_FOR_PROGRESS)
    try:
        with progress:
            task = progress.add_task('reading images', total=len(names))
            for block, results in zip(blocks, pool.map(decode_some, blocks), strict=True):
                yield from zip(block, results, strict=True)
                progress.advance(task, len(block))
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def decode(path: str) -> Decoded:
    """Decode an image."""
    try:
        pixels = read_image(path)
    except UserError as error:
        return Decoded(0, 0, str(error).replace(f'{path} is ', 'it is ').replace(f'{path} ', 'it '))
    height, width = pixels.shape[:2]
    # Some thousand pixels suffice for what follows, and take a tenth of the time of all.
    sample = cv2.resize(pixels, (SAMPLE, SAMPLE), interpolation=cv2.INTER_NEAREST)
    return Decoded(width, height, '', int(sample.max()), _hash(sample))


def _hash(sample: np.ndarray) -> int:
    """Return the pHash of (H, W, 3) uint8 BGR as an integer: one bit for each of the 8 x 8 lowest frequencies.

    The bits are those of ``imagehash.phash``, in half of its time: it is taken of every image of a data set.
    """
    small = cv2.resize(cv2.cvtColor(sample, cv2.COLOR_BGR2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float64))[:8, :8]
    low[0] *= 2**0.5  # imagehash's transform is not orthonormal
    low[:, 0] *= 2**0.5
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), 'big')
