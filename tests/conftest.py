"""Fixtures of all tests: the tools of a user, drawn data sets, small trained checkpoints."""

import gc
import importlib.util
import os

os.environ['HF_HUB_OFFLINE'] = '1'  # before huggingface_hub is imported: tests do not depend on a network

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from end_to_end import IN_PROCESS, LEARNED, draw_few, resized
from filelock import FileLock
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mnv4_mm.apis.train import train
from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.data.drawn import draw_dataset
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[1]
BACKGROUNDS = ROOT / 'data/mini/coco/train2017'
Tool = Callable[..., 'subprocess.CompletedProcess[str]']
Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep checked data of the tests, also of processes that they start, out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MNV4_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed every generator before each test, so that a test draws the same numbers alone and among others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_loggers() -> Iterator[None]:
    """Forget mmengine's loggers after each test: their handlers write to the output that pytest captured for it."""
    yield
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            handler.close()
    MMLogger._instance_dict.clear()


@pytest.fixture(scope='session')
def repository() -> Path:
    return ROOT


@pytest.fixture(scope='session')
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Make something once for all workers: ``once(name, make)`` calls ``make(folder)`` in the first that asks.

    The others wait for it and get the same folder. If ``make`` fails, the next worker tries again.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base) / 'shared'
    shared.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f'{name}.done'
        with FileLock(shared / f'{name}.lock'):
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(scope='session')
def run_tool() -> Tool:
    """Run ``tools/<name>`` in a process of its own; text of stdout and stderr is kept.

    It imports OpenMMLab again, five seconds: only where the process itself is the subject. Else see ``call_tool``.
    """

    def run(name: str, *arguments: object, cwd: Path | None = None) -> 'subprocess.CompletedProcess[str]':
        command = [sys.executable, str(ROOT / 'tools' / name), *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd or ROOT, capture_output=True, text=True, env=dict(os.environ, COLUMNS='200')
        )

    return run


@pytest.fixture(scope='session')
def drawn(once: Once) -> Path:
    """128 training and 20 validation images of 320 pixels with drawn shapes."""
    return once('shapes', lambda out: draw_dataset(out, BACKGROUNDS, train=128, val=20, size=320, seed=0))


@pytest.fixture(scope='session')
def few(once: Once) -> Path:
    """Four images of 160 pixels with drawn shapes, the same for training and validation; named ``shapes`` too."""
    return once('few', lambda out: draw_few(out / 'shapes', BACKGROUNDS, count=4, size=160)) / 'shapes'


@pytest.fixture(scope='session')
def learned(once: Once, few: Path) -> Callable[[str], Path]:
    """Return the work directory of a head that was trained to overfit the images of ``few``; trained once."""

    def learn(name: str) -> Path:
        steps, side, rate = LEARNED[name]
        options = {**IN_PROCESS, 'optim_wrapper.optimizer.lr': rate}
        length: dict[str, Any] = dict(iters=steps)
        if '_coco' in name:
            # Two epochs that repeat the images, without flips.
            options |= resized(side)
            options['train_dataloader.batch_size'] = 4
            options['train_dataloader.dataset.times'] = steps // 2
            options['train_dataloader.dataset.dataset.pipeline.3.prob'] = 0.0
            options['train_cfg.val_interval'] = 1
            length = dict(epochs=2)
        return once(name, lambda out: train(name, data=str(few), work_dir=str(out), cfg_options=options, **length))

    return learn


@pytest.fixture
def load_tool(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import ``tools/<name>.py``, a script that is not part of a package."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope='session')
def segmentation_batch() -> Callable[[int, int], dict]:
    """Return two random images of a size in pixels with ground truth of 150 classes; the same at each call."""

    def batch(height: int, width: int) -> dict:
        rng = torch.Generator().manual_seed(0)
        ground_truth = torch.randint(0, 150, (2, 1, height, width), generator=rng)
        ground_truth[:, :, :9] = 255
        shape = dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width))
        samples = [SegDataSample(gt_sem_seg=PixelData(data=one), metainfo=shape) for one in ground_truth]
        images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=rng)
        return dict(inputs=list(images), data_samples=samples)

    return batch


@pytest.fixture(scope='session')
def mmdeploy_score(repository: Path) -> Callable[[str, Path], float]:
    """Export a checkpoint by mmdeploy; return the AP or mIoU of its ONNX on the test set of the config it carries."""
    from mnv4_mm.deploy import mmdeploy_script

    def score(checkpoint: str, folder: Path) -> float:
        cfg = checkpoint_config(read_checkpoint(checkpoint))
        task = task_of(cfg).name
        deploying = mmdeploy_script.load_deploy_config(
            str(repository / f'configs/deploy/{task}_onnxruntime_dynamic.py'), {}
        )
        deploying, cfg = mmdeploy_script.fit_size(deploying, cfg)
        pixels: Any = cv2.imread(str(next((repository / 'data/mini/coco/val2017').glob('*.jpg'))))
        mmdeploy_script.export(deploying, cfg, checkpoint, pixels, folder, 'cpu')
        model: Any = mmdeploy_script.load_exported(deploying, cfg, folder / deploying.onnx_config.save_file, 'cpu')
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            cfg.test_dataloader.update(batch_size=1, num_workers=0, persistent_workers=False)
            loader = Runner.build_dataloader(cfg.test_dataloader, seed=0)
            evaluator = Evaluator(cfg.test_evaluator)
            evaluator.dataset_meta = loader.dataset.metainfo
            with torch.no_grad():
                for batch in loader:
                    evaluator.process(model.test_step(batch), batch)
            found = evaluator.evaluate(len(loader.dataset))
        return next(value for name, value in found.items() if name.endswith(('/bbox_mAP', '/mIoU')))

    return score


@pytest.fixture
def call_tool(load_tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Tool:
    """Call ``tools/<name>`` in this process, where everything is imported already; the result is ``run_tool``'s."""
    monkeypatch.syspath_prepend(ROOT / 'tools')

    def call(name: str, *arguments: object) -> 'subprocess.CompletedProcess[str]':
        capfd.readouterr()
        try:
            code = load_tool(name.removesuffix('.py')).main([str(part) for part in arguments])
        except SystemExit as error:  # argparse's
            code = error.code
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess([name], code, out, err)

    return call


class Runs:
    """Run a command when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.path}',)


@pytest.fixture
def payload(tmp_path: Path) -> Runs:
    """Return an object that creates the file ``tmp_path / 'ran'`` when it is unpickled."""
    return Runs(tmp_path / 'ran')


def pytest_collection_finish() -> None:
    """Keep what is imported out of garbage collections, which otherwise traverse millions of objects of OpenMMLab.

    mmengine collects garbage for each data set that it builds, in half a second.
    """
    gc.collect()
    gc.freeze()
