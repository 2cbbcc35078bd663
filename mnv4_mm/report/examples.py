"""The best and worst evaluated images, drawn with the ground truth on the left and the predictions on the right."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mnv4_mm.images import read_image, write_image
from mnv4_mm.report import class_maps, detections
from mnv4_mm.report.content import Example
from mnv4_mm.runtime.draw import draw_boxes, overlay, palette

COUNT = 4  # best and worst images each
SIDE = 420  # largest side of an image in pixels: a drawn pair takes about 60 KB as JPEG
GAP = 8  # pixels between the two images of a pair


def draw_detections(
    results: Sequence[detections.ImageResult], images: Path, classes: Sequence[str], folder: Path
) -> list[Example]:
    """Draw the images with the best and the worst F1 into ``images/`` of the report, whose earlier content is deleted.

    Of images with equal F1, the best are those with most correct detections, and the worst those with most mistakes.

    Args:
        results: Results of the images.
        images: Folder of the images.
        classes: Class names.
        folder: Folder of the report.

    Returns:
        At most ``COUNT`` best and then at most ``COUNT`` worst images. The best need a correct detection, and the worst
        a mistake. No image is in both.
    """
    colours = palette(len(classes))

    def draw(result: detections.ImageResult) -> tuple[np.ndarray, str, list[int]]:
        image, factor = _small(read_image(images / result.name))
        left = draw_boxes(image, result.boxes * factor, result.labels, None, classes)
        right = draw_boxes(image, result.detected * factor, result.detected_labels, result.scores, classes)
        text = f'{result.correct} correct, {result.wrong} wrong, {result.missed} missed'
        return _beside(left, right), text, np.union1d(result.labels, result.detected_labels).tolist()

    def f1(result: detections.ImageResult) -> float:
        mistakes = result.wrong + result.missed
        return 2 * result.correct / (2 * result.correct + mistakes) if result.correct + mistakes else 1.0

    best = sorted((one for one in results if one.correct), key=lambda one: (-f1(one), -one.correct, one.name))
    worst = sorted(
        (one for one in results if one.wrong + one.missed),
        key=lambda one: (f1(one), -one.wrong - one.missed, one.name),
    )
    return _write(best, worst, draw, folder, classes, colours)


def draw_class_maps(results: Sequence[class_maps.ImageResult], masks: class_maps.Masks, folder: Path) -> list[Example]:
    """Draw the images with the best and the worst mean IoU.

    They are written to ``images/`` of the report, whose earlier content is deleted.

    Args:
        results: Results of the images, in the order of ``masks``.
        masks: Ground truth and predictions.
        folder: Folder of the report.

    Returns:
        At most ``COUNT`` best and then at most ``COUNT`` worst of the images with labelled pixels. No image is in both.
    """
    order = {result.name: index for index, result in enumerate(results)}

    def draw(result: class_maps.ImageResult) -> tuple[np.ndarray, str, list[int]]:
        ground_truth, predicted = masks[order[result.name]]
        image, _ = _small(read_image(masks.images / result.name))
        size = image.shape[1::-1]
        labels = [cv2.resize(one, size, interpolation=cv2.INTER_NEAREST_EXACT) for one in (ground_truth, predicted)]
        left, right = (overlay(image, one, masks.palette) for one in labels)
        present = [label for label in np.unique(labels).tolist() if label < len(masks.classes)]
        return _beside(left, right), f'mean IoU {result.iou:.3f}', present

    labelled = [(one.iou, one) for one in results if one.iou is not None]
    best = [one for _, one in sorted(labelled, key=lambda pair: (-pair[0], pair[1].name))]
    return _write(best, best[::-1], draw, folder, masks.classes, masks.palette)


def _write(
    best: Sequence[Any],
    worst: Sequence[Any],
    draw: Any,
    folder: Path,
    classes: Sequence[str],
    colours: Sequence[Sequence[int]],
) -> list[Example]:
    """Draw images and write them into an emptied folder. One among the best is not repeated among the worst."""
    target = folder / 'images'
    shutil.rmtree(target, ignore_errors=True)  # of an earlier report
    shown = best[:COUNT]
    rest = [one for one in worst if one.name not in {other.name for other in shown}][:COUNT]
    examples = []
    for kind, results in (('best', shown), ('worst', rest)):
        for number, result in enumerate(results, 1):
            pixels, text, labels = draw(result)
            path = Path('images') / f'{kind}_{number}.jpg'
            write_image(folder / path, pixels)
            legend = [(str(classes[label]), _rgb(colours[label])) for label in labels]
            examples.append(Example(kind, result.name, text, path.as_posix(), legend))
    return examples


def _rgb(colour: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in colour)
    return red, green, blue


def _small(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Scale an image down to sides of at most ``SIDE`` pixels, and return it with the scale factor."""
    factor = min(1.0, SIDE / max(image.shape[:2]))
    size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
    return (cv2.resize(image, size, interpolation=cv2.INTER_AREA) if factor < 1 else image), factor


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    gap = np.full((len(left), GAP, 3), 255, np.uint8)
    return np.hstack([left, gap, right])
