"""The installer sees what is missing before it downloads anything."""

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

Version = namedtuple('Version', 'major minor micro releaselevel serial')


@pytest.fixture
def install(load_tool):
    return load_tool('install')


def free_disk(install, monkeypatch, gigabytes):
    usage = namedtuple('Usage', 'total used free')(0, 0, gigabytes * 1e9)
    monkeypatch.setattr(install.shutil, 'disk_usage', lambda path: usage)


def test_here_nothing_is_missing(install, tmp_path, monkeypatch):
    free_disk(install, monkeypatch, install.DISK_GB + 1)  # the rest of this suite may have filled the real disk
    assert install.problem(tmp_path / '.venv') is None


def test_a_full_disk(install, tmp_path, monkeypatch):
    free_disk(install, monkeypatch, 4.1)
    assert install.problem(tmp_path / '.venv') == f'4.1 GB free at {tmp_path}, 9 GB are needed'
    (tmp_path / '.venv/bin').mkdir(parents=True)
    (tmp_path / '.venv/bin/python').touch()
    assert install.problem(tmp_path / '.venv') is None


@pytest.mark.parametrize('version', [(3, 9), (3, 13), (2, 7)])
def test_python_outside_the_range(install, tmp_path, monkeypatch, version):
    monkeypatch.setattr(install.sys, 'version_info', Version(*version, 0, 'final', 0))
    assert f'Python {version[0]}.{version[1]} is outside 3.10 to 3.12' in install.problem(tmp_path / '.venv')


def test_no_compiler(install, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    assert 'no C++ compiler' in install.problem(tmp_path / '.venv')


def test_an_old_compiler(install, tmp_path, monkeypatch):
    old = tmp_path / 'old-c++'
    old.write_text('#!/bin/sh\nexit 1\n')
    old.chmod(0o755)
    monkeypatch.setenv('CXX', str(old))
    assert 'cannot compile C++20' in install.problem(tmp_path / '.venv')


def test_no_library_for_opencv(install, tmp_path, monkeypatch):
    monkeypatch.setattr(install, 'LIBRARIES', (('libnothing.so.9', 'nothing9'),))
    assert install.problem(tmp_path / '.venv') == (
        'libnothing.so.9 is missing, which OpenCV needs: `sudo apt install nothing9`'
    )


def test_a_gpu_without_its_compiler(install, tmp_path, monkeypatch):
    monkeypatch.setattr(install, 'has_gpu', lambda: True)
    monkeypatch.setattr(install, 'nvcc', lambda: None)
    assert 'no CUDA compiler' in install.problem(tmp_path / '.venv')


def test_nvcc_is_wrapped_too(install, tmp_path, monkeypatch):
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin/nvcc').touch()
    monkeypatch.setenv('CUDA_HOME', str(tmp_path))
    assert 'nvcc' in Path(install.build_environment(tmp_path)['PYTORCH_NVCC']).read_text()


def test_it_stops_with_one_line_and_exit_code_2(repository, tmp_path):
    environment = dict(os.environ, CXX='no-such-compiler')
    result = subprocess.run(
        [sys.executable, 'tools/install.py', '--venv', str(tmp_path / 'v')],
        cwd=repository, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stdout == ''
    assert result.stderr.startswith('error: no C++ compiler (no-such-compiler)')
    assert result.stderr.count('\n') == 1
    assert not (tmp_path / 'v').exists()


def test_the_compiler_makes_cxx20_without_debug_information(install, tmp_path, monkeypatch):
    (tmp_path / 'bin').mkdir()
    monkeypatch.setenv('CXX', 'echo')
    wrapper = Path(install.build_environment(tmp_path)['CXX'])
    command = [str(wrapper), '-g', '-O2', '-std=c++17', 'a b.cpp']
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == '-O2 -std=c++20 a b.cpp\n'


def test_a_runtime_without_a_wheel_does_not_cost_the_others(install, monkeypatch, capsys):
    asked = []

    def run_pip(venv, *arguments):
        asked.append(arguments)
        return int('-r' in arguments or arguments[1].startswith('coremltools'))

    monkeypatch.setattr(install, 'run_pip', run_pip)
    install.install_runtimes(Path('.venv'))
    assert {'ncnn', 'openvino', 'executorch'} < {arguments[1].partition('==')[0] for arguments in asked}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith('==> coremltools==9.0 has not been installed')


def fake_pip_show(install, monkeypatch, *names):
    monkeypatch.setattr(install, 'has_package', lambda venv, name: name in names)


@pytest.mark.parametrize(
    ('installed', 'base'),
    [
        ((), None),
        (('onedl-mmengine', 'onedl-mmcv'), 'onedl'),
        (('mmengine', 'mmcv'), 'upstream'),
        (('mmengine', 'onedl-mmengine'), None),
    ],
)
def test_the_base_of_an_environment(install, tmp_path, monkeypatch, installed, base):
    fake_pip_show(install, monkeypatch, *installed)
    assert install.installed_base(tmp_path) == base


def test_an_environment_that_does_not_exist_has_no_packages(install, tmp_path):
    assert not install.has_package(tmp_path / 'v', 'pip')


class Started(Exception):  # noqa: N818
    """What ``main`` would have installed."""


@pytest.fixture
def planned(install, monkeypatch):
    """Return ``main`` that stops where it would make or fill an environment, with what it would install there."""

    def plan(*arguments):
        asked = []
        monkeypatch.setattr(install, 'problem', lambda venv: None)
        monkeypatch.setattr(install.subprocess, 'run', lambda command, **_: asked.append(command[-1]))
        monkeypatch.setattr(install, 'pip', lambda venv, *files: asked.append((venv.name, *files)))
        monkeypatch.setattr(install, 'keep_one_opencv', lambda venv: None)

        def install_mmcv(venv, base, *options):
            asked.append(install.BASES[base][1])
            raise Started

        monkeypatch.setattr(install, 'install_mmcv', install_mmcv)
        with pytest.raises(Started):
            install.main(list(arguments))
        return asked

    return plan


@pytest.mark.parametrize(
    ('arguments', 'installed', 'venv', 'files'),
    [
        ((), (), '.venv', ('requirements/onedl.txt', 'requirements/mmcv.txt')),
        (('--base', 'onedl'), (), '.venv', ('requirements/onedl.txt', 'requirements/mmcv.txt')),
        (('--base', 'upstream'), (), '.venv-upstream', ('requirements/upstream.txt', 'requirements/upstream-mmcv.txt')),
        (
            ('--base', 'upstream', '--venv', 'v'), (), 'v',
            ('requirements/upstream.txt', 'requirements/upstream-mmcv.txt'),
        ),
        (('--venv', 'v'), ('mmengine',), 'v', ('requirements/upstream.txt', 'requirements/upstream-mmcv.txt')),
    ],
    ids=['default', 'onedl', 'upstream', 'upstream elsewhere', 'repair of upstream'],
)  # fmt: skip
def test_the_base_decides_the_requirements(install, planned, monkeypatch, arguments, installed, venv, files):
    fake_pip_show(install, monkeypatch, *installed)
    asked = planned(*arguments)
    packages, mmcv = files
    assert (venv, '-q', '-r', packages, '-r', 'requirements/runtime.txt', '-r', 'requirements/dev.txt') in asked
    assert asked[-1] == mmcv


def test_one_base_is_not_installed_over_the_other(install, tmp_path, monkeypatch, capsys):
    fake_pip_show(install, monkeypatch, 'onedl-mmengine')
    monkeypatch.setattr(install, 'problem', lambda venv: None)
    assert install.main(['--base', 'upstream', '--venv', str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err.startswith(f'error: {tmp_path} has the base onedl')
    assert err.count('\n') == 1


def test_an_unknown_base_is_one_line(install, capsys):
    with pytest.raises(SystemExit) as stopped:
        install.main(['--base', 'openmmlab'])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err.startswith('error: argument --base: invalid choice')
    assert err.count('\n') == 1


def test_every_base_has_its_requirements(install, repository):
    for packages, mmcv, prefix in install.BASES.values():
        pins = [line for file in (packages, mmcv) for line in (repository / file).read_text().splitlines()]
        names = {line.partition('==')[0] for line in pins if '==' in line}
        assert {f'{prefix}mmengine', f'{prefix}mmcv'} < names
