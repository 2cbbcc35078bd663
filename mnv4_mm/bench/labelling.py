"""Speed of ``mnv4 label``, against processes that do nothing but read images and run the exported file."""

import importlib.util
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mnv4_mm.bench.measure import Pair, Ratio, measure
from mnv4_mm.config.index import REPOSITORY
from mnv4_mm.deploy.export import export
from mnv4_mm.label import label
from mnv4_mm.processors import cores
from mnv4_mm.runtime import load

CHECKPOINT = REPOSITORY / 'examples/bccd.pth'
IMAGES = REPOSITORY / 'data/mini/bccd/JPEGImages'
COUNT = 4000
MIN_SPEEDUP = 0.9


def labelling(count: int = COUNT, rounds: int = 3) -> Iterator[Ratio]:
    """Measure ``mnv4 label`` with an ONNX file of SSDLite, without Ray and, if Ray is installed, also with Ray.

    In each round, ``mnv4 label`` and the baseline both start new processes, which load the file.

    Args:
        count: Number of images.
        rounds: Number of timed rounds.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (file,) = export(str(CHECKPOINT), ['onnx'], out_dir=str(root / 'exported'))
        images = root / 'images'
        images.mkdir()
        photos = sorted(IMAGES.glob('*.jpg'))
        for number in range(count):
            (images / f'{number:06}.jpg').symlink_to(photos[number % len(photos)])
        paths = sorted(map(str, images.iterdir()))

        def bare() -> None:
            run_bare(str(file), paths)

        def labelled(ray: str | None) -> Callable[[], None]:
            def call() -> None:
                out = root / 'out'
                shutil.rmtree(out, ignore_errors=True)
                done = label(str(file), str(images), out=str(out), workers=cores(), ray=ray, log=lambda line: None)
                assert (done.rows, done.errors, done.failed) == (count, 0, [])

            return call

        name = f'mnv4 label, {count} images of 640x480, SSDLite 320x256 on {cores()} cores'
        against = 'against reading images and running the file'
        yield measure(Pair(f'{name}, {against}', labelled(None), bare, MIN_SPEEDUP, rounds, warm_up=1))
        if importlib.util.find_spec('ray') is not None:
            yield measure(Pair(f'{name}: by Ray, {against}', labelled('local'), bare, MIN_SPEEDUP, rounds, warm_up=0))


def run_bare(file: str, paths: Sequence[str]) -> float:
    """Read images and run an exported file on them in a process for each core, and throw the results away.

    Args:
        file: Exported file.
        paths: Image files; one that cannot be read is an error.

    Returns:
        Images per second, without the time in which the processes start and load the file.
    """
    shares = [(file, paths[worker :: cores()]) for worker in range(cores())]
    with multiprocessing.get_context('spawn').Pool(cores()) as pool:
        return len(paths) / max(pool.starmap(_predict, shares))


def _predict(file: str, paths: Sequence[str]) -> float:
    """Run a file on images, and return the seconds that it took after the first one."""
    predictor = load(file, 1)
    predictor(paths[0])
    began = time.monotonic()
    for path in paths:
        predictor(path)
    return time.monotonic() - began
