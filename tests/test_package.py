"""The wheel: what it carries, and that its commands work in a folder outside of the repository."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser

import pytest
from packaging.requirements import Requirement

from mnv4_mm.config.index import config_index
from mnv4_mm.data.drawn import draw_dataset
from mnv4_mm.version import __version__

FAST = ['--cfg-options', 'report_on_training_images=False', 'train_dataloader.dataset.times=1']
FAST += [
    f'{loader}_dataloader.{key}' for loader in ('train', 'val') for key in ('num_workers=0', 'persistent_workers=0')
]


@pytest.fixture(scope='module')
def wheel(repository, tmp_path_factory):
    """The wheel, built from a copy of the source as it is in an sdist."""
    source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    for name in ('mnv4_mm', 'configs', 'tools'):
        shutil.copytree(repository / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE'):
        shutil.copy(repository / name, source)
    # Left by a build of an earlier version; its module has been deleted since.
    stale = source / 'build/lib/mnv4_mm/models/pretrained.py'
    stale.parent.mkdir(parents=True)
    stale.touch()
    pip('wheel', str(source), '--no-build-isolation', '--no-index', '-w', str(out))
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """A folder with the wheel installed in it, and nothing else."""
    folder = tmp_path_factory.mktemp('installed')
    pip('install', str(wheel), '--no-index', '--target', str(folder))
    return folder


@pytest.fixture(scope='module')
def shapes(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes') / 'shapes'
    return draw_dataset(folder, repository / 'data/mini/coco/train2017', train=8, val=2, size=64)


@pytest.fixture
def mnv4(installed, tmp_path):
    """Runs the command of the wheel in an empty folder."""

    def run(*arguments):
        environment = dict(os.environ, PYTHONPATH=str(installed), OMP_NUM_THREADS='1', COLUMNS='200')
        command = [sys.executable, '-W', 'ignore', str(installed / 'bin/mnv4'), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def pip(command, *arguments):
    options = ['--disable-pip-version-check', '-q', '--no-deps']
    subprocess.run([sys.executable, '-m', 'pip', command, *options, *arguments], check=True)


def test_the_wheel_carries_configs_types_and_the_command(wheel, repository):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        info = f'mnv4_mm-{__version__}.dist-info'
        assert 'mnv4 = mnv4_mm.cli:main' in file.read(f'{info}/entry_points.txt').decode()
        metadata = Parser().parsestr(file.read(f'{info}/METADATA').decode())
    assert metadata['Version'] == __version__
    modules = {str(path.relative_to(repository)) for path in (repository / 'mnv4_mm').rglob('*.py')}
    configs = {f'mnv4_mm/{path.relative_to(repository)}' for path in (repository / 'configs').rglob('*.py')}
    assert configs
    templates = {f'mnv4_mm/report/templates/{name}' for name in ('page.html', 'card.md')}
    web = {f'mnv4_mm/web/{name}' for name in ('index.html', 'runner.js', 'prepare.js')}
    extra = {'mnv4_mm/py.typed', 'mnv4_mm/tools/check_env.py', *web, *templates}
    assert {name for name in names if name.startswith('mnv4_mm/')} == modules | configs | extra
    assert {name.split('/')[0] for name in names} == {'mnv4_mm', info}
    # Running exported files needs no PyTorch.
    requirements = [Requirement(line) for line in metadata.get_all('Requires-Dist')]

    def names_of(extra):
        return {item.name for item in requirements if f'extra == "{extra}"' in str(item.marker)}

    assert {item.name for item in requirements if not item.marker} == {'numpy', 'opencv-python'}
    assert names_of('onnx') == {'onnxruntime'}
    # What the sessions of these runtimes import besides the runtime.
    assert names_of('coreml') == {'coremltools', 'pillow'}
    assert names_of('executorch') == {'executorch', 'torch'}


def test_the_pins_are_within_the_ranges(repository):
    project = (repository / 'pyproject.toml').read_text()
    ranges = [Requirement(text) for text in re.findall(r'"([a-z_-]+[<>=][^"]*)"', project)]
    pins = {}
    for name in ('runtime', 'onedl', 'mmcv', 'deploy', 'torch'):
        for line in (repository / f'requirements/{name}.txt').read_text().splitlines():
            if '==' in line:
                pin = Requirement(line)
                pins.setdefault(pin.name, []).append(next(iter(pin.specifier)).version)
    tested = [item for item in ranges if item.name in pins]
    assert {'onnxruntime', 'openvino', 'ncnn', 'opencv-python', 'torchao', 'onedl-mmdetection', 'onedl-mmcv'} <= {
        item.name for item in tested
    }
    for item in tested:
        for pin in pins[item.name]:
            assert item.specifier.contains(pin), (str(item), pin)


def test_the_minimal_set_has_the_lowest_version_of_each_range(repository):
    project = (repository / 'pyproject.toml').read_text()
    lowest = {}
    for text in re.findall(r'"([a-z0-9_-]+(?:\[[a-z]+\])?>=[^"]*)"', project.partition('[tool.')[0]):
        item = Requirement(text)
        (floor,) = [part.version for part in item.specifier if part.operator == '>=']
        assert lowest.setdefault(item.name, floor) == floor, item.name
    lines = (repository / 'requirements/minimal.txt').read_text().splitlines()
    pins = {item.name: item.specifier for item in map(Requirement, filter(re.compile('[a-z]').match, lines))}
    # Those of the tested set, linters, the documentation's, and one that needs a cluster.
    left_out = {'torch', 'torchvision', 'onedl-mmcv', 'ruff', 'mypy', 'zensical', 'mkdocstrings', 'submitit'}
    left_out |= {'mkdocstrings-python', 'setuptools'}
    assert set(lowest) - set(pins) == left_out
    assert set(pins) <= set(lowest)
    for name, specifier in pins.items():
        pinned = next(iter(specifier)).version
        # OpenCV counts a fourth number.
        assert specifier.contains(lowest[name]) or pinned.startswith(lowest[name] + '.'), (name, lowest[name], pinned)


def test_the_wheel_lists_its_configs(mnv4):
    result = mnv4('configs')
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(config_index())


def test_the_wheel_trains_a_shipped_config_on_own_data(mnv4, shapes, tmp_path):
    result = mnv4('train', 'mnv4_ssdlite_coco-mini', '--data', shapes, '--epochs', 1, *FAST)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / 'work_dirs/mnv4_ssdlite_coco-mini_shapes'
    assert (folder / 'epoch_1.pth').is_file()
    assert 'bbox_mAP' in result.stdout + result.stderr


def test_the_wheel_copies_a_config(mnv4, tmp_path):
    copy = 'configs', 'copy', 'mnv4_lraspp_ade20k-mini', '--out', 'mine.py'
    result = mnv4(*copy)
    assert result.returncode == 0, result.stderr
    text = (tmp_path / 'mine.py').read_text()
    assert text.startswith('"""LR-ASPP on MNv4-Conv-S')
    assert '_base_' not in text
    again = mnv4(*copy)
    assert again.returncode == 2
    assert 'mine.py exists' in again.stderr


@pytest.mark.long
def test_a_copied_config_trains(mnv4, shapes, tmp_path):
    assert mnv4('configs', 'copy', 'mnv4_lraspp_ade20k-mini', '--out', 'mine.py').returncode == 0
    result = mnv4('train', 'mine.py', '--data', shapes, '--iters', 1, FAST[0], FAST[1], *FAST[3:])
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'work_dirs/mine_shapes/iter_1.pth').is_file()


def test_the_benchmarks_data_is_missed_with_a_hint(mnv4, tmp_path):
    for config, folder in (('mnv4_ssdlite_coco', 'coco'), ('mnv4_ssdlite_coco-mini', 'mini/coco')):
        result = mnv4('train', config)
        assert result.returncode == 2
        assert result.stderr.startswith(f'error: no data: looked for {tmp_path}/data/{folder}/annotations')
        assert 'your own data by --data, or try `mnv4 train mnv4_ssdlite_coco-mini` in a clone' in result.stderr
    assert not list(tmp_path.iterdir())
