"""An image that a run has trained on never becomes a validation image of that run."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from mnv4_mm.config.data import dataset_split, restore_data, set_data, stored_split
from mnv4_mm.config.load import load_config
from mnv4_mm.data.cache import cache_folder, write_cached
from mnv4_mm.data.prepare import read_split
from mnv4_mm.deploy.compare import _test_config as compared_config
from mnv4_mm.deploy.export import _calibration_images, _images_to_compare
from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.tasks import task_of

CONFIGS = {'detection': 'mnv4_ssdlite_bccd', 'segmentation': 'mnv4_lraspp_ade20k-mini'}
FIRST, SECOND = range(30), range(30, 60)


def write_data(root: Path, task: str, numbers: Iterable[int]) -> None:
    """Write numbered images, with boxes or masks, without a split."""
    numbers = list(numbers)
    images, boxes = [], []
    for i in numbers:
        name = f'{i:03}.png'
        pixels = np.random.default_rng(i).integers(0, 256, (6, 8, 3), np.uint8)
        (root / 'images').mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / 'images' / name), cv2.resize(pixels, (64, 48), interpolation=cv2.INTER_CUBIC))
        if task == 'segmentation':
            mask = np.ones((48, 64), np.uint8)
            mask[10:20] = 2
            (root / 'masks').mkdir(exist_ok=True)
            cv2.imwrite(str(root / 'masks' / name), mask)
        images.append(dict(id=i + 1, file_name=name, width=64, height=48))
        boxes.append(dict(id=i + 1, image_id=i + 1, category_id=1, bbox=[5, 5, 20, 20], area=400, iscrowd=0))
    if task == 'detection':
        content = dict(images=images, annotations=boxes, categories=[dict(id=1, name='cat')])
        (root / 'ann.json').write_text(json.dumps(content))


def names(task, split) -> set[str]:
    return {path.name for path in task.image_files(split)}


@pytest.fixture(params=list(CONFIGS))
def cfg(request, tmp_path, monkeypatch):
    """Config of a run on the first images."""
    monkeypatch.setenv('MNV4_CACHE', str(tmp_path / 'cache'))
    write_data(tmp_path / 'mine', request.param, FIRST)
    cfg = load_config(CONFIGS[request.param])
    return set_data(cfg, task_of(cfg).find(str(tmp_path / 'mine')))


@pytest.fixture
def sides(cfg) -> Callable[..., tuple[set[str], set[str]]]:
    """Function that returns the names of the images of each split."""

    def of(cfg=cfg, layout=None):
        task = task_of(cfg)
        if layout:
            return names(task, layout.train), names(task, layout.val)
        return tuple(names(task, dataset_split(cfg, loader)) for loader in ('train_dataloader', 'val_dataloader'))

    return of


def grow(cfg) -> Path:
    root = Path(cfg.own_data.root)
    write_data(root, task_of(cfg).name, [*FIRST, *SECOND])
    return root


def check_kept(before, after):
    assert before[0] <= after[0]
    assert before[1] <= after[1]
    assert len(after[0] | after[1]) == len(FIRST) + len(SECOND)
    assert len(after[1]) == (len(FIRST) + len(SECOND)) // 5


def test_a_run_keeps_its_split_without_the_cache(cfg, sides):
    before = sides()
    assert {name.split('/')[-1] for name, side in stored_split(cfg).items() if side == 'val'} == before[1]
    root = grow(cfg)
    shutil.rmtree(cache_folder(root))
    restored = restore_data(cfg)
    check_kept(before, sides(restored))
    assert len(stored_split(restored)) == len(FIRST) + len(SECOND)


def test_a_run_keeps_its_split_where_the_cache_has_another(cfg, sides):
    before = sides()
    root = grow(cfg)
    shutil.rmtree(cache_folder(root))
    anew = sides(layout=task_of(cfg).find(str(root)))
    assert not before[0] <= anew[0]  # what is to be prevented
    check_kept(before, sides(restore_data(cfg)))
    assert sides(layout=task_of(cfg).find(str(root))) == anew


def test_a_run_keeps_its_split_in_a_moved_folder(cfg, sides, monkeypatch, tmp_path):
    before = sides()
    moved = grow(cfg).rename(tmp_path / 'moved')
    monkeypatch.setenv('MNV4_CACHE', str(tmp_path / 'another'))
    check_kept(before, sides(layout=task_of(cfg).find(str(moved), previous=stored_split(cfg))))


def test_images_that_come_back_stay_on_their_side(cfg, sides):
    before = sides()
    root = Path(cfg.own_data.root)
    task = task_of(cfg)
    shutil.rmtree(root)
    write_data(root, task.name, range(15))
    split_file = task.find(str(root)).checked.split_file
    assert len(read_split(split_file)) == len(FIRST)
    write_data(root, task.name, FIRST)
    assert sides(layout=task.find(str(root))) == before


def test_labels_that_were_corrected_are_read_with_another_cache(cfg, monkeypatch, tmp_path):
    before = dataset_split(cfg, 'val_dataloader')
    grow(cfg)
    monkeypatch.setenv('MNV4_CACHE', str(tmp_path / 'another'))
    after = dataset_split(restore_data(cfg), 'val_dataloader')
    assert after != before
    assert (tmp_path / 'another') in [parent for part in after if isinstance(part, Path) for parent in part.parents]


def test_calibration_without_the_cache_takes_training_images_only(cfg, sides):
    train = sides()[0]
    root = Path(cfg.own_data.root)
    shutil.rmtree(cache_folder(root))
    assert {path.name for path in _calibration_images(SimpleNamespace(cfg=cfg), None).files} == train
    shutil.rmtree(root)
    shutil.rmtree(cache_folder(root))
    with pytest.raises(UserError, match=r'no folder .*mine.*--calibration names a folder of images'):
        _calibration_images(SimpleNamespace(cfg=cfg), None)
    assert _images_to_compare(SimpleNamespace(cfg=cfg), None)  # those of data/mini


def test_compare_leaves_out_what_training_left_out(cfg, sides):
    root = Path(cfg.own_data.root)
    train, val = sides()
    broken = root / 'images' / min(val)
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(UserError, match='--allow-dropped'):
        compared_config(cfg, str(root), 'val')
    compared = compared_config(cfg, str(root), 'val', True, stored_split(cfg))
    assert sides(compared) == (train, val - {broken.name})
    assert compared.own_data.allow_dropped


def test_a_file_outside_of_the_cache_is_no_reason_to_move_the_cache(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='MNV4_CACHE'):
        write_cached(tmp_path / 'file/a.json', '')
    with pytest.raises(UserError, match=r'cannot be written: [\w ]+$'):
        write_whole(tmp_path / 'file/a.html', '')
