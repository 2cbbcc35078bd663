"""Speed of evaluation: COCO AP of 5,000 pictures with 100 detections each, and IoU of one picture."""

import json
from collections import defaultdict
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from mmdet.evaluation import CocoMetric
from mmseg.evaluation import IoUMetric
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mnv4_mm.bench.measure import Pair
from mnv4_mm.engine import FastCocoMetric
from mnv4_mm.engine.iou import class_areas

MINI = Path(__file__).parents[2] / 'data/mini/coco/annotations/instances_train2017.json'


def coco_pairs(pictures: int = 5000, detections: int = 100) -> list[Pair]:
    """From detections as a model gives them to COCO's numbers; pycocotools takes a minute a round, so few rounds do.

    pycocotools alone gets the same lists that ours makes of the arrays, made in its own time. mmdet's metric writes
    them to a file, reads that and calls pycocotools.
    """
    truth, found = made_detections(pictures, detections)
    results: list[tuple[dict, dict]] = [({}, one) for one in found]
    # Reading the truth is no part of it: that is done once, before the first picture.
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        path = f'{folder}/truth.json'
        Path(path).write_text(json.dumps(truth))
        ours, mmdets, pycocotools_truth = FastCocoMetric(path), CocoMetric(path), COCO(path)
    ours.dataset_meta = mmdets.dataset_meta = dict(classes=[category['name'] for category in truth['categories']])
    ours.cat_ids = [category['id'] for category in truth['categories']]

    def by_pycocotools() -> None:
        with redirect_stdout(StringIO()):
            evaluation = COCOeval(pycocotools_truth, pycocotools_truth.loadRes(ours.to_coco(found)), 'bbox')
            evaluation.params.maxDets = [100, 300, 1000]  # as mmdet
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()

    def by_mmdet() -> None:
        with redirect_stdout(StringIO()):
            mmdets.compute_metrics(results)

    def by_ours() -> None:
        ours.compute_metrics(results)

    name = f'COCO AP of {pictures} pictures x {detections} detections'
    return [
        Pair(f'{name}, against pycocotools', by_ours, by_pycocotools, wanted=5, rounds=1, warm_up=0),
        Pair(f"{name}, against mmdet's CocoMetric", by_ours, by_mmdet, rounds=1, warm_up=0),
    ]


def iou_pairs(classes: int = 150, sizes: tuple[tuple[int, int], ...] = ((512, 683), (1024, 1024))) -> list[Pair]:
    """Pixels per class of one picture, as ``ExactIoUMetric`` and mmseg's ``IoUMetric`` count them."""

    def pair(height: int, width: int) -> Pair:
        # Squares of 32 pixels: maps are made of regions. A tenth is unlabelled; three regions of ten are wrong.
        rng = torch.Generator().manual_seed(0)
        regions = (-(-height // 32), -(-width // 32))
        truth = torch.randint(0, classes, regions, generator=rng)
        wrong = torch.rand(regions, generator=rng) < 0.3
        predicted = torch.where(wrong, torch.randint(0, classes, regions, generator=rng), truth)
        truth[: regions[0] // 10] = 255
        truth, predicted = (
            labels.repeat_interleave(32, 0).repeat_interleave(32, 1)[:height, :width].contiguous()
            for labels in (truth, predicted)
        )
        return Pair(
            f"pixels per class of {height}x{width}, {classes} classes, against mmseg's IoUMetric",
            lambda: class_areas(predicted, truth, classes),
            lambda: IoUMetric.intersect_and_union(predicted, truth, classes, 255),
        )

    return [pair(*size) for size in sizes]


def made_detections(pictures: int, detections: int, mini: Path = MINI, seed: int = 0) -> tuple[dict, list[dict]]:
    """Ground truth like COCO's, and detections that find some of it.

    A picture has the annotations of one of the small set's, moved and scaled, one in a hundred has none. Three
    detections for each (at most) lie near it; the rest are anywhere. Every second picture's scores are multiples of
    1/100, so that many are equal.

    Args:
        pictures: How many pictures.
        detections: How many detections a picture.
        mini: COCO annotations to take pictures from.
        seed: Of all that is random.

    Returns:
        COCO's ground truth without segmentation, and for each picture what mmdet's ``CocoMetric`` keeps of it:
        ``img_id``, ``bboxes`` (detections, 4) as (x1, y1, x2, y2) and ``scores``, both float32, and ``labels``.
    """
    rng = np.random.default_rng(seed)
    small = json.loads(mini.read_text())
    by_image = defaultdict(list)
    for annotation in small['annotations']:
        by_image[annotation['image_id']].append(annotation)
    label = {category['id']: i for i, category in enumerate(small['categories'])}
    truth: dict[str, list] = dict(images=[], annotations=[], categories=small['categories'])
    found = []
    for image_id in range(1, pictures + 1):
        model = small['images'][rng.integers(len(small['images']))]
        truth['images'].append(dict(id=image_id, width=model['width'], height=model['height'], file_name=''))
        here = by_image[model['id']] if rng.random() > 0.01 else []
        boxes = np.array([annotation['bbox'] for annotation in here]).reshape(-1, 4)
        scale = np.exp(0.2 * rng.standard_normal((len(here), 2)))
        boxes[:, :2] += 0.1 * boxes[:, 2:] * rng.standard_normal((len(here), 2))
        boxes[:, 2:] *= scale
        for annotation, box, bigger in zip(here, boxes.round(2).tolist(), scale.prod(axis=1).tolist(), strict=True):
            own = dict(id=len(truth['annotations']) + 1, image_id=image_id, bbox=box, area=annotation['area'] * bigger)
            truth['annotations'].append(own | {key: annotation[key] for key in ('category_id', 'iscrowd')})

        near = min(detections, 3 * len(here))
        of = np.arange(near) % max(1, len(here))
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)[of]
        corners += 0.06 * np.tile(boxes[of, 2:], 2) * rng.standard_normal((near, 4))
        anywhere = rng.random((detections - near, 2, 2)) * [model['width'], model['height']]
        anywhere.sort(axis=1)
        labels = np.array([label[annotation['category_id']] for annotation in here], int)
        scores = rng.random(detections)
        found.append(
            dict(
                img_id=image_id,
                bboxes=np.concatenate([corners, anywhere.reshape(-1, 4)]).astype(np.float32),
                labels=np.concatenate([labels[of], rng.integers(0, len(label), detections - near)]),
                scores=(scores.round(2) if image_id % 2 else scores).astype(np.float32),
            )
        )
    return truth, found
