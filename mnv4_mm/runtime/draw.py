"""Drawing of results on images: boxes with names and scores, class maps with a legend."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from mnv4_mm.runtime.text import draw_text, text_size

Colour = Sequence[int]  # RGB, 0 to 255
OPACITY = 0.6  # of a class map over the image
LINE = 22  # height of a line of the legend, in pixels
FONT_SCALE = 0.5
GOLDEN_RATIO = (5**0.5 - 1) / 2


def palette(count: int) -> list[tuple[int, int, int]]:
    """Return an RGB colour, 0 to 255, for each of ``count`` classes.

    Hues are a golden section of the colour wheel apart. So the colours of consecutive classes differ clearly, and any
    number of hues is spread evenly.
    """
    colours = [colorsys.hsv_to_rgb(i * GOLDEN_RATIO % 1, 0.8, 0.9) for i in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours]


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray | None, classes: Sequence[str]
) -> np.ndarray:
    """Draw boxes with the names of their classes and their scores; lines and text grow with the image.

    Args:
        image: (H, W, 3) uint8 BGR.
        boxes: (K, 4) as (x1, y1, x2, y2) in pixels, best first.
        labels: (K,) indices into ``classes``.
        scores: (K,); None for ground truth.
        classes: Class names.

    Returns:
        (H, W, 3) uint8 BGR, a copy.
    """
    out = image.copy()
    height, width = image.shape[:2]
    size = max(1.0, max(height, width) / 800)
    scale, thickness = FONT_SCALE * size, max(1, round(2 * size))
    colours = palette(max(len(classes), int(labels.max(initial=0)) + 1))
    boxes = np.nan_to_num(boxes).clip(0, [width, height, width, height])
    # The best boxes last, on top of the others.
    marks = [''] * len(boxes) if scores is None else [f' {score:.2f}' for score in scores]
    for box, label, mark in zip(boxes[::-1], labels[::-1], marks[::-1], strict=True):
        red, green, blue = colours[label]
        x1, y1, x2, y2 = (round(float(side)) for side in box)
        cv2.rectangle(out, (x1, y1), (x2, y2), (blue, green, red), thickness, cv2.LINE_AA)
        text = f'{classes[label] if label < len(classes) else label}{mark}'
        text_width, text_height, below = text_size(text, scale, max(1, thickness // 2))
        # Above the box, or inside it at the upper edge of the image, and never over its right edge.
        left = max(0, min(x1, width - text_width))
        top = y1 - text_height - below if y1 >= text_height + below else y1
        cv2.rectangle(out, (left, top), (left + text_width, top + text_height + below), (blue, green, red), cv2.FILLED)
        is_bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
        ink = (0, 0, 0) if is_bright else (255, 255, 255)
        draw_text(out, text, left, top + text_height + below // 2, scale, ink, max(1, thickness // 2))
    return out


def overlay(image: np.ndarray, class_map: np.ndarray, palette: Sequence[Colour]) -> np.ndarray:
    """Lay the colours of classes over an image. Pixels with a label outside ``palette`` stay unchanged.

    Args:
        image: (H, W, 3) uint8 BGR.
        class_map: (H, W) labels.
        palette: A colour per label.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    colours = np.zeros((len(palette) + 1, 3), np.uint8)
    colours[:-1] = np.asarray(palette, np.uint8).reshape(-1, 3)[:, ::-1]
    labels = np.minimum(class_map, len(palette)) if len(palette) <= np.iinfo(class_map.dtype).max else class_map
    mixed = cv2.addWeighted(image, 1 - OPACITY, colours[labels], OPACITY, 0)
    return np.where((labels < len(palette))[..., None], mixed, image)


def with_legend(
    image: np.ndarray, class_maps: Sequence[np.ndarray], classes: Sequence[str], palette: Sequence[Colour]
) -> np.ndarray:
    """Add a legend to the right of an image: colour and name of each class that occurs, the largest class first.

    Args:
        image: (H, W, 3) uint8 BGR.
        class_maps: Class maps (H, W) whose classes are listed.
        classes: A name per label; labels without a name are not listed.
        palette: A colour per label.

    Returns:
        (max(H, height of the legend), W + width of the legend, 3) uint8 BGR.
    """
    labels = np.concatenate([class_map.ravel() for class_map in class_maps])
    counts = np.bincount(labels, minlength=len(classes))[: len(classes)]
    present = [int(label) for label in np.argsort(-counts, kind='stable') if counts[label]]
    texts = [classes[label] for label in present]
    width = 2 * LINE + max([0, *(text_size(text, FONT_SCALE, 1)[0] for text in texts)])
    height = max(len(image), LINE * (len(present) + 1))
    out = np.full((height, image.shape[1] + width, 3), 255, np.uint8)
    out[: len(image), : image.shape[1]] = image
    left = image.shape[1] + LINE // 2
    for line, (label, text) in enumerate(zip(present, texts, strict=True)):
        top = LINE // 2 + line * LINE
        red, green, blue = (int(value) for value in palette[label])
        cv2.rectangle(out, (left, top), (left + LINE - 8, top + LINE - 8), (blue, green, red), cv2.FILLED)
        cv2.rectangle(out, (left, top), (left + LINE - 8, top + LINE - 8), (0, 0, 0), 1)
        draw_text(out, text, left + LINE, top + LINE - 9, FONT_SCALE, (0, 0, 0), 1)
    return out
