"""A detection data set is recognised, and its mistakes are reported with their files."""

import json
import shutil

import mmcv
import pytest
from mmdet.datasets import CocoDataset
from PIL import Image

from mnv4_mm.data.formats.coco import Split, check_split, find_coco, read_annotations, require_split
from mnv4_mm.errors import UserError


@pytest.fixture
def small(tmp_path, repository):
    """Copy of the small real data set that a test may modify."""
    return shutil.copytree(repository / 'data/mini/coco', tmp_path / 'mine')


def edit(root, change, split='val'):
    path = root / f'annotations/instances_{split}2017.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_small_real_data_set_is_valid_and_redistributable(repository):
    root = repository / 'data/mini/coco'
    layout = find_coco(root)
    assert len(layout.classes) == 80
    assert layout.classes[0] == 'person'
    table = (root / 'ATTRIBUTION.md').read_text()
    counts = {}
    for split in (layout.train, layout.val):
        content = json.loads(split.annotations.read_text())
        counts[split.images.name] = len(content['images'])
        assert {image['license'] for image in content['images']} <= {4, 5, 7}
        assert {path.name for path in split.images.iterdir()} == {image['file_name'] for image in content['images']}
        for image in content['images']:
            assert f'{split.images.name}/{image["file_name"]}' in table
            assert image['flickr_url'] in table
    assert counts == {'train2017': 64, 'val2017': 32}
    assert sum(path.stat().st_size for path in root.rglob('*') if path.is_file()) <= 16e6


def test_other_folder_names_are_recognised(small):
    (small / 'images').mkdir()
    (small / 'val2017').rename(small / 'images' / 'val')
    (small / 'train2017').rename(small / 'train')
    layout = find_coco(small)
    assert (layout.train.images, layout.val.images) == (small / 'train', small / 'images' / 'val')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c.pop('annotations'), 'needs the lists'),
        (lambda c: c['annotations'][0].pop('area'), 'entry 0 of annotations has no area'),
        (lambda c: c['annotations'][0].update(area=None), 'area=None, of the wrong type'),
        (lambda c: c['annotations'][1].update(id=c['annotations'][0]['id']), 'annotation id .* occurs twice'),
        (lambda c: c['images'][0].update(file_name=None), 'file_name=None, of the wrong type'),
        (lambda c: c['categories'].reverse(), 'same order'),
        (lambda c: c['annotations'][0].pop('bbox'), 'entry 0 of annotations has no bbox'),
        (lambda c: c['annotations'][0].update(category_id=999), 'category 999'),
        (lambda c: c['annotations'][0].update(image_id=999), 'image 999'),
        (lambda c: c['annotations'][0].update(bbox=[0, 0, -5, 5]), 'negative size'),
        (lambda c: c['annotations'][0].update(bbox=[0, 0, 5000, 5]), 'outside'),
        (lambda c: c['annotations'][0].update(bbox=[0, 0, 5]), 'expected'),
        (lambda c: c['images'][0].update(file_name='gone.jpg'), 'no image .*gone.jpg'),
        (lambda c: c['images'][0].update(width=7), 'not 7x'),
        (lambda c: c['images'].append(c['images'][0]), 'occurs twice'),
        (lambda c: c.update(images=[], annotations=[]), 'lists no images'),
        (lambda c: c.update(categories=[]), 'no categories'),
        (lambda c: c['categories'].pop(), 'same categories'),
    ],
)
def test_mistakes_are_reported(small, change, message):
    edit(small, change)
    with pytest.raises(UserError, match=message):
        find_coco(small)


def test_broken_files_are_reported(small):
    image_file = next((small / 'val2017').iterdir())
    image_file.write_bytes(b'not a image_file')
    with pytest.raises(UserError, match=f'{image_file.name} is not a readable image'):
        find_coco(small)
    (small / 'annotations/instances_val2017.json').write_text('{"images": [')
    with pytest.raises(UserError, match='is not JSON'):
        find_coco(small)


def test_missing_files_are_reported(tmp_path, small):
    with pytest.raises(UserError, match='no folder'):
        find_coco(tmp_path / 'none')
    with pytest.raises(UserError, match='0 files'):
        find_coco(tmp_path)
    shutil.rmtree(small / 'val2017')
    with pytest.raises(UserError, match='no images for'):
        find_coco(small)
    with pytest.raises(UserError, match=r'looked for .*val2017; fetch it'):
        require_split(Split(small / 'annotations/instances_val2017.json', small / 'val2017'), 'fetch it')


def test_many_mistakes_are_counted(small):
    edit(small, lambda c: [a.update(category_id=999) for a in c['annotations'][:10]])
    with pytest.raises(UserError, match='and 7 more'):
        check_split(Split(small / 'annotations/instances_val2017.json', small / 'val2017'))


def test_classes_are_in_mmdets_order(small):
    for split in ('train', 'val'):
        edit(small, lambda c: c['categories'].reverse(), split)
    layout = find_coco(small)
    assert layout.classes[0] == 'toothbrush'
    dataset = CocoDataset(
        data_root='', ann_file=str(layout.val.annotations), data_prefix=dict(img=str(layout.val.images)),
        metainfo=dict(classes=layout.classes), test_mode=True,
    )  # fmt: skip
    names = {c['id']: c['name'] for c in json.loads(layout.val.annotations.read_text())['categories']}
    assert [names[i] for i in dataset.cat_ids] == list(layout.classes)


def test_exif_rotation_is_applied_to_the_size(small):
    """Phones store portrait images in landscape format with a rotation, which labelling tools and mmcv apply."""
    path = small / 'val2017' / 'turned.jpg'
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (60, 40)).save(path, exif=exif)
    assert mmcv.imread(str(path)).shape == (60, 40, 3)
    image = dict(id=1, file_name='turned.jpg', width=40, height=60)
    edit(small, lambda c: c.update(images=[image], annotations=[]))
    find_coco(small)
    edit(small, lambda c: c.update(images=[dict(image, width=60, height=40)]))
    with pytest.raises(UserError, match='is 40x60, not 60x40'):
        find_coco(small)


def test_a_valid_split_is_read_again_only_if_a_file_has_changed(small, monkeypatch):
    read = []
    monkeypatch.setattr(
        'mnv4_mm.data.formats.coco.read_annotations', lambda path: read.append(path) or read_annotations(path)
    )
    layout = find_coco(small)
    assert read == [layout.train.annotations, layout.val.annotations]
    assert find_coco(small) == layout
    require_split(layout.train, '')
    assert len(read) == 2
    Image.new('RGB', (9, 9)).save(next(layout.val.images.iterdir()))
    for _ in range(2):  # a mistake is not forgotten
        with pytest.raises(UserError, match='is 9x9, not'):
            find_coco(small)
    edit(small, lambda c: c['annotations'][0].update(category_id=999), 'train')
    with pytest.raises(UserError, match='has category 999'):
        require_split(layout.train, '')


def test_large_files_are_not_checked(small, monkeypatch):
    edit(small, lambda c: c['annotations'][0].update(bbox=[0, 0, -5, 5]))
    monkeypatch.setattr('mnv4_mm.data.formats.coco.FULL_CHECK_BYTES', 1000)
    find_coco(small)


def test_only_categories_are_read_from_large_files(small, monkeypatch):
    expected = find_coco(small)
    monkeypatch.setattr('mnv4_mm.data.formats.coco.FULL_CHECK_BYTES', 1000)
    with monkeypatch.context() as patched:
        patched.delattr('mnv4_mm.data.formats.coco.read_annotations')
        assert find_coco(small) == expected
    # If the list of categories is ambiguous or invalid, the whole file is read, which reports the mistake.
    edit(small, lambda c: c['images'][0].update(categories=[dict(id=1, name='other')]))
    assert find_coco(small) == expected
    edit(small, lambda c: (c['images'][0].pop('categories'), c['categories'][0].pop('name')))
    with pytest.raises(UserError, match='entry 0 of categories has no name'):
        find_coco(small)
