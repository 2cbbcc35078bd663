"""COCO JSON of many tools is read, and each wrong entry is a finding that names file and entry."""

import copy
import json
import math

import pytest
from pycocotools import mask
from small_data import boxes, findings, write_file, write_images

from mnv4_mm.data.findings import Rule
from mnv4_mm.data.form import ALL, TRAIN, VAL
from mnv4_mm.data.formats.coco_json import read
from mnv4_mm.data.formats.recognise import recognise
from mnv4_mm.errors import UserError

CONTENT = dict(
    info=dict(),
    licenses=[],
    images=[
        dict(id=1, file_name='a.jpg', width=32, height=24),
        dict(id=2, file_name='b.jpg', width=32, height=24),
    ],
    annotations=[
        dict(id=1, image_id=1, category_id=1, bbox=[1, 2, 3, 4], area=12, iscrowd=0, segmentation=[]),
        dict(id=2, image_id=2, category_id=2, bbox=[5.5, 6, 7, 8], area=56, iscrowd=1, segmentation=[]),
    ],
    categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
)
CAT, DOG = ('cat', (1, 2, 3, 4)), ('dog', (5.5, 6, 7, 8))


@pytest.fixture
def content():
    return copy.deepcopy(CONTENT)


@pytest.fixture
def load(tmp_path):
    """Write one annotation file beside two images, and read the folder."""

    def load(content, name='annotations/instances_default.json', images=('images/a.jpg', 'images/b.jpg'), **options):
        write_file(tmp_path / name, content, **options)
        write_images(tmp_path, images)
        data = read(tmp_path)
        assert data is not None
        return data

    return load


def test_a_folder_without_such_a_file(tmp_path):
    write_images(tmp_path, ['a.jpg'])
    write_file(tmp_path / 'predictions.json', [dict(image_id=1, category_id=1, bbox=[1, 2, 3, 4], score=0.5)])
    write_file(tmp_path / 'package.json', dict(name='x'))
    assert read(tmp_path) is None


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_every_encoding(load, content, encoding):
    data = load(content, encoding=encoding)
    assert data.classes == ('cat', 'dog')
    assert data.category_ids == (1, 2)
    assert boxes(data) == {'images/a.jpg': [CAT], 'images/b.jpg': [DOG]}
    assert [box.is_crowd for image in data.splits[ALL] for box in image.boxes] == [False, True]
    assert [box.area for image in data.splits[ALL] for box in image.boxes] == [12, 56]
    assert [(image.size, image.image_id) for image in data.splits[ALL]] == [((32, 24), 1), ((32, 24), 2)]
    assert (data.findings, data.notes) == ([], [])


@pytest.mark.parametrize(
    ('name', 'images', 'prefix'),
    [
        ('annotations/instances_default.json', ('images/a.jpg', 'images/b.jpg'), ''),
        ('annotations/instances_default.json', ('images/a.jpg', 'images/b.jpg'), 'images/'),
        ('result.json', ('images/a.jpg', 'images/b.jpg'), 'images/'),  # Label Studio
        ('_annotations.coco.json', ('a.jpg', 'b.jpg'), ''),  # Roboflow
        ('labels.json', ('data/a.jpg', 'data/b.jpg'), ''),  # FiftyOne
        ('project/coco/annotations.json', ('project/coco/pictures/a.jpg', 'project/coco/pictures/b.jpg'), 'export/7/'),
        ('annotations/boxes.json', ('images/a.jpg', 'images/b.jpg'), '../images/'),
        ('annotations/boxes.json', ('cam/0/a.jpg', 'cam/0/b.jpg'), 'cam/0/'),
        ('annotations/boxes.json', ('images/a.jpg', 'images/b.jpg'), './'),
    ],
)
def test_layouts_without_a_split(load, content, name, images, prefix):
    for image in content['images']:
        image['file_name'] = prefix + image['file_name']
    data = load(content, name, images)
    assert boxes(data) == {images[0]: [CAT], images[1]: [DOG]}
    assert list(data.splits) == [ALL]
    assert data.findings == []


@pytest.mark.parametrize(
    ('names', 'folders'),
    [
        (('annotations/instances_train2017.json', 'annotations/instances_val2017.json'), ('train2017', 'val2017')),
        (('annotations/instances_train.json', 'annotations/instances_val.json'), ('images/train', 'images/val')),
        (('train/_annotations.coco.json', 'valid/_annotations.coco.json'), ('train', 'valid')),
        (('train.json', 'val.json'), ('images', 'images')),
        (('annotations/train_coco.json', 'annotations/validation_coco.json'), ('training', 'validation')),
        (('coco/train/labels.json', 'coco/val/labels.json'), ('coco/train/data', 'coco/val/data')),
        (('annotations.json', 'val.json'), ('images', 'images')),
    ],
)
def test_layouts_with_a_split(tmp_path, content, names, folders):
    for split, name, folder in zip('tv', names, folders, strict=True):
        for image in content['images']:
            image['file_name'] = f'{split}{image["file_name"][-5:]}'
        write_file(tmp_path / name, content)
        write_images(tmp_path, [f'{folder}/{image["file_name"]}' for image in content['images']])
    data = read(tmp_path)
    assert {split: [image.name for image in images] for split, images in data.splits.items()} == {
        TRAIN: [f'{folders[0]}/ta.jpg', f'{folders[0]}/tb.jpg'],
        VAL: [f'{folders[1]}/va.jpg', f'{folders[1]}/vb.jpg'],
    }
    assert data.findings == []


def test_same_names_in_two_splits_are_different_images(tmp_path, content):
    for split in ('train', 'val'):
        write_file(tmp_path / f'annotations/instances_{split}.json', content)
        write_images(tmp_path, [f'{split}/a.jpg', f'{split}/b.jpg'])
    (tmp_path / 'val/b.jpg').unlink()
    data = recognise(tmp_path, 'detection')
    assert [image.name for image in data.splits[TRAIN]] == ['train/a.jpg', 'train/b.jpg']
    # The missing one is named where it should be, and not taken from the other split.
    assert [image.name for image in data.splits[VAL]] == ['val/a.jpg', 'val/b.jpg']


def test_a_missing_folder_is_not_replaced_by_that_of_another_split(tmp_path, content):
    for split in ('train', 'val'):
        write_file(tmp_path / f'annotations/instances_{split}.json', content)
    write_images(tmp_path, ['train/a.jpg', 'train/b.jpg'])
    data = read(tmp_path)
    assert not any(image.name.startswith('train') for image in data.splits[VAL])


def test_the_split_of_a_single_file_is_that_of_its_folders(load, content):
    content['images'][0]['file_name'] = 'train/a.jpg'
    content['images'][1]['file_name'] = 'val/b.jpg'
    data = load(content, images=('images/train/a.jpg', 'images/val/b.jpg'))
    assert {split: [image.name for image in images] for split, images in data.splits.items()} == {
        TRAIN: ['images/train/a.jpg'],
        VAL: ['images/val/b.jpg'],
    }


def test_the_same_images_for_training_and_validation_are_split_anew(tmp_path, content):
    for split in ('train', 'val'):
        write_file(tmp_path / f'annotations/instances_{split}.json', content)
    write_images(tmp_path, ['images/a.jpg', 'images/b.jpg'])
    data = recognise(tmp_path, 'detection')
    assert list(data.splits) == [ALL]
    assert data.notes == [
        'the same images are for training and validation: they are split anew',
        'not used: annotations/instances_val.json',
    ]


def test_what_is_wrong_in_a_copied_file_counts_once(tmp_path, content):
    content['annotations'][0]['bbox'] = [1, 2, 'x', 4]
    content['images'][0]['width'] = '32'
    for split in ('train', 'val', 'test'):
        write_file(tmp_path / f'annotations/instances_{split}.json', content)
    write_images(tmp_path, ['images/a.jpg', 'images/b.jpg'])
    data = recognise(tmp_path, 'detection')
    assert [kind for kind, _, _ in findings(data)] == ['size-invalid', 'box-invalid']
    assert boxes(data) == {'images/a.jpg': [], 'images/b.jpg': [DOG]}
    assert data.notes[-1] == 'not used: annotations/instances_val.json, annotations/instances_test.json'


def test_images_that_no_file_lists_are_counted(load, content):
    images = [f'images/{name}.jpg' for name in 'abcd']
    data = load(content, images=[*images, 'masks/a.png'])
    assert boxes(data).keys() == {'images/a.jpg', 'images/b.jpg'}
    assert data.notes == ['2 images beside the listed ones, not used: images/c.jpg, images/d.jpg']


def test_an_image_in_two_splits(tmp_path, content):
    write_file(tmp_path / 'annotations/instances_train.json', content)
    del content['images'][0], content['annotations'][0]
    write_file(tmp_path / 'annotations/instances_val.json', content)
    write_images(tmp_path, ['images/a.jpg', 'images/b.jpg'])
    data = recognise(tmp_path, 'detection')
    ((kind, _, problem),) = findings(data, Rule.FATAL)
    assert kind == 'image-in-two-splits'
    assert problem.startswith("'images/b.jpg' is for val, and for training in")


def test_other_files_of_coco_are_not_used(tmp_path, content):
    write_images(tmp_path, ['train2017/a.jpg', 'train2017/b.jpg'])
    for name in ('captions_train2017.json', 'person_keypoints_train2017.json', 'instances_train2017.json'):
        write_file(tmp_path / 'annotations' / name, content)
    data = read(tmp_path)
    assert data.notes == ['not used: annotations/captions_train2017.json, annotations/person_keypoints_train2017.json']
    assert list(data.splits) == [TRAIN]


def test_two_files_for_one_split(load, content):
    load(content, 'a_train.json')
    with pytest.raises(
        UserError, match=r'2 COCO JSON files for the split train \(a_train.json, b_train.json\): join them into one'
    ):
        load(content, 'b_train.json')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (json.dumps(CONTENT)[:-30], r'instances_default.json is not JSON: .*ends too early'),
        (json.dumps(dict(CONTENT, images={})), 'needs the lists images, annotations, categories, and has no images'),
        (json.dumps({key: CONTENT[key] for key in ('images', 'annotations')}), 'has no categories'),
        ('[]', 'has no images, annotations, categories'),
        ('', 'is empty'),
    ],
)
def test_files_that_are_not_coco(load, text, message):
    with pytest.raises(UserError, match=message):
        load(text)


UNLISTED, NO_CLASS = ('image-unlisted', 'annotation 1'), ('class-unlisted', 'annotation 1')


def set_boxes(*values):
    def change(content):
        for annotation, value in zip(content['annotations'], values, strict=False):
            annotation['bbox'] = value

    return change


def set_key(key, value, entry=0, kind='annotations'):
    def change(content):
        if value is None:
            del content[kind][entry][key]
        else:
            content[kind][entry][key] = value

    return change


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        # Dropped: boxes.
        (set_boxes(['1', '2', '3', '4'], []), [('box-invalid', 'annotation 1'), ('box-invalid', 'annotation 2')]),
        (set_boxes([1, 2, 3]), [('box-invalid', 'annotation 1')]),
        (set_boxes([1, 2, 3, None]), [('box-invalid', 'annotation 1')]),
        (set_boxes([1, 2, True, 4]), [('box-invalid', 'annotation 1')]),
        (set_key('bbox', None), [('box-invalid', 'annotation 1')]),
        (set_key('bbox', dict(x=1)), [('box-invalid', 'annotation 1')]),
        (set_key('bbox', []), [('box-invalid', 'annotation 1')]),
        (set_key('iscrowd', 'no'), [('box-invalid', 'annotation 1')]),
        (set_key('image_id', 7), [UNLISTED]),
        (set_key('image_id', None), [UNLISTED]),
        # Fatal.
        (set_key('category_id', 7), [NO_CLASS]),
        (set_key('category_id', None), [NO_CLASS]),
        (set_key('id', 2), [('annotation-id-twice', 'annotation 2')]),
        (set_key('id', 1.5), [('entry-invalid', 'entry 0 of annotations')]),
        (set_key('id', 2, kind='images'), [('image-id-twice', 'image 2'), UNLISTED]),
        (set_key('id', None, kind='images'), [('entry-invalid', 'entry 0 of images'), UNLISTED]),
        (set_key('file_name', None, kind='images'), [('entry-invalid', 'image 1')]),
        (set_key('file_name', 7, kind='images'), [('entry-invalid', 'image 1')]),
        (set_key('file_name', '', kind='images'), [('entry-invalid', 'image 1')]),
        (set_key('file_name', 'a\0.jpg', kind='images'), [('entry-invalid', 'image 1')]),
        (set_key('file_name', '\ud800.jpg', kind='images'), [('entry-invalid', 'image 1')]),
        (set_key('file_name', 'b.jpg', kind='images'), [('image-twice', 'image 2')]),
        (set_key('file_name', './b.jpg', kind='images'), [('image-twice', 'image 2')]),
        (set_key('id', 2, kind='categories'), [('category-id-twice', 'category 2'), NO_CLASS]),
        (set_key('name', 'dog', kind='categories'), [('class-twice', 'class 1')]),
        (set_key('name', ' ', kind='categories'), [('class-name', 'class 0')]),
        (set_key('name', 'a\nb', kind='categories'), [('class-name', 'class 0')]),
        (set_key('name', 'red\u00a0cell \U0001f469\u200d\U0001f33e', kind='categories'), []),
        (set_key('name', None, kind='categories'), [('entry-invalid', 'entry 0 of categories'), NO_CLASS]),
        (lambda content: content['annotations'].append(3), [('entry-invalid', 'entry 2 of annotations')]),
        (lambda content: content['images'].append(None), [('entry-invalid', 'entry 2 of images')]),
        (lambda content: content['categories'].append([]), [('entry-invalid', 'entry 2 of categories')]),
        # Harmless.
        (set_key('name', 'Dog', kind='categories'), [('class-similar', 'class 1')]),
        (set_key('width', '32', kind='images'), [('size-invalid', 'image 1')]),
        (set_key('width', -1, kind='images'), [('size-invalid', 'image 1')]),
        (set_key('area', '12'), [('area-missing', 'annotation 1')]),
        (set_key('area', None), [('area-missing', 'annotation 1')]),
        (set_key('width', None, kind='images'), [('size-invalid', 'image 1')]),
    ],
)  # fmt: skip
def test_wrong_entries_are_findings(load, content, change, expected):
    change(content)
    data = load(json.dumps(content))
    assert [(kind, entry) for kind, entry, _ in findings(data)] == expected
    assert all(finding.file == data.root / 'annotations/instances_default.json' for finding in data.findings)


def test_keys_that_may_be_missing(load, content):
    for key in ('info', 'licenses'):
        del content[key]
    for annotation in content['annotations']:
        for key in ('area', 'iscrowd', 'segmentation', 'id'):
            del annotation[key]
    for image in content['images']:
        del image['width'], image['height']
    data = load(content)
    assert boxes(data) == {'images/a.jpg': [CAT], 'images/b.jpg': [DOG]}
    assert findings(data) == [('area-missing', 'entry 0 of annotations', '2 of 2 annotations have no area')]
    all_boxes = [box for image in data.splits[ALL] for box in image.boxes]
    assert [(box.area, box.is_crowd, box.annotation_id) for box in all_boxes] == [(None, False, None)] * 2
    assert [image.size for image in data.splits[ALL]] == [None, None]


def test_boxes_that_are_not_finite_are_kept_for_the_check(load, content):
    content['annotations'][0]['bbox'] = [1, math.nan, 3, math.inf]
    data = load(content)
    (box,) = data.splits[ALL][0].boxes
    assert math.isnan(box.xywh[1])
    assert box.xywh[3] == math.inf
    assert box.entry == 'annotation 1'


def test_ids_from_zero(load, content):
    for key in ('images', 'annotations', 'categories'):
        for i, entry in enumerate(content[key]):
            entry['id'] = i
    for annotation in content['annotations']:
        annotation['image_id'] -= 1
        annotation['category_id'] -= 1
    data = load(content)
    assert boxes(data) == {'images/a.jpg': [CAT], 'images/b.jpg': [DOG]}
    assert data.category_ids == (0, 1)
    assert [image.image_id for image in data.splits[ALL]] == [0, 1]
    assert data.findings == []


def test_huge_ids_stay_apart(load, content):
    base = 2**62
    for key in ('images', 'annotations', 'categories'):
        for i, entry in enumerate(content[key]):
            entry['id'] = base + i
    for annotation in content['annotations']:
        annotation['image_id'] += base - 1
        annotation['category_id'] += base - 1
    data = load(content)
    assert boxes(data) == {'images/a.jpg': [CAT], 'images/b.jpg': [DOG]}
    assert data.category_ids == (base, base + 1)
    assert [image.image_id for image in data.splits[ALL]] == [base, base + 1]


def test_panoptic(load, content):
    content['annotations'] = [dict(image_id=1, file_name='a.png', segments_info=[dict(id=1, category_id=1)])]
    with pytest.raises(UserError, match=r'has panoptic annotations \(segments_info\), which are not read'):
        load(content)


@pytest.mark.parametrize('convert', [str, lambda number: number + 2**70])
def test_ids_that_are_text_or_too_large_are_replaced(load, content, convert):
    for key in ('images', 'annotations', 'categories'):
        for entry in content[key]:
            entry['id'] = convert(entry['id'])
    for annotation in content['annotations']:
        annotation['image_id'] = convert(annotation['image_id'])
        annotation['category_id'] = convert(annotation['category_id'])
    data = load(content)
    assert boxes(data) == {'images/a.jpg': [CAT], 'images/b.jpg': [DOG]}
    assert data.category_ids == (1, 2)
    assert [image.image_id for image in data.splits[ALL]] == [None, None]
    assert len(data.notes) == 3
    assert data.findings == []


def test_ids_of_two_types_do_not_match(load, content):
    content['annotations'][0]['image_id'] = '1'
    content['annotations'][1]['category_id'] = '2'
    assert findings(load(content)) == [
        (
            'image-unlisted',
            'annotation 1',
            "image_id '1' is not listed in images: it is text, and there it is a number",
        ),
        (
            'class-unlisted',
            'annotation 2',
            "category_id '2' is not listed in categories: it is text, and there it is a number",
        ),
    ]


def test_numbers_do_not_match_ids_that_are_text(load, content):
    for category in content['categories']:
        category['id'] = str(category['id'])
    problem = 'category_id 1 is not listed in categories: it is a number, and there it is text'
    assert findings(load(content))[0] == ('class-unlisted', 'annotation 1', problem)


def test_whole_numbers_with_a_decimal_point_are_ids(load, content):
    content['annotations'][0].update(id=1.0, image_id=1.0, category_id=1.0)
    content['images'][0].update(width=32.0)
    data = load(content)
    assert boxes(data) == {'images/a.jpg': [CAT], 'images/b.jpg': [DOG]}
    assert data.findings == []


def roboflow(*used):
    """Roboflow's categories: a root named after the project, then the classes."""
    return [
        dict(id=1 + i, image_id=1, category_id=category, bbox=[1, 2, 3, 4], area=12, iscrowd=0)
        for i, category in enumerate(used)
    ]


@pytest.mark.parametrize(
    ('root', 'used', 'classes', 'ids', 'fatal'),
    [
        ('cells', (1, 2), ('disc', 'ring'), (1, 2), []),
        ('cells', (0, 1, 2), ('cells', 'disc', 'ring'), (0, 1, 2), []),  # a class with boxes is kept
        ('disc', (1, 2), ('disc', 'ring'), (1, 2), []),
        ('disc', (0, 2), ('disc', 'ring'), (0, 2), []),
        ('disc', (0, 1, 2), ('disc', 'disc', 'ring'), (0, 1, 2), ['class-twice']),
    ],
)
def test_root_category_of_roboflow(load, content, root, used, classes, ids, fatal):
    content['categories'] = [
        dict(id=0, name=root, supercategory='none'),
        dict(id=1, name='disc', supercategory=root),
        dict(id=2, name='ring', supercategory=root),
    ]
    content['annotations'] = roboflow(*used)
    data = load(content)
    assert (data.classes, data.category_ids) == (classes, ids)
    assert [kind for kind, _, _ in findings(data)] == fatal
    assert bool(data.notes) == (len(classes) == 2)
    if not fatal:
        names = dict(zip(ids, classes, strict=True))
        assert [label for label, _ in boxes(data)['images/a.jpg']] == [names[number] for number in used]


def test_a_root_with_the_name_of_the_only_class(load, content):
    content['categories'] = [
        dict(id=0, name='disc', supercategory='none'),
        dict(id=1, name='disc', supercategory='disc'),
    ]
    content['annotations'] = roboflow(1)
    data = load(content)
    assert (data.classes, data.category_ids, data.findings) == (('disc',), (1,), [])
    assert boxes(data)['images/a.jpg'] == [('disc', (1, 2, 3, 4))]


def test_a_root_with_boxes_in_one_split_is_kept_in_all(tmp_path, content):
    content['categories'] = [
        dict(id=0, name='cells', supercategory='none'),
        dict(id=1, name='disc', supercategory='cells'),
    ]
    content['annotations'] = roboflow(0, 1)
    write_file(tmp_path / 'train/_annotations.coco.json', content)
    content['annotations'] = roboflow(1)
    write_file(tmp_path / 'valid/_annotations.coco.json', content)
    write_images(tmp_path, [f'{split}/{name}.jpg' for split in ('train', 'valid') for name in 'ab'])
    data = read(tmp_path)
    assert (data.classes, data.findings) == (('cells', 'disc'), [])
    assert boxes(data)['valid/a.jpg'] == [('disc', (1, 2, 3, 4))]


def test_coco_s_own_supercategories_are_no_roots(load, content):
    content['categories'] = [
        dict(id=1, name='cat', supercategory='cat'),
        dict(id=2, name='dog', supercategory='animal'),
    ]
    content['annotations'] = []
    assert load(content).classes == ('cat', 'dog')


@pytest.mark.parametrize(
    ('categories', 'classes', 'expected'),
    [
        ([(2, 'dog'), (1, 'cat')], ('cat', 'dog'), []),
        ([(1, 'dog'), (2, 'cat')], ('cat', 'dog'), []),
        ([(5, 'dog'), (9, 'cat')], ('cat', 'dog'), []),
        ([(5, 'dog')], ('cat', 'dog'), []),
        ([(1, 'dog'), (2, 'cow')], ('cat', 'dog', 'cow'), []),  # not used
        ([(1, 'cow'), (2, 'dog')], ('cat', 'dog', 'cow'), ['class-unknown']),
    ],
)
def test_categories_of_splits_are_matched_by_name(tmp_path, content, categories, classes, expected):
    write_images(tmp_path, ['train/a.jpg', 'train/b.jpg', 'val/a.jpg', 'val/b.jpg'])
    write_file(tmp_path / 'annotations/instances_train.json', content)
    content['categories'] = [dict(id=number, name=name) for number, name in categories]
    content['annotations'] = content['annotations'][:1]
    number, name = categories[0]
    content['annotations'][0]['category_id'] = number
    write_file(tmp_path / 'annotations/instances_val.json', content)
    data = read(tmp_path)
    assert data.classes == classes
    assert data.category_ids[:2] == (1, 2)
    assert [kind for kind, _, _ in findings(data)] == expected
    assert boxes(data)['val/a.jpg'] == [(name, (1, 2, 3, 4))]
    assert any('they are matched by name' in note for note in data.notes)
    assert any('several of them have the same id' in note for note in data.notes) == ('cow' in classes)


OUTSIDE = (
    '../../outside.jpg',
    '/etc/outside.jpg',
    r'C:\data\outside.jpg',
    r'..\..\media\upload\4\outside.jpg',
    'file:///outside.jpg',
    'images/../../../outside.jpg',
    r'\\server\outside.jpg',
)


@pytest.mark.parametrize('name', OUTSIDE)
def test_paths_that_leave_the_folder(tmp_path, content, name):
    write_images(tmp_path, ['outside.jpg', 'a/outside.jpg', 'a/b/images/a.jpg', 'a/b/images/b.jpg'])
    content['images'][0]['file_name'] = name
    write_file(tmp_path / 'a/b/annotations/instances_default.json', content)
    data = read(tmp_path / 'a/b')
    ((kind, entry, problem),) = findings(data)
    assert (kind, entry) == ('path-outside', 'image 1')
    assert problem == f'{name!r} leaves the folder'
    assert [image.name for image in data.splits[ALL]] == ['images/b.jpg']


def test_a_path_that_leaves_the_folder_names_the_image_that_may_be_meant(load, content):
    content['images'][0]['file_name'] = r'..\..\media\upload\4\a.jpg'
    ((_, _, problem),) = findings(load(content))
    assert problem.endswith(
        r"a.jpg' leaves the folder; images/a.jpg has the same name: if it is meant, write that path"
    )


@pytest.mark.parametrize(
    ('name', 'problem'),
    [
        (
            'https://example.org/p/a.jpg?sig=a%2Fb#c',
            "'https://example.org/p/a.jpg' is a URL: download the images into the folder; images/a.jpg has the same "
            'name: if it is meant, write that path',
        ),
        ('s3://bucket/c.jpg', "'s3://bucket/c.jpg' is a URL: download the images into the folder"),
    ],
)
def test_urls_of_images(load, content, name, problem):
    """A query may hold a key, which is not shown."""
    content['images'][0]['file_name'] = name
    assert findings(load(content)) == [('path-outside', 'image 1', problem)]


def test_windows_separators_inside_of_the_folder(load, content):
    for image in content['images']:
        image['file_name'] = 'images\\' + image['file_name']
    data = load(content, 'result.json')
    assert boxes(data) == {'images/a.jpg': [CAT], 'images/b.jpg': [DOG]}
    assert findings(data) == [
        ('path-separator', 'image 1', r"2 images with backslashes, the first one 'images\\a.jpg'")
    ]
    assert findings(data, Rule.HARMLESS)


def test_other_spellings_of_a_name(load, content):
    content['images'][0]['file_name'] = 'A.JPG'
    content['images'][1]['file_name'] = 'b\u00e4.jpg'
    data = load(content, images=('images/a.jpg', 'images/ba\u0308.jpg'))
    assert list(boxes(data)) == ['images/a.jpg', 'images/ba\u0308.jpg']
    assert [kind for kind, _, _ in findings(data)] == ['path-spelling']


def test_images_in_sub_folders_that_the_file_does_not_name(load, content):
    data = load(content, images=('images/cam0/a.jpg', 'images/cam1/b.jpg'))
    assert boxes(data) == {'images/cam0/a.jpg': [CAT], 'images/cam1/b.jpg': [DOG]}
    assert len(data.notes) == 1


@pytest.mark.parametrize('missing', [None, []])
def test_a_box_from_its_outline(load, content, missing):
    content['annotations'][0].update(bbox=missing, segmentation=[[1, 2, 4, 2, 4, 6]])
    data = load(content)
    assert boxes(data)['images/a.jpg'] == [CAT]
    assert '1 annotation without bbox: the box around the outline is used (first: annotation 1)' in data.notes[0]


def test_annotations_to_ignore_are_crowds(load, content):
    content['annotations'][0]['ignore'] = 1
    data = load(content)
    assert data.splits[ALL][0].boxes[0].is_crowd
    assert 'ignore=1' in data.notes[0]


def test_hidden_files_are_passed_over(load, content):
    data = load(content, images=('images/a.jpg', 'images/b.jpg', 'images/._a.jpg', '__MACOSX/images/a.jpg'))
    write_file(data.root / 'annotations/._instances_default.json', b'\0\5\x16\7')
    assert boxes(read(data.root)) == {'images/a.jpg': [CAT], 'images/b.jpg': [DOG]}


def test_images_are_sorted_by_name(load, content):
    content['images'].reverse()
    assert list(boxes(load(content))) == ['images/a.jpg', 'images/b.jpg']


@pytest.mark.parametrize(
    ('folders', 'sizes', 'chosen'),
    [
        (('cam1', 'cam2'), ((32, 24), (32, 24)), None),
        (('half', 'original'), ((16, 12), (32, 24)), 'original'),
        (('thumbs', 'images'), ((16, 12), (32, 24)), 'images'),
        (('images', 'original'), ((16, 12), (32, 24)), 'original'),
        (('images', 'backup'), ((32, 24), (32, 24)), 'images'),
        (('cam1', 'cam2'), ((16, 12), (16, 12)), None),
    ],
)
def test_two_folders_with_images_of_the_same_names(tmp_path, content, folders, sizes, chosen):
    write_file(tmp_path / 'labels.json', content)
    for folder, size in zip(folders, sizes, strict=True):
        write_images(tmp_path, [f'{folder}/a.jpg', f'{folder}/b.jpg'], size)
    if chosen is None:
        with pytest.raises(UserError, match=r'labels.json lists images that are in cam1/ and cam2/, with the same'):
            read(tmp_path)
        return
    data = read(tmp_path)
    assert boxes(data) == {f'{chosen}/a.jpg': [CAT], f'{chosen}/b.jpg': [DOG]}
    assert f'{chosen}/ is used' in data.notes[0]


def test_two_folders_with_images_of_the_same_names_without_sizes(tmp_path, content):
    for image in content['images']:
        del image['width'], image['height']
    write_file(tmp_path / 'labels.json', content)
    for folder, size in (('2x', (64, 48)), ('original', (32, 24))):
        write_images(tmp_path, [f'{folder}/a.jpg', f'{folder}/b.jpg'], size)
    with pytest.raises(UserError, match='2x/ and original/'):
        read(tmp_path)


def test_accents_of_class_names_are_composed(load, content):
    content['categories'][0]['name'] = 'Tu\u0308r'
    data = load(content)
    assert data.classes == ('T\u00fcr', 'dog')
    assert 'Unicode NFC' in data.notes[0]


def test_names_that_are_encoded_as_in_a_url(load, content):
    content['images'][0]['file_name'] = 'my%20cat%3A1.jpg'
    content['images'][1]['file_name'] = '100%25.jpg'
    data = load(content, images=('images/my cat:1.jpg', 'images/100%25.jpg', 'images/100%.jpg'))
    assert boxes(data) == {'images/my cat:1.jpg': [CAT], 'images/100%25.jpg': [DOG]}
    assert data.notes[0].endswith(
        "1 image with percent signs for characters, as in a URL, the first one 'my%20cat%3A1.jpg'"
    )


def test_paths_of_label_studio_s_local_storage(load, content):
    content['images'][0]['file_name'] = '/data/local-files/?d=images%5Ca.jpg'
    content['images'][1]['file_name'] = '/data/local-files/?d=images/b.jpg'
    data = load(content)
    assert boxes(data) == {'images/a.jpg': [CAT], 'images/b.jpg': [DOG]}
    assert data.findings == []


def test_ids_that_are_null_count_as_missing(load, content):
    for annotation in content['annotations']:
        annotation['id'] = None
    data = load(content)
    assert boxes(data) == {'images/a.jpg': [CAT], 'images/b.jpg': [DOG]}


@pytest.mark.parametrize(
    ('counts', 'expected'),
    [
        # A column of 2 pixels at x = 1, y = 2, then one at x = 2: of an image of 24 rows.
        ([26, 2, 22, 2, 24 * 32 - 52], (1, 2, 2, 2)),
        ('compressed', (1, 2, 2, 2)),
        ([26, 2, 1], None),
        ([24 * 32], None),
        ('o', None),
        ('not \x00', None),
        (None, None),
    ],
)
def test_a_box_from_run_lengths(load, content, counts, expected):
    if counts == 'compressed':
        runs = dict(size=[24, 32], counts=[26, 2, 22, 2, 24 * 32 - 52])
        counts = mask.frPyObjects(runs, 24, 32)['counts'].decode()
    content['annotations'][0].update(bbox=None, segmentation=dict(size=[24, 32], counts=counts))
    data = load(content)
    assert boxes(data)['images/a.jpg'] == ([('cat', expected)] if expected else [])
    assert [kind for kind, _, _ in findings(data)] == ([] if expected else ['box-invalid'])


@pytest.mark.parametrize(
    ('angle', 'more', 'expected'),
    [
        (90.0, {}, (106, 14, 68, 72)),
        (90, dict(segmentation=[]), (106, 14, 68, 72)),
        ('90', {}, (104, 16, 72, 68)),  # an attribute of the user's own
        (True, {}, (104, 16, 72, 68)),
        (-270, {}, (106, 14, 68, 72)),
        (0.0, {}, (104, 16, 72, 68)),
        (360, {}, (104, 16, 72, 68)),
        ('left', {}, (104, 16, 72, 68)),
        (math.nan, {}, (104, 16, 72, 68)),
        (90, dict(segmentation=[[104, 16, 176, 16, 176, 84]]), (104, 16, 72, 68)),  # an outline is not turned
    ],
)
def test_rotation_of_cvat(load, content, angle, more, expected):
    content['annotations'][0] |= dict(bbox=[104, 16, 72, 68], attributes=dict(rotation=angle), **more)
    data = load(content)
    assert boxes(data)['images/a.jpg'][0][1] == pytest.approx(expected, abs=1e-9)
    turned = "1 box turned by CVAT's attribute rotation: the box around each is used (first: annotation 1)"
    assert data.notes == [f'annotations/instances_default.json: {turned}'] * (expected[0] == 106)


def test_categories_that_are_counted_from_another_number(load, content):
    for annotation in content['annotations']:
        annotation['category_id'] -= 1
    data = load(content)
    (found,) = findings(data, Rule.FATAL)
    assert found[0] == 'class-ids-shifted'
    assert found[2] == (
        'labels, with the classes 0, 1, seem to be counted from 0, but the list of classes (1, 2) is counted from 1: '
        'add 1 to the class of each label'
    )
