"""Analysis of class maps: IoU per class, confusion matrix, results per image."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from mnv4_mm.config.data import dataset_split, innermost_dataset
from mnv4_mm.engine.iou import class_map_name, confusion_matrix
from mnv4_mm.images import read_mask
from mnv4_mm.report.content import Confusion, measured
from mnv4_mm.tasks import task_of


class ImageResult(NamedTuple):
    """Result of an image.

    Attributes:
        name: Path of the image relative to the folder of the images.
        iou: Mean IoU over the classes in its ground truth; None if no pixel is labelled.
    """

    name: str
    iou: float | None


class Analysis(NamedTuple):
    """Analysis of the class maps of a test set.

    Attributes:
        counts: Number of pixels of each class in the ground truth.
        scores: ``IoU``, ``precision`` and ``recall`` of each class, in [0, 1]; a value is None if it is not measurable.
        confusion: Confusion matrix in pixels.
        images: Results of each image.
    """

    counts: list[int]
    scores: list[dict[str, float | None]]
    confusion: Confusion
    images: list[ImageResult]


class Masks:
    """Ground truth and predictions of the test set of a config.

    Args:
        cfg: The config.
        class_maps: Folder of the class maps that ``evaluate`` predicted and wrote.
    """

    def __init__(self, cfg: Config, class_maps: Path) -> None:
        dataset = innermost_dataset(cfg.test_dataloader.dataset).copy()
        dataset['pipeline'] = list(task_of(cfg).ground_truth_steps)
        dataset['test_mode'] = True
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            self.dataset = DATASETS.build(dataset)
        self.images = Path(dataset_split(cfg, 'test_dataloader').images)
        self.class_maps = class_maps
        self.classes: tuple[str, ...] = tuple(self.dataset.metainfo['classes'])
        self.palette = [tuple(int(value) for value in colour) for colour in self.dataset.metainfo['palette']]

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        """Return the path of an image relative to the folder of the images."""
        return Path(self.dataset.get_data_info(index)['img_path']).relative_to(self.images).as_posix()

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ground truth and the prediction for an image.

        Returns:
            Two arrays (H, W) uint8 of labels, which are indices into ``classes``. In the ground truth, 255 stands for
            unlabelled pixels.
        """
        with DefaultScope.overwrite_default_scope('mmseg'):
            info: dict[str, Any] = self.dataset[index]
        first = int(bool(info.get('reduce_zero_label')))
        path = class_map_name(Path(info['img_path'])).relative_to(self.images)
        predicted = read_mask(self.class_maps / path)
        return info['gt_seg_map'], predicted - first


def analyse(masks: Masks) -> Analysis:
    """Compute IoU, precision and recall of each class, the confusion matrix, and the mean IoU of each image."""
    total = np.zeros((len(masks.classes),) * 2, np.int64)
    images = []
    for index in range(len(masks)):
        ground_truth, predicted = (torch.from_numpy(labels.astype(np.int64)) for labels in masks[index])
        counts = confusion_matrix(predicted, ground_truth, len(masks.classes))
        occurs = counts.sum(axis=1) > 0
        iou = _iou(counts)[occurs]
        images.append(ImageResult(masks.name(index), float(iou.mean()) if len(iou) else None))
        total += counts
    area, predictions = total.sum(axis=1), total.sum(axis=0)
    with np.errstate(invalid='ignore'):  # 0 / 0 gives NaN for an absent class
        columns = dict(IoU=_iou(total), precision=total.diagonal() / predictions, recall=total.diagonal() / area)
    scores = [{name: measured(values[k]) for name, values in columns.items()} for k in range(len(masks.classes))]
    confusion = Confusion(list(masks.classes), total.tolist(), 'Pixels; those without a label are not counted.')
    return Analysis(area.tolist(), scores, confusion, images)


def count_pixels(masks: Iterable[np.ndarray], classes: Sequence[str]) -> list[int]:
    """Count the pixels of each class.

    Args:
        masks: Masks (H, W) uint8 of labels, which are indices into ``classes``. Other values are not counted.
        classes: Class names.

    Returns:
        Number of pixels of each class over all masks, in the order of ``classes``.
    """
    total = np.zeros(256, np.int64)
    for labels in masks:
        total += np.bincount(labels.ravel(), minlength=256)
    return total[: len(classes)].tolist()


def _iou(counts: np.ndarray) -> np.ndarray:
    """Return the IoU of each class; NaN if it occurs neither in the ground truth nor in the predictions."""
    with np.errstate(invalid='ignore'):
        return counts.diagonal() / (counts.sum(axis=0) + counts.sum(axis=1) - counts.diagonal())
