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
    assert 'nvcc' in Path(install.cxx20(tmp_path)['PYTORCH_NVCC']).read_text()


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


def test_the_compiler_is_given_cxx20(install, tmp_path, monkeypatch):
    (tmp_path / 'bin').mkdir()
    monkeypatch.setenv('CXX', 'echo')
    wrapper = Path(install.cxx20(tmp_path)['CXX'])
    result = subprocess.run([str(wrapper), '-O2', '-std=c++17', 'a b.cpp'], capture_output=True, text=True, check=True)
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
