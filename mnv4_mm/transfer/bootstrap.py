"""Bootstrap over the test images, which estimates how much a score depends on the choice of these images.

``RESAMPLES`` samples are drawn from the test images with replacement, and the metric is computed on each sample from
the predictions of a run. All runs of a protocol are scored on the same samples. Two nets are compared sample by sample,
so that images which are difficult for both do not affect the comparison.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from mnv4_mm.quiet import READING_ANNOTATIONS, without_lines

RESAMPLES = 100
SEED = 0


def count_blocks(images: int, block: int) -> int:
    """Return the number of blocks in a sample, the last of which may be shortened, see ``draw_samples``."""
    return -(-images // block)


def draw_samples(images: int, block: int = 1, resamples: int = RESAMPLES) -> np.ndarray:
    """Draw bootstrap samples of images (circular block bootstrap).

    A sample consists of blocks of successive images, which are drawn with replacement. A block that reaches the last
    image continues with the first one. The last block is shortened if necessary, so that each sample has as many images
    as there are, repeated ones included. The same arguments always give the same samples.

    Args:
        images: Number of images.
        block: Number of images in a block: 1 to draw each image independently, more for the frames of a video, which
            resemble their neighbours.
        resamples: Number of samples.

    Returns:
        (resamples, images) int: how often each image is in each sample.
    """
    random = np.random.default_rng(SEED)
    starts = random.integers(images, size=(resamples, count_blocks(images, block)))
    drawn = ((starts[..., None] + np.arange(block)) % images).reshape(resamples, -1)[:, :images]
    return np.array([np.bincount(sample, minlength=images) for sample in drawn])


def mean_iou(confusion: np.ndarray) -> np.ndarray:
    """Return the mean IoU of each of a number of confusion matrices.

    Classes that are neither in the ground truth nor predicted are left out of the mean.

    Args:
        confusion: (..., classes, classes), numbers of pixels, with the ground truth in rows and the prediction in
            columns.

    Returns:
        (...), the mean IoU in [0, 1]; NaN for a matrix without pixels.
    """
    intersection = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    union = confusion.sum(-1) + confusion.sum(-2) - intersection
    iou = np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)
    return np.nanmean(iou, axis=-1)


def resampled_iou(confusion: np.ndarray, block: int = 1) -> list[float]:
    """Return the mean IoU on each bootstrap sample of the test images.

    Args:
        confusion: (images, classes, classes), a confusion matrix for each image, with the ground truth in rows.
        block: See ``draw_samples``.

    Returns:
        ``RESAMPLES`` values in [0, 1].
    """
    samples = draw_samples(len(confusion), block)
    return mean_iou(np.tensordot(samples, confusion, axes=1)).tolist()


def average_precision(ground_truth: Path, detections: Path) -> float:
    """Return COCO's AP of boxes at IoU 0.50:0.95, in [0, 1]; 0 if there are no detections.

    Args:
        ground_truth: Annotations in COCO's format.
        detections: Detections in COCO's result format.
    """
    coco, found = json.loads(ground_truth.read_bytes()), json.loads(detections.read_bytes())
    numbers = _in_order(coco)
    return _average_precision(coco, found, numbers, np.ones(len(numbers), int))


def resampled_ap(ground_truth: Path, detections: Path, block: int = 1) -> list[float]:
    """Return COCO's AP on each bootstrap sample of the test images, see ``average_precision``.

    Args:
        ground_truth: Annotations in COCO's format.
        detections: Detections in COCO's result format.
        block: See ``draw_samples``. Successive images are those whose file names follow each other in sorted order.

    Returns:
        ``RESAMPLES`` values in [0, 1].
    """
    coco, found = json.loads(ground_truth.read_bytes()), json.loads(detections.read_bytes())
    numbers = _in_order(coco)
    return [_average_precision(coco, found, numbers, counts) for counts in draw_samples(len(numbers), block)]


def _in_order(coco: dict) -> list[int]:
    """Return the ids of the images, in the order of their names."""
    return [image['id'] for image in sorted(coco['images'], key=lambda image: image['file_name'])]


def _average_precision(coco: dict, found: list[dict], numbers: Sequence[int], counts: np.ndarray) -> float:
    copies: dict[int, list[int]] = {}
    new = 0
    for number, count in zip(numbers, counts.tolist(), strict=True):
        copies[number] = list(range(new + 1, new + count + 1))
        new += count
    annotations = [
        dict(annotation, image_id=copy) for annotation in coco['annotations'] for copy in copies[annotation['image_id']]
    ]
    detections = [dict(one, image_id=copy) for one in found for copy in copies[one['image_id']]]
    if not detections:
        return 0.0
    images = [dict(image, id=copy) for image in coco['images'] for copy in copies[image['id']]]
    annotations = [dict(annotation, id=i) for i, annotation in enumerate(annotations, 1)]
    with without_lines(READING_ANNOTATIONS):
        api = COCO(dict(images=images, annotations=annotations, categories=coco['categories']))
        evaluation = COCOeval_faster(api, api.loadRes(detections), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        precision = evaluation.eval['precision'][:, :, :, 0, -1]
    return float(precision[precision > -1].mean())
