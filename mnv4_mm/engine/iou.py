"""IoU of segmentation, counted in integers and not rounded."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.registry import METRICS
from prettytable import PrettyTable

from mnv4_mm.engine.overlay import write_class_map
from mnv4_mm.images import IMAGE_SUFFIXES


class ClassAreas(NamedTuple):
    """Numbers of pixels of each class in an image, as three int64 arrays of shape (classes,).

    Attributes:
        intersection: Pixels of a class in both prediction and ground truth.
        predicted: Pixels of a class in the prediction.
        ground_truth: Pixels of a class in the ground truth.
    """

    intersection: np.ndarray
    predicted: np.ndarray
    ground_truth: np.ndarray


@METRICS.register_module()
class ExactIoUMetric(BaseMetric):
    """mmseg's ``IoUMetric`` without rounding, as fractions in [0, 1].

    mmseg counts in float32, which is exact only up to 2^24 pixels per class, and rounds to a hundredth of a percent.
    As in mmseg, pixels whose ground truth is ``ignore_index`` are not counted, a class that occurs neither in the
    ground truth nor in the predictions is left out of the mean, and a class that occurs only in predictions has IoU 0.

    Args:
        ignore_index: Label of unlabelled pixels in the ground truth.
        per_class: Whether to log a table of all classes, and to return the IoU of each class that occurs.
        out_dir: Folder for the predicted class maps. They are palette PNG files whose pixel values are those of the
            masks of the data set. None to write no files.
        image_dir: Folder that contains all images, also in subfolders. A class map has the same path relative to
            ``out_dir`` as its image relative to ``image_dir``, apart from the suffix (see ``class_map_name``). Only
            used with ``out_dir``.
        prefix: Prefix of the names of the metrics; None for no prefix.
        collect_device: Device on which the results of all processes are collected, ``cpu`` or ``gpu``.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        per_class: bool = False,
        out_dir: str | None = None,
        image_dir: str = '',
        prefix: str | None = None,
        collect_device: str = 'cpu',
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index = ignore_index
        self.per_class = per_class
        self.out_dir = out_dir
        self.image_dir = image_dir

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch and, with ``out_dir``, write its class maps.

        Args:
            data_batch: Not used.
            data_samples: ``pred_sem_seg`` and ``gt_sem_seg`` of each image, with (1, H, W) labels as ``data``.

        Raises:
            ValueError: A label of the ground truth is neither a class nor ``ignore_index``, or an image is not in
                ``image_dir``.
            UserError: A class map cannot be written.
        """
        count = len(self.dataset_meta['classes'])
        for sample in data_samples:
            predicted = sample['pred_sem_seg']['data'].squeeze(0)
            ground_truth = sample['gt_sem_seg']['data'].squeeze(0).to(predicted.device)
            self.results.append(class_areas(predicted, ground_truth, count, self.ignore_index))
            if self.out_dir is not None:
                name = class_map_name(Path(sample['img_path'])).relative_to(self.image_dir)
                first = int(bool(sample.get('reduce_zero_label')))
                write_class_map(Path(self.out_dir) / name, predicted, self.dataset_meta['palette'], first)

    def compute_metrics(self, results: list[ClassAreas]) -> dict[str, float]:
        """Compute the metrics of all images from their pixel counts.

        Args:
            results: Pixel counts of each image.

        Returns:
            ``mIoU`` (mean IoU of the classes), ``mAcc`` (mean accuracy of the classes) and ``aAcc`` (accuracy of all
                pixels), in [0, 1]. All three are NaN if no pixel is labelled. ``mIoU`` comes first, because
                ``save_best='auto'`` selects the best checkpoint by the first metric. With ``per_class``,
                ``<class>_IoU`` of each class that occurs follows.
        """
        intersection, predicted, ground_truth = (np.sum(column, axis=0) for column in zip(*results, strict=True))
        names = self.dataset_meta['classes']
        with np.errstate(invalid='ignore'):  # 0 / 0 is NaN: the class is absent
            iou = intersection / (predicted + ground_truth - intersection)
            accuracy = intersection / ground_truth
        labelled = ground_truth.sum()
        overall = float(intersection.sum() / labelled) if labelled else math.nan
        metrics = dict(mIoU=_mean(iou), mAcc=_mean(accuracy), aAcc=overall)
        if self.per_class:
            MMLogger.get_current_instance().info('IoU per class:\n' + class_table(names, iou, accuracy, ground_truth))
            metrics |= {f'{name}_IoU': float(v) for name, v in zip(names, iou, strict=True) if not np.isnan(v)}
        return metrics


def class_map_name(image: Path) -> Path:
    """Return the path of an image with the suffix of its class map, e.g. ``a.png`` for ``a.jpg``.

    If the folder of the image has another image that differs in the suffix only, the result is ``a.jpg.png``, so that
    the two class maps do not overwrite each other.
    """
    others = {image.with_suffix(suffix) for suffix in IMAGE_SUFFIXES} - {image}
    return image.with_name(f'{image.name}.png') if any(map(Path.exists, others)) else image.with_suffix('.png')


def class_areas(
    predicted: torch.Tensor, ground_truth: torch.Tensor, num_classes: int, ignore_index: int = 255
) -> ClassAreas:
    """Count the pixels of each class in an image.

    Args:
        predicted: (H, W) labels from 0 to ``num_classes - 1``.
        ground_truth: (H, W) labels from 0 to ``num_classes - 1``, or ``ignore_index``.
        num_classes: Number of classes.
        ignore_index: Label of pixels that are not counted.

    Raises:
        ValueError: A label of the ground truth is ``num_classes`` or more, and not ``ignore_index``.
    """
    confusion = confusion_matrix(predicted, ground_truth, num_classes, ignore_index)
    return ClassAreas(confusion.diagonal().copy(), confusion.sum(axis=0), confusion.sum(axis=1))


def confusion_matrix(
    predicted: torch.Tensor, ground_truth: torch.Tensor, num_classes: int, ignore_index: int = 255
) -> np.ndarray:
    """Count the pixels of each pair of ground-truth class and predicted class in an image.

    Arguments and errors are those of ``class_areas``.

    Returns:
        (classes, classes) int64. Rows are the classes of the ground truth, columns the predicted classes.
    """
    # Ignored pixels get an index of their own, because removing them would copy both maps. int32 halves the memory
    # traffic; bincount returns int64.
    ignored = ground_truth == ignore_index
    pairs = (ground_truth.int() * num_classes + predicted.int()).masked_fill_(ignored, num_classes**2)
    counts = torch.bincount(pairs.flatten(), minlength=num_classes**2).cpu().numpy()[: num_classes**2]
    if counts.sum() + int(ignored.sum()) != ground_truth.numel():
        raise ValueError(f'the ground truth has a label that is not below the {num_classes} classes')
    return counts.reshape(num_classes, num_classes)


def class_table(names: Sequence[str], iou: np.ndarray, accuracy: np.ndarray, ground_truth: np.ndarray) -> str:
    """Format a text table of each class's IoU, accuracy and share of the labelled pixels.

    Args:
        names: Class names.
        iou: (classes,) in [0, 1]; NaN, which is shown as 'absent', for classes in neither ground truth nor prediction.
        accuracy: (classes,) in [0, 1]; NaN, which is shown as 'absent', for classes that are not in the ground truth.
        ground_truth: (classes,), number of pixels of each class in the ground truth.
    """
    table = PrettyTable(['class', 'IoU', 'accuracy', 'share of pixels'], align='r')
    table.align['class'] = 'l'
    for name, *values in zip(names, iou, accuracy, ground_truth / max(1, ground_truth.sum()), strict=True):
        table.add_row([name, *('absent' if np.isnan(value) else f'{value:.4f}' for value in values)])
    return table.get_string()


def _mean(values: np.ndarray) -> float:
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))
