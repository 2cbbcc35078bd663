"""Hooks that draw ground truth and predictions on test images, and functions that write class maps of tensors."""

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
    """Base class of hooks that draw each test image twice: ground truth on the left, prediction on the right.

    In distributed tests, each process draws the images that it evaluates.

    Args:
        draw: Whether to draw. If False, the hook does nothing.
        test_out_dir: Folder to write the drawn images to.
        image_dir: Folder that contains all images, also in subfolders. A drawn image has the same path relative to
            ``test_out_dir`` as its image relative to ``image_dir``.
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
        """Draw an image with its ground truth on the left and its prediction on the right.

        Args:
            image: (H, W, 3) uint8 BGR.
            sample: Data sample of the image, with ground truth and prediction.
            meta: Metadata of the data set, with ``classes`` and, for class maps, ``palette``.

        Returns:
            (H', W', 3) uint8 BGR, where W' is at least 2 W.
        """


@HOOKS.register_module()
class OverlayHook(DrawingHook):
    """Hook that draws class maps over the test images, with a legend of the classes that occur.

    mmseg's ``SegVisualizationHook`` is not used, because it writes the class names onto the class map, warns in every
    run that does not draw, and writes all images into one folder.
    """

    def drawn(self, image: np.ndarray, sample: Any, meta: dict[str, Any]) -> np.ndarray:
        classes, palette = meta['classes'], meta['palette']
        parts = (sample.gt_sem_seg, sample.pred_sem_seg)
        class_maps = [to_class_map(part.data, len(classes)) for part in parts]
        halves = np.hstack([overlay(image, class_map, palette) for class_map in class_maps])
        return with_legend(halves, class_maps, classes, palette)


@HOOKS.register_module()
class BoxesHook(DrawingHook):
    """Hook that draws boxes with the names of their classes on the test images.

    Predicted boxes are drawn with their scores. Those with a score below ``score_thr`` are left out.

    mmdet's ``DetVisualizationHook`` is not used, because it writes all images into one folder, where images of the same
    name overwrite each other. In addition, mmdet's visualizer draws with matplotlib, which takes ``$`` in class names
    for a formula (matplotlib/matplotlib#20266).
    """

    score_thr = 0.3

    def drawn(self, image: np.ndarray, sample: Any, meta: dict[str, Any]) -> np.ndarray:
        ground_truth, found = sample.gt_instances, sample.pred_instances
        found = found[found.scores >= self.score_thr]
        left = image
        if 'bboxes' in ground_truth:  # missing if the pipeline loads no annotations
            boxes = getattr(ground_truth.bboxes, 'tensor', ground_truth.bboxes)  # mmdet's box type, or a tensor
            left = draw_boxes(image, boxes.cpu().numpy(), ground_truth.labels.cpu().numpy(), None, meta['classes'])
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
    """Write predicted labels as a PNG file, see ``runtime.writer.write_class_map``.

    Args:
        path: File to write. Missing folders are created.
        predicted: (H, W) labels from 0.
        palette: RGB of each label, 0 to 255.
        first: Pixel value of label 0 in the file: 1 if the masks of the data set have 0 for unlabelled pixels, else 0.

    Raises:
        UserError: The file cannot be written.
    """
    labels = to_class_map(predicted[None], len(palette))
    writer.write_class_map(path, ClassMap(labels, palette=palette, first_value=first))
