"""Analysis of detections: AP per class, precision-recall curves, confusion matrix, results per image.

Matches and AP are computed by faster-coco-eval.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from mnv4_mm.engine.ground_truth import read_ground_truth
from mnv4_mm.report.content import Confusion, Points, measured

IOU = 0.5  # from which on a detection matches a box
BACKGROUND = 'background'
# Detections per image and class, as in FastCocoMetric and mmdet: the AP of a class is that of the last number.
MAX_DETECTIONS = [100, 300, 1000]
KEYS = ('image_id', 'category_id', 'bbox', 'score')


class ImageResult(NamedTuple):
    """Detections of an image at the score threshold of the analysis.

    Attributes:
        name: Path of the image relative to the folder of the images.
        correct: Number of detections that match a box of their class, with an IoU of at least 0.5.
        wrong: Number of detections without a match.
        missed: Number of boxes without a match.
        boxes: Boxes of the ground truth, (N, 4) as (x1, y1, x2, y2) in pixels.
        labels: Labels of ``boxes``, (N,).
        detected: Detected boxes, (K, 4) as (x1, y1, x2, y2) in pixels, by descending score.
        detected_labels: Labels of ``detected``, (K,).
        scores: Scores of ``detected``, (K,).
    """

    name: str
    correct: int
    wrong: int
    missed: int
    boxes: np.ndarray
    labels: np.ndarray
    detected: np.ndarray
    detected_labels: np.ndarray
    scores: np.ndarray


class Analysis(NamedTuple):
    """Analysis of the detections of a test set.

    Attributes:
        counts: Number of boxes of each class, without groups (crowds).
        scores: ``AP``, ``AP50`` and ``AP75`` of each class, and ``precision`` and ``recall`` at ``threshold``, in
            [0, 1]; a value is None if it is not measurable.
        precision_recall: Points (recall, precision) at IoU 0.5, by class name.
        threshold: Score threshold with the best F1 at IoU 0.5 over all boxes; None if no detection is correct.
        confusion: Confusion matrix of the detections with a score of at least ``threshold``, or 0.3 if it is None.
        images: Results of each image at the same score threshold as ``confusion``.
    """

    counts: list[int]
    scores: list[dict[str, float | None]]
    precision_recall: dict[str, Points]
    threshold: float | None
    confusion: Confusion
    images: list[ImageResult]


def analyse(annotations: Path, detections: Sequence[dict], classes: Sequence[str]) -> Analysis:
    """Compare detections with the ground truth.

    Args:
        annotations: Ground truth in COCO's format.
        detections: Detections in COCO's results format: dicts with ``image_id``, ``category_id``, ``bbox`` [x, y,
            width, height] in pixels, and ``score``. The list may be empty.
        classes: Names of the categories in the order of labels.
    """
    ground_truth = read_ground_truth(annotations)
    ids = {category['name']: category['id'] for category in ground_truth.dataset['categories']}
    category_ids = [ids[name] for name in classes]
    counts = [0] * len(classes)
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    for box in ground_truth.anns.values():
        if box['category_id'] in labels and not box.get('iscrowd'):
            counts[labels[box['category_id']]] += 1
    detections = [dict(one) for one in detections]  # faster-coco-eval adds keys
    found = ground_truth.loadRes(detections) if detections else None

    scores, curves = _average_precision(ground_truth, found, category_ids, classes, counts)
    threshold, at_best = _best_threshold(ground_truth, found, counts, labels)
    for row, values in zip(scores, at_best, strict=True):
        row.update(values)
    limit = 0.3 if threshold is None else threshold
    confusion = _confusion(ground_truth, found, limit, labels, classes)
    images = _images(ground_truth, found, limit, labels)
    return Analysis(counts, scores, curves, threshold, confusion, images)


def _average_precision(
    ground_truth: COCO, found: COCO | None, category_ids: list[int], classes: Sequence[str], counts: list[int]
) -> tuple[list[dict[str, float | None]], dict[str, Points]]:
    if found is None:
        return [dict.fromkeys(('AP', 'AP50', 'AP75'), 0.0 if count else None) for count in counts], {}
    evaluation = COCOeval_faster(ground_truth, found, 'bbox')
    evaluation.params.catIds, evaluation.params.maxDets = category_ids, MAX_DETECTIONS
    evaluation.evaluate()
    evaluation.accumulate()
    # (IoU, recall, class) with the last of maxDets; -1 without ground truth. COCOeval sorts the classes by id.
    precision = evaluation.eval['precision'][..., 0, -1]
    order = [list(evaluation.params.catIds).index(category_id) for category_id in category_ids]
    thresholds, recalls = evaluation.params.iouThrs, evaluation.params.recThrs
    scores, curves = [], {}
    for name, k in zip(classes, order, strict=True):
        at = {iou: precision[int(np.argmin(abs(thresholds - iou))), :, k] for iou in (0.5, 0.75)}
        scores.append(
            dict(AP=measured(precision[..., k].mean()), AP50=measured(at[0.5].mean()), AP75=measured(at[0.75].mean()))
        )
        if at[0.5].min() >= 0:
            curves[name] = [(round(float(x), 4), round(float(y), 4)) for x, y in zip(recalls, at[0.5], strict=True)]
    return scores, curves


def _best_threshold(
    ground_truth: COCO, found: COCO | None, counts: list[int], labels: dict[int, int]
) -> tuple[float | None, list[dict[str, float | None]]]:
    """Return the score threshold with the best F1, and the precision and recall of each class at this threshold."""
    total = sum(counts)
    nothing: list[dict[str, float | None]] = [{'precision': None, 'recall': 0.0 if count else None} for count in counts]
    if found is None or not total:
        return None, nothing
    matches = sorted(_matches(ground_truth, found, 0.0, use_categories=True), key=lambda one: -one['score'])
    scores = np.array([one['score'] for one in matches])
    is_correct = np.array(['gt_id' in one for one in matches], bool)
    classes = np.array([labels[one['category_id']] for one in matches], int)
    if not is_correct.any():
        return None, nothing
    # F1 = 2 correct / (detections + boxes). Only the last of several equal scores is a candidate: a threshold includes
    # all of them.
    f1 = 2 * np.cumsum(is_correct) / (np.arange(1, len(scores) + 1) + total)
    is_last = np.append(scores[1:] < scores[:-1], True)
    threshold = float(scores[np.argmax(np.where(is_last, f1, -1))])
    result: list[dict[str, float | None]] = []
    for label, count in enumerate(counts):
        hits = is_correct[(classes == label) & (scores >= threshold)]
        result.append(
            {
                'precision': float(hits.mean()) if len(hits) else None,
                'recall': float(hits.sum() / count) if count else None,
            }
        )
    return threshold, result


def _matches(ground_truth: COCO, found: COCO, min_score: float, use_categories: bool) -> list[dict]:
    """Return the detections, with ``gt_id`` if they match a box. Those that match a group (crowd) are left out.

    Args:
        ground_truth: The boxes.
        found: The detections.
        min_score: Detections with lower scores are left out.
        use_categories: Match detections only with boxes of their class.
    """
    kept = [one for one in found.dataset['annotations'] if one['score'] >= min_score]
    if not kept:
        return []
    found = ground_truth.loadRes([{key: one[key] for key in KEYS} for one in kept])
    evaluation = COCOeval_faster(ground_truth, found, 'bbox', extra_calc=True)
    params = evaluation.params
    params.iouThrs, params.areaRng, params.areaRngLbl = np.array([IOU]), [[0, 1e10]], ['all']
    params.maxDets, params.useCats = [len(kept)], int(use_categories)
    evaluation.evaluate()
    evaluation.accumulate()
    boxes = ground_truth.anns
    return [one for one in found.anns.values() if 'gt_id' not in one or not boxes[one['gt_id']].get('iscrowd')]


def _confusion(
    ground_truth: COCO, found: COCO | None, threshold: float, labels: dict[int, int], classes: Sequence[str]
) -> Confusion:
    """Match boxes and detections regardless of class, and count the pairs; the unmatched are paired with background."""
    background = len(classes)
    matrix = np.zeros((background + 1, background + 1), int)
    matched = set()
    if found is not None:
        for one in _matches(ground_truth, found, threshold, use_categories=False):
            row = background
            if 'gt_id' in one:
                matched.add(one['gt_id'])
                row = labels.get(ground_truth.anns[one['gt_id']]['category_id'], background)
            matrix[row, labels[one['category_id']]] += 1
    for box_id, box in ground_truth.anns.items():
        if box_id not in matched and box['category_id'] in labels and not box.get('iscrowd'):
            matrix[labels[box['category_id']], background] += 1
    rule = (
        f'Boxes and detections with a score of at least {threshold:.2f} are paired from IoU {IOU} on, the best '
        f'detection first. {BACKGROUND.capitalize()} stands for no object, or no detection.'
    )
    return Confusion([*classes, BACKGROUND], matrix.tolist(), rule)


def _images(ground_truth: COCO, found: COCO | None, threshold: float, labels: dict[int, int]) -> list[ImageResult]:
    detected: dict[int, list[dict]] = {}
    if found is not None:
        for one in _matches(ground_truth, found, threshold, use_categories=True):
            detected.setdefault(one['image_id'], []).append(one)
    results = []
    for image_id, info in ground_truth.imgs.items():
        boxes = [
            box
            for box in ground_truth.imgToAnns.get(image_id, [])
            if box['category_id'] in labels and not box.get('iscrowd')
        ]
        here = sorted(detected.get(image_id, []), key=lambda one: -one['score'])
        correct = sum('gt_id' in one for one in here)
        results.append(
            ImageResult(
                info['file_name'],
                correct,
                len(here) - correct,
                len(boxes) - correct,
                _corners(boxes),
                np.array([labels[box['category_id']] for box in boxes], int),
                _corners(here),
                np.array([labels[one['category_id']] for one in here], int),
                np.array([one['score'] for one in here], float),
            )
        )
    return results


def _corners(boxes: Sequence[dict]) -> np.ndarray:
    corners = np.array([box['bbox'] for box in boxes], float).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return corners
