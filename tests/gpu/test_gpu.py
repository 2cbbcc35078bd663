"""Training on a GPU against the CPU. `make gpu` runs these; elsewhere they are skipped."""

import json
import os
import subprocess
import sys

import pytest
import torch
from mmengine.model.utils import convert_sync_batchnorm
from training_step import DETECTORS, SEGMENTERS, Step

from mnv4_mm.apis.train import train
from mnv4_mm.engine.step import compile_parts
from mnv4_mm.weights.work_dir import list_checkpoints

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU here: `make gpu` on a machine with one'),
]
HEADS = DETECTORS + SEGMENTERS


@pytest.fixture(autouse=True)
def _exact():
    """Compute in float32, not in TF32, which rounds to 10 bits."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def close(found, expected, tolerance):
    return found == pytest.approx(expected, rel=tolerance, abs=1e-6)


@pytest.mark.parametrize('name', HEADS)
def test_losses_are_those_of_the_cpu(name, segmentation_batch):
    cpu, gpu = (Step(name, segmentation_batch, device=device) for device in ('cpu', 'cuda'))
    for part in (*cpu.model.modules(), *gpu.model.modules()):
        if isinstance(part, torch.nn.Dropout2d):
            part.p = 0.0  # the devices draw other random numbers
    assert close(gpu(), cpu(), 1e-4)
    assert close(gpu(), cpu(), 2e-2)  # after a step, whose gradients were summed in another order


@pytest.mark.parametrize('dtype', ['fp16', 'bf16'])
@pytest.mark.parametrize('name', HEADS)
def test_mixed_precision_stays_close(name, dtype, segmentation_batch):
    if dtype == 'bf16' and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip('this GPU does not compute in bfloat16')
    full, mixed = (Step(name, segmentation_batch, device='cuda', dtype=one) for one in (None, dtype))
    assert close(mixed(), full(), 0.05)
    before = {key: value.clone() for key, value in mixed.weights().items()}
    for _ in range(3):
        assert all(loss == loss for loss in mixed().values())
    assert any(not torch.equal(before[key], value) for key, value in mixed.weights().items())


def test_norms_are_synchronised_in_one_process(segmentation_batch, tmp_path):
    plain, synchronised = (Step('mnv4_ssdlite_coco', segmentation_batch, device='cuda') for _ in range(2))
    synchronised.model = convert_sync_batchnorm(synchronised.model)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in synchronised.model.modules())
    torch.distributed.init_process_group('nccl', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        assert close(synchronised(), plain(), 1e-4)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings('ignore')  # of the compiler
@pytest.mark.parametrize('name', ['mnv4_ssdlite_coco', 'mnv4_lraspp_ade20k'])
def test_a_compiled_net_computes_the_same(name, segmentation_batch):
    plain, compiled = (Step(name, segmentation_batch, device='cuda') for _ in range(2))
    compile_parts(compiled.model)
    assert close(compiled(), plain(), 1e-3)


def test_a_checkpoint_of_a_gpu_has_the_same_score_on_the_cpu(repository, tmp_path):
    name, folder = 'mnv4_ssdlite_coco-mini', tmp_path / 'run'
    options = {'train_dataloader.dataset.times': 1}
    train(name, work_dir=str(folder), weights='none', epochs=1, amp=True, cfg_options=options)
    scores = []
    for devices in ('0', ''):
        command = ['test', name, str(list_checkpoints(folder)[0]), '--work-dir', str(tmp_path / f'device{devices}')]
        subprocess.run(
            [sys.executable, '-m', 'mnv4_mm', *command],
            cwd=repository, check=True, env={**os.environ, 'CUDA_VISIBLE_DEVICES': devices},
        )  # fmt: skip
        scores.append(json.loads((tmp_path / f'device{devices}/metrics.json').read_text()))
    assert scores[0].keys() == scores[1].keys()
    assert close(*scores, 1e-2)
