"""A data set is checked before anything is trained on it, and a mistake is named with its file."""

import json
import shutil

import pytest

from mnv4_mm.data.coco import Split, check_split, find_coco, require_split
from mnv4_mm.errors import UserError


@pytest.fixture
def small(tmp_path, repository):
    """A copy of the small real data set that a test may break."""
    return shutil.copytree(repository / 'data/mini/coco', tmp_path / 'mine')


def edit(root, change, split='val'):
    path = root / f'annotations/instances_{split}2017.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_small_real_set_is_clean_and_may_be_passed_on(repository):
    root = repository / 'data/mini/coco'
    layout = find_coco(root)
    assert len(layout.classes) == 80
    assert layout.classes[0] == 'person'
    table = (root / 'ATTRIBUTION.md').read_text()
    counts = {}
    for split in (layout.train, layout.val):
        content = json.loads(split.annotations.read_text())
        counts[split.pictures.name] = len(content['images'])
        assert {image['license'] for image in content['images']} <= {4, 5, 7}
        assert {path.name for path in split.pictures.iterdir()} == {image['file_name'] for image in content['images']}
        for image in content['images']:
            assert f'{split.pictures.name}/{image["file_name"]}' in table
            assert image['flickr_url'] in table
    assert counts == {'train2017': 64, 'val2017': 32}
    assert sum(path.stat().st_size for path in root.rglob('*') if path.is_file()) <= 16e6


def test_other_folder_names_are_recognised(small):
    (small / 'images').mkdir()
    (small / 'val2017').rename(small / 'images' / 'val')
    (small / 'train2017').rename(small / 'train')
    layout = find_coco(small)
    assert (layout.train.pictures, layout.val.pictures) == (small / 'train', small / 'images' / 'val')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c.pop('annotations'), 'needs the lists'),
        (lambda c: c['annotations'][0].pop('bbox'), 'entry 0 of annotations has no bbox'),
        (lambda c: c['annotations'][0].update(category_id=999), 'category 999'),
        (lambda c: c['annotations'][0].update(image_id=999), 'image 999'),
        (lambda c: c['annotations'][0].update(bbox=[0, 0, -5, 5]), 'negative size'),
        (lambda c: c['annotations'][0].update(bbox=[0, 0, 5000, 5]), 'outside'),
        (lambda c: c['annotations'][0].update(bbox=[0, 0, 5]), 'expected'),
        (lambda c: c['images'][0].update(file_name='gone.jpg'), 'no picture .*gone.jpg'),
        (lambda c: c['images'][0].update(width=7), 'not 7x'),
        (lambda c: c['images'].append(c['images'][0]), 'occurs twice'),
        (lambda c: c.update(images=[], annotations=[]), 'lists no images'),
        (lambda c: c.update(categories=[]), 'no categories'),
        (lambda c: c['categories'].pop(), 'different categories'),
    ],
)
def test_mistakes_are_named(small, change, message):
    edit(small, change)
    with pytest.raises(UserError, match=message):
        find_coco(small)


def test_broken_files_are_named(small):
    picture = next((small / 'val2017').iterdir())
    picture.write_bytes(b'not a picture')
    with pytest.raises(UserError, match=f'{picture.name} is not a readable picture'):
        find_coco(small)
    (small / 'annotations/instances_val2017.json').write_text('{"images": [')
    with pytest.raises(UserError, match='is not JSON'):
        find_coco(small)


def test_missing_things_are_named(tmp_path, small):
    with pytest.raises(UserError, match='no folder'):
        find_coco(tmp_path / 'none')
    with pytest.raises(UserError, match='0 files'):
        find_coco(tmp_path)
    shutil.rmtree(small / 'val2017')
    with pytest.raises(UserError, match='no pictures for'):
        find_coco(small)
    with pytest.raises(UserError, match=r'looked for .*val2017; fetch it'):
        require_split(Split(small / 'annotations/instances_val2017.json', small / 'val2017'), 'fetch it')


def test_many_mistakes_are_counted(small):
    edit(small, lambda c: [a.update(category_id=999) for a in c['annotations'][:10]])
    with pytest.raises(UserError, match='and 7 more'):
        check_split(Split(small / 'annotations/instances_val2017.json', small / 'val2017'))
