"""Folders that name a split: one rule for all formats."""

import pytest
from small_data import write_file, write_images

from mnv4_mm.data.check import check_detection
from mnv4_mm.data.form import ALL, TEST, TRAIN, VAL
from mnv4_mm.data.formats.files import split_of
from mnv4_mm.data.formats.recognise import recognise

XML = '<annotation><object><name>cat</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>'
XML += '</object></annotation>'
SHAPE = dict(label='cat', points=[[1, 2], [8, 8]], shape_type='rectangle')
TEST_USED = 'there are no validation images: the test images are used'


def coco(names):
    return {
        'labels.json': dict(
            images=[dict(id=i, file_name=name, width=32, height=24) for i, name in enumerate(names, 1)],
            annotations=[dict(id=i, image_id=i, category_id=1, bbox=[1, 2, 7, 6]) for i in range(1, len(names) + 1)],
            categories=[dict(id=1, name='cat')],
        )
    }


def cvat(names):
    box = '<box label="cat" xtl="1" ytl="2" xbr="8" ybr="8"/>'
    images = (f'<image name="{name}" width="32" height="24">{box}</image>' for name in names)
    return {'annotations.xml': f'<annotations>{"".join(images)}</annotations>'}


def beside(suffix, content):
    return lambda names: {name.replace('.jpg', suffix): content for name in names}


FORMATS = {
    'COCO JSON': coco,
    'YOLO': beside('.txt', '0 0.5 0.5 0.5 0.5'),
    'CVAT XML': cvat,
    'LabelMe JSON': beside('.json', dict(shapes=[SHAPE], imagePath='')),
    'Pascal VOC': beside('.xml', XML),
}


@pytest.fixture(params=[*FORMATS, 'Pascal VOC, annotations apart', 'Pascal VOC, annotations in one folder'])
def load(request, tmp_path):
    """Write an image to each folder, with annotations in a format, and read them."""
    name = request.param.split(',')[0]

    def load(*folders):
        images = [f'{folder}/{i}.jpg' for i, folder in enumerate(folders)]
        files = FORMATS[name](images)
        if 'apart' in request.param:
            files = {f'annotations/{file}': content for file, content in files.items()}
        if 'one folder' in request.param:
            files = {f'annotations/{file.split("/")[-1]}': content for file, content in files.items()}
        for file, content in files.items():
            write_file(tmp_path / file, content)
        write_images(tmp_path, images)
        data = recognise(tmp_path, 'detection')
        assert data.format == name
        return data

    return load


def folders(data):
    return {split: [image.name.rpartition('/')[0] for image in images] for split, images in data.splits.items()}


@pytest.mark.parametrize('names', [('train', 'val'), ('train2017', 'valid'), ('Training', 'validation_set')])
def test_training_and_validation(load, names):
    data = load(*names)
    assert folders(data) == {TRAIN: [names[0]], VAL: [names[1]]}
    assert any(note.startswith('the split is that of the folders of the ') for note in data.notes)


@pytest.mark.parametrize('names', [('train', 'test'), ('training', 'testing')])
def test_training_and_test(load, names):
    """Test images are never trained on."""
    data = load(*names)
    assert folders(data) == {TRAIN: [names[0]], TEST: [names[1]]}
    assert TEST_USED in check_detection(data).checked.notes


def test_images_of_other_folders_are_left_out_and_counted(load):
    data = load('train', 'val', 'extra', 'extra', 'more')
    assert folders(data) == {TRAIN: ['train'], VAL: ['val']}
    (note,) = (note for note in data.notes if 'in folders that name no split, not used: ' in note)
    assert note.startswith('3 ')
    assert [folder.rpartition('/')[0].split('/')[-1] for folder in note.partition(': ')[2].split(', ')] == [
        'extra',
        'more',
    ]


@pytest.mark.parametrize('names', [('trainstation', 'valley'), ('cats', 'dogs'), ('train', 'train')])
def test_folders_that_name_no_split(load, names):
    data = load(*names)
    assert folders(data) == {ALL: list(names)}
    assert not any('folders of' in note for note in data.notes)


@pytest.mark.parametrize('names', [('extra', 'train'), ('extra', 'val'), ('test', 'val')])
def test_folders_that_name_one_split_of_two(load, names):
    data = load(*names)
    assert folders(data) == {ALL: list(names)}
    assert any('not both training and validation: all are split anew' in note for note in data.notes)


def test_lists_of_training_and_test_images_without_a_description(tmp_path):
    write_images(tmp_path, ['images/a.jpg', 'images/b.jpg'])
    for name, text in {
        'labels/a.txt': '0 0.5 0.5 0.5 0.5',
        'train.txt': 'images/a.jpg',
        'test.txt': 'images/b.jpg',
    }.items():
        write_file(tmp_path / name, text)
    data = recognise(tmp_path, 'detection')
    assert {split: [image.name for image in images] for split, images in data.splits.items()} == {
        TRAIN: ['images/a.jpg'],
        TEST: ['images/b.jpg'],
    }


@pytest.mark.parametrize(
    ('name', 'split'),
    [
        ('annotations/instances_train2017.json', TRAIN),
        ('valid/_annotations.coco.json', VAL),
        ('train/cam-test/a.jpg', TEST),
        ('trainA/a.jpg', TRAIN),
        ('TrainImages/a.jpg', TRAIN),
        ('TRAINING_SET/a.jpg', TRAIN),
        ('trainval.json', TRAIN),
        ('valset/a.jpg', VAL),
        ('eval/a.jpg', VAL),
        ('trainstation/a.jpg', None),
        ('valley/a.jpg', None),
        ('trains/tester/values/a.jpg', None),
        ('contest/a.jpg', None),
    ],
)
def test_a_split_is_named_by_whole_words(name, split):
    assert split_of(name) == split
