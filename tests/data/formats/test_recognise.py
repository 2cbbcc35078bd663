"""A folder is recognised by its content; what is none is refused with what was looked for."""

import os
import zipfile

import numpy as np
import pytest
from mask_folders import pattern, save_mask
from small_data import write_file, write_images

from mnv4_mm.data.form import MaskData
from mnv4_mm.data.formats.recognise import recognise
from mnv4_mm.data.prepare_masks import prepare_masks
from mnv4_mm.errors import UserError

FORMATS = ('COCO JSON', 'YOLO', 'CVAT', 'LabelMe', 'Pascal VOC')


def test_paths_that_are_no_folder(tmp_path):
    with pytest.raises(UserError, match=r'no folder .*gone'):
        recognise(tmp_path / 'gone', 'detection')
    write_file(tmp_path / 'data.yaml', 'names: [a]')
    with pytest.raises(UserError, match=r'data.yaml is a file: name the folder'):
        recognise(tmp_path / 'data.yaml', 'detection')


def test_archives_are_not_opened(tmp_path):
    with zipfile.ZipFile(tmp_path / 'data.zip', 'w') as archive:
        archive.writestr('../../outside.jpg', 'x')
    with pytest.raises(UserError, match=r'data.zip is an archive: unpack it'):
        recognise(tmp_path / 'data.zip', 'detection')
    with pytest.raises(UserError, match=r'Unpack data.zip first'):
        recognise(tmp_path, 'detection')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['data.zip']


def test_folders_without_labels(tmp_path):
    with pytest.raises(UserError, match='is empty; expected one of'):
        recognise(tmp_path, 'detection')
    write_images(tmp_path, ['a.jpg', 'b.jpg'])
    write_file(tmp_path / 'notes.docx', b'x')
    with pytest.raises(UserError, match=r'It has 2 \.jpg, 1 \.docx files') as error:
        recognise(tmp_path, 'detection')
    assert all(name in str(error.value) for name in FORMATS)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('via.json', {'a.jpg': dict(filename='a.jpg', regions=[])}, 'via.json is of VGG Image Annotator'),
        ('project.json', [dict(id=1, annotations=[dict(completed_by=1)])], 'own format of Label Studio'),
        ('min.json', [dict(image='/data/a.jpg', label=[dict(rectanglelabels=['cat'])])], 'own format of Label Studio'),
        (
            'annotations/default.json',
            dict(categories={}, items=[dict(id='a', annotations=[dict(label_id=0)])]),
            'Datumaro',
        ),
        ('boxes.json', [dict(image='a.jpg', annotations=[dict(label='a', coordinates={})])], 'Create ML'),
        ('_annotations.csv', 'filename,width\n', '_annotations.csv is a table'),
        (
            'ann/a.jpg.json',
            dict(objects=[dict(classTitle='cat')]),
            r'ann/a\.jpg\.json is in the own format of Supervisely',
        ),
        ('samples.json', dict(samples=[dict(filepath='a.jpg', x=dict(_cls='Detections'))]), 'own format of FiftyOne'),
        ('boxes.json', '{"image_id": 1, "bbox": [1, 2, 3, 4]}\n{"image_id": 1}\n', 'boxes.json has JSON lines'),
        ('metadata.jsonl', '{"file_name": "a.jpg"}\n', 'metadata.jsonl has JSON lines'),
        ('labelTxt/a.txt', 'imagesource:GoogleEarth\ngsd:0.1\n1 2 3 2 3 4 1 4 cat 0\n', 'format of DOTA'),
        ('labelTxt/a.txt', '1.0 2 3.0 2 3 4 1 4 small-vehicle 0\n', 'format of DOTA'),
        ('label_2/a.txt', 'Car 0.00 0 -1.58 1 2 3 4 1.5 1.6 3.9 -2.7 1.7 46.7 -1.59\n', 'format of KITTI'),
        (
            'a.json',
            dict(images=[], annotations=[], categories=[]),
            r'1 COCO JSON file with the name of an image \(a\.j',
        ),
        ('masks/a.npy', b'\x93NUMPY', r'masks/a\.npy is a NumPy array'),
        (
            'a.xml',
            '<annotation><filename>a.jpg</filename><imagesize><nrows>24</nrows></imagesize><object><name>cat</name>'
            '<polygon><pt><x>1</x><y>2</y></pt></polygon></object></annotation>',
            r'a\.xml is in the format of LabelMe 3\.0',
        ),
    ],
)
def test_formats_that_are_not_read(tmp_path, name, content, message):
    write_images(tmp_path, ['a.jpg'])
    write_file(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        recognise(tmp_path, 'detection')


def test_annotations_without_any_image(tmp_path):
    image = dict(id=1, file_name='a.jpg', width=32, height=24)
    content = dict(images=[image], annotations=[], categories=[dict(id=1, name='cat')])
    write_file(tmp_path / 'mine/annotations/instances_train.json', content)
    write_images(tmp_path, ['mine/images/a.jpg'])
    assert recognise(tmp_path / 'mine', 'detection').format == 'COCO JSON'
    with pytest.raises(
        UserError, match=r'annotations has none of the 1 image that .* list .*: name the folder that holds'
    ):
        recognise(tmp_path / 'mine/annotations', 'detection')


def test_a_folder_inside_of_the_folder(repository, tmp_path):
    (tmp_path / 'unpacked').symlink_to(repository / 'data/mini/coco')
    data = recognise(tmp_path, 'detection')
    assert {split: len(images) for split, images in data.splits.items()} == dict(train=64, val=32)
    assert data.splits['train'][0].name.startswith('unpacked/train2017/')


def test_links_in_a_circle(repository, tmp_path):
    write_images(tmp_path, ['a.jpg'])
    (tmp_path / 'again').symlink_to(tmp_path)
    with pytest.raises(UserError, match=r'It has 1 \.jpg files'):
        recognise(tmp_path, 'detection')


def test_an_empty_format_beside_another_is_refused(tmp_path):
    write_images(tmp_path, ['images/a.jpg'])
    write_file(tmp_path / 'labels/a.txt', '0 0.5 0.5 0.5 0.5')
    write_file(tmp_path / 'images/a.xml', '<annotation></annotation>')
    write_file(tmp_path / 'annotations/data.json', dict(images=[], annotations=[], categories=[]))
    with pytest.raises(UserError, match=r"COCO JSON with 0 boxes of no class \(\.\), and YOLO with 1 box of '0'"):
        recognise(tmp_path, 'detection')


def prediction_file(images: list[str], boxes: int = 1) -> dict:
    """Return what ``infer`` writes into ``predictions.json``."""
    rows = [dict(id=i, file_name=name, width=32, height=24) for i, name in enumerate(images, 1)]
    row = dict(category_id=1, bbox=[1, 2, 9, 9], area=81, iscrowd=0, score=0.9)
    annotations = [dict(row, id=i, image_id=i) for i in range(1, boxes * len(images) + 1)]
    return dict(images=rows, annotations=annotations, categories=[dict(id=1, name='cat')])


VOC = '<annotation><filename>a.jpg</filename><object><name>cat</name><bndbox><xmin>2</xmin><ymin>2</ymin>'
VOC += '<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>'
COCO = dict(
    images=[dict(id=1, file_name='a.jpg', width=32, height=24)],
    annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 7, 7], area=49, iscrowd=0)],
    categories=[dict(id=1, name='cat')],
)
LABELS = {
    'COCO JSON': {'data.json': COCO},
    'YOLO': {'a.txt': '0 0.5 0.5 0.5 0.5', 'classes.txt': 'cat\n'},
    'Pascal VOC': {'a.xml': VOC},
}


@pytest.mark.parametrize('name', LABELS)
@pytest.mark.parametrize('found', [1, 0])
def test_predictions_in_the_folder_are_no_ground_truth(tmp_path, name, found):
    write_images(tmp_path, ['a.jpg', 'outputs/a.jpg', 'outputs/b.jpg'])
    for file, content in LABELS[name].items():
        write_file(tmp_path / file, content)
    write_file(tmp_path / 'outputs/predictions.json', prediction_file(['a.jpg', 'b.jpg'], found))
    data = recognise(tmp_path, 'detection')
    assert (data.format, data.classes, data.notes) == (
        name,
        ('cat',),
        ['class names are those of classes.txt'] if name == 'YOLO' else [],
    )
    assert {image.name: len(image.boxes) for images in data.splits.values() for image in images} == {'a.jpg': 1}


def test_predictions_alone_are_refused(tmp_path):
    write_images(tmp_path, ['a.jpg'])
    write_file(tmp_path / 'labels.json', prediction_file(['a.jpg']))
    with pytest.raises(UserError, match=r'labels\.json has predictions: remove "score"'):
        recognise(tmp_path, 'detection')


@pytest.mark.parametrize(
    'masks', [['masks/cat/0.png', 'masks/dog/0.png'], ['a/masks/0.png', 'a/masks/1.png'], ['mask_0.png']]
)
def test_several_masks_of_an_image_are_not_read(tmp_path, masks):
    write_images(tmp_path, ['a/images/a.png', 'images/0.png', *masks])
    with pytest.raises(UserError, match=rf'It may be meant as masks \({masks[0]}.*: an image needs one mask'):
        recognise(tmp_path)


@pytest.mark.parametrize('name', ['YOLO', 'Pascal VOC'])
@pytest.mark.parametrize(
    'content', [dict(categories=[]), dict(images=10), dict(images=10, annotations='masks/'), dict(annotations=1)]
)
def test_json_of_other_tools(tmp_path, name, content):
    write_images(tmp_path, ['a.jpg'])
    write_file(tmp_path / 'notes.json', content)
    with pytest.raises(UserError, match=r'notes\.json is not a COCO annotation file: it needs the lists'):
        recognise(tmp_path, 'detection')
    for file, text in LABELS[name].items():
        write_file(tmp_path / file, text)
    data = recognise(tmp_path, 'detection')
    assert data.format == name
    assert data.notes[-1] == 'not used, since they are not whole COCO annotation files: notes.json'


@pytest.mark.parametrize('is_named', [True, False])
def test_two_formats_with_the_same_labels(tmp_path, is_named):
    write_images(tmp_path, ['a.jpg'])
    for content in LABELS.values():
        for file, text in content.items():
            write_file(tmp_path / file, text)
    if not is_named:
        (tmp_path / 'classes.txt').unlink()
    data = recognise(tmp_path, 'detection')
    assert data.format == 'COCO JSON'
    assert data.notes == ['the folder has files of YOLO, Pascal VOC too, which are not used']


def test_two_formats_with_the_same_images_for_training_and_validation(tmp_path):
    write_images(tmp_path, ['a.jpg'])
    files = LABELS['YOLO'] | LABELS['Pascal VOC'] | {'data.yaml': 'train: .\nval: .\nnames: [cat]'}
    for file, text in files.items():
        write_file(tmp_path / file, text)
    data = recognise(tmp_path, 'detection')
    assert [len(image.boxes) for image in data.splits['all']] == [1]
    assert data.notes[-1] == 'the folder has files of Pascal VOC too, which are not used'


@pytest.mark.parametrize(
    ('file', 'text', 'described'),
    [
        ('classes.txt', 'dog\n', r"YOLO with 1 box of 'dog' \(a\.txt\)"),
        ('a.txt', '0 .5 .5 .5 .5\n0 .5 .5 .2 .2', r"YOLO with 2 boxes of 'cat' \(a\.txt\)"),
    ],
)
def test_two_formats_that_differ_are_refused(tmp_path, file, text, described):
    write_images(tmp_path, ['a.jpg'])
    for name, content in (LABELS['COCO JSON'] | LABELS['YOLO'] | {file: text}).items():
        write_file(tmp_path / name, content)
    message = rf"which differ: COCO JSON with 1 box of 'cat' \(data\.json\), and {described}: leave the files of one"
    with pytest.raises(UserError, match=message):
        recognise(tmp_path, 'detection')


def test_labels_of_the_other_task_are_named(tmp_path):
    write_images(tmp_path, ['boxes/a.jpg', 'masks/images/a.jpg'])
    for file, text in LABELS['YOLO'].items():
        write_file(tmp_path / 'boxes' / file, text)
    save_mask(tmp_path / 'masks/masks/a.png', pattern([0, 1]))
    write_file(tmp_path / 'masks/classes.txt', 'cat\ndog\n')
    with pytest.raises(UserError, match=r'holds boxes \(YOLO\), which are not for segmentation: use .*ssdlite'):
        prepare_masks(tmp_path / 'boxes')
    with pytest.raises(UserError, match=r'masks holds masks, which are not for detection: use .*mnv4_lraspp_ade20k'):
        recognise(tmp_path / 'masks', 'detection')


def test_names_in_data_yaml_may_be_those_of_masks(tmp_path):
    write_images(tmp_path, ['images/a.jpg', 'images/b.jpg'])
    for name in 'ab':
        save_mask(tmp_path / f'labels/{name}.png', np.resize([0, 1], (24, 32)))
    write_file(tmp_path / 'data.yaml', 'names: [rest, cat]')
    data = recognise(tmp_path)
    assert isinstance(data, MaskData)
    assert data.classes == ('rest', 'cat')


@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch, task):
    """Tests may run as root, who can list all folders."""
    write_images(tmp_path, ['images/a/1.jpg', 'images/b/2.jpg', 'masks/a/1.png', 'masks/b/2.png'])
    write_file(tmp_path / 'labels/a/1.txt', '0 0.5 0.5 0.5 0.5')
    write_file(tmp_path / 'labels/b/2.txt', '0 0.5 0.5 0.5 0.5')
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith('images/b'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(UserError, match=r'images/b cannot be listed: Permission denied'):
        recognise(tmp_path, task)
