"""A folder is recognised by its content; what is none is refused with what was looked for."""

import os
import zipfile

import pytest
from small_data import write_file, write_images

from mnv4_mm.data.formats.recognise import recognise
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
    with pytest.raises(UserError, match='It is empty'):
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
        ('boxes.json', [dict(image='a.jpg', annotations=[dict(label='a', coordinates={})])], 'Create ML'),
        ('_annotations.csv', 'filename,width\n', '_annotations.csv is a table'),
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


def test_two_formats_in_one_folder(tmp_path):
    write_images(tmp_path, ['images/a.jpg'])
    write_file(tmp_path / 'labels/a.txt', '0 0.5 0.5 0.5 0.5')
    write_file(tmp_path / 'images/a.xml', '<annotation></annotation>')
    write_file(tmp_path / 'annotations/data.json', dict(images=[], annotations=[], categories=[]))
    data = recognise(tmp_path, 'detection')
    assert data.format == 'COCO JSON'
    assert data.notes == ['the folder has files of YOLO, Pascal VOC too, which are not used']


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
