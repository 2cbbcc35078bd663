"""`mnv4 label --ray`: the rows of a run without Ray, also when an actor is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from stub_file import write_detector

from mnv4_mm.label import label

pytest.importorskip('ray', reason='Ray is not installed: pip install "mnv4_mm[ray]"')


def test_ray_gives_the_same_rows_although_an_actor_is_killed(repository, tmp_path):
    file = write_detector(tmp_path / 'net.onnx')
    photos = sorted((repository / 'data/mini/coco/train2017').glob('*.jpg'))
    (tmp_path / 'images').mkdir()
    for number in range(600):
        (tmp_path / f'images/{number:03d}.jpg').symlink_to(photos[number % len(photos)])
    (tmp_path / 'images/broken.jpg').write_text('no image')
    expected = label(str(file), str(tmp_path / 'images'), out=str(tmp_path / 'alone'), workers=2, part=20, log=str)
    command = [
        sys.executable, '-m', 'mnv4_mm', 'label', file, tmp_path / 'images', '--out', tmp_path / 'out',
        '--ray', 'local', '--workers', '2', '--part', '20',
    ]  # fmt: skip
    process = subprocess.Popen(
        list(map(str, command)), cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=dict(os.environ, PYTHONPATH=str(repository)),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((tmp_path / 'out/parts').glob('part-*')) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    victims = actors()
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert '601 images, 1 of them unreadable' in output
    assert (expected.rows, expected.errors) == (601, 1)
    assert rows(tmp_path / 'out') == rows(tmp_path / 'alone')


def rows(folder: Path) -> list[dict]:
    return pq.read_table(folder / 'parts').to_pylist()


def actors() -> list[int]:
    """Return the processes of Ray's actors that label. Ray names a process after its actor."""
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            title = (folder / 'cmdline').read_bytes()
        except OSError:  # it has ended
            continue
        if (title.startswith(b'ray::') and b'PartMaker' in title) or title.startswith(b'ray::MapWorker'):
            found.append(int(folder.name))
    return found
