"""Overlays show the colours of the classes, and the legend names the classes that occur."""

import numpy as np

from mnv4_mm.runtime.draw import LINE, OPACITY, overlay, with_legend

PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]


def test_classes_are_coloured_and_other_pixels_unchanged():
    image = np.full((4, 6, 3), 100, np.uint8)
    values = np.full((4, 6), 255, np.uint8)
    values[:2] = 0
    values[2, :3] = 2
    drawn = overlay(image, values, PALETTE)
    assert drawn.shape == image.shape
    assert (drawn[values == 255] == 100).all()
    weak = round(100 * (1 - OPACITY))
    strong = round(100 * (1 - OPACITY) + 200 * OPACITY)
    assert (abs(drawn[values == 0].astype(int) - [weak, weak, strong]) <= 1).all()  # BGR
    assert (abs(drawn[values == 2].astype(int) - [strong, weak, weak]) <= 1).all()


def test_the_legend_has_a_line_per_class_largest_first():
    image = np.zeros((3 * LINE, 50, 3), np.uint8)
    values = np.array([[1, 1, 2, 255]], np.uint8)
    drawn = with_legend(image, [values], ['a', 'b', 'c'], PALETTE)
    assert (drawn[:, :50] == 0).all()
    middle = 50 + LINE
    lines = [tuple(int(v) for v in drawn[LINE // 2 + 7 + i * LINE, middle - LINE // 2 + 5]) for i in range(2)]
    assert lines == [(0, 200, 0), (200, 0, 0)]  # b, then c; BGR
    assert (drawn[2 * LINE + LINE // 2 :, 50:] == 255).all()


def test_a_long_legend_makes_the_image_higher():
    values = np.arange(60, dtype=np.uint8)[None]
    drawn = with_legend(np.zeros((10, 10, 3), np.uint8), [values], [f'class {i}' for i in range(60)], [(0, 0, 0)] * 60)
    assert drawn.shape[0] >= 60 * LINE
