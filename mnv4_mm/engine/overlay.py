"""Hooks that draw the images of a test, and class maps of tensors as PNG files."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mnv4_mm.images import read_image, write_image
from mnv4_mm.runtime import writer
from mnv4_mm.runtime.draw import draw_boxes, overlay, with_legend
from mnv4_mm.runtime.results import ClassMap, class_map_type


class DrawingHook(Hook):
    """Draw the images of a test: ground truth on the left, prediction on the right. Each process draws its share.

    Args:
        draw: Whether to draw.
        test_out_dir: Folder to write to.
        image_dir: Folder that all images are in. Paths relative to it are kept in ``test_out_dir``.
    """

    def __init__(self, draw: bool = False, test_out_dir: str = '', image_dir: str = '') -> None:
        self.draw = draw
        self.out_dir = Path(test_out_dir)
        self.image_dir = image_dir

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        if not self.draw:
            return
        meta = runner.test_loop.dataloader.dataset.metainfo
        for sample in outputs or ():
            path = Path(sample.img_path)
            write_image(self.out_dir / path.relative_to(self.image_dir), self.drawn(read_image(path), sample, meta))

    @abstractmethod
    def drawn(self, image: np.ndarray, sample: Any, meta: dict[str, Any]) -> np.ndarray:
        """Return an image with its ground truth on the left and its prediction on the right.

        Args:
            image: (H, W, 3) uint8 BGR.
            sample: Data sample of the image, with ground truth and prediction.
            meta: Metadata of the data set.

        Returns:
            (H', W', 3) uint8 BGR.
        """


@HOOKS.register_module()
class OverlayHook(DrawingHook):
    """Draw class maps, and a legend of the classes that occur.

    mmseg's hook and visualizer write the class names onto the class map, warn at every run that does not draw, and
    write all images into one folder.
    """

    def drawn(self, image: np.ndarray, sample: Any, meta: dict[str, Any]) -> np.ndarray:
        classes, palette = meta['classes'], meta['palette']
        parts = (sample.gt_sem_seg, sample.pred_sem_seg)
        class_maps = [to_class_map(part.data, len(classes)) for part in parts]
        halves = np.hstack([overlay(image, class_map, palette) for class_map in class_maps])
        return with_legend(halves, class_maps, classes, palette)


@HOOKS.register_module()
class BoxesHook(DrawingHook):
    """Draw boxes with the names of their classes, and the scores of predictions of at least 0.3.

    mmdet's hook writes all images into one folder, where images of the same name overwrite each other, and its
    visualizer draws with matplotlib, which takes ``$`` in class names for a formula (matplotlib/matplotlib#20266).
    """

    score_thr = 0.3

    def drawn(self, image: np.ndarray, sample: Any, meta: dict[str, Any]) -> np.ndarray:
        truth, found = sample.gt_instances, sample.pred_instances
        found = found[found.scores >= self.score_thr]
        left = image
        if 'bboxes' in truth:  # missing if the pipeline loads no annotations
            boxes = getattr(truth.bboxes, 'tensor', truth.bboxes)  # mmdet's box type, or a tensor
            left = draw_boxes(image, boxes.cpu().numpy(), truth.labels.cpu().numpy(), None, meta['classes'])
        right = draw_boxes(
            image,
            found.bboxes.cpu().numpy(),
            found.labels.cpu().numpy(),
            found.scores.cpu().numpy(),
            meta['classes'],
        )
        return np.hstack([left, right])


def to_class_map(data: torch.Tensor, classes: int) -> np.ndarray:
    """Convert a (1, H, W) tensor of labels to (H, W) uint8, or int32 for more than 256 classes."""
    return data.squeeze(0).cpu().numpy().astype(class_map_type(classes))


def write_class_map(path: Path, predicted: torch.Tensor, palette: Sequence[Sequence[int]], first: int) -> None:
    """Write labels as a palette PNG in the colours of the classes.

    Args:
        path: File to write; folders are made.
        predicted: (H, W) labels.
        palette: RGB of each label, 0 to 255.
        first: Value of the first class in the file: 1 if 0 means unlabelled in the masks of the data, else 0.
    """
    labels = to_class_map(predicted[None], len(palette))
    writer.write_class_map(path, ClassMap(labels, palette=palette, first_value=first))
