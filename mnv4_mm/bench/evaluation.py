"""Speed of evaluation: COCO AP of 5,000 images with 100 detections each, and IoU of one image."""

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
from mnv4_mm.engine.coco_metric import FastCocoMetric
from mnv4_mm.engine.iou import class_areas

MINI = Path(__file__).parents[2] / 'data/mini/coco/annotations/instances_train2017.json'


def coco_pairs(images: int = 5000, detections: int = 100) -> list[Pair]:
    """Return pairs that time the computation of COCO AP from arrays of detections.

    Each side is timed once, because pycocotools takes a minute. The time of pycocotools includes the conversion of the
    arrays to COCO's results format. mmdet's metric writes these results to a file, reads them back and calls
    pycocotools.

    Args:
        images: Number of images.
        detections: Number of detections for each image.
    """
    ground_truth, predictions = synthetic_detections(images, detections)
    results: list[tuple[dict, dict]] = [({}, prediction) for prediction in predictions]
    # Reading the ground truth is not measured: it is done once, before the first image.
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        path = f'{folder}/ground_truth.json'
        Path(path).write_text(json.dumps(ground_truth))
        ours, mmdet_metric, coco = FastCocoMetric(path), CocoMetric(path), COCO(path)
    classes = [category['name'] for category in ground_truth['categories']]
    ours.dataset_meta = mmdet_metric.dataset_meta = dict(classes=classes)
    ours.cat_ids = [category['id'] for category in ground_truth['categories']]

    def run_pycocotools() -> None:
        with redirect_stdout(StringIO()):
            evaluation = COCOeval(coco, coco.loadRes(ours.to_coco(predictions)), 'bbox')
            evaluation.params.maxDets = [100, 300, 1000]  # as in mmdet
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()

    def run_mmdet() -> None:
        with redirect_stdout(StringIO()):
            mmdet_metric.compute_metrics(results)

    def run_ours() -> None:
        ours.compute_metrics(results)

    name = f'COCO AP of {images} images x {detections} detections'
    return [
        Pair(f'{name}, against pycocotools', run_ours, run_pycocotools, target=5, rounds=1, warm_up=0),
        Pair(f"{name}, against mmdet's CocoMetric", run_ours, run_mmdet, rounds=1, warm_up=0),
    ]


def iou_pairs(classes: int = 150, sizes: tuple[tuple[int, int], ...] = ((512, 683), (1024, 1024))) -> list[Pair]:
    """Return pairs that time counting the pixels of each class of one image, which IoU is computed from.

    ``class_areas``, which ``ExactIoUMetric`` uses, is timed against mmseg's ``IoUMetric``. There is a pair per size.

    Args:
        classes: Number of classes.
        sizes: Heights and widths of the images in pixels.
    """

    def pair(height: int, width: int) -> Pair:
        # Regions are squares with sides of 32 pixels. 10 % are unlabelled and 30 % are predicted wrongly.
        rng = torch.Generator().manual_seed(0)
        regions = (-(-height // 32), -(-width // 32))
        ground_truth = torch.randint(0, classes, regions, generator=rng)
        wrong = torch.rand(regions, generator=rng) < 0.3
        predicted = torch.where(wrong, torch.randint(0, classes, regions, generator=rng), ground_truth)
        ground_truth[: regions[0] // 10] = 255
        ground_truth, predicted = (
            labels.repeat_interleave(32, 0).repeat_interleave(32, 1)[:height, :width].contiguous()
            for labels in (ground_truth, predicted)
        )
        return Pair(
            f"pixels per class of {height}x{width}, {classes} classes, against mmseg's IoUMetric",
            lambda: class_areas(predicted, ground_truth, classes),
            lambda: IoUMetric.intersect_and_union(predicted, ground_truth, classes, 255),
        )

    return [pair(*size) for size in sizes]


def synthetic_detections(images: int, detections: int, mini: Path = MINI, seed: int = 0) -> tuple[dict, list[dict]]:
    """Make ground truth that resembles COCO's, and detections for it.

    Each image has the annotations of an image of the small data set, moved and scaled; 1 % of the images have none. Up
    to three detections lie near each annotation, and the others anywhere. In every second image, scores are rounded to
    multiples of 1/100, so that many are equal.

    Args:
        images: Number of images.
        detections: Number of detections for each image.
        mini: COCO annotation file of the small data set.
        seed: Seed of the random numbers.

    Returns:
        Ground truth in COCO's format without masks, and for each image the dict that mmdet's ``CocoMetric`` stores:
        ``img_id``, ``bboxes`` (detections, 4) as (x1, y1, x2, y2) in pixels, ``scores`` (both float32) and
        ``labels``.
    """
    rng = np.random.default_rng(seed)
    small = json.loads(mini.read_text())
    by_image = defaultdict(list)
    for annotation in small['annotations']:
        by_image[annotation['image_id']].append(annotation)
    label = {category['id']: i for i, category in enumerate(small['categories'])}
    ground_truth: dict[str, list] = dict(images=[], annotations=[], categories=small['categories'])
    predictions = []
    for image_id in range(1, images + 1):
        original = small['images'][rng.integers(len(small['images']))]
        width, height = original['width'], original['height']
        ground_truth['images'].append(dict(id=image_id, width=width, height=height, file_name=''))
        annotations = by_image[original['id']] if rng.random() > 0.01 else []
        boxes = np.array([annotation['bbox'] for annotation in annotations]).reshape(-1, 4)  # (x, y, width, height)
        scale = np.exp(0.2 * rng.standard_normal((len(annotations), 2)))
        boxes[:, :2] += 0.1 * boxes[:, 2:] * rng.standard_normal((len(annotations), 2))
        boxes[:, 2:] *= scale
        for annotation, box, area_scale in zip(
            annotations, boxes.round(2).tolist(), scale.prod(axis=1).tolist(), strict=True
        ):
            ground_truth['annotations'].append(
                dict(
                    id=len(ground_truth['annotations']) + 1,
                    image_id=image_id,
                    bbox=box,
                    area=annotation['area'] * area_scale,
                    category_id=annotation['category_id'],
                    iscrowd=annotation['iscrowd'],
                )
            )

        near = min(detections, 3 * len(annotations))
        nearest = np.arange(near) % max(1, len(annotations))
        near_boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)[nearest]
        near_boxes += 0.06 * np.tile(boxes[nearest, 2:], 2) * rng.standard_normal((near, 4))
        other_boxes = rng.random((detections - near, 2, 2)) * [width, height]
        other_boxes.sort(axis=1)
        labels = np.array([label[annotation['category_id']] for annotation in annotations], int)
        scores = rng.random(detections)
        predictions.append(
            dict(
                img_id=image_id,
                bboxes=np.concatenate([near_boxes, other_boxes.reshape(-1, 4)]).astype(np.float32),
                labels=np.concatenate([labels[nearest], rng.integers(0, len(label), detections - near)]),
                scores=(scores.round(2) if image_id % 2 else scores).astype(np.float32),
            )
        )
    return ground_truth, predictions
