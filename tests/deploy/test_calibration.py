"""Images for calibration: of the training part only, spread over all of them, and named."""

import json

import pytest

from mnv4_mm.data.coco_files import Split
from mnv4_mm.deploy.calibration import CalibrationImages, calibration_files, evenly
from mnv4_mm.errors import UserError
from mnv4_mm.tasks import TASKS


@pytest.fixture
def folder(tmp_path, photos):
    for name in ('a/1.jpg', 'b/1.jpg', 'b/2.jpg', '.thumbs/1.jpg', 'b/._2.jpg'):
        (tmp_path / 'images' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'images' / name).symlink_to(photos[0])
    return tmp_path / 'images'


def test_hidden_files_and_folders_are_left_out_and_subfolders_counted(folder):
    images = CalibrationImages('--calibration x', folder, calibration_files(folder))
    assert images.names == ('a/1.jpg', 'b/1.jpg', 'b/2.jpg')
    text = '3 images of --calibration x (2 folders: 1 in a, 2 in b), a/1.jpg to b/2.jpg; few: up to 64 are used'
    assert str(images) == text
    many = images._replace(files=images.files * 6)
    assert str(many).endswith('b/2.jpg')
    hidden = folder / '.thumbs'  # a folder that is named is searched, even if it is hidden itself
    assert calibration_files(hidden) == [hidden / '1.jpg']


def test_broken_images_are_reported_together(folder):
    images = CalibrationImages('x', folder, calibration_files(folder))
    images.check()
    for name in ('a/1.jpg', 'b/2.jpg'):
        (folder / name).unlink()
        (folder / name).write_bytes(b'no image')
    with pytest.raises(
        UserError,
        match=r'2 of 3 images for calibration: .*a/1\.jpg is not a readable image.*b/2\.jpg is not a readable image',
    ):
        images.check()


@pytest.mark.parametrize('size', [0, 2**20])
def test_images_of_another_split_in_the_same_folder_are_not_training_images(size, folder, monkeypatch):
    monkeypatch.setattr('mnv4_mm.data.coco_files.FULL_CHECK_BYTES', size)  # of large files, only the images are parsed
    paths = {}
    for name, files in (('train', ['a/1.jpg', 'b/2.jpg', 'missing.jpg']), ('val', ['b/1.jpg'])):
        paths[name] = folder.parent / f'{name}.json'
        images = [dict(id=i, file_name=file, width=1, height=1) for i, file in enumerate(files)]
        paths[name].write_text(json.dumps(dict(images=images, annotations=[], categories=[])))
    task = TASKS['mmdet']
    assert task.image_files(Split(paths['train'], folder)) == [folder / 'a/1.jpg', folder / 'b/2.jpg']
    assert task.image_files(Split(paths['val'], folder)) == [folder / 'b/1.jpg']
    assert task.image_files(Split(folder / 'missing.json', folder)) == []
    assert set(task.data_paths(Split(paths['val'], folder))) >= {folder / 'a', folder / 'b'}  # must not be overwritten
    paths['val'].write_text(json.dumps(dict(images=[dict(id='x', file_name=1)])))
    with pytest.raises(UserError, match='entry 0 of images has no file_name, or one that is not a string'):
        task.image_files(Split(paths['val'], folder))


def test_items_are_spread_evenly():
    assert evenly(range(64), 4) == [0, 21, 42, 63]
    assert evenly([5, 6], 4) == [5, 6]
    assert evenly(range(9), 1) == [0]
