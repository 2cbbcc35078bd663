"""`mnv4 label --ray`: the rows of a run without Ray, also when an actor is killed or a cluster is used."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sockets import answering
from stub_file import write_detector

from mnv4_mm.label import label

pytest.importorskip('ray', reason='Ray is not installed: pip install "mnv4_mm[ray]"')

RAY = tuple(map(int, importlib.metadata.version('ray').split('.')[:2]))


def test_ray_gives_the_same_rows_although_an_actor_is_killed(images, tmp_path):
    file = write_detector(tmp_path / 'net.onnx')
    expected = label(str(file), str(images), out=str(tmp_path / 'alone'), workers=2, part=20, log=str)
    command = [
        sys.executable, '-m', 'mnv4_mm', 'label', file, images, '--out', tmp_path / 'out',
        '--ray', 'local', '--workers', '2', '--part', '20',
    ]  # fmt: skip
    with environment() as variables:
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables
        )
        deadline = time.monotonic() + 120
        made = tmp_path / 'out/parts'
        while not list(made.glob('part-*')) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        victims = actors(variables['RAY_TMPDIR'])
        assert victims
        os.kill(victims[0], signal.SIGKILL)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert '601 images, 1 of them unreadable' in output
    assert (expected.rows, expected.errors) == (601, 1)
    assert rows(tmp_path / 'out') == rows(tmp_path / 'alone')


@pytest.mark.long
def test_a_running_cluster_is_used(images, tmp_path):
    """It requires a token, which Ray finds by itself for ``auto``, but uses with an address only if told to."""
    file = write_detector(tmp_path / 'net.onnx')
    label(str(file), str(images), out=str(tmp_path / 'alone'), workers=2, part=100, log=str)
    with environment() as variables, cluster(variables) as address:
        with_token = {**variables, 'RAY_AUTH_MODE': 'token'}
        for ray, env in (('auto', variables), (address, with_token)):
            out = tmp_path / f'out-{ray[:4]}'
            done = run(file, images, '--out', out, '--part', '100', '--ray', ray, env=env)
            assert done.returncode == 0, done.stderr
            assert '601 images, 1 of them unreadable' in done.stdout
            assert rows(out) == rows(tmp_path / 'alone')
        done = run(file, images, '--out', tmp_path / 'out', '--ray', address, env=variables)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(f'error: --ray {address}: ')
        assert done.stderr.endswith(' (if the cluster requires a token, set RAY_AUTH_MODE=token)\n')


@pytest.mark.skipif(RAY < (2, 52), reason='Ray before 2.52 has no tokens')
def test_a_missing_token_is_one_line(images, tmp_path):
    """A server that answers is needed, since addresses without one are refused before Ray is asked."""
    file = write_detector(tmp_path / 'net.onnx')
    settings = b'\x00\x00\x00\x04' + bytes(5)
    with answering(settings) as address, environment() as variables:
        arguments = (file, images, '--out', tmp_path / 'out', '--ray', address)
        done = run(*arguments, env={**variables, 'RAY_AUTH_MODE': 'token'})
    assert done.returncode == 2
    assert done.stderr.startswith(f'error: --ray {address}: Token authentication is enabled but no authentication')
    assert len(done.stderr.splitlines()) == 1
    assert 'set RAY_AUTH_MODE' not in done.stderr  # it is set


@pytest.fixture(scope='module')
def images(tmp_path_factory, repository) -> Path:
    """A folder of 601 images, one of which is broken."""
    folder = tmp_path_factory.mktemp('images')
    photos = sorted((repository / 'data/mini/coco/train2017').glob('*.jpg'))
    for number in range(600):
        (folder / f'{number:03d}.jpg').symlink_to(photos[number % len(photos)])
    (folder / 'broken.jpg').write_text('no image')
    return folder


@contextmanager
def environment() -> Iterator[dict[str, str]]:
    """Yield environment variables for a Ray of one's own: none of Ray's, another home and folder of temporary files."""
    # The path must be short: Ray puts sockets there.
    with tempfile.TemporaryDirectory(prefix='ray') as folder:
        others = {name: value for name, value in os.environ.items() if not name.startswith('RAY_')}
        repository = str(Path(__file__).parents[2])
        yield {**others, 'PYTHONPATH': repository, 'HOME': folder, 'RAY_TMPDIR': folder}


def run(*arguments: object, env: dict[str, str]) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'mnv4_mm', 'label', *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env, timeout=300)


@contextmanager
def cluster(variables: dict[str, str]) -> Iterator[str]:
    """Start a Ray cluster of one machine that requires a token, yield its address, and stop it."""
    ray = [sys.executable, '-m', 'ray.scripts.scripts']
    subprocess.run([*ray, 'get-auth-token', '--generate'], env=variables, capture_output=True, check=True, timeout=60)
    started = Path(variables['RAY_TMPDIR'], 'ray/ray_current_cluster')
    command = [
        *ray, 'start', '--head', '--block', '--num-cpus', '2', '--port', '0', '--include-dashboard', 'false',
        '--disable-usage-stats',
    ]  # fmt: skip
    with tempfile.TemporaryFile('w+') as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=variables)
        try:
            deadline = time.monotonic() + 120
            while not started.is_file():
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    pytest.fail(f'the cluster did not start: {output.read()}')
                time.sleep(0.1)
            yield started.read_text().strip()
        finally:
            # Not `ray stop`, which would stop the clusters of other tests, too.
            process.terminate()
            process.wait(timeout=60)


def rows(folder: Path) -> list[dict]:
    return pq.read_table(folder / 'parts').to_pylist()


def actors(folder: str) -> list[int]:
    """Return the processes of Ray's actors that label. Ray names a process after its actor.

    Args:
        folder: ``RAY_TMPDIR`` of their cluster; other tests may run another one.
    """
    found = []
    for process in Path('/proc').glob('[0-9]*'):
        try:
            title, variables = (process / 'cmdline').read_bytes(), (process / 'environ').read_bytes()
        except OSError:  # it has ended
            continue
        is_actor = (title.startswith(b'ray::') and b'PartMaker' in title) or title.startswith(b'ray::MapWorker')
        if is_actor and f'RAY_TMPDIR={folder}'.encode() in variables.split(b'\0'):
            found.append(int(process.name))
    return found
