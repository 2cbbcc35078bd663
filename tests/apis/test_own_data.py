"""A user's detection data through training and evaluation: what is printed, and what a checkpoint remembers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from end_to_end import IN_PROCESS, resized

from mnv4_mm.apis.evaluate import evaluate_files
from mnv4_mm.apis.train import train
from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.data import dataset_split, restore_data, stored_split
from mnv4_mm.config.evaluation import evaluation_config
from mnv4_mm.config.options import EvaluateOptions, TrainOptions
from mnv4_mm.config.training import training_config
from mnv4_mm.data.cache import cache_folder
from mnv4_mm.errors import UserError
from mnv4_mm.weights.checkpoint import read_checkpoint

NAME = 'mnv4_ssdlite_coco-mini'
OPTIONS = {**IN_PROCESS, **resized(96), 'train_dataloader.batch_size': 4, 'train_dataloader.dataset.times': 1}


def copy_bccd(source: Path, out: Path, count: int) -> Path:
    """Copy the first images of BCCD with their annotations, without the lists of a split."""
    for folder, suffix in (('JPEGImages', '.jpg'), ('Annotations', '.xml')):
        (out / folder).mkdir(parents=True)
        for path in sorted((source / folder).glob(f'*{suffix}'))[:count]:
            shutil.copy(path, out / folder)
    return out


@pytest.fixture(scope='module')
def run(tmp_path_factory, repository) -> tuple[Path, Path]:
    """Data set, and work directory of a run of one epoch on it."""
    folder = tmp_path_factory.mktemp('own')
    root = copy_bccd(repository / 'data/mini/bccd', folder / 'blood', 10)
    return root, train(NAME, data=str(root), work_dir=str(folder / 'w'), epochs=1, cfg_options=OPTIONS)


def checkpoint(run: tuple[Path, Path]) -> str:
    return str(run[1] / 'epoch_1.pth')


def test_what_is_trained_on_is_printed(run, capsys, tmp_path):
    train(NAME, data=str(run[0]), work_dir=str(tmp_path / 'w'), epochs=1, cfg_options=OPTIONS)
    output = capsys.readouterr().out
    assert 'Pascal VOC, 3 classes, 8 train images' in output
    assert '8 images are for training and 2 for validation, drawn with seed 0' in output
    assert '8 of 8 images and ' in output
    assert "% of the boxes of 'Platelets', " in output
    assert 'are smaller than half the smallest anchor (48 pixels) at 96x96' in output


def test_nothing_to_train_on_is_one_line_before_training(run, tmp_path):
    options = OPTIONS | {'train_dataloader.dataset.dataset.filter_cfg.min_size': 500}
    with pytest.raises(UserError, match=r'0 of 8 images.*8 images smaller than 500 pixels'):
        train(NAME, data=str(run[0]), work_dir=str(tmp_path / 'w'), epochs=1, cfg_options=options)
    assert not (tmp_path / 'w').exists()


def test_a_checkpoint_remembers_its_data(run, tmp_path):
    cfg = checkpoint_config(read_checkpoint(checkpoint(run)))
    split = json.loads(cfg.own_data.pop('split'))
    statistics = cfg.own_data.pop('statistics')
    assert cfg.own_data == dict(root=str(run[0]), allow_dropped=False)
    assert [statistics[name].split(',')[0] for name in ('train', 'val')] == ['8 images', '2 images']
    assert (len(split['train']), len(split['val'])) == (8, 2)
    first = evaluate_files(None, checkpoint(run), work_dir=str(tmp_path / 'a'))
    assert next(iter(first)).startswith('blood/')
    shutil.rmtree(cache_folder(run[0]))
    assert evaluate_files(None, checkpoint(run), work_dir=str(tmp_path / 'b')) == first
    assert Path(dataset_split(cfg, 'test_dataloader').annotations).is_file()


def test_a_run_that_is_resumed_or_tested_with_data_keeps_its_split(run, repository, monkeypatch, tmp_path):
    split = stored_split(checkpoint_config(read_checkpoint(checkpoint(run))))
    grown = copy_bccd(repository / 'data/mini/bccd', tmp_path / 'grown', 40)
    monkeypatch.setenv('MNV4_CACHE', str(tmp_path / 'cache'))  # that of another machine
    for resume in (True, checkpoint(run)):
        options = TrainOptions(data=str(grown), resume=resume, work_dir=str(run[1]))
        assert split.items() <= stored_split(training_config(NAME, options)).items()
    options = EvaluateOptions(data=str(grown))
    for source in (NAME, read_checkpoint(checkpoint(run))):
        cfg = evaluation_config(source, options, checkpoint=read_checkpoint(checkpoint(run)))
        assert split.items() <= stored_split(cfg).items()
    assert evaluate_files(NAME, checkpoint(run), data=str(grown), work_dir=str(tmp_path / 'a'))
    assert len(stored_split(cfg)) == 40


@pytest.mark.parametrize('count', [10, 40])
def test_a_resumed_run_notices_other_images(run, repository, tmp_path, count):
    """A score on other validation images does not decide which checkpoint is the best."""
    data = copy_bccd(repository / 'data/mini/bccd', tmp_path / 'blood', count)
    work_dir = Path(shutil.copytree(run[1], tmp_path / 'w'))
    content = torch.load(work_dir / 'epoch_1.pth', weights_only=False)
    content['message_hub']['runtime_info']['best_score'] = 0.9
    torch.save(content, work_dir / 'epoch_1.pth')
    train(NAME, data=str(data), resume=True, work_dir=str(work_dir), epochs=2, cfg_options=OPTIONS)
    log = ''.join(path.read_text() for path in work_dir.glob('*/*.log'))
    line = 'the data set has changed since this run was interrupted (train: 8 images, '
    assert (line in log) == (count == 40)
    assert len(list(work_dir.glob('best_*_epoch_2.pth'))) == (count == 40)


def with_classes(run: tuple[Path, Path], path: Path, change: Callable[[list[str]], list[str]]) -> str:
    """Write the checkpoint of a run as if it had been trained on other classes."""
    content = torch.load(checkpoint(run), weights_only=False)
    meta = content['meta']['dataset_meta']
    meta['classes'] = change(list(meta['classes']))
    torch.save(content, path)
    return str(path)


def test_a_run_is_not_resumed_with_other_classes(run, tmp_path):
    two = with_classes(run, tmp_path / 'two.pth', lambda names: names[:2])
    with pytest.raises(UserError, match=r'two\.pth was trained on other classes than the data .*load_from=.*two\.pth'):
        train(NAME, data=str(run[0]), resume=two, work_dir=str(tmp_path / 'w'), epochs=2, cfg_options=OPTIONS)
    assert not (tmp_path / 'w').exists()


def test_classes_in_another_order_are_matched_in_evaluation(run, tmp_path, capsys):
    turned = with_classes(run, tmp_path / 'turned.pth', lambda names: names[::-1])
    evaluate_files(NAME, turned, data=str(run[0]), work_dir=str(tmp_path / 'a'))
    assert f'in another order than {turned}: matched by name' in capsys.readouterr().out


def test_changed_data_is_prepared_again_and_data_put_in_by_hand_stays(run, tmp_path):
    cfg = checkpoint_config(read_checkpoint(checkpoint(run)))
    before = dataset_split(cfg, 'test_dataloader').annotations
    name = json.loads(before.read_text())['images'][0]['file_name']
    path = run[0] / 'Annotations' / f'{Path(name).stem}.xml'
    text = path.read_text()
    try:
        path.write_text(text.replace('<xmin>', '<xmin>1', 1).replace('<xmax>', '<xmax>5', 1))
        after = dataset_split(restore_data(cfg), 'test_dataloader').annotations
        assert after != before
        by_hand = tmp_path / 'by_hand.json'
        shutil.copy(before, by_hand)
        cfg.test_dataloader.dataset.ann_file = str(by_hand)
        assert dataset_split(restore_data(cfg), 'test_dataloader').annotations == by_hand
    finally:
        path.write_text(text)


def test_data_that_is_gone_is_named(run, tmp_path):
    moved = run[0].rename(run[0].with_name('moved'))
    try:
        with pytest.raises(
            UserError,
            match=r'the data set of this config: no folder .*blood.*if it is in another folder, name that by --data',
        ):
            evaluate_files(None, checkpoint(run), work_dir=str(tmp_path / 'a'))
        assert not (tmp_path / 'a').exists()
        metrics = evaluate_files(None, checkpoint(run), data=str(moved), work_dir=str(tmp_path / 'a'))
        assert next(iter(metrics)).startswith('moved/')
    finally:
        moved.rename(run[0])


@pytest.mark.parametrize('folder', ['', 'JPEGImages'])
def test_images_are_not_overwritten(run, tmp_path, folder):
    with pytest.raises(UserError, match='overwritten'):
        evaluate_files(None, checkpoint(run), show_dir=str(run[0] / folder), work_dir=str(tmp_path / 'a'))
