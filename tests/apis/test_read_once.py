"""A command reads its checkpoint once."""

import shutil

import pytest
import torch

from mnv4_mm.apis.evaluate import evaluate, evaluate_files
from mnv4_mm.apis.model import load_model
from mnv4_mm.apis.train import train
from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.data import with_data_roots
from mnv4_mm.weights.checkpoint import read_checkpoint

NAME = 'mnv4_lraspp_ade20k-mini'


def run(folder, iters, experiment, **options):
    """Train for some steps of two images."""
    cfg_options = {
        'experiment_name': f'{folder}-{experiment}',
        'report_on_training_images': False,
        'train_dataloader.batch_size': 2,
        'val_dataloader.dataset.indices': 2,
        'test_dataloader.dataset.indices': 2,
    }
    return train(NAME, work_dir=str(folder), iters=iters, cfg_options=cfg_options, **options)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = run(tmp_path_factory.mktemp('run') / 'w', 2, 'first')
    return folder / 'iter_2.pth'


@pytest.fixture
def reads(monkeypatch):
    """Files that ``torch.load`` reads, from here on."""
    files, load = [], torch.load

    def counted(file, *args, **kwargs):
        files.append(str(file))
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, 'load', counted)
    return files


def test_evaluation_reads_once(checkpoint, reads, tmp_path):
    metrics = evaluate_files(None, str(checkpoint), work_dir=str(tmp_path / 'a'))
    assert reads == [str(checkpoint)]
    # With a config, which is checked first.
    assert evaluate_files(NAME, str(checkpoint), work_dir=str(tmp_path / 'b'), cfg_options={
        'test_dataloader.dataset.indices': 2
    }) == metrics  # fmt: skip
    assert reads == [str(checkpoint)] * 2


def test_each_command_reads_once(checkpoint, reads, call_tool, tmp_path):
    for tool, *arguments in (
        ('test.py', '--work-dir', tmp_path / 'tested'),
        ('export.py', '--size', 64, 64, '--out-dir', tmp_path / 'exported'),
        ('compare.py', tmp_path / 'exported/iter_2_class_map_fp32_64x64.onnx', '--rounds', 0),
    ):
        result = call_tool(tool, checkpoint, *arguments)
        # compare exits with 1 if the metric of a net that has hardly learned is inconclusive.
        assert result.returncode in ((0, 1) if tool == 'compare.py' else (0,)), result.stderr
        assert reads == [str(checkpoint)], tool
        reads.clear()


@pytest.mark.parametrize('named', [False, True])
def test_resuming_reads_once(checkpoint, reads, tmp_path, named):
    copied = shutil.copy(checkpoint, tmp_path)
    (tmp_path / 'last_checkpoint').write_text(copied)
    folder = run(tmp_path, 4, 'resumed', resume=copied if named else True)
    assert reads == [copied]
    assert torch.load(folder / 'iter_4.pth', weights_only=False)['meta']['iter'] == 4


def test_a_checkpoint_that_has_been_read_serves_several_uses(checkpoint, reads, tmp_path):
    read = read_checkpoint(checkpoint)
    state = {key: value.clone() for key, value in read.content['state_dict'].items()}
    meta = dict(read.meta)
    cfg = with_data_roots(checkpoint_config(read))
    first = evaluate(cfg, read, work_dir=tmp_path / 'a')
    model = load_model(read, device='cpu')
    second = evaluate(cfg, read, work_dir=tmp_path / 'b')
    assert first == second
    assert reads == [str(checkpoint)]
    # None of them has changed it.
    assert all(torch.equal(value, state[key]) for key, value in read.content['state_dict'].items())
    assert read.meta == meta
    assert model.checkpoint_meta['iter'] == 2
