"""LabelMe's JSON files, one per image."""

import json
import math

import pytest
from small_data import boxes, findings, write_file, write_images

from mnv4_mm.data.findings import Rule
from mnv4_mm.data.form import ALL, TRAIN, VAL
from mnv4_mm.data.formats.labelme import read
from mnv4_mm.errors import UserError


def shape(label='cat', points=((1, 2), (4, 6)), kind='rectangle', **more):
    return dict(label=label, points=[list(point) for point in points], shape_type=kind, group_id=None, flags={}, **more)


def document(*shapes, path='a.jpg', **more):
    content = dict(version='5.5.0', flags={}, shapes=list(shapes), imagePath=path, imageData=None)
    return content | dict(imageHeight=24, imageWidth=32) | more


CAT = ('cat', (1, 2, 3, 4))


@pytest.fixture
def load(tmp_path):
    def load(files, images=('a.jpg',)):
        for name, content in files.items():
            write_file(tmp_path / name, content)
        write_images(tmp_path, images)
        return read(tmp_path)

    return load


def test_a_rectangle(load):
    data = load({'a.json': document(shape())})
    assert boxes(data) == {'a.jpg': [CAT]}
    assert (data.classes, data.category_ids, data.splits[ALL][0].size) == (('cat',), (1,), (32, 24))
    assert (data.findings, data.notes) == ([], [])


@pytest.mark.parametrize(
    ('name', 'path', 'image'),
    [
        ('a.json', 'a.jpg', 'a.jpg'),
        ('labels/a.json', '../images/a.jpg', 'images/a.jpg'),
        ('labels/a.json', r'..\images\a.jpg', 'images/a.jpg'),
        ('labels/a.json', 'a.jpg', 'images/a.jpg'),  # moved
        ('a.json', '', 'a.png'),
        ('a.json', None, 'a.jpg'),
        ('1.json', 'a.jpg', 'a.jpg'),
    ],
)
def test_places_of_images(load, name, path, image):
    data = load({name: document(shape(), path=path)}, [image])
    assert boxes(data) == {image: [CAT]}
    assert not findings(data, Rule.FATAL, Rule.DROPPED)


@pytest.mark.parametrize(
    ('points', 'kind', 'expected'),
    [
        (((4, 6), (1, 2)), 'rectangle', (1, 2, 3, 4)),  # drawn from the lower right
        (((1, 2), (4, 2), (4, 6), (1, 6)), 'rectangle', (1, 2, 3, 4)),  # X-AnyLabeling
        (((1, 2), (4, 2), (4, 6)), 'polygon', (1, 2, 3, 4)),
        (((1, 2), (4, 2), (4, 6)), None, (1, 2, 3, 4)),
        (((1, 2), (4, 6)), 'mask', (1, 2, 3, 4)),
        (((10, 10), (13, 14)), 'circle', (5, 5, 10, 10)),
        (((10.1, 0), (30.3, 6)), 'rectangle', (10.1, 0, 20.2, 6)),
    ],
)
def test_shapes(load, points, kind, expected):
    data = load({'a.json': document(shape(points=points, kind=kind))})
    assert boxes(data)['a.jpg'] == [('cat', expected)]


def test_points_and_lines_are_left_out(load):
    data = load({'a.json': document(shape(points=[(1, 2)], kind='point'), shape(kind='line'), shape('__ignore__'))})
    assert boxes(data)['a.jpg'] == []
    assert len(data.notes) == 3


def test_parts_of_one_object(load):
    parts = [shape(points=((1, 2), (2, 3))), shape(points=((3, 4), (4, 6))), shape('dog')]
    for part in parts:
        part['group_id'] = 7
    data = load({'a.json': document(*parts, shape())})
    assert boxes(data)['a.jpg'] == [CAT, ('dog', (1, 2, 3, 4)), CAT]
    assert data.notes == ['1 shape joined with others of the same class and group_id']


def test_splits_and_labels_of_files(load):
    files = {f'{split}/a.json': document(shape()) for split in ('train', 'val')}
    data = load(files | {'labels.txt': '__ignore__\n_background_\ndog\ncat\n'}, ['train/a.jpg', 'val/a.jpg'])
    assert {split: [image.name for image in images] for split, images in data.splits.items()} == {
        TRAIN: ['train/a.jpg'],
        VAL: ['val/a.jpg'],
    }
    assert data.classes == ('dog', 'cat')


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (document(shape(points=[])), [('box-invalid', 'shape 1')]),
        (document(shape(points=[(1, 2)])), [('box-invalid', 'shape 1')]),
        (document(shape(points=[(1, 2), (3, 'x')])), [('box-invalid', 'shape 1')]),
        (document(shape(points=[(1, 2), (3, math.nan)])), [('box-invalid', 'shape 1')]),
        (document(shape(points=[(1, 2), (3, 10**400)])), [('box-invalid', 'shape 1')]),
        (document(shape(points=[(1, 2, 3), (3, 4, 5)])), [('box-invalid', 'shape 1')]),
        (document(dict(points=[[1, 2], [3, 4]])), [('box-invalid', 'shape 1')]),
        (document(3), [('box-invalid', 'shape 1')]),
        (document(shape(True)), [('box-invalid', 'shape 1')]),
        (document(shape('\ud800')), [('class-name', 'class 0')]),
        (document(shape(''), shape('Cat'), shape()), [('class-name', 'class 0'), ('class-similar', 'class 2')]),
        (document(path='../../outside.jpg'), [('path-outside', 'imagePath')]),
        (document(path='/etc/a.jpg'), [('path-outside', 'imagePath')]),
        (document(path=r'D:\a.jpg'), [('path-outside', 'imagePath')]),
        (document(path='other.jpg'), [('name-differs', 'imagePath')]),
        ('{"shapes": [', [('annotation-unreadable', '')]),
        ('{"shapes": 3, "imagePath": "a.jpg"}', [('annotation-unreadable', '')]),
    ],
)
def test_wrong_entries_are_findings(load, content, expected):
    text = content if isinstance(content, str) else json.dumps(content)
    data = load({'a.json': text, 'b.json': document(path='b.jpg')}, ['a.jpg', 'b.jpg'])
    assert [(kind, entry) for kind, entry, _ in findings(data)] == expected


def test_numbers_as_labels(load):
    data = load({'a.json': document(shape(0), shape(2.5), shape('0'))})
    assert [name for name, _ in boxes(data)['a.jpg']] == ['0', '2.5', '0']
    assert not data.findings


def test_two_files_for_one_image(load):
    data = load({'a.json': document(), 'b.json': document()}, ['a.jpg'])
    assert [kind for kind, _, _ in findings(data, Rule.FATAL)] == ['image-twice']


def test_images_without_a_file_are_not_used(load):
    data = load({'a.json': document(shape())}, ['a.jpg', 'b.jpg'])
    assert list(boxes(data)) == ['a.jpg']
    assert data.notes == ['1 image without an annotation file, not used: b.jpg']


def test_other_json_files_are_no_data_set(load):
    assert load({'a.json': dict(name='x'), 'package.json': dict()}) is None


def test_two_images_of_the_name(tmp_path):
    write_file(tmp_path / 'json/a.json', dict(shapes=[], imagePath='a.jpg'))
    write_images(tmp_path, ['2x/a.jpg', 'original/a.jpg'])
    assert findings(read(tmp_path)) == [('image-ambiguous', '', 'it may be for 2x/a.jpg or original/a.jpg')]


def test_labels_in_another_format_are_not_passed_over(tmp_path):
    write_file(tmp_path / 'a.json', dict(shapes=[dict(label='cat', points=[[0, 0], [4, 4]])], imagePath='a.jpg'))
    write_file(tmp_path / 'b.xml', '<annotation><object></object></annotation>')
    write_images(tmp_path, ['a.jpg', 'b.jpg'])
    assert findings(read(tmp_path)) == [('annotation-format', '', 'it has the labels of b.jpg')]


def test_accents_of_class_names_are_composed(tmp_path):
    shapes = [dict(label=name, points=[[0, 0], [4, 4]]) for name in ('T\u00fcr', 'Tu\u0308r')]
    write_file(tmp_path / 'a.json', dict(shapes=shapes, imagePath='a.jpg'))
    write_images(tmp_path, ['a.jpg'])
    assert [name for name, _ in boxes(read(tmp_path))['a.jpg']] == ['T\u00fcr'] * 2


def test_images_in_the_json_files_alone(load, tmp_path):
    files = {f'{name}.json': document(shape(), path=f'{name}.jpg', imageData='/9j/') for name in 'ab'}
    with pytest.raises(UserError, match=r'2 of 2 images are in their JSON files only, as imageData \(first: a.json\)'):
        load(files, [])
    data = load(files, ['a.jpg'])
    assert boxes(data)['a.jpg'] == [CAT]
    assert data.notes[0].startswith(
        '1 of 2 images are in their JSON files only, as imageData (first: b.json): write each'
    )


def test_images_in_the_json_files_alone_whose_paths_are_refused(load):
    """Another path would not help."""
    files = {f'{name}.json': document(shape(), path=f'../{name}.jpg', imageData='/9j/') for name in 'ab'}
    with pytest.raises(UserError, match=r'2 of 2 images are in their JSON files only'):
        load(files, [])
    data = load(files, ['a.jpg'])
    assert data.notes[0].startswith('1 of 2 images are in their JSON files only, as imageData (first: b.json)')
    assert [kind for kind, _, _ in findings(data)] == ['path-outside', 'path-outside']


def test_images_of_refused_paths_are_not_said_to_be_without_labels(load):
    data = load(
        {'a.json': document(shape()), 'b.json': document(shape(), path='../b.jpg')}, ['a.jpg', 'b.jpg', 'c.jpg']
    )
    assert [kind for kind, _, _ in findings(data)] == ['path-outside']
    assert data.notes == ['1 image without an annotation file, not used: c.jpg']
