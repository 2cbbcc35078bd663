"""The example configs train in mmdet's and mmseg's own tools, from another folder, without a tool of this package."""

import os
import subprocess
import sys
from pathlib import Path

import mmdet
import mmseg
import numpy as np
import pytest
from mmdet.apis import DetInferencer

from mnv4_mm.data.drawn import draw_dataset

FAST = [
    f'{loader}_dataloader.{key}' for loader in ('train', 'val') for key in ('num_workers=0', 'persistent_workers=0')
]


@pytest.fixture(scope='module')
def folder(repository, tmp_path_factory):
    """A folder with ``data/shapes``."""
    out = tmp_path_factory.mktemp('project')
    draw_dataset(out / 'data/shapes', repository / 'data/mini/coco/train2017', train=8, val=2, size=64)
    return out


@pytest.fixture
def train(repository, folder):
    """Runs a package's own training tool in that folder; returns the work directory and what was printed."""

    def run(package, config, *options):
        tool = Path(package.__path__[0]) / '.mim/tools/train.py'
        work_dir = folder / 'work_dirs' / config
        command = [sys.executable, '-W', 'ignore', tool, repository / 'examples' / f'{config}.py']
        command += ['--work-dir', work_dir, '--cfg-options', *FAST, *options]
        environment = dict(os.environ, PYTHONPATH=str(repository), OMP_NUM_THREADS='1')
        result = subprocess.run(
            [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return work_dir, result.stdout + result.stderr

    return run


# mmdet's inferencer has no folder for its visualizer.
@pytest.mark.filterwarnings('ignore:Failed to add .*LocalVisBackend:UserWarning')
def test_mmdet_trains_the_example_and_its_inferencer_loads_the_checkpoint(train, folder):
    size = 'train_dataloader.dataset.pipeline.2.scale=(64,64)'
    work_dir, log = train(mmdet, 'mmdet_retinanet', size, 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=4')
    assert 'Epoch(val) [1]' in log
    inferencer = DetInferencer(
        str(work_dir / 'mmdet_retinanet.py'), str(work_dir / 'epoch_1.pth'), device='cpu', show_progress=False
    )
    images = [str(path) for path in sorted((folder / 'data/shapes/val').glob('*.jpg'))]
    predictions = inferencer(images, no_save_vis=True)['predictions']
    assert len(predictions) == len(images) == 2
    for prediction in predictions:
        assert len(prediction['bboxes']) == len(prediction['scores']) == len(prediction['labels'])
        assert np.isfinite(prediction['bboxes']).all()
        assert set(prediction['labels']) <= set(range(6))


def test_mmseg_trains_the_example(train):
    _, log = train(
        mmseg, 'mmseg_fpn', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'train_dataloader.batch_size=4',
        'default_hooks.logger.interval=1',
    )  # fmt: skip
    assert 'Iter(val) [2/2]' in log
    assert 'mIoU' in log
    assert 'ring' in log
