"""Progress, curves and mixed precision of a run, with and without a terminal."""

import copy
import json
import logging
import os
import pty
import subprocess
import sys
from types import SimpleNamespace

import cv2
import pytest
import torch
from end_to_end import arguments, resized
from mmdet.models.losses import FocalLoss
from mmseg.models.losses import FocalLoss as SegmentationFocalLoss

from mnv4_mm.apis.train import _cap_warm_up
from mnv4_mm.engine.amp import Bf16OptimWrapper
from mnv4_mm.engine.curves import plot_curves, read_scalars

FEW = [
    'train_dataloader.dataset.times=1',
    'train_dataloader.dataset.dataset.indices=16',
    'train_dataloader.batch_size=4',
    'val_dataloader.dataset.indices=4',
    *arguments(resized(160))[1:],
]


def train_command(repository, work_dir, *more):
    return [
        sys.executable, str(repository / 'tools/train.py'), 'mnv4_ssdlite_coco-mini', '--work-dir', str(work_dir),
        '--epochs', '1', *more, '--cfg-options', *FEW,
    ]  # fmt: skip


def test_a_terminal_shows_a_live_line(repository, tmp_path):
    master, slave = pty.openpty()
    command = train_command(repository, tmp_path / 'w')
    with subprocess.Popen(
        command, cwd=repository, stdout=slave, stderr=subprocess.PIPE, env=dict(os.environ, COLUMNS='120', TERM='xterm')
    ) as run:
        os.close(slave)
        output = b''
        while True:
            try:
                block = os.read(master, 65536)
            except OSError:  # the other end was closed
                break
            if not block:
                break
            output += block
        errors = run.stderr.read()
    os.close(master)
    text = output.decode()
    assert run.returncode == 0, errors.decode()
    assert 'epoch 1/1' in text
    assert 'img/s' in text
    assert 'left ' in text
    assert 'Epoch(train)' not in text
    assert 'Saving checkpoint at 1 epochs' in text
    log = next((tmp_path / 'w').glob('*/*.log')).read_text()
    assert 'Epoch(train)' in log
    # The report at the end names both metrics.
    for prefix, folder in (('trained_on', 'trained_on'), ('coco-mini', 'held_out')):
        metrics = json.loads((tmp_path / 'w' / folder / 'metrics.json').read_text())
        assert not any(key.startswith('coco/') for key in metrics)
        key = f'{prefix}/bbox_mAP'
        assert f'{key:<28}{metrics.get(key, 0.0):.3f}' in text
    assert 'Neither is a COCO result' in text
    assert len(list((tmp_path / 'w/images').glob('*.jpg'))) == 64
    assert 'Config:' in log


def test_without_a_terminal_lines_are_plain_and_amp_trains(repository, tmp_path, call_tool):
    run = call_tool(
        'train.py', *train_command(repository, tmp_path / 'w', '--amp')[2:], 'report_on_training_images=False'
    )
    assert run.returncode == 0, run.stderr
    assert 'img_s: ' in run.stdout
    assert '\x1b[' not in run.stdout
    assert 'Config:' not in run.stdout
    scalars = [
        json.loads(line) for line in next((tmp_path / 'w').glob('*/vis_data/scalars.json')).read_text().splitlines()
    ]
    assert scalars[0]['img_s'] > 0


@pytest.mark.long  # tests/test_distributed.py trains in two processes, too
def test_two_processes_on_a_cpu(repository, tmp_path):
    command = train_command(repository, tmp_path / 'w', '--launcher', 'pytorch')
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_port=29611', *command[1:]]
    run = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1')
    )
    assert run.returncode == 0, run.stderr
    # 16 images in batches of 4 for each of 2 processes.
    assert 'Epoch(train) [1][2/2]' in run.stdout
    assert run.stdout.count('Saving checkpoint at 1 epochs') == 1
    assert run.stdout.count('Neither is a COCO result') == 1


def test_bf16_computes_the_forward_pass_in_bfloat16():
    net = torch.nn.Linear(4, 4)
    wrapper = Bf16OptimWrapper(torch.optim.SGD(net.parameters(), 0.1))
    with wrapper.optim_context(net):
        out = net(torch.ones(1, 4))
    assert out.dtype == torch.bfloat16
    before = net.weight.clone()
    wrapper.update_params(out.float().sum())
    assert net.weight.dtype == torch.float32
    assert not torch.equal(net.weight, before)


@pytest.mark.parametrize('kernel', [3, 5])
@pytest.mark.parametrize('height', [1, 3])
def test_bf16_gradients_of_a_map_of_one_column(kernel, height):
    """oneDNN's gradient has uninitialised memory in it, which is filled before."""
    net = torch.nn.Conv2d(64, 64, kernel, 2, kernel // 2, groups=64, bias=False)
    maps = torch.randn(4, 64, height, 1).to(memory_format=torch.channels_last)
    expected = net(maps)
    weights = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), net.weight)
    wrapper = Bf16OptimWrapper(torch.optim.SGD(net.parameters(), 0.1))
    for _ in range(4):
        filled = [torch.full((size,), 1e20) for size in (64, 576, 1600, 4096, 40000)]
        del filled
        with wrapper.optim_context(net):
            out = net(maps)
        torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
        (in_bf16,) = torch.autograd.grad((out.float() * weights).sum(), net.weight)
        torch.testing.assert_close(in_bf16, gradient, rtol=0.02, atol=0.05)
    assert len(net._forward_pre_hooks) == 1
    columns = []
    net.register_forward_pre_hook(lambda _, inputs: columns.append(inputs[0].shape[-1]))
    net(maps)
    net(torch.randn(1, 64, 1, 2))
    assert columns == [2, 2]


@pytest.mark.parametrize('kind', [FocalLoss, SegmentationFocalLoss])
def test_focal_losses_compute_in_float32_under_bf16(kind):
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.loss = torch.nn.Linear(4, 3), kind()

    net = Net()
    seen = []
    net.loss.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0].dtype, out.dtype)))
    wrapper = Bf16OptimWrapper(torch.optim.SGD(net.parameters(), 0.1))
    for _ in range(2):
        with wrapper.optim_context(net):
            scores = net.layer(torch.ones(2, 4))
            net.loss(scores, torch.eye(3)[[0, 2]])
        assert scores.dtype == torch.bfloat16
    assert seen == [(torch.float32, torch.float32)] * 2
    assert len(net.loss._forward_pre_hooks) == 1


@pytest.mark.parametrize('parts', [1, 2])
def test_curves_join_the_parts_of_a_run(tmp_path, parts):
    for part in range(parts):
        folder = tmp_path / f'2026010{part}/vis_data'
        folder.mkdir(parents=True)
        # The second part begins one step before the first ended: the later value of a step counts.
        lines = [dict(loss=10.0 * part + step, lr=0.1, step=step) for step in range(part * 2, part * 2 + 3)]
        lines.append({'x/bbox_mAP': 0.5 + part / 10, 'x/bbox_mAP_s': -1.0, 'step': part + 1})
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    losses, metrics = read_scalars(tmp_path)
    assert losses == {'loss': {0: 0, 1: 1, 2: 2} if parts == 1 else {0: 0, 1: 1, 2: 12, 3: 13, 4: 14}}
    assert metrics == {'x/bbox_mAP': {1: 0.5} if parts == 1 else {1: 0.5, 2: 0.6}}
    image = cv2.imread(str(plot_curves(tmp_path)))
    assert image.shape[1] > image.shape[0] > 300


def test_curves_of_an_empty_run(tmp_path):
    assert plot_curves(tmp_path).is_file()


def test_only_warm_ups_are_shortened():
    schedule = [
        dict(type='LinearLR', by_epoch=False, begin=0, end=500),
        dict(type='PolyLR', by_epoch=False, begin=500, end=1000),
        dict(type='LinearLR', by_epoch=False, begin=500, end=1000),
        dict(type='LinearLR', by_epoch=True, begin=0, end=500),
    ]
    runner = SimpleNamespace(
        param_schedulers=copy.deepcopy(schedule),
        train_loop=SimpleNamespace(max_iters=1000),
        logger=logging.getLogger('x'),
    )
    _cap_warm_up(runner)
    assert runner.param_schedulers == [dict(schedule[0], end=100), *schedule[1:]]


def test_a_warm_up_of_one_step_is_left_out():
    """mmengine's would keep its first, tiny learning rate for the whole training."""
    schedule = [dict(type='LinearLR', by_epoch=False, end=500), dict(type='CosineAnnealingLR', by_epoch=True, T_max=4)]
    runner = SimpleNamespace(
        param_schedulers=copy.deepcopy(schedule),
        train_loop=SimpleNamespace(max_iters=19),
        logger=logging.getLogger('x'),
    )
    _cap_warm_up(runner)
    assert runner.param_schedulers == schedule[1:]
