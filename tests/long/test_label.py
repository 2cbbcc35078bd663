"""`mnv4 label` through Ray over many images: kills at random moments, memory, and a million rows.

``MNV4_LABEL_IMAGES`` sets the number of images (20,000), ``MNV4_LABEL_FILE`` the exported file (a stub, whose net
costs almost nothing), and ``MNV4_LABEL_FOLDER`` a folder whose images are used beside those of ``data/mini``.
"""

import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stub_file import write_detector

from mnv4_mm.bench.labelling import run_bare
from mnv4_mm.label import label

pytest.importorskip('ray', reason='Ray is not installed: pip install "mnv4_mm[ray]"')

COUNT = int(os.environ.get('MNV4_LABEL_IMAGES', '20000'))
PART = max(20, COUNT // 400)
ACTOR_KILLS, DRIVER_KILLS = 10, 5
BROKEN = 100  # one image of a hundred


@pytest.fixture(scope='module')
def file(tmp_path_factory) -> Path:
    given = os.environ.get('MNV4_LABEL_FILE')
    return Path(given) if given else write_detector(tmp_path_factory.mktemp('file') / 'net.onnx')


@pytest.fixture(scope='module')
def images(tmp_path_factory, repository) -> Path:
    """Links to images of the repository under other names; every hundredth is one of ten kinds of broken files."""
    folder = tmp_path_factory.mktemp('many')
    folders = [repository / 'data/mini', *map(Path, filter(None, [os.environ.get('MNV4_LABEL_FOLDER')]))]
    photos = sorted(
        path for given in folders for path in given.rglob('*')
        if path.suffix in ('.jpg', '.png') and not {'masks', 'annotations'} & set(path.relative_to(given).parts)
    )  # fmt: skip
    content = next(path.read_bytes() for path in photos if path.suffix == '.jpg')
    png_header = b'\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR'
    kinds = dict(
        cut=content[: len(content) // 2], start=content[:20], empty=b'', text=b'no image', zeros=bytes(5000),
        heic=b'\x00\x00\x00\x18ftypheic' + bytes(100), signature=png_header[:8], no_size=png_header + bytes(20),
        bomb=png_header + b'\x00\x0f\xff\xff\x00\x0f\xff\xff\x08\x02\x00\x00\x00', gif=b'GIF89a\x01\x00',
    )  # fmt: skip
    broken = []
    for name, data in kinds.items():
        path = folder / f'.{name}'  # hidden: only the links to it are images
        path.write_bytes(data)
        broken.append(path)
    for number in range(COUNT):
        target = broken[number // BROKEN % len(broken)] if number % BROKEN == 7 else photos[number % len(photos)]
        part = folder / f'{number // 10000:03d}'
        part.mkdir(exist_ok=True)
        (part / f'{number:07d}.jpg').symlink_to(target)  # formats are told by content, not by name
    return folder


def start(repository: Path, file: Path, images: Path, out: Path) -> subprocess.Popen:
    command = [
        sys.executable, '-m', 'mnv4_mm', 'label', file, images, '--out', out, '--ray', 'local', '--part', PART,
    ]  # fmt: skip
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=dict(os.environ, PYTHONPATH=str(repository)), start_new_session=True,
    )  # fmt: skip


@pytest.fixture(scope='module')
def undisturbed(repository, file, images, tmp_path_factory) -> tuple[Path, list[float], float]:
    """Folder of a run without kills; its memory in MiB, once a second; its seconds."""
    out = tmp_path_factory.mktemp('label') / 'undisturbed'
    # All images twice, without the broken files, which cost little.
    paths = [path for path in sorted(images.rglob('*.jpg')) if int(path.stem) % BROKEN != 7]
    sample = list(map(str, paths[: 2 * len({path.readlink() for path in paths})]))
    bare = [run_bare(str(file), sample)]
    began = time.monotonic()
    process = start(repository, file, images, out)
    memory: list[float] = []
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(1):
            if parts_of(out):
                memory.append(sum(map(resident, [process.pid, *actors()])))

    thread = threading.Thread(target=watch)
    thread.start()
    output, errors = process.communicate()
    stopped.set()
    thread.join()
    assert process.returncode == 0, errors
    assert f'{COUNT} images, {COUNT // BROKEN} of them unreadable' in output
    seconds = time.monotonic() - began
    print(f'{COUNT} images in {seconds:.0f} s: {COUNT / seconds:.0f} a second')
    bare.append(run_bare(str(file), sample))  # before and after, since other guests of the host slow a machine down
    readable = COUNT * (1 - 1 / BROKEN)
    ratios = ' and '.join(f'{readable / seconds / one:.3f}' for one in bare)
    print(f'reading images and running the file: {bare[0]:.0f} and {bare[1]:.0f} a second; ratios {ratios}')
    return out, memory, seconds


def test_memory_does_not_grow(undisturbed):
    """Of the command and its actors. An actor that has labelled a few parts has all that it will ever need."""
    _, memory, _ = undisturbed
    tenth = max(1, len(memory) // 10)
    # The first samples are from before all actors have loaded the file.
    first, last = (statistics.median(part) for part in (memory[tenth : 2 * tenth], memory[-tenth - 2 : -2]))
    print(f'memory: {first:.0f} MiB in the second tenth, {last:.0f} MiB in the last one')
    assert last < 1.05 * first


def test_kills_lose_and_repeat_nothing(undisturbed, repository, file, images, tmp_path):
    reference, _, seconds = undisturbed
    rng = random.Random(0)
    out, actor_kills = tmp_path / 'out', ACTOR_KILLS
    for driver_kill in range(DRIVER_KILLS + 1):
        process = start(repository, file, images, out)
        before = parts_of(out)
        wait_for(lambda process=process, before=before: process.poll() is not None or parts_of(out) > before)
        for _ in range(ACTOR_KILLS // DRIVER_KILLS if actor_kills else 0):
            time.sleep(rng.uniform(0, 0.02 * seconds))
            if victims := actors():
                os.kill(rng.choice(victims), signal.SIGKILL)
                actor_kills -= 1
        if driver_kill < DRIVER_KILLS:
            time.sleep(rng.uniform(0, 0.02 * seconds))
            assert process.poll() is None, 'the run ended before all kills: use more images'
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            wait_for(lambda: not actors())
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert actor_kills == 0
    assert f'{COUNT} images, {COUNT // BROKEN} of them unreadable' in output
    count = parts_of(reference)
    assert parts_of(out) == count
    ids: set[str] = set()
    for number in range(count):
        tables = [pq.read_table(folder / f'parts/part-{number:06d}.parquet') for folder in (reference, out)]
        assert tables[0].equals(tables[1])
        ids.update(tables[0].column('id').to_pylist())
    assert len(ids) == COUNT
    assert not list((out / 'parts').glob('.*'))


@pytest.mark.parametrize('source', ['many.parquet', 'many.csv'])
def test_a_million_rows(source, tmp_path, repository):
    """By processes, with a stub of the session: content in a Parquet file, or a list of paths, of one small image."""
    import cv2
    import numpy as np

    content = cv2.imencode('.jpg', np.full((32, 32, 3), 90, np.uint8))[1].tobytes()
    (tmp_path / 'image.jpg').write_bytes(content)
    numbers = range(1_000_000)
    if source == 'many.csv':
        (tmp_path / source).write_text('id,path\n' + ''.join(f'{number:07d},image.jpg\n' for number in numbers))
    else:
        schema = pa.schema([('id', pa.string()), ('bytes', pa.binary())])
        with pq.ParquetWriter(tmp_path / source, schema) as writer:
            for first in numbers[::10_000]:
                ids = [f'{number:07d}' for number in numbers[first : first + 10_000]]
                writer.write_table(pa.table(dict(id=ids, bytes=[content] * len(ids)), schema=schema))
    file = write_detector(tmp_path / 'net.onnx')
    done = label(str(file), str(tmp_path / source), out=str(tmp_path / 'out'), log=print)
    assert (done.rows, done.errors, done.failed) == (1_000_000, 0, [])
    ids = pq.read_table(tmp_path / 'out/parts', columns=['id']).column('id')
    assert len(ids.unique()) == 1_000_000


def parts_of(out: Path) -> int:
    return len(list((out / 'parts').glob('part-*')))


def wait_for(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def actors() -> list[int]:
    """Return the processes of Ray's actors that label."""
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            if (folder / 'cmdline').read_bytes().startswith(b'ray::MapWorker'):
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


def resident(process: int) -> float:
    """Return the resident memory of a process in MiB, without memory that it shares; 0 if it has ended."""
    try:
        status = Path(f'/proc/{process}/status').read_text()
    except OSError:
        return 0.0
    return int(status.partition('RssAnon:')[2].split()[0]) / 1024 if 'RssAnon:' in status else 0.0
