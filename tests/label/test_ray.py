"""`mnv4 label --ray`: the rows of a run without Ray, also when an actor is killed or a cluster is used."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


@pytest.mark.parametrize('address', ['auto', 'HOST:PORT'])
def test_a_running_cluster_is_used(address, repository, tmp_path):
    """``auto`` finds a cluster without a token, and an address is that of a cluster with a token."""
    file = write_detector(tmp_path / 'net.onnx')
    photos = sorted((repository / 'data/mini/coco/train2017').glob('*.jpg'))
    (tmp_path / 'images').mkdir()
    for number in range(60):
        (tmp_path / f'images/{number:03d}.jpg').symlink_to(photos[number % len(photos)])
    label(str(file), str(tmp_path / 'images'), out=str(tmp_path / 'alone'), workers=2, part=10, log=str)
    # The path must be short: Ray puts sockets there. HOME may hold the token of an earlier cluster.
    with tempfile.TemporaryDirectory(prefix='ray') as folder:
        environment = dict(os.environ, PYTHONPATH=str(repository), HOME=folder, RAY_TMPDIR=folder)
        if address == 'HOST:PORT':
            environment.update(RAY_AUTH_MODE='token', RAY_AUTH_TOKEN='0123456789abcdef' * 4)
        with cluster(environment) as running:
            command = [
                sys.executable, '-m', 'mnv4_mm', 'label', file, tmp_path / 'images', '--out', tmp_path / 'out',
                '--part', '10', '--ray', address if address == 'auto' else running,
            ]  # fmt: skip
            done = subprocess.run(
                list(map(str, command)), cwd=repository, capture_output=True, text=True, env=environment, timeout=300
            )
    assert done.returncode == 0, done.stderr
    assert '60 images, 0 of them unreadable' in done.stdout
    assert rows(tmp_path / 'out') == rows(tmp_path / 'alone')


def test_a_missing_token_is_one_line(tmp_path, repository):
    """A server that answers is needed, since addresses without one are refused before Ray is asked."""
    file = write_detector(tmp_path / 'net.onnx')
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        server.listen()
        address = f'127.0.0.1:{server.getsockname()[1]}'
        done = subprocess.run(
            [sys.executable, '-m', 'mnv4_mm', 'label', file, repository / 'data/mini/coco/train2017',
             '--out', tmp_path / 'out', '--ray', address],
            cwd=repository, capture_output=True, text=True, timeout=60,
            env=dict(os.environ, PYTHONPATH=str(repository), HOME=str(tmp_path), RAY_AUTH_MODE='token'),
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f'error: --ray {address}: Token authentication is enabled but no authentication')
    assert len(done.stderr.splitlines()) == 1


@contextmanager
def cluster(environment: dict[str, str]) -> Iterator[str]:
    """Start a Ray cluster of one machine, yield its address, and stop it."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        port = server.getsockname()[1]
    command = [
        sys.executable, '-m', 'ray.scripts.scripts', 'start', '--head', '--block', '--num-cpus', '2',
        '--port', str(port), '--include-dashboard', 'false', '--disable-usage-stats',
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        deadline = time.monotonic() + 60
        with socket.socket() as client:
            while client.connect_ex(('127.0.0.1', port)):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield f'127.0.0.1:{port}'
    finally:
        # Not `ray stop`, which would stop the clusters of other tests, too.
        process.terminate()
        process.communicate(timeout=60)


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
