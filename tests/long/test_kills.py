"""Runs killed at random moments, also while a checkpoint is being written, end with the weights of one that is not.

And a disk that is full leaves the last complete checkpoint.
"""

import os
import subprocess
import time
from pathlib import Path

import kills
import pytest
from end_to_end import draw_few

BACKGROUNDS = Path(__file__).parents[2] / 'data/mini/coco/train2017'
KILLS = 10  # of each task


@pytest.fixture
def data(tmp_path):
    return draw_few(tmp_path / 'shapes', BACKGROUNDS, count=6, size=160)


@pytest.mark.parametrize(
    ('config', 'options'),
    [(kills.DETECTOR, kills.detector_options(epochs=5, switch=3)), (kills.SEGMENTER, kills.segmenter_options(10))],
    ids=['epochs', 'iterations'],
)
def test_a_killed_run_ends_with_identical_weights(config, options, data, tmp_path):
    start = time.monotonic()
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    kills.finish(kills.start(config, data, whole, options, resume=False), whole)
    length = time.monotonic() - start
    moments = kills.kill_and_resume(config, data, killed, options, KILLS, length, seed=0)
    print(*moments, sep='\n')
    assert sum('writing' in moment for moment in moments) >= KILLS // 4
    last = Path((whole / 'last_checkpoint').read_text())
    assert Path((killed / 'last_checkpoint').read_text()).name == last.name
    assert kills.differences(last, killed / last.name) == []
    best = {path.name for path in whole.glob('best_*')}
    assert {path.name for path in killed.glob('best_*')} >= best
    assert not list(killed.glob('.*.part'))


@pytest.mark.skipif(os.geteuid() != 0, reason='only root may mount a file system')
def test_a_full_disk_leaves_the_last_complete_checkpoint(data, tmp_path):
    """The third checkpoint does not fit. With more space, the run goes on."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    options = kills.segmenter_options(10)
    try:
        mount = ['mount', '-t', 'tmpfs', '-o', 'size=40m', 'tmpfs', str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip('no file system can be mounted here')
        work_dir = disk / 'w'
        work_dir.mkdir()
        (work_dir / 'ballast').write_bytes(bytes(20 * 2**20))
        run = kills.start(kills.SEGMENTER, data, work_dir, options, resume=False)
        run.join()
        output = (work_dir / 'output.txt').read_text()
        assert run.exitcode != 0
        assert 'cannot be written: No space left on device; the last complete checkpoint is' in output, output[-2000:]
        assert not list(work_dir.glob('.*.part'))
        complete = kills.complete(work_dir)
        assert complete
        (work_dir / 'ballast').unlink()
        kills.finish(kills.start(kills.SEGMENTER, data, work_dir, options, resume=True), work_dir)
        assert (work_dir / 'iter_10.pth').is_file()
    finally:
        subprocess.run(['umount', str(disk)], capture_output=True, check=False)
