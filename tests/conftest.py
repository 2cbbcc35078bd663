"""Shared fixtures: tools run as a user runs them, and a drawn data set."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.data.drawn import draw_dataset
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[1]
Tool = Callable[..., 'subprocess.CompletedProcess[str]']


@pytest.fixture(scope='session')
def repository() -> Path:
    return ROOT


@pytest.fixture(scope='session')
def run_tool() -> Tool:
    """Runs ``tools/<name>`` in a process of its own; text of stdout and stderr is kept."""

    def run(name: str, *arguments: object, cwd: Path | None = None) -> 'subprocess.CompletedProcess[str]':
        command = [sys.executable, str(ROOT / 'tools' / name), *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd or ROOT, capture_output=True, text=True, env=dict(os.environ, COLUMNS='200')
        )

    return run


@pytest.fixture(scope='session')
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """768 training and 64 validation pictures with drawn shapes."""
    out = tmp_path_factory.mktemp('drawn') / 'shapes'
    return draw_dataset(out, ROOT / 'data/mini/coco/train2017', train=768, val=64, size=320, seed=0)


@pytest.fixture(scope='session')
def drawn_masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3072 training and 64 validation pictures of 160 pixels with drawn shapes, for segmentation."""
    out = tmp_path_factory.mktemp('drawn_masks') / 'shapes'
    return draw_dataset(out, ROOT / 'data/mini/coco/train2017', train=3072, val=64, size=160, seed=0)


@pytest.fixture
def load_tool(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports ``tools/<name>.py``, which is a script and no part of a package."""

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
    """Gives two random pictures of a size in pixels with truths of 150 classes; the same at each call."""

    def batch(height: int, width: int) -> dict:
        rng = torch.Generator().manual_seed(0)
        truths = torch.randint(0, 150, (2, 1, height, width), generator=rng)
        truths[:, :, :9] = 255
        shape = dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width))
        samples = [SegDataSample(gt_sem_seg=PixelData(data=truth), metainfo=shape) for truth in truths]
        pictures = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=rng)
        return dict(inputs=list(pictures), data_samples=samples)

    return batch


@pytest.fixture(scope='session')
def mmdeploy_score(repository: Path) -> Callable[[str, Path], float]:
    """Exports a checkpoint by mmdeploy; gives the AP or mIoU of its ONNX over the test set of the config it carries."""
    from mnv4_mm.deploy import mmdeploy_script

    def score(checkpoint: str, folder: Path) -> float:
        cfg = checkpoint_config(read_checkpoint(checkpoint))
        task = task_of(cfg).name
        deploying = mmdeploy_script.load_deploy_config(
            str(repository / f'configs/deploy/{task}_onnxruntime_dynamic.py'), {}
        )
        deploying, cfg = mmdeploy_script.fit_size(deploying, cfg)
        pixels = cv2.imread(str(next((repository / 'data/mini/coco/val2017').glob('*.jpg'))))
        mmdeploy_script.export(deploying, cfg, checkpoint, pixels, folder, 'cpu')
        model = mmdeploy_script.load_exported(deploying, cfg, folder / deploying.onnx_config.save_file, 'cpu')
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
    """Calls ``tools/<name>`` in this process, where all is imported already: for what ends before it has begun."""
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
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.path}',)


@pytest.fixture
def payload(tmp_path: Path) -> Runs:
    """An object that makes the file ``tmp_path / 'ran'`` when it is unpickled."""
    return Runs(tmp_path / 'ran')
