"""Each head in the order of a user: train, test, infer, export. Each head also overfits its few images.

The tools run in the tests' own process, except where a process is killed. tests/long/test_learning.py trains in full
length and measures on images that the nets have not seen.
"""

import json
import re
import signal
import subprocess
import sys
import time

import kills
import pytest
from end_to_end import (
    IN_PROCESS,
    LEARNED,
    arguments,
    check_detector,
    check_exported,
    check_run,
    check_segmenter,
    last_checkpoint,
    resized,
)

DETECTORS = [name for name in LEARNED if '_coco' in name]
SEGMENTERS = [name for name in LEARNED if '_ade20k' in name]
# Bounds on AP at IoU 0.5 and on mIoU: the lengths of end_to_end.LEARNED reach 0.55 to 1.0 and 0.5 to 0.75. An untrained
# net has 0.0; a segmenter that gives all shapes one name has 0.18.
LEAST = dict.fromkeys(DETECTORS, 0.3) | dict.fromkeys(SEGMENTERS, 0.3)


@pytest.mark.parametrize('name', DETECTORS)
def test_a_detector_learns_and_all_tools_agree(name, learned, few, call_tool, tmp_path, mmdeploy_score):
    work_dir = learned(name)
    checkpoint = last_checkpoint(work_dir)
    check_run(work_dir, 'bbox_mAP')
    metrics = check_detector(call_tool, checkpoint, few, tmp_path)
    assert metrics['shapes/bbox_mAP_50'] >= LEAST[name]
    if name.startswith('mnv4_ssdlite'):
        check_exported(call_tool, checkpoint, metrics['shapes/bbox_mAP'])
    assert mmdeploy_score(checkpoint, tmp_path) == pytest.approx(metrics['shapes/bbox_mAP'], abs=1e-3)


@pytest.mark.parametrize('name', SEGMENTERS)
def test_a_segmenter_learns_and_all_tools_agree(name, learned, few, call_tool, tmp_path, mmdeploy_score):
    work_dir = learned(name)
    checkpoint = last_checkpoint(work_dir)
    check_run(work_dir, 'mIoU')
    metrics = check_segmenter(call_tool, checkpoint, few, tmp_path)
    assert metrics['shapes/mIoU'] >= LEAST[name]
    if name.startswith('mnv4_lraspp'):
        check_exported(call_tool, checkpoint, metrics['shapes/mIoU'])
    assert mmdeploy_score(checkpoint, tmp_path) == pytest.approx(metrics['shapes/mIoU'], abs=1e-3)


def kill_after_first_checkpoint(repository, work_dir, *command):
    """Start tools/train.py in a process and kill it as soon as it has written a checkpoint."""
    command = [sys.executable, repository / 'tools/train.py', *command]
    with subprocess.Popen(
        [str(part) for part in command], cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        deadline = time.monotonic() + 600
        while not (work_dir / 'last_checkpoint').exists():
            assert run.poll() is None, 'training ended before its first checkpoint'
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)


def test_a_killed_detector_resumes(few, call_tool, repository, tmp_path):
    work_dir = tmp_path / 'run'
    options = arguments({**IN_PROCESS, **resized(160), 'train_dataloader.dataset.times': 1})
    more = ['--data', few, '--work-dir', work_dir, '--epochs', 8, *options]
    kill_after_first_checkpoint(repository, work_dir, 'mnv4_ssdlite_coco-mini', *more)

    again = call_tool('train.py', 'mnv4_ssdlite_coco-mini', *more)
    assert again.returncode == 2
    assert 'holds a run already' in again.stderr

    resumed = call_tool('train.py', 'mnv4_ssdlite_coco-mini', '--resume', *more)
    assert resumed.returncode == 0, resumed.stderr
    assert 'resumed epoch: ' in resumed.stdout
    assert re.search(r'Epoch\(train\) +\[8\]', resumed.stdout)
    assert not re.search(r'Epoch\(train\) +\[1\]', resumed.stdout)
    assert 'img_s: ' in resumed.stdout
    assert 'Config:' not in resumed.stdout
    assert last_checkpoint(work_dir).endswith('epoch_8.pth')
    check_run(work_dir, 'bbox_mAP')


def test_a_segmenter_killed_twice_ends_with_identical_weights(few, tmp_path):
    """With workers, augmentation and dropout, once while a checkpoint is written. More: tests/long/test_kills.py."""
    options = kills.segmenter_options(6)
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    length = kills.finish(kills.start(kills.SEGMENTER, few, whole, options, resume=False), whole)
    moments = kills.kill_and_resume(kills.SEGMENTER, few, killed, options, 2, length, seed=0)
    assert any('writing .' in moment for moment in moments)
    assert last_checkpoint(killed).endswith('iter_6.pth')
    assert kills.differences(whole / 'iter_6.pth', killed / 'iter_6.pth') == []


def test_both_metrics_of_a_mini_config_are_reported(call_tool, tmp_path):
    """The end of ``make train``: training and held-out images apart, neither under the name of the benchmark.

    The same of a detector: tests/engine/test_engine.py.
    """
    options = arguments({**IN_PROCESS, 'report_on_training_images': True})
    run = call_tool('train.py', 'mnv4_lraspp_ade20k-mini', '--work-dir', tmp_path / 'w', '--iters', 4, *options)
    assert run.returncode == 0, run.stderr
    for prefix, folder in (('trained_on', 'trained_on'), ('ade-mini', 'held_out')):
        metrics = json.loads((tmp_path / 'w' / folder / 'metrics.json').read_text())
        assert not any(key.startswith('ade20k/') for key in metrics)
        key = f'{prefix}/mIoU'
        assert f'{key:<28}{metrics[key]:.3f}' in run.stdout
    assert 'Neither is an ADE20K result.' in run.stdout
