"""Boxes of COCO JSON that contradict their polygons are refused."""

import json

import pytest
from small_data import write_file, write_images

from mnv4_mm.data import polygons
from mnv4_mm.data.coco_files import Split, check_split
from mnv4_mm.data.polygons import check_polygons
from mnv4_mm.data.prepare import prepare_detection
from mnv4_mm.errors import UserError


def annotation(number, scale=1.0, **values):
    """A box of 20x10, scaled, and a triangle that touches its four edges before it is scaled."""
    x, y = 10 + number, 20
    box = [scale * value for value in (x, y, 20, 10)]
    triangle = [x, y, x + 20, y + 5, x + 4, y + 10]
    entry = dict(id=number, image_id=1, category_id=1, bbox=box, area=box[2] * box[3], segmentation=[triangle])
    return {**entry, **values}


def content(annotations):
    return dict(
        images=[dict(id=i, file_name=f'{i}.png', width=64, height=48) for i in (1, 2, 3)],
        annotations=annotations,
        categories=[dict(id=1, name='cat')],
    )


def check(tmp_path, annotations):
    write_file(tmp_path / 'a.json', content(annotations))
    return [finding.problem for finding in check_polygons(tmp_path / 'a.json')]


def test_boxes_at_half_scale(tmp_path):
    halves = [annotation(i, 0.5) for i in range(4)]
    (problem,) = check(tmp_path, [*(annotation(i) for i in range(4, 7)), *halves])
    assert problem == (
        '4 of 7 boxes are not around their polygons, such as [5, 10, 10, 5], while the box around its polygon is '
        '[10, 20, 20, 10]'
    )
    assert check(tmp_path, [*(annotation(i) for i in range(4, 8)), *halves]) == []  # no more than half
    assert check(tmp_path, halves) == []  # too few


OTHERS = {
    'run-lengths': dict(segmentation=dict(size=[48, 64], counts='PPYo0')),
    'rotated': dict(attributes=dict(rotation=90.0)),
    'no-polygon': dict(segmentation=[]),
    'placeholder': dict(segmentation=[[0, 0, 0, 0, 0, 0]]),
    'no-numbers': dict(segmentation=[[1, 2, 3, 'x', 5, 6]]),
    'too-short': dict(segmentation=[[1, 2, 3, 4]]),
    'huge': dict(segmentation=[[1e300, 2, 3, 4, 5, 6]]),
    'nan': dict(segmentation=[[float('nan'), 2, 3, 4, 5, 6]]),
    'no-box': dict(bbox=None),
    'box-of-two': dict(bbox=[1, 2]),
    'negative': dict(bbox=[1, 2, -3, 4]),
}


@pytest.mark.parametrize('case', OTHERS)
def test_what_cannot_be_compared(tmp_path, case):
    assert check(tmp_path, [annotation(i, 0.5, **OTHERS[case]) for i in range(9)]) == []


def test_polygons_of_several_parts_and_flat_lists(tmp_path):
    parts = [[10, 20, 12, 20, 12, 22], [28, 28, 30, 28, 30, 30]]
    box = dict(bbox=[10, 20, 20, 10])
    assert check(tmp_path, [annotation(i, **box, segmentation=parts) for i in range(9)]) == []
    assert check(tmp_path, [annotation(i, **box, segmentation=parts[0]) for i in range(9)])


def test_boxes_of_few_pixels_may_differ(tmp_path):
    """The IoU of 3x3 and 2x2 pixels is 0.44: one of the tools counts both corners as inside."""
    tiny = dict(bbox=[5, 5, 3, 3], segmentation=[[5, 5, 7, 5, 7, 7]])
    assert check(tmp_path, [annotation(i, **tiny) for i in range(9)]) == []


def test_boxes_may_be_generous(tmp_path):
    """A box that is 3 pixels wider than its polygon on each side has an IoU of 0.77."""
    assert check(tmp_path, [annotation(i, bbox=[7 + i, 20, 26, 10]) for i in range(9)]) == []
    assert check(tmp_path, [annotation(i, bbox=[0, 20, 60, 10]) for i in range(9)])  # 0.33


@pytest.mark.parametrize(
    'text', ['', '{', '[1, 2]', '{"annotations": [', '{"annotations": [1, {"bbox": 2}, {"id": ', '[' * 9]
)
def test_files_that_are_not_valid(tmp_path, text):
    write_file(tmp_path / 'a.json', text)
    assert list(check_polygons(tmp_path / 'a.json')) == []
    assert list(check_polygons(tmp_path / 'none.json')) == []


def test_a_part_of_a_large_file_is_compared(tmp_path, monkeypatch):
    annotations = [*(annotation(i, 0.5) for i in range(10)), *(annotation(i) for i in range(10, 40))]
    assert check(tmp_path, annotations) == []
    monkeypatch.setattr(polygons, 'MAX_ANNOTATIONS', 15)
    (problem,) = check(tmp_path, annotations)
    assert problem.startswith('10 of 15 boxes')
    monkeypatch.setattr(polygons, 'MAX_BYTES', len(json.dumps(annotations[:12])))
    (problem,) = check(tmp_path, annotations)
    assert problem.startswith('10 of 12 boxes')


def test_they_are_not_trained_on(tmp_path):
    write_images(tmp_path, [f'{i}.png' for i in (1, 2, 3)], (64, 48))
    write_file(tmp_path / 'a.json', content([annotation(i, image_id=1 + i % 3) for i in range(9)]))
    prepare_detection(tmp_path)
    write_file(tmp_path / 'a.json', content([annotation(i, 0.5, image_id=1 + i % 3) for i in range(9)]))
    with pytest.raises(UserError, match=r'a\.json, annotation 0: 9 of 9 boxes are not around their polygons'):
        prepare_detection(tmp_path, allow_dropped=True)
    split = Split(tmp_path / 'a.json', tmp_path)  # as a config names it
    with pytest.raises(UserError, match=r': a\.json, annotation 0: 9 of 9 boxes are not around their polygons'):
        check_split(split)
