"""Segmentation as pictures: classes in colour over the picture, a legend, and class maps as indexed PNG files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from PIL import Image

from mnv4_mm.images import read_image, write_image

Colour = Sequence[int]  # RGB, 0 to 255
OPACITY = 0.6
LINE = 22  # pixels of a legend's line


@HOOKS.register_module()
class OverlayHook(Hook):
    """Draws the pictures of a test: truth left, prediction right, and a legend of the classes in either.

    mmseg's own hook and painter write the class names onto the map, warn at every run that does not draw, and know no
    folder.

    Args:
        draw: Whether to draw.
        test_out_dir: Folder to write to.
        pictures: Folder of the pictures: names in ``test_out_dir`` are relative to it.
    """

    def __init__(self, draw: bool = False, test_out_dir: str = '', pictures: str = '') -> None:
        self.draw = draw
        self.out_dir = Path(test_out_dir)
        self.pictures = pictures

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        if not self.draw:
            return
        meta = runner.test_loop.dataloader.dataset.metainfo
        for sample in outputs or ():
            path = Path(sample.img_path)
            picture = read_image(path)
            truth, predicted = (labels(part) for part in (sample.gt_sem_seg.data, sample.pred_sem_seg.data))
            halves = [overlay(picture, values, meta['palette']) for values in (truth, predicted)]
            target = self.out_dir / path.relative_to(self.pictures)
            write_image(target, with_legend(np.hstack(halves), [truth, predicted], meta['classes'], meta['palette']))


def labels(data: torch.Tensor) -> np.ndarray:
    """(1, H, W) tensor of labels -> (H, W) uint8."""
    return data.squeeze(0).cpu().numpy().astype(np.uint8)


def overlay(picture: np.ndarray, values: np.ndarray, palette: Sequence[Colour]) -> np.ndarray:
    """Lays the classes' colours over a picture; pixels whose label is no class stay as they are.

    Args:
        picture: (H, W, 3) uint8 BGR.
        values: (H, W) uint8 labels.
        palette: A colour per label.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = np.asarray(palette, np.uint8)[:, ::-1]
    mixed = cv2.addWeighted(picture, 1 - OPACITY, colours[values], OPACITY, 0)
    return np.where((values < len(palette))[..., None], mixed, picture)


def with_legend(
    picture: np.ndarray, shown: Sequence[np.ndarray], names: Sequence[str], palette: Sequence[Colour]
) -> np.ndarray:
    """Adds a column with colour and name of each class that occurs, the largest first, to the right of a picture.

    Args:
        picture: (H, W, 3) uint8 BGR.
        shown: Label maps whose classes are named, each (H, W) uint8.
        names: A name per label.
        palette: A colour per label.

    Returns:
        (max(H, lines), W + legend, 3) uint8 BGR.
    """
    counts = np.bincount(np.concatenate([values.ravel() for values in shown]), minlength=256)[: len(names)]
    present = [int(label) for label in np.argsort(-counts, kind='stable') if counts[label]]
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.5
    texts = [names[label] for label in present]
    width = 2 * LINE + max([0, *(cv2.getTextSize(text, font, scale, 1)[0][0] for text in texts)])
    height = max(len(picture), LINE * (len(present) + 1))
    out = np.full((height, picture.shape[1] + width, 3), 255, np.uint8)
    out[: len(picture), : picture.shape[1]] = picture
    left = picture.shape[1] + LINE // 2
    for line, (label, text) in enumerate(zip(present, texts, strict=True)):
        top = LINE // 2 + line * LINE
        colour = tuple(int(value) for value in palette[label][::-1])
        cv2.rectangle(out, (left, top), (left + LINE - 8, top + LINE - 8), colour, cv2.FILLED)
        cv2.rectangle(out, (left, top), (left + LINE - 8, top + LINE - 8), (0, 0, 0), 1)
        cv2.putText(out, text, (left + LINE, top + LINE - 9), font, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return out


def write_class_map(path: Path, predicted: torch.Tensor, palette: Sequence[Colour], first: int) -> None:
    """Writes labels as an indexed PNG in the classes' colours.

    Args:
        path: File to write; folders are made.
        predicted: (H, W) labels.
        palette: A colour per label.
        first: Value of the first class in the file: 1 where the data's masks have 0 for unlabelled, else 0.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels(predicted[None]) + np.uint8(first), 'P')
    image.putpalette([0, 0, 0] * first + [int(value) for colour in palette for value in colour])
    image.save(path)
