"""How long a start of training waits for annotations of COCO's size, and what memory it takes."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

MINI = Path(__file__).parents[2] / 'data/mini/coco/annotations/instances_train2017.json'
# Of COCO's instances_train2017.json, which has 448 MB.
IMAGES, ANNOTATIONS = 118_287, 860_001


class Start(NamedTuple):
    """What one process needed.

    Attributes:
        seconds: To build the data set; imports are not counted.
        peak_mib: Most resident memory of the process, imports included, in MiB.
    """

    seconds: float
    peak_mib: float


def write_full_size(path: Path, mini: Path = MINI, images: int = IMAGES, annotations: int = ANNOTATIONS) -> None:
    """Writes a COCO annotation file of any size: pictures and annotations of a small one over and over, with own ids.

    Args:
        path: Where to.
        mini: The small one.
        images: How many pictures.
        annotations: At most so many annotations, spread evenly.
    """
    small = json.loads(mini.read_text())
    of_image: dict[int, list[dict]] = {image['id']: [] for image in small['images']}
    for annotation in small['annotations']:
        of_image[annotation['image_id']].append(annotation)

    def model(i: int) -> dict:
        return small['images'][i % len(small['images'])]

    with path.open('w') as file:
        file.write(f'{{"categories": {json.dumps(small["categories"])}, "images": [')
        for i in range(images):
            comma = ', ' if i else ''
            file.write(comma + json.dumps(dict(model(i), id=i + 1, file_name=f'{i + 1:012}.jpg')))
        file.write('], "annotations": [')
        written = 0
        for i in range(images):
            budget = annotations * (i + 1) // images - written
            for annotation in of_image[model(i)['id']][:budget]:
                comma = ', ' if written else ''
                written += 1
                file.write(comma + json.dumps(dict(annotation, id=written, image_id=i + 1)))
        file.write(']}')


def annotation_times(annotations: Path, rounds: int = 5) -> dict[str, list[Start]]:
    """Builds a training data set again and again, each time in a process of its own (Linux: peaks are from /proc).

    Args:
        annotations: A COCO annotation file in a folder that can be written.
        rounds: How often with the cache.

    Returns:
        Starts of mmdet's ``CocoDataset`` (one), of ``CachedCocoDataset`` that writes its cache (one), that finds it
        (``rounds``), and of a process that only imports (one, in 0 seconds).
    """
    cached = 'CachedCocoDataset'
    return {
        'imports only': [_start('', annotations)],
        'CocoDataset': [_start('CocoDataset', annotations)],
        f'{cached}, first': [_start(cached, annotations)],
        cached: [_start(cached, annotations) for _ in range(rounds)],
    }


def full_size_times(rounds: int = 5) -> dict[str, list[Start]]:
    """``annotation_times`` of a file of COCO's size, made in a temporary folder (half a GB)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'instances_train2017.json'
        write_full_size(path)
        return annotation_times(path, rounds)


def _start(dataset: str, annotations: Path) -> Start:
    code = 'import sys; from mnv4_mm.bench.reading import build; build(*sys.argv[1:])'
    command = [sys.executable, '-c', code, dataset, str(annotations)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
    return Start(*json.loads(output.splitlines()[-1]))  # mmdet's own lines come before


def build(dataset: str, annotations: str) -> None:
    """Builds a data set as the configs do, with nothing to load from its pictures, and prints a ``Start`` as JSON."""
    from mmengine.registry import DATASETS, DefaultScope

    begin = time.perf_counter()
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
        seconds = time.perf_counter() - begin
    status = Path('/proc/self/status').read_text()
    peak_kib = int(status.split('VmHWM:')[1].split()[0])
    print(json.dumps(Start(seconds, peak_kib / 1024)))
