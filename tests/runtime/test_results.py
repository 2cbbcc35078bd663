import dataclasses
import json
import sys

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.ops import batched_nms

from mnv4_mm.errors import UserError
from mnv4_mm.images import read_mask
from mnv4_mm.runtime import text
from mnv4_mm.runtime.draw import OPACITY, palette
from mnv4_mm.runtime.meta import Selection
from mnv4_mm.runtime.preprocess import Placement
from mnv4_mm.runtime.results import (
    ClassMap,
    Detections,
    boxes_to_image,
    class_map,
    class_map_type,
    map_to_image,
    select,
)
from mnv4_mm.runtime.writer import write_class_map


@pytest.mark.parametrize(
    'selection',
    [
        Selection(0.3, 0.5, 100, -1.0, 9999),
        Selection(0.05, 0.3, 17, 6.0, 9999),
        Selection(0.001, 0.0, 130, -1.0, 9999),  # the best 1,300 do not leave 130
        Selection(2.0, 0.5, 9, -1.0, 9999),
    ],
)
def test_boxes_are_selected_as_by_torchvision(selection):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 80, (600, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 40, (600, 2))], axis=1).astype(np.float32)
    scores = rng.uniform(0, 1, (600, 5)).astype(np.float32) ** 3
    result = select(boxes, scores, selection)
    large = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) > selection.min_size
    anchors, labels = np.nonzero((scores > selection.score_thr) & large[:, None])
    candidates = torch.from_numpy(boxes[anchors]), torch.from_numpy(scores[anchors, labels]), torch.from_numpy(labels)
    kept = batched_nms(*candidates, selection.iou_thr)[: selection.max_per_img].numpy()
    np.testing.assert_array_equal(result.labels, labels[kept])
    np.testing.assert_array_equal(result.scores, scores[anchors, labels][kept])
    np.testing.assert_array_equal(result.boxes, boxes[anchors][kept])
    assert (len(kept) == 0) == (selection.score_thr == 2)


def test_selection_from_half_a_million_boxes_is_fast():
    """An untrained net: all boxes are above the threshold."""
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 40, (7000, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2] + 1
    scores = rng.uniform(0.1, 1, (7000, 80)).astype(np.float32)
    result = select(boxes, scores, Selection(0.05, 0.5, 100, -1.0, 1000))
    assert len(result.scores) == 100
    assert result.scores[0] == scores.max()


@pytest.mark.parametrize(
    ('classes', 'shape', 'factor'), [(150, (16, 24), 8), (5, (7, 9), 4), (300, (5, 6), 2), (3, (8, 8), 1)]
)
def test_the_class_map_is_that_of_upsampled_logits(classes, shape, factor):
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
def test_other_sizes_are_errors(size):
    with pytest.raises(ValueError, match='one even factor'):
        class_map(np.zeros((2, 4, 4), np.float32), size)


def test_results_are_in_pixels_of_the_image():
    placement = Placement(original=(100, 400), placed=(50, 100), size=(64, 128))
    boxes = boxes_to_image(np.float32([[10, 20, 30, 40]]), placement)
    np.testing.assert_array_equal(boxes, np.float32([[40, 40, 120, 80]]))
    labels = np.zeros((64, 128), np.uint8)
    labels[25:50, 50:100] = 7  # lower right quarter
    labels[50:], labels[:, 100:] = 9, 9  # padding
    expected = np.zeros((100, 400), np.uint8)
    expected[50:, 200:] = 7
    np.testing.assert_array_equal(map_to_image(labels, placement), expected)


@pytest.fixture
def detections():
    boxes = np.float32([[10, 20, 40, 60], [100, 5, 130, 25], [70, 70, 80, 90]])
    image = np.full((100, 200, 3), 200, np.uint8)
    return Detections(boxes, np.float32([0.9, 0.5, 0.1]), np.array([1, 0, 1]), ('cat', 'dog'), (3, 7), image)


def test_detections_in_cocos_format_are_read_by_pycocotools(detections):
    from pycocotools.coco import COCO

    rows = detections.to_coco(image_id=5)
    assert rows[0] == dict(image_id=5, category_id=7, bbox=[10, 20, 30, 40], score=pytest.approx(0.9))
    assert [row['category_id'] for row in rows] == [7, 3, 7]
    coco = COCO()
    coco.dataset = dict(images=[dict(id=5, width=200, height=100)], categories=[dict(id=3), dict(id=7)], annotations=[])
    coco.createIndex()
    assert [coco.loadRes([dict(row) for row in rows]).anns[i]['area'] for i in (1, 2, 3)] == [1200, 600, 200]
    assert [row['category_id'] for row in dataclasses.replace(detections, category_ids=None).to_coco(1)] == [2, 1, 2]
    json.dumps(rows)


def test_boxes_above_the_threshold_are_drawn_on_a_copy(detections):
    before = detections.image.copy()
    drawn = detections.plot()
    np.testing.assert_array_equal(detections.image, before)
    assert drawn.shape == before.shape
    assert drawn.dtype == np.uint8
    changed = (drawn != before).any(axis=2)
    for x1, y1, x2, y2 in detections.boxes[:2].astype(int):
        assert changed[y1, x1:x2].all()
        assert changed[y1:y2, x2].all()
    assert not changed[65:].any()  # the third box has a low score
    assert (detections.plot(score_thr=0.05) != before).any(axis=2)[80, 70]
    # In another colour for another class.
    assert drawn[40, 40].tolist() != drawn[15, 130].tolist()
    other = np.zeros((100, 200, 3), np.uint8)
    assert (detections.plot(other)[~changed] == 0).all()
    with pytest.raises(ValueError, match='carry no image'):
        dataclasses.replace(detections, image=None).plot()


def test_extreme_boxes_can_be_drawn(detections):
    boxes = np.float32([[-1e9, -5, 1e9, 1e9], [np.nan, 0, np.inf, 5], [199, 99, 199, 99]])
    drawn = dataclasses.replace(detections, boxes=boxes, classes=(), image=np.zeros((1, 1, 3), np.uint8)).plot()
    assert drawn.shape == (1, 1, 3)


# pycocotools' decode with numpy 2.
@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')
def test_a_class_map_in_cocos_format_is_decoded_by_pycocotools():
    from pycocotools import mask

    labels = np.zeros((7, 9), np.uint8)
    labels[2:5, 3:] = 2
    result = ClassMap(labels, ('a', 'b', 'c'), first_value=1)
    rows = result.to_coco(image_id=4)
    assert [(row['image_id'], row['category_id']) for row in rows] == [(4, 1), (4, 3)]
    for row, label in zip(rows, (0, 2), strict=True):
        np.testing.assert_array_equal(mask.decode(row['segmentation']), labels == label)
    json.dumps(rows)


def test_a_class_map_without_pycocotools_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pycocotools', None)
    with pytest.raises(UserError, match='pip install pycocotools'):
        ClassMap(np.zeros((2, 2), np.uint8), ('a',)).to_coco(1)


@pytest.mark.parametrize('classes', [3, 256, 300])
def test_a_class_map_is_drawn_with_or_without_legend(classes):
    labels = np.full((40, 50), classes - 1, class_map_type(classes))
    labels[:20] = 1
    names, image = tuple(f'class {i}' for i in range(classes)), np.zeros((40, 50, 3), np.uint8)
    result = ClassMap(labels, names, image=image)
    plain = result.plot(legend=False)
    assert plain.shape == (40, 50, 3)
    for row, label in ((5, 1), (30, classes - 1)):
        expected = OPACITY * np.array(palette(classes)[label][::-1])
        assert np.abs(plain[row, 10] - expected).max() <= 1
    assert (result.plot()[:40, :50] == plain).all()
    assert result.plot().shape[1] > 50


@pytest.mark.parametrize(('classes', 'first', 'bits'), [(3, 1, 8), (256, 0, 8), (256, 1, 16), (300, 0, 16)])
def test_class_maps_are_written_with_values_and_colours(classes, first, bits, tmp_path):
    labels = np.random.default_rng(0).integers(0, classes, (20, 30)).astype(class_map_type(classes))
    labels[0, 0] = classes - 1
    result = ClassMap(labels, tuple(map(str, range(classes))), first_value=first)
    path = tmp_path / 'new' / 'map.png'
    write_class_map(path, result)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.array(image), labels.astype(int) + first)
        # Bit depth and type in the file itself: 3 is a palette, 0 is grey. Older Pillow reads 16 bits as 32.
        assert tuple(path.read_bytes()[24:26]) == (bits, 3 if bits == 8 else 0)
        if bits == 8:
            colours = np.array(palette(classes), np.uint8)
            np.testing.assert_array_equal(np.array(image.convert('RGB')), colours[labels])
            np.testing.assert_array_equal(cv2.imread(str(path)), colours[labels][..., ::-1])
            np.testing.assert_array_equal(read_mask(path), labels.astype(int) + first)


@pytest.mark.parametrize('name', ['Straße', 'кошка'])
def test_names_that_are_not_ascii_are_drawn(detections, name):
    def drawn(first, second):
        boxes = dataclasses.replace(detections, classes=(first, second)).plot()
        labels = np.arange(30, dtype=np.uint8).reshape(5, 6) % 2
        legend = ClassMap(labels, (first, second), image=np.zeros((5, 6, 3), np.uint8)).plot()
        return boxes, legend

    questions = ''.join(character if character.isascii() else '?' for character in name)
    for found, question in zip(drawn(name, 'dog'), drawn(questions, 'dog'), strict=True):
        assert found.shape != question.shape or (found != question).any()
    assert text._fit(name, 0.5)[0] == name
    assert text._fit(f'{name} \U0010fffd', 0.5)[0] == f'{name} \\U0010fffd'  # a character of no font


def test_text_that_is_not_ascii_is_cut_off_at_the_edges():
    whole = np.full((80, 120, 3), 255, np.uint8)
    text.draw_text(whole, 'Größe', 40, 45, 0.5, (0, 0, 255), 1)
    ys, xs = np.nonzero((whole != 255).any(axis=2))
    assert (whole[..., 2] == 255).all()  # red on white
    width, height, below = text.text_size('Größe', 0.5, 1)
    assert 40 <= xs.min() <= xs.max() < 40 + width
    assert 45 - height <= ys.min() <= ys.max() < 45 + below
    for x, y in ((50, 0), (0, 40), (60, 42), (119, 79)):
        part = np.full((80, 120, 3), 255, np.uint8)[y:, x:]
        text.draw_text(part, 'Größe', 40 - x, 45 - y, 0.5, (0, 0, 255), 1)
        np.testing.assert_array_equal(part, whole[y:, x:])
    small = np.full((43, 60, 3), 255, np.uint8)
    text.draw_text(small, 'Größe', 40, 45, 0.5, (0, 0, 255), 1)
    np.testing.assert_array_equal(small, whole[:43, :60])


@pytest.mark.parametrize(
    ('name', 'shown'),
    [('Öl', 'Ol'), ('кот', '\\u043a\\u043e\\u0442'), ('猫2', '\\u732b2'), ('a\nb\0', 'a\\nb\\x00'), ('$$ \\', '$$ \\')],
)
def test_names_are_told_apart_without_pillow(detections, monkeypatch, name, shown):
    monkeypatch.setitem(sys.modules, 'PIL', None)
    text._fonts.cache_clear()
    drawn, expected = (dataclasses.replace(detections, classes=(one, one)).plot() for one in (name, shown))
    text._fonts.cache_clear()
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize(
    'name', ['$', '$$', '$$$', '$x^{2', '%s {0}', 'a\nb', '', ' ', '<b>&amp;', '猫', 'कुत्ता', '🐈', '\ud800']
)
def test_class_names_with_any_character_are_drawn(name):
    """Price ranges ($$) are no formula, and other scripts are no question marks."""
    image = np.zeros((60, 200, 3), np.uint8)
    boxes = np.array([[20, 20, 60, 40]], np.float32)
    found = Detections(boxes, np.ones(1, np.float32), np.zeros(1, np.int64), (name,), image=image)
    labels = np.zeros((60, 200), np.uint8)
    assert (found.plot() != image).any()
    assert ClassMap(labels, (name,), image=image).plot().shape[0] == 60
    shown = text._fit(name, 0.5)[0]
    assert '?' not in shown
    assert shown.isprintable()
    if name.isprintable() and name.isascii():
        assert shown == name


@pytest.mark.parametrize('count', [2, 80, 150])
def test_colours_of_neighbouring_classes_differ_clearly(count):
    colours = np.array(palette(count))
    assert len(set(palette(count))) == count
    assert np.abs(np.diff(colours, axis=0)).sum(axis=1).min() > 180
