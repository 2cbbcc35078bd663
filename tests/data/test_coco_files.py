"""Annotation files that a config names: mistakes are reported with their files; the data of --data is prepared."""

import json
import math
import shutil

import mmcv
import pytest
from mmdet.datasets import CocoDataset
from PIL import Image

from mnv4_mm.data.coco_files import Split, check_split, read_annotations, require_split
from mnv4_mm.data.prepare import prepare_detection
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


def val_split(root):
    return Split(root / 'annotations/instances_val2017.json', root / 'val2017')


def test_the_small_real_data_set_is_valid_and_redistributable(repository):
    root = repository / 'data/mini/coco'
    layout = prepare_detection(root)
    assert len(layout.classes) == 80
    assert layout.classes[0] == 'person'
    table = (root / 'ATTRIBUTION.md').read_text()
    counts = {}
    for name in ('train2017', 'val2017'):
        content = json.loads((root / f'annotations/instances_{name}.json').read_text())
        counts[name] = len(content['images'])
        assert {image['license'] for image in content['images']} <= {4, 5, 7}
        assert {path.name for path in (root / name).iterdir()} == {image['file_name'] for image in content['images']}
        for image in content['images']:
            assert f'{name}/{image["file_name"]}' in table
            assert image['flickr_url'] in table
    assert counts == {'train2017': 64, 'val2017': 32}
    assert sum(path.stat().st_size for path in root.rglob('*') if path.is_file()) <= 16e6


def each(content, change):
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    for annotation in content['annotations']:
        annotation['bbox'] = change(annotation['bbox'], *sizes[annotation['image_id']])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c.pop('annotations'), 'needs the lists'),
        (lambda c: c['annotations'][0].pop('area'), 'entry 0 of annotations has no area'),
        (lambda c: c['annotations'][0].update(area=None), 'area=None, of the wrong type'),
        (lambda c: c['annotations'][1].update(id=c['annotations'][0]['id']), 'its id is that of entry 0 .*its own id'),
        (lambda c: c['images'][0].update(file_name=None), 'file_name=None, of the wrong type'),
        (lambda c: c['annotations'][0].pop('bbox'), 'entry 0 of annotations has no bbox'),
        (lambda c: c['annotations'][0].update(category_id=999), 'category_id 999 is not listed in categories'),
        (lambda c: c['annotations'][0].update(image_id=999), 'image_id 999 is not listed in images: correct it, or'),
        (lambda c: c['annotations'][0].update(bbox=[0, 0, -5, 5]), 'negative size: correct it, or name .* by --data'),
        (lambda c: c['annotations'][0].update(bbox=[0, 0, 5000, 5]), 'outside'),
        (lambda c: c['annotations'][0].update(bbox=[-9, 0, 15, 5]), 'reaches 9 pixels outside'),
        (lambda c: c['annotations'][0].update(bbox=[0, 0, 5]), r'is not \[x, y, width, height\]'),
        (lambda c: c['annotations'][0].update(bbox=[math.nan, 0, 5, 5]), 'is not finite: correct it'),
        (lambda c: c['annotations'][0].update(bbox=[0, 0, math.inf, 5]), 'is not finite: correct it'),
        (lambda c: c['annotations'][0].update(iscrowd='0'), "iscrowd is '0', not 0 or 1"),
        (lambda c: each(c, lambda box, w, h: [box[0] / w, box[1] / h, box[2] / w, box[3] / h]), 'shares of the image'),
        (lambda c: each(c, lambda box, w, h: [box[0], box[1], box[0] + box[2], box[1] + box[3]]), 'look like .x1, y1'),
        (lambda c: each(c, lambda box, w, h: [value / 5 for value in box]), 'of different units'),
        (lambda c: [a.update(iscrowd=1) for a in c['annotations']], r'all \d+ boxes are crowds'),
        (lambda c: c['annotations'][0].update(attributes=dict(rotation=90), segmentation=[]), 'rotated by 90 degrees'),
        (lambda c: c['annotations'][0].update(ignore=1, iscrowd=0), 'it has ignore, and not iscrowd'),
        (lambda c: c['categories'][1].update(id=1), "'person' and 'bicycle' have the same id"),
        (lambda c: c['categories'][1].update(name='person'), "classes 0 and 1 are both 'person'"),
        (lambda c: c['categories'][1].update(name=' '), 'the name is empty'),
        (lambda c: c['images'][0].update(file_name='gone.jpg'), 'no image .*gone.jpg'),
        (lambda c: c['images'][0].update(width=7), 'not 7x'),
        (lambda c: c['images'].append(c['images'][0]), 'have the same id'),
        (lambda c: c['images'].append(dict(c['images'][0], id=7)), 'are the same file'),
        (lambda c: c.update(images=[], annotations=[]), 'lists no images'),
        (lambda c: c.update(categories=[], annotations=[]), 'no categories'),
    ],
)
def test_mistakes_are_reported(small, change, message):
    edit(small, change)
    with pytest.raises(UserError, match=message):
        require_split(val_split(small), '')


@pytest.mark.parametrize(
    'change',
    [
        lambda c: [a.update(id=i) for i, a in enumerate(c['annotations'])],
        lambda c: c['annotations'][0].update(bbox=[-2.5, 0, 20, 5]),
        lambda c: c['annotations'][0].update(bbox=[3, 3, 0, 5]),
        lambda c: c['annotations'][0].update(bbox=[3, 3, 0.5, 5]),
        lambda c: c['annotations'][0].update(area=0),
        lambda c: c.update(annotations=[]),
        lambda c: c['annotations'][0].update(area=1e9),
        lambda c: c['annotations'].append(dict(c['annotations'][0], id=1)),
        lambda c: [image.update(file_name=f'../val2017/{image["file_name"]}') for image in c['images']],
    ],
    ids=[
        'ids from 0',
        'little outside',
        'empty',
        'sub-pixel',
        'no area',
        'no boxes',
        'large area',
        'twice',
        'name leads out',
    ],
)
def test_what_does_no_harm_is_accepted(small, change):
    """Either as in the data of --data, or because mmdet leaves it out itself."""
    edit(small, change)
    require_split(val_split(small), '')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: [a.update(bbox=[0, 0, 0, 0]) for a in c['annotations'][::20]], r'times box-empty: correct it'),
        (lambda c: [a.update(bbox=[3, 3, 0.5, 5]) for a in c['annotations'][::20]], r'times box-sub-pixel: correct it'),
        (lambda c: c['annotations'].extend([dict(a, id=-i) for i, a in enumerate(c['annotations'][::20], 1)]), 'twice'),
    ],
)
def test_many_boxes_that_an_evaluation_would_count_as_missed_are_refused(small, change, message):
    """mmdet does not train on the first two, but each is ground truth of the metric."""
    edit(small, change)
    with pytest.raises(UserError, match=message):
        require_split(val_split(small), '')


def test_names_may_be_absolute(small):
    edit(small, lambda c: [one.update(file_name=str(small / 'val2017' / one['file_name'])) for one in c['images']])
    require_split(val_split(small), '')
    (small / 'val2017').rename(small / 'moved')
    with pytest.raises(UserError, match='32 times missing-image: correct it'):
        check_split(val_split(small))


def test_broken_files_are_reported(small):
    image_file = next((small / 'val2017').iterdir())
    whole = image_file.read_bytes()
    for content in (b'not an image file', whole[: len(whole) // 2]):
        image_file.write_bytes(content)
        with pytest.raises(UserError, match=rf'{image_file.name}: .*(readable|cut).*: correct it, or'):
            require_split(val_split(small), '')
    (small / 'annotations/instances_val2017.json').write_text('{"images": [')
    with pytest.raises(UserError, match='is not JSON'):
        require_split(val_split(small), '')


def test_missing_files_are_reported(small):
    shutil.rmtree(small / 'val2017')
    with pytest.raises(UserError, match=r'looked for .*val2017; fetch it'):
        require_split(val_split(small), 'fetch it')


def test_many_mistakes_are_counted(small):
    edit(small, lambda c: [a.update(category_id=999) for a in c['annotations'][:10]])
    with pytest.raises(UserError, match=r'10 times class-unlisted: .*first: instances_val2017\.json, annotation'):
        check_split(val_split(small))


def test_classes_are_in_mmdets_order(small):
    for split in ('train', 'val'):
        edit(small, lambda c: c['categories'].reverse(), split)
    layout = prepare_detection(small)
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
    box = dict(id=1, image_id=1, category_id=1, bbox=[5, 40, 20, 15], area=300, iscrowd=0)
    edit(small, lambda c: c.update(images=[image], annotations=[box]))
    require_split(val_split(small), '')
    edit(small, lambda c: c.update(images=[dict(image, width=60, height=40)]))
    with pytest.raises(UserError, match='is 40x60, not 60x40'):
        require_split(val_split(small), '')


def test_a_valid_split_is_read_again_only_if_a_file_has_changed(small, monkeypatch):
    read = []
    monkeypatch.setattr(
        'mnv4_mm.data.coco_files.read_annotations', lambda path: read.append(path) or read_annotations(path)
    )
    split = val_split(small)
    require_split(split, '')
    assert read == [split.annotations]
    require_split(split, '')
    assert len(read) == 1
    Image.new('RGB', (9, 9)).save(next(split.images.iterdir()))
    for _ in range(2):  # a mistake is not forgotten
        with pytest.raises(UserError, match='is 9x9, not'):
            require_split(split, '')


def test_large_files_are_not_checked(small, monkeypatch):
    edit(small, lambda c: c['annotations'][0].update(bbox=[0, 0, -5, 5]))
    monkeypatch.setattr('mnv4_mm.data.coco_files.FULL_CHECK_BYTES', 1000)
    require_split(val_split(small), '')


def test_only_categories_are_read_from_large_files(small, monkeypatch):
    split = val_split(small)
    expected = check_split(split)
    monkeypatch.setattr('mnv4_mm.data.coco_files.FULL_CHECK_BYTES', 1000)
    edit(small, lambda c: None)  # another time: the check is not remembered
    with monkeypatch.context() as patched:
        patched.delattr('mnv4_mm.data.coco_files.read_annotations')
        assert check_split(split) == expected
    # If the list of categories is ambiguous or invalid, the whole file is read, which reports the mistake.
    edit(small, lambda c: c['images'][0].update(categories=[dict(id=1, name='other')]))
    assert check_split(split) == expected
    edit(small, lambda c: (c['images'][0].pop('categories'), c['categories'][0].pop('name')))
    with pytest.raises(UserError, match='entry 0 of categories has no name'):
        check_split(split)
