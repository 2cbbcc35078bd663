import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import batched_nms

from mnv4_mm.runtime.meta import Selection
from mnv4_mm.runtime.preprocess import Placement
from mnv4_mm.runtime.results import Detections, class_map, in_picture, map_in_picture, select


@pytest.mark.parametrize(
    'how',
    [
        Selection(0.3, 0.5, 100, -1.0, 9999),
        Selection(0.05, 0.3, 17, 6.0, 9999),
        Selection(0.001, 0.0, 130, -1.0, 9999),  # the best 1,300 do not leave 130
        Selection(2.0, 0.5, 9, -1.0, 9999),
    ],
)
def test_boxes_are_selected_as_torchvision_does(how):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 80, (600, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 40, (600, 2))], axis=1).astype(np.float32)
    scores = rng.uniform(0, 1, (600, 5)).astype(np.float32) ** 3
    found = select(boxes, scores, how)
    large = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) > how.min_size
    anchors, labels = np.nonzero((scores > how.score_thr) & large[:, None])
    some = torch.from_numpy(boxes[anchors]), torch.from_numpy(scores[anchors, labels]), torch.from_numpy(labels)
    kept = batched_nms(*some, how.iou_thr)[: how.max_per_img].numpy()
    np.testing.assert_array_equal(found.labels, labels[kept])
    np.testing.assert_array_equal(found.scores, scores[anchors, labels][kept])
    np.testing.assert_array_equal(found.boxes, boxes[anchors][kept])
    assert (len(kept) == 0) == (how.score_thr == 2)


def test_a_net_that_finds_everything_takes_no_minutes():
    """An untrained one: half a million boxes are above the threshold."""
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 40, (7000, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2] + 1
    scores = rng.uniform(0.1, 1, (7000, 80)).astype(np.float32)
    found = select(boxes, scores, Selection(0.05, 0.5, 100, -1.0, 1000))
    assert len(found.scores) == 100
    assert found.scores[0] == scores.max()


@pytest.mark.parametrize(
    ('classes', 'shape', 'factor'), [(150, (16, 24), 8), (5, (7, 9), 4), (300, (5, 6), 2), (3, (8, 8), 1)]
)
def test_a_class_map_is_that_of_all_logits_enlarged(classes, shape, factor):
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randn((1, classes, 4, 5), generator=rng)
    logits = F.interpolate(coarse, shape, mode='bicubic') + 0.1 * torch.randn((1, classes, *shape), generator=rng)
    full = F.interpolate(logits, scale_factor=factor, mode='bilinear', align_corners=False)[0].argmax(0).numpy()
    size = (shape[0] * factor, shape[1] * factor)
    found = class_map(logits[0].numpy(), size)
    assert found.dtype == (np.uint8 if classes <= 256 else np.int32)
    assert (found != full).mean() < 1e-4  # two classes can be equal to the last bit
    assert len(np.unique(full)) > 2


@pytest.mark.parametrize('size', [(16, 25), (12, 12), (4, 8)])
def test_sizes_that_do_not_fit_are_errors(size):
    with pytest.raises(ValueError, match='one even factor'):
        class_map(np.zeros((2, 4, 4), np.float32), size)


def test_results_are_in_pixels_of_the_picture():
    at = Placement(original=(100, 400), placed=(50, 100))
    found = in_picture(Detections(np.float32([[10, 20, 30, 40]]), np.float32([1]), np.array([0])), at)
    np.testing.assert_array_equal(found.boxes, np.float32([[40, 40, 120, 80]]))
    labels = np.zeros((64, 128), np.uint8)
    labels[25:50, 50:100] = 7  # lower right quarter
    labels[50:], labels[:, 100:] = 9, 9  # filled
    expected = np.zeros((100, 400), np.uint8)
    expected[50:, 200:] = 7
    np.testing.assert_array_equal(map_in_picture(labels, at).labels, expected)
