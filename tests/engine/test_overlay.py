"""Overlays show the colours of the classes, and the legend names the classes that occur."""

from types import SimpleNamespace

import cv2
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from mnv4_mm.engine.overlay import BoxesHook
from mnv4_mm.images import write_image
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


def test_boxes_are_drawn_with_any_class_name_and_names_in_subfolders_are_kept(tmp_path):
    """Classes $$ are no formula, and cam0/0000.jpg and cam1/0000.jpg are two files."""
    hook = BoxesHook(draw=True, test_out_dir=str(tmp_path / 'shown'), image_dir=str(tmp_path / 'images'))
    dataset = SimpleNamespace(metainfo=dict(classes=('$', '$$', 'кот')))
    runner = SimpleNamespace(test_loop=SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset)))
    samples = []
    for name in ('cam0/0000.png', 'cam1/0000.png'):
        write_image(tmp_path / 'images' / name, np.zeros((60, 80, 3), np.uint8))
        boxes = torch.tensor([[10.0, 20.0, 50.0, 50.0], [5.0, 5.0, 9.0, 9.0]])
        truth = InstanceData(bboxes=boxes[:1], labels=torch.tensor([1]))
        found = InstanceData(bboxes=boxes, labels=torch.tensor([2, 0]), scores=torch.tensor([0.9, 0.1]))
        path = str(tmp_path / 'images' / name)
        samples.append(DetDataSample(gt_instances=truth, pred_instances=found, metainfo=dict(img_path=path)))
    hook.after_test_iter(runner, 0, outputs=samples)
    for name in ('cam0/0000.png', 'cam1/0000.png'):
        drawn = cv2.imread(str(tmp_path / 'shown' / name))
        assert drawn.shape == (60, 160, 3)
        for half in (drawn[:, :80], drawn[:, 80:]):
            assert half[35, 10].any()  # the left edge of the box
            assert not half[35, 30].any()
            assert not half[:9, :10].any()  # a box below the threshold
    hook = BoxesHook()
    hook.after_test_iter(runner, 0, outputs=samples)  # draws nothing, or it would fail
