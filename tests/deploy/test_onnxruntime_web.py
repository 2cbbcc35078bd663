"""The package from npm: where it is looked for, and what is said without it. npm itself is replaced by a script."""

import os
import tarfile

import pytest

from mnv4_mm.cli import main
from mnv4_mm.errors import UserError
from mnv4_mm.web import onnxruntime_web


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Return a function that makes a shell script the only program of this computer, as ``npm``; the cache is empty."""
    monkeypatch.setenv('MNV4_CACHE', str(tmp_path / 'cache'))
    folder = tmp_path / 'bin'
    folder.mkdir()
    monkeypatch.setenv('PATH', str(folder))

    def make(script):
        path = folder / 'npm'
        path.write_text(f'#!/bin/sh\n{script}\n')
        path.chmod(0o755)

    return make


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """An archive of small files, which is taken for the published one."""
    path = tmp_path / 'packed.tgz'
    with tarfile.open(path, 'w:gz') as archive:
        for name in (*onnxruntime_web.FILES, 'ort.all.mjs'):
            (tmp_path / name).write_text(name)
            archive.add(tmp_path / name, f'package/dist/{name}')
    monkeypatch.setattr(onnxruntime_web, 'INTEGRITY', onnxruntime_web.integrity(path))
    return path


def test_it_is_fetched_once(npm, packed, tmp_path):
    # $4 is the folder, as in `npm pack PACKAGE --pack-destination FOLDER`.
    npm(f'echo "$@" >> {tmp_path}/calls; /bin/cp {packed} "$4/{onnxruntime_web.ARCHIVE}"')
    for folder in ('a', 'b'):
        paths = onnxruntime_web.extract(tmp_path / folder)
        assert [path.name for path in paths] == list(onnxruntime_web.FILES)
        assert [path.read_text() for path in paths] == list(onnxruntime_web.FILES)
        assert sorted(os.listdir(tmp_path / folder)) == sorted(onnxruntime_web.FILES)
    (call,) = (tmp_path / 'calls').read_text().splitlines()
    assert call.startswith(f'pack {onnxruntime_web.PACKAGE} --pack-destination ')
    assert os.listdir(onnxruntime_web.cached_archive().parent) == [onnxruntime_web.ARCHIVE]


def test_another_content_is_refused(npm, packed):
    npm(f'echo other > "$4/{onnxruntime_web.ARCHIVE}"')
    with pytest.raises(UserError, match=r'is not onnxruntime-web@[\d.]+ as published'):
        onnxruntime_web.archive()
    assert not onnxruntime_web.cached_archive().exists()
    onnxruntime_web.cached_archive().write_bytes(b'put there by hand, and damaged')
    with pytest.raises(UserError, match='delete it and try again'):
        onnxruntime_web.archive()


@pytest.mark.parametrize(
    ('script', 'reason'),
    [('echo "npm error code ENOTFOUND" >&2; exit 1', 'npm: ENOTFOUND'), ('exit 3', 'npm: exit code 3')],
)
def test_no_network_is_one_line_of_advice(npm, script, reason):
    npm(script)
    with pytest.raises(UserError) as caught:
        onnxruntime_web.archive()
    place = onnxruntime_web.cached_archive()
    assert f'cannot be fetched ({reason}): on a computer with npm and a network run `npm pack' in str(caught.value)
    assert str(caught.value).endswith(f'put {place.name} at {place}')


def test_without_npm_the_export_says_so_at_once(npm, repository, tmp_path, capsys):
    out = tmp_path / 'out'
    arguments = [str(repository / 'examples/bccd.pth'), '--to', 'web', '--out-dir', str(out)]
    assert main(['export', *arguments]) == 2
    error = capsys.readouterr().err
    assert 'is not on this computer, and neither is npm' in error
    assert error.count('\n') == 1
    assert not out.exists()
    for option in ('--raw', '--dynamic'):
        assert main(['export', *arguments, option]) == 2
        assert f'{option} does not fit web' in capsys.readouterr().err
