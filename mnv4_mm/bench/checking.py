"""Time to check a data set, against the time to decode its images."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2

from mnv4_mm.bench.measure import Figure, Pair, Ratio, measure
from mnv4_mm.config.index import REPOSITORY
from mnv4_mm.data.cache import cache_folder
from mnv4_mm.data.prepare import prepare_detection
from mnv4_mm.images import image_size
from mnv4_mm.processors import cores

IMAGES = REPOSITORY / 'data/mini/coco'
COUNT, BOXES = 5000, 7  # images, and boxes per image as in COCO
MIN_SPEEDUP, MAX_SECONDS = 1 / 1.2, 1.0


def checking(count: int = COUNT, rounds: int = 7) -> Iterator[Ratio | Figure]:
    """Measure the first check of a data set, and the repeated check of the unchanged data set.

    The baseline of the first check is decoding the images on all cores. The repeated check has no baseline.

    Args:
        count: Number of images.
        rounds: Number of timed rounds of the first check.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / 'data'
        names = write_data(root, count)

        def check() -> None:
            shutil.rmtree(cache_folder(root), ignore_errors=True)
            prepare_detection(root)

        def decode() -> None:
            with ThreadPoolExecutor(cores()) as pool:
                for pixels in pool.map(lambda name: cv2.imread(str(root / name)), names):
                    assert pixels is not None

        try:
            name = f'first check of {count} images (baseline: decoding on {cores()} cores)'
            yield measure(Pair(name, check, decode, MIN_SPEEDUP, rounds, warm_up=1))
            start = time.perf_counter()
            prepare_detection(root)
            yield Figure(f'check of {count} unchanged images', time.perf_counter() - start, 's', MAX_SECONDS)
        finally:
            shutil.rmtree(cache_folder(root), ignore_errors=True)


def write_data(root: Path, count: int) -> list[str]:
    """Write a data set in COCO's format of links to COCO images, with made-up boxes.

    The split ``train`` has 80 % of the images, and ``val`` has the others.

    Args:
        root: Folder to make.
        count: Number of images.

    Returns:
        The paths of the images, relative to ``root``.
    """
    files = sorted(IMAGES.rglob('*.jpg'))
    names: list[str] = []
    sizes = {file: image_size(file) for file in files}
    for split, share in (('train', count * 4 // 5), ('val', count - count * 4 // 5)):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for i in range(share):
            name = f'{split}/{i:05}.jpg'
            file = files[len(names) % len(files)]
            os.symlink(file, root / name)
            names.append(name)
            width, height = sizes[file]
            images.append(dict(id=i, file_name=Path(name).name, width=width, height=height))
            for k in range(BOXES):
                box = [10.5 + 2 * k, 20.25 + 3 * k, 90, 80]
                annotations.append(
                    dict(id=i * BOXES + k + 1, image_id=i, category_id=1 + k % 3, bbox=box, area=7200, iscrowd=0)
                )
        content = dict(images=images, annotations=annotations, categories=[dict(id=k, name=f'c{k}') for k in (1, 2, 3)])
        path = root / f'annotations/instances_{split}.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return names
