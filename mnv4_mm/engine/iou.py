"""IoU of segmentation, counted in whole numbers and not rounded."""

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


class Areas(NamedTuple):
    """Pixels per class, (classes,) int64 each: where both are it, where the prediction is, where the truth is."""

    both: np.ndarray
    predicted: np.ndarray
    truth: np.ndarray


@METRICS.register_module()
class ExactIoUMetric(BaseMetric):
    """What mmseg's ``IoUMetric`` measures, as fractions in [0, 1].

    mmseg counts in float32, which is exact up to 2^24 pixels a class only, and rounds to a hundredth of a percent.
    As there, pixels whose truth is ``ignore_index`` do not count, a class that neither truth nor prediction has is left
    out of the mean, and one that is predicted but not there counts with IoU 0.

    Args:
        ignore_index: Value of unlabelled pixels in the truth.
        per_class: Print a table of the classes, and return the IoU of those that are not absent.
        out_dir: Folder for the predicted class maps as indexed PNG files; their values are those of the data's masks.
        pictures: Folder of the pictures: a map's name in ``out_dir`` is its picture's, relative to it.
        prefix: Put before the metrics' names.
        collect_device: See mmengine.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        per_class: bool = False,
        out_dir: str | None = None,
        pictures: str = '',
        prefix: str | None = None,
        collect_device: str = 'cpu',
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index = ignore_index
        self.per_class = per_class
        self.out_dir = out_dir
        self.pictures = pictures

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Counts the pixels of a batch: ``pred_sem_seg`` and ``gt_sem_seg`` of each sample are (1, H, W) labels."""
        count = len(self.dataset_meta['classes'])
        for sample in data_samples:
            predicted = sample['pred_sem_seg']['data'].squeeze(0)
            truth = sample['gt_sem_seg']['data'].squeeze(0).to(predicted.device)
            self.results.append(areas(predicted, truth, count, self.ignore_index))
            if self.out_dir is not None:
                name = Path(sample['img_path']).relative_to(self.pictures).with_suffix('.png')
                first = int(bool(sample.get('reduce_zero_label')))
                write_class_map(Path(self.out_dir) / name, predicted, self.dataset_meta['palette'], first)

    def compute_metrics(self, results: list[Areas]) -> dict[str, float]:
        """Mean IoU first, by which the best checkpoint is chosen; then mean and overall accuracy; NaN where absent."""
        both, predicted, truth = (np.sum(column, axis=0) for column in zip(*results, strict=True))
        names = self.dataset_meta['classes']
        with np.errstate(invalid='ignore'):  # 0 / 0 is NaN: the class is absent
            iou = both / (predicted + truth - both)
            accuracy = both / truth
        metrics = dict(
            mIoU=_mean(iou), mAcc=_mean(accuracy), aAcc=float(both.sum() / truth.sum()) if truth.sum() else math.nan
        )
        if self.per_class:
            MMLogger.get_current_instance().info('IoU per class:\n' + class_table(names, iou, accuracy, truth))
            metrics |= {f'{name}_IoU': float(v) for name, v in zip(names, iou, strict=True) if not np.isnan(v)}
        return metrics


def areas(predicted: torch.Tensor, truth: torch.Tensor, num_classes: int, ignore_index: int = 255) -> Areas:
    """Pixels per class of one picture; both (H, W) of labels 0 to ``num_classes`` - 1.

    Raises:
        ValueError: a label that counts is larger.
    """
    # Unlabelled pixels are counted apart, for to take them out copies both maps. int32 is half the memory to walk
    # through; the counts are int64.
    ignored = truth == ignore_index
    pairs = (truth.int() * num_classes + predicted.int()).masked_fill_(ignored, num_classes**2)
    known = torch.bincount(pairs.flatten(), minlength=num_classes**2).cpu().numpy()[: num_classes**2]
    if known.sum() + int(ignored.sum()) != truth.numel():
        raise ValueError(f'a label of the truth is not below the {num_classes} classes')
    confusion = known.reshape(num_classes, num_classes)  # (truth, prediction)
    return Areas(confusion.diagonal().copy(), confusion.sum(axis=0), confusion.sum(axis=1))


def class_table(names: Sequence[str], iou: np.ndarray, accuracy: np.ndarray, truth: np.ndarray) -> str:
    """Text table of IoU, accuracy and share of the labelled pixels; classes the data does not have say 'absent'."""
    table = PrettyTable(['class', 'IoU', 'accuracy', 'share of pixels'], align='r')
    table.align['class'] = 'l'
    for name, *values in zip(names, iou, accuracy, truth / max(1, truth.sum()), strict=True):
        table.add_row([name, *('absent' if np.isnan(value) else f'{value:.4f}' for value in values)])
    return table.get_string()


def _mean(values: np.ndarray) -> float:
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))
