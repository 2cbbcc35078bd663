"""Checkpoints are read as tensors; other objects are refused by name, and weights that do not fit are listed."""

import ast
import hashlib
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MMLogger
from safetensors.torch import save_file
from stub_checkpoint import write_stub_checkpoint
from torch import nn

from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.engine.runner import SafeRunner
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_checkpoint, check_weights_file
from mnv4_mm.weights.checkpoint import Checkpoint, read_checkpoint
from mnv4_mm.weights.strict import load_into


class Reaches:
    """Ask for a method of an allowed type through getattr."""

    def __reduce__(self):
        return getattr, (np.ndarray, 'tofile')


def checkpoint(content):
    return Checkpoint(Path('x.pth'), content)


def history(*values):
    buffer = HistoryBuffer()
    for value in values:
        buffer.update(value)
    return buffer


def test_a_runners_checkpoint_is_read(tmp_path):
    path = tmp_path / 'a.pth'
    content = dict(
        state_dict=dict(w=torch.ones(2)),
        message_hub=dict(
            log_scalars={'train/loss': history(1.0, 2.0)}, runtime_info=dict(loop=np.float64(3), ids=np.arange(3))
        ),
    )
    torch.save(content, path)
    loaded = read_checkpoint(path).content
    assert loaded['message_hub']['log_scalars']['train/loss'].mean() == 1.5
    assert loaded['message_hub']['runtime_info']['loop'] == 3


def test_code_is_refused_and_does_not_run(tmp_path, payload):
    path, mark = tmp_path / 'evil.pth', tmp_path / 'ran'
    torch.save(dict(state_dict={}, extra=payload), path)
    with pytest.raises(UserError, match=r'evil.pth is refused.*system'):
        read_checkpoint(path)
    assert not mark.exists()
    # The old format, a bare pickle.
    path.write_bytes(pickle.dumps(dict(state_dict={}, extra=payload)))
    with pytest.raises(UserError, match='refused'):
        read_checkpoint(path)
    assert not mark.exists()


def test_getattr_gives_access_to_statistics_only(tmp_path):
    torch.save(dict(a=Reaches()), tmp_path / 'a.pth')
    with pytest.raises(UserError, match='refused'):
        read_checkpoint(tmp_path / 'a.pth')


def test_files_that_are_no_checkpoints(tmp_path):
    good = tmp_path / 'good.pth'
    torch.save(dict(state_dict=dict(w=torch.ones(1000))), good)
    cut = tmp_path / 'cut.pth'
    cut.write_bytes(good.read_bytes()[:2000])
    text = tmp_path / 'text.pth'
    text.write_text('hello\nworld')
    empty = tmp_path / 'empty.pth'
    empty.touch()
    number = tmp_path / 'number.pth'
    torch.save(3, number)
    for path in (cut, text, empty, number, tmp_path, tmp_path / 'absent.pth'):
        with pytest.raises(UserError, match=path.name):
            read_checkpoint(path)


def test_an_archive_that_torch_reads_passes_the_check_without_torch(tmp_path):
    for name in ('net.pth', 'a b.pth', 'net'):
        torch.save(dict(state_dict=dict(a=torch.ones(3))), tmp_path / name)
        assert check_checkpoint(tmp_path / name) == tmp_path / name
    two = tmp_path / 'two.pth'
    two.write_bytes((tmp_path / 'net.pth').read_bytes())
    with zipfile.ZipFile(two, 'a') as archive:
        archive.writestr('__MACOSX/net', b'')
    pickleless, flat = (write_stub_checkpoint(tmp_path / f'{name[0]}.pth', name=name) for name in ('net/x', 'data.pkl'))
    for path in (two, pickleless, flat):
        with pytest.raises(RuntimeError):
            torch.load(path, weights_only=True)
        with pytest.raises(UserError, match=rf'{path.name} is truncated, or was not written by torch\.save'):
            check_checkpoint(path)


@pytest.mark.parametrize('record', ['data.pkl', 'data/0'])
def test_damaged_bytes_are_found_by_the_checksums(tmp_path, record):
    """torch.load reads damaged tensors without an error."""
    path = tmp_path / 'net.pth'
    torch.save(dict(state_dict=dict(a=torch.ones(3000))), path)
    with zipfile.ZipFile(path) as archive:
        content = archive.read(f'net/{record}')
    changed = bytes(byte ^ (i % 7 == 6) for i, byte in enumerate(content))
    path.write_bytes(path.read_bytes().replace(content, changed))
    if record == 'data/0':
        assert torch.load(path, weights_only=True)['state_dict']['a'].sum() != 3000
    for read in (check_checkpoint, read_checkpoint):
        with pytest.raises(UserError, match=rf'net\.pth is damaged: net/{record} in this archive does not match'):
            read(path)


@pytest.mark.parametrize('offset', [0, 8, 26, 30])
def test_damaged_headers_in_an_archive(tmp_path, offset):
    """Signature, length of the name and name of a record; flags, of which one says that there is a password."""
    path = write_stub_checkpoint(tmp_path / 'net.pth')
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('net/data/0', bytes(range(100)))
        start = archive.getinfo('net/data/0').header_offset
    content = bytearray(path.read_bytes())
    place = content.rindex(b'PK\x01\x02') + 8 if offset == 8 else start + offset
    content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'net\.pth is (damaged|truncated)'):
        check_checkpoint(path)


def test_archives_without_checksums_are_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(dict(a=torch.ones(3)), tmp_path / 'net.pth')
    finally:
        torch.serialization.set_crc32_options(before)
    assert read_checkpoint(tmp_path / 'net.pth').content['a'].tolist() == [1, 1, 1]


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_the_format_before_torch_1_6(tmp_path, protocol):
    path = tmp_path / 'old.pth'
    torch.save(dict(a=torch.ones(3)), path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    assert check_checkpoint(path) == path
    path.write_bytes(pickle.dumps(dict(a=1), protocol=protocol))
    with pytest.raises(UserError, match=r'old\.pth is refused: it is a pickle, but was not written by torch\.save'):
        check_checkpoint(path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda content: b'', 'its header cannot be read'),
        (lambda content: b'garbage that is no header', 'its header has [0-9]+ bytes, more than the file'),
        (lambda content: content[:-1], 'its header describes a file of [0-9]+ bytes, and it has'),
        (lambda content: content + b'x', 'its header describes a file of [0-9]+ bytes, and it has'),
        (lambda content: content[:8] + b'[' + content[9:], 'its header cannot be read'),
        (lambda content: struct.pack('<Q', 4) + b'[{}]', 'its header cannot be read'),
        (lambda content: struct.pack('<Q', 8) + b'{"a":{}}', 'its header cannot be read'),
        (lambda content: struct.pack('<Q', 10**5) + b'[' * 10**5, 'its header cannot be read'),
    ],
)
def test_damaged_safetensors_are_found_without_torch(tmp_path, change, message):
    path = tmp_path / 'net.safetensors'
    save_file(dict(a=torch.ones(3), b=torch.ones(2, dtype=torch.int8)), path, metadata=dict(format='pt'))
    assert check_weights_file(path) == path
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=rf'net\.safetensors is not a readable safetensors file.*: {message}'):
        check_weights_file(path)


def test_the_config_inside_is_read_without_being_run():
    cfg = Config(dict(a=1, b=dict(c=[1, (2.5, -3)], d=None), e='x', f={'with space': True}))
    read = checkpoint_config(checkpoint(dict(meta=dict(cfg=cfg.pretty_text))))
    assert read.to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    'text', ['import os', 'a = open("x")', 'a = dict(**b)', 'a = [x for x in y]', 'a = (', 'a = b']
)
def test_a_config_that_would_run_is_refused(text):
    with pytest.raises(UserError, match=r'x.pth'):
        checkpoint_config(checkpoint(dict(meta=dict(cfg=text))))


@pytest.mark.parametrize('name', ['os.system', 'mmengine.load', 'mmdet.apis.init_detector', 'subprocess.Popen'])
def test_a_config_inside_names_only_registered_types(tmp_path, name):
    """mmengine would import and call any `type` with a dot."""
    text = f"model = dict(backbone=[dict(type={name!r}, command='touch {tmp_path}/ran')])"
    with pytest.raises(UserError, match=f"type='{name}' is not registered"):
        checkpoint_config(checkpoint(dict(meta=dict(cfg=text))))
    good = "model = dict(type='mmdet.RetinaNet', neck=dict(type='FPN'), loss=dict(type='mmdet.FocalLoss'))"
    assert checkpoint_config(checkpoint(dict(meta=dict(cfg=good)))).model.neck.type == 'FPN'


def test_resume_runs_no_config_text(tmp_path):
    """mmengine's Runner.resume executes meta['config'] of a checkpoint."""
    runner = SafeRunner.__new__(SafeRunner)
    net = nn.Linear(2, 2)
    path = tmp_path / 'evil.pth'
    meta = dict(config=f'import os; os.system("touch {tmp_path}/ran")', epoch=1, iter=1)
    torch.save(dict(meta=meta, state_dict=net.state_dict(), optimizer={}, message_hub={}), path)
    runner.model, runner._hooks, runner._resume = net, [], True
    runner.logger = MMLogger('test')
    assert 'config' not in runner.load_checkpoint(str(path))['meta']


def test_weights_of_a_wrapped_net(tmp_path):
    net = nn.Linear(2, 2)
    load_into(net, checkpoint({f'module.{key}': torch.ones_like(value) for key, value in net.state_dict().items()}))
    assert net.bias.tolist() == [1, 1]


def test_a_checkpoint_without_config():
    with pytest.raises(UserError, match='carries no config'):
        checkpoint_config(checkpoint(dict(state_dict={})))


def test_weights_that_do_not_fit_are_listed():
    net = nn.Linear(2, 3)
    given = dict(weight=torch.zeros(4, 2), more=torch.zeros(1))
    with pytest.raises(
        UserError, match=r'1 missing \(bias\); 1 unexpected \(more\); 1 of another shape \(weight \(4, 2\)'
    ):
        load_into(net, checkpoint(dict(state_dict=given)))
    before = net.weight.clone()
    load_into(net, checkpoint(dict(bias=torch.full((3,), 7.0), **given)), strict=False)
    assert torch.equal(net.weight, before)
    assert net.bias.tolist() == [7, 7, 7]
    with pytest.raises(UserError, match='no weights'):
        load_into(net, checkpoint(dict(state_dict=dict(a=1))))


def test_the_hash_is_that_of_the_file(tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')
    assert read.sha256 == hashlib.sha256((tmp_path / 'a.pth').read_bytes()).hexdigest()
    assert read_checkpoint(read) is read


def test_weights_stand_below_models(repository):
    """Neither nets nor mmdet or mmseg are imported: models load their weights from here."""
    modules = set()
    for path in (repository / 'mnv4_mm/weights').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                modules.add(node.module)
            elif isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
    ours = {module for module in modules if module.startswith('mnv4_mm')}
    below = ('mnv4_mm.errors', 'mnv4_mm.files', 'mnv4_mm.paths', 'mnv4_mm.digest')
    assert all(module in below or module.startswith('mnv4_mm.weights.') for module in ours)
    heavy = {module.split('.')[0] for module in modules - ours} - set(sys.stdlib_module_names)
    assert heavy == {'huggingface_hub', 'mmengine', 'numpy', 'safetensors', 'torch'}
