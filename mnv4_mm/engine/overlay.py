"""Hook that draws the images of a segmenter's test, and class maps of tensors as files."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mnv4_mm.images import read_image, write_image
from mnv4_mm.runtime import writer
from mnv4_mm.runtime.draw import overlay, with_legend
from mnv4_mm.runtime.results import ClassMap, class_map_type


@HOOKS.register_module()
class OverlayHook(Hook):
    """Draw the images of a test: ground truth on the left, prediction on the right, and a legend of their classes.

    mmseg's hook and visualizer write the class names onto the class map, warn at every run that does not draw, and
    write all images into one folder.

    Args:
        draw: Draw at all.
        test_out_dir: Folder to write to.
        image_dir: Folder of the images: names in ``test_out_dir`` are relative to it.
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
        classes, palette = meta['classes'], meta['palette']
        for sample in outputs or ():
            path = Path(sample.img_path)
            image = read_image(path)
            parts = (sample.gt_sem_seg, sample.pred_sem_seg)
            class_maps = [to_class_map(part.data, len(classes)) for part in parts]
            halves = np.hstack([overlay(image, class_map, palette) for class_map in class_maps])
            target = self.out_dir / path.relative_to(self.image_dir)
            write_image(target, with_legend(halves, class_maps, classes, palette))


def to_class_map(data: torch.Tensor, classes: int) -> np.ndarray:
    """Convert a (1, H, W) tensor of labels to (H, W) uint8, or int32 for more than 256 classes."""
    return data.squeeze(0).cpu().numpy().astype(class_map_type(classes))


def write_class_map(path: Path, predicted: torch.Tensor, palette: Sequence[Sequence[int]], first: int) -> None:
    """Write labels as a palette PNG in the colours of the classes.

    Args:
        path: File to write; folders are made.
        predicted: (H, W) labels.
        palette: RGB of each label.
        first: Value of the first class in the file: 1 where the masks of the data have 0 for unlabelled, else 0.
    """
    labels = to_class_map(predicted[None], len(palette))
    writer.write_class_map(path, ClassMap(labels, palette=palette, first_value=first))


@contextmanager
def quiet_painter() -> Iterator[None]:
    """Silence mmengine's visualizer about boxes and labels beyond the edge, which COCO's ground truth has."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message=r'Warning: The \w+ is out of bounds')
        yield
