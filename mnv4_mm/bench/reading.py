"""Time and memory to read an annotation file as large as COCO's at the start of training."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from mnv4_mm.config.index import REPOSITORY

MINI = REPOSITORY / 'data/mini/coco/annotations/instances_train2017.json'
# As in COCO's instances_train2017.json, which has 448 MB.
IMAGES, ANNOTATIONS = 118_287, 860_001


class Start(NamedTuple):
    """Cost of building a data set in a process of its own.

    Attributes:
        seconds: Time to build the data set, without imports.
        peak_mib: Peak resident memory of the process, including imports, in MiB.
    """

    seconds: float
    peak_mib: float


def write_full_size(path: Path, mini: Path = MINI, images: int = IMAGES, annotations: int = ANNOTATIONS) -> None:
    """Write a COCO annotation file of any size by repeating a small one, with new ids.

    Args:
        path: The file to write.
        mini: The small annotation file.
        images: Number of images.
        annotations: Upper limit of the number of annotations, spread evenly over the images.
    """
    small = json.loads(mini.read_text())
    by_image: dict[int, list[dict]] = {image['id']: [] for image in small['images']}
    for annotation in small['annotations']:
        by_image[annotation['image_id']].append(annotation)

    def original(i: int) -> dict:
        return small['images'][i % len(small['images'])]

    with path.open('w') as file:
        file.write(f'{{"categories": {json.dumps(small["categories"])}, "images": [')
        for i in range(images):
            comma = ', ' if i else ''
            file.write(comma + json.dumps(dict(original(i), id=i + 1, file_name=f'{i + 1:012}.jpg')))
        file.write('], "annotations": [')
        written = 0
        for i in range(images):
            budget = annotations * (i + 1) // images - written
            for annotation in by_image[original(i)['id']][:budget]:
                comma = ', ' if written else ''
                written += 1
                file.write(comma + json.dumps(dict(annotation, id=written, image_id=i + 1)))
        file.write(']}')


def annotation_times(annotations: Path, rounds: int = 5) -> dict[str, list[Start]]:
    """Build a training data set several times, each in a process of its own (Linux only: memory is read from /proc).

    Args:
        annotations: A COCO annotation file in a writable folder.
        rounds: Number of runs with an existing cache.

    Returns:
        Results by name: a process that only imports (one run, 0 seconds), mmdet's ``CocoDataset`` (one run), and
        ``CachedCocoDataset`` without a cache (one run) and with a cache (``rounds`` runs).
    """
    cached = 'CachedCocoDataset'
    return {
        'imports only': [_start('', annotations)],
        'CocoDataset': [_start('CocoDataset', annotations)],
        f'{cached}, first': [_start(cached, annotations)],
        cached: [_start(cached, annotations) for _ in range(rounds)],
    }


def full_size_times(rounds: int = 5) -> dict[str, list[Start]]:
    """Run ``annotation_times`` on a file as large as COCO's, written to a temporary folder (half a GB)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'instances_train2017.json'
        write_full_size(path)
        return annotation_times(path, rounds)


def _start(dataset: str, annotations: Path) -> Start:
    code = 'import sys; from mnv4_mm.bench.reading import build; build(*sys.argv[1:])'
    command = [sys.executable, '-c', code, dataset, str(annotations)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
    return Start(*json.loads(output.splitlines()[-1]))  # mmdet prints lines of its own before


def build(dataset: str, annotations: str) -> None:
    """Build a data set as the configs do, but without a pipeline, and print the cost as a ``Start`` in JSON.

    Args:
        dataset: Name of the data set's class; an empty string to import the packages only.
        annotations: COCO annotation file.
    """
    from mmengine.registry import DATASETS, DefaultScope

    start = time.perf_counter()
    seconds = 0.0
    if dataset:
        with DefaultScope.overwrite_default_scope('mmdet'):
            built = DATASETS.build(
                dict(
                    type=dataset,
                    ann_file=annotations,
                    data_prefix=dict(img='train2017/'),
                    filter_cfg=dict(filter_empty_gt=True, min_size=32),
                )
            )
        built.get_data_info(len(built) - 1)
        seconds = time.perf_counter() - start
    status = Path('/proc/self/status').read_text()
    peak_kib = int(status.split('VmHWM:')[1].split()[0])
    print(json.dumps(Start(seconds, peak_kib / 1024)))
