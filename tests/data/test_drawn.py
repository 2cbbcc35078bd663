"""Boxes, polygons and masks of the drawn data set agree, and it is reproducible by its seed."""

import json

import cv2
import numpy as np
import pytest

from mnv4_mm.data.drawn import BACKGROUND, SHAPES, draw_dataset
from mnv4_mm.data.prepare import prepare_detection
from mnv4_mm.errors import UserError


@pytest.fixture(scope='module')
def backgrounds(repository):
    return repository / 'data/mini/coco/train2017'


@pytest.fixture(scope='module')
def root(tmp_path_factory, backgrounds):
    return draw_dataset(tmp_path_factory.mktemp('d') / 'a', backgrounds, train=40, val=10, size=160, seed=3)


def test_it_is_a_valid_coco_data_set(root):
    layout = prepare_detection(root)
    assert layout.classes == SHAPES
    content = json.loads(layout.train.annotations.read_text())
    assert len(content['images']) == 40
    assert {a['category_id'] for a in content['annotations']} == set(range(1, 7))
    assert {a['image_id'] for a in content['annotations']} == {i['id'] for i in content['images']}


@pytest.mark.parametrize(('split', 'side'), [('train', 'training'), ('val', 'validation')])
def test_boxes_and_masks_agree(root, split, side):
    content = json.loads((root / f'annotations/instances_{split}.json').read_text())
    for image in content['images']:
        mask = cv2.imread(str(root / 'annotations' / side / f'{image["file_name"][:-4]}.png'), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (160, 160)
        annotations = [a for a in content['annotations'] if a['image_id'] == image['id']]
        assert set(np.unique(mask)) - {0, BACKGROUND} == {a['category_id'] for a in annotations}
        for category in range(1, 7):
            assert (mask == category).sum() == sum(a['area'] for a in annotations if a['category_id'] == category)
        for a in annotations:
            x, y, w, h = a['bbox']
            inside = mask[y : y + h, x : x + w] == a['category_id']
            # The box is tight and contains the polygon.
            assert inside.any(axis=0)[[0, -1]].all()
            assert inside.any(axis=1)[[0, -1]].all()
            points = np.array(a['segmentation'][0]).reshape(-1, 2)
            assert (points >= np.array([x, y]) - 1).all()
            assert (points <= np.array([x + w, y + h])).all()


def test_it_is_reproducible_by_its_seed(root, tmp_path, backgrounds):
    same = draw_dataset(tmp_path / 'same', backgrounds, train=40, val=10, size=160, seed=3)
    other = draw_dataset(tmp_path / 'other', backgrounds, train=40, val=10, size=160, seed=4)
    for path in sorted(root.rglob('*.*')):
        assert path.read_bytes() == (same / path.relative_to(root)).read_bytes()
    assert (root / 'train/000000.jpg').read_bytes() != (other / 'train/000000.jpg').read_bytes()


@pytest.mark.parametrize('numbers', [dict(train=0), dict(val=-1), dict(size=10)])
def test_bad_numbers(tmp_path, backgrounds, numbers):
    with pytest.raises(UserError, match='at least 1 image'):
        draw_dataset(tmp_path / 'x', backgrounds, **numbers)


def test_used_output_and_missing_backgrounds_are_refused(tmp_path, backgrounds):
    (tmp_path / 'x').mkdir()
    (tmp_path / 'x' / 'file').touch()
    with pytest.raises(UserError, match='not an empty folder'):
        draw_dataset(tmp_path / 'x', backgrounds)
    with pytest.raises(UserError, match=r'no \.jpg'):
        draw_dataset(tmp_path / 'y', tmp_path / 'x')


def test_a_broken_background_leaves_nothing_behind(tmp_path, backgrounds):
    folder, out = tmp_path / 'backgrounds', tmp_path / 'out'
    folder.mkdir()
    for path in sorted(backgrounds.glob('*.jpg'))[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / 'zz_broken.jpg').write_bytes(b'no')
    with pytest.raises(UserError, match=r'zz_broken\.jpg is not a readable image'):
        draw_dataset(out, folder, train=8, val=2, size=64)
    assert not out.exists()
    (folder / 'zz_broken.jpg').unlink()
    draw_dataset(out, folder, train=8, val=2, size=64)
    assert {path.name for path in out.iterdir()} == {'annotations', 'classes.txt', 'images', 'train', 'val'}


def test_a_background_of_one_pixel(tmp_path):
    cv2.imwrite(str(tmp_path / 'dot.jpg'), np.full((1, 1, 3), 90, np.uint8))
    root = draw_dataset(tmp_path / 'out', tmp_path, train=4, val=2, size=64)
    assert len(list((root / 'train').iterdir())) == 4
