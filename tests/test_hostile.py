"""Files that were made to do harm are refused in one line by the public functions, without harm done."""

import dataclasses
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
import torch
from stub_checkpoint import write_stub_checkpoint

from mnv4_mm import load
from mnv4_mm.cli import main
from mnv4_mm.deploy.artifacts import checkpoint_of
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Input, Meta, Resize, Selection, checksum, read_meta, sha256, sidecar
from mnv4_mm.weights.checkpoint import read_checkpoint
from mnv4_mm.weights.hub import read_weights


def refused(match):
    return pytest.raises(UserError, match=match)


def chunk(kind, content):
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def png(width, height, *chunks):
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + b''.join(chunks) + chunk(b'IEND', b'')


# ---- images ----

READ = """
import resource, sys
from mnv4_mm.errors import UserError
from mnv4_mm.images import image_facts, image_size, read_image, read_mask
import PIL.Image  # which read_mask imports
limit = 900 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[1:]:
    for read in (read_image, image_size, image_facts, read_mask):
        try:
            read(path)
        except UserError as error:
            print(error)
        else:
            print('read', path, read.__name__)
"""


def test_decompression_bombs_are_refused_before_they_are_unpacked(tmp_path, repository):
    """In an address space that does not hold what the files unpack to."""
    rows = text = zlib.compress(bytes(100_000_000))
    pixels = chunk(b'IDAT', zlib.compress(bytes(10 * 31)))
    files = {
        'pixels.png': png(30_000, 30_000, chunk(b'IDAT', rows)),
        'side.png': png(2**21, 1, chunk(b'IDAT', rows)),
        'more_rows.png': png(10, 10, chunk(b'IDAT', rows)),
        'text.png': png(10, 10, chunk(b'zTXt', b'Comment\0\0' + text), pixels),
        'profile.png': png(10, 10, chunk(b'iCCP', b'profile\0\0' + text), pixels),
        'pixels.gif': b'GIF89a' + struct.pack('<HH', 40_000, 40_000) + bytes(99),
        'pixels.tif': b'II*\0\x08\0\0\0' + struct.pack('<HHHIIHHII', 2, 256, 4, 1, 2**17, 257, 4, 1, 2**17),
        'entries.tif': b'II+\0\x08\0\0\0' + struct.pack('<QQ', 16, 2**60) + bytes(400),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, '-c', READ, *(str(tmp_path / name) for name in files)], capture_output=True, text=True,
        env=dict(os.environ, PYTHONPATH=str(repository), OPENBLAS_NUM_THREADS='1', OMP_NUM_THREADS='1'),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 * len(files)
    harmless = [line for line in lines if line.startswith('read ')]
    # Its size can be told from the header; its text is passed over; its masks have colours.
    assert {line.split()[1].rpartition('/')[2] for line in harmless} == {'more_rows.png', 'text.png', 'profile.png'}
    for name in ('pixels.png', 'side.png', 'pixels.gif', 'pixels.tif'):
        assert sum(f'/{name} is not a readable image: ' in line and 'is over' in line for line in lines) == 4


# ---- exported files ----


@pytest.fixture
def meta():
    return Meta(
        task='detection',
        kind='raw',
        target='onnx',
        precision='fp32',
        classes=('<script>alert(1)</script>', '../../etc/passwd', '$$', '\x1b[2J'),
        input=Input((320, 320), 'NHWC', 'uint8', 'RGB', False, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
        resize=Resize('stretch', (0, 0, 0)),
        selection=Selection(0.02, 0.45, 200, 0.0, 6000),
        source=dict(checkpoint='a.pth'),
    )


def exported(folder, meta, **content):
    """Write a file and its description, with a valid checksum, after changes of the description."""
    path = folder / 'net.onnx'
    path.write_bytes(b'net')
    content = {**json.loads(meta.to_json()), 'files': {'net.onnx': sha256(path)}, **content}
    del content['sha256']
    sidecar(path).write_text(json.dumps(dict(content, sha256=checksum(content))))
    return path


@pytest.mark.parametrize('name', ['../../../etc/passwd', '/etc/passwd', 'link'])
def test_a_description_names_no_files_elsewhere(name, meta, tmp_path):
    secret = tmp_path / 'secret'
    secret.write_text('secret')
    folder = tmp_path / 'exported'
    folder.mkdir()
    (folder / 'link').symlink_to(secret)
    path = exported(folder, meta, files={name: '0' * 64})
    for read in (read_meta, load):
        with refused(f'it names {name}, which is not beside it'):
            read(path)


def test_a_description_names_no_checkpoint_elsewhere(meta, tmp_path):
    folder = tmp_path / 'run' / 'exported'
    folder.mkdir(parents=True)
    (tmp_path / 'other.pth').write_bytes(b'PK')
    for name in ('../other.pth', str(tmp_path / 'other.pth')):
        path = exported(folder, meta, source=dict(checkpoint=name))
        with refused('neither beside it nor in the folder above'):
            checkpoint_of(path)


@pytest.mark.parametrize(
    ('part', 'values', 'message'),
    [
        ('input', dict(size=[10**9, 10**9]), 'input.size is'),
        ('input', dict(size=[0, 320]), 'input.size is'),
        ('input', dict(size=[-320, 320]), 'input.size is'),
        ('input', dict(divisor=0), 'input.divisor is 0'),
        ('input', dict(std=[1.0, 0.0, 1.0]), 'a deviation of 0'),
        ('input', dict(mean=[float('nan'), 0.0, 1.0]), 'not finite'),
        ('input', dict(size=None), 'neither input.size nor resize.scale'),
        ('resize', dict(scale=[10**9, 10**9]), 'resize.scale is'),
        ('resize', dict(pad=[0, 0, 256]), 'resize.pad or palette'),
    ],
)
def test_numbers_of_a_description_are_checked_before_memory_is_allocated(part, values, message, meta, tmp_path):
    content = {part: {**dataclasses.asdict(meta)[part], **values}}
    path = exported(tmp_path, meta, **content)
    with refused(f'net.onnx.json cannot be read: .*{message}'):
        load(path)


@pytest.mark.parametrize('text', ['[' * 200_000, '{"a":' * 200_000, '\xff', '9' * 10_000, 'null', '{"format": 1e999}'])
def test_descriptions_that_are_no_descriptions_are_one_line(text, tmp_path):
    path = tmp_path / 'net.onnx'
    path.write_bytes(b'net')
    sidecar(path).write_bytes(text.encode('latin-1'))
    with refused('net.onnx.json cannot be read') as caught:
        load(path)
    assert '\n' not in str(caught.value)


def test_class_names_are_drawn_as_they_are(meta):
    from mnv4_mm.runtime.results import Detections

    count = len(meta.classes)
    boxes = np.tile(np.array([[10, 30, 90, 90]], np.float32), (count, 1))
    image = np.zeros((100, 100, 3), np.uint8)
    found = Detections(boxes, np.ones(count, np.float32), np.arange(count), meta.classes, None, image)
    drawn = found.plot(score_thr=0.5)
    assert drawn.shape == image.shape
    assert drawn.any()


# ---- weights ----


def test_pickles_run_no_code(payload, tmp_path):
    for name, write in (
        ('zip.pth', lambda path: torch.save(dict(state_dict={}, extra=payload), path)),
        ('old.pth', lambda path: torch.save(payload, path, _use_new_zipfile_serialization=False)),
        ('plain.pth', lambda path: path.write_bytes(pickle.dumps(payload))),
    ):
        path = tmp_path / name
        write(path)
        for read in (read_checkpoint, load, lambda path: read_weights(str(path))):
            with refused(f'{name} is (refused|not a readable checkpoint)'):
                read(path)
    assert not (tmp_path / 'ran').exists()


def test_compressed_checkpoints_are_refused_before_they_are_unpacked(tmp_path):
    stream = io.BytesIO()
    torch.save(dict(state_dict=dict(a=torch.zeros(10_000_000))), stream)
    bomb, overlapping = tmp_path / 'bomb.pth', tmp_path / 'overlapping.pth'
    with zipfile.ZipFile(stream) as plain, zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as packed:
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part))
    assert bomb.stat().st_size < 100_000
    # A file whose parts overlap: the entry of the largest is repeated in the directory.
    with zipfile.ZipFile(stream) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    with zipfile.ZipFile(stream, 'a') as archive:
        archive.filelist += [largest] * 20
        archive.writestr('archive/more', b'')
    overlapping.write_bytes(stream.getvalue())
    for path in (bomb, overlapping):
        for read in (read_checkpoint, load, lambda path: read_weights(str(path))):
            with refused(r'is refused: it unpacks to \d+ bytes'):
                read(path)


def test_safetensors_with_a_false_header_are_one_line(tmp_path):
    lies = {
        'length': struct.pack('<Q', 2**62) + b'{}',
        'offsets': dict(a=dict(dtype='F32', shape=[2], data_offsets=[0, 2**40])),
        'shape': dict(a=dict(dtype='F32', shape=[2**40, 2**40], data_offsets=[0, 8])),
        'overlap': dict(
            a=dict(dtype='F32', shape=[2], data_offsets=[0, 8]), b=dict(dtype='F32', shape=[2], data_offsets=[0, 8])
        ),
        'type': dict(a=dict(dtype='object', shape=[2], data_offsets=[0, 8])),
        'depth': b'[' * 100_000,
    }
    for name, lie in lies.items():
        path = tmp_path / f'{name}.safetensors'
        text = lie if isinstance(lie, bytes) else json.dumps(lie).encode()
        path.write_bytes(text if name == 'length' else struct.pack('<Q', len(text)) + text + bytes(8))
        with refused(f'{name}.safetensors is not a readable safetensors file') as caught:
            read_weights(str(path))
        assert '\n' not in str(caught.value)


def test_weights_of_a_server_that_does_not_answer_are_one_line():
    with refused(r'http://127\.0\.0\.1:1/net\.pth cannot be read: '):
        read_weights('http://127.0.0.1:1/net.pth')


# ---- data sets ----


def test_python_files_in_a_data_set_are_not_run(few, tmp_path, monkeypatch, capsys):
    import shutil

    root = shutil.copytree(few, tmp_path / 'data')
    for folder in (root, root / 'train', root / 'annotations'):
        for name in ('config.py', 'conftest.py', '__init__.py', 'json.py', 'sitecustomize.py', 'mnv4_ssdlite_coco.py'):
            (folder / name).write_text(f'open({str(tmp_path / "ran")!r}, "w")')
    monkeypatch.chdir(root)
    write_stub_checkpoint(tmp_path / 'net.pth')
    assert main(['test', 'mnv4_ssdlite_coco', str(tmp_path / 'net.pth'), '--data', str(root)]) == 2
    assert capsys.readouterr().err.startswith('error: ')
    assert not (tmp_path / 'ran').exists()
