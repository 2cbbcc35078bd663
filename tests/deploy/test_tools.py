import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mnv4_mm.deploy.export import export
from mnv4_mm.runtime import load


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--to', 'tensorrt'], '--to tensorrt: there are onnx'),
        (['--size', '100', '100'], 'multiples of 32'),
        (['--precision', 'int8', '--calibration', '/no/such'], 'no images for calibration'),
        (['--logits'], 'does not fit detection'),
        (['--config', 'no_such'], 'no config no_such'),
    ],
)
def test_mistakes_are_one_line(arguments, message, ssdlite, call_tool, tmp_path):
    done = call_tool('export.py', ssdlite, *arguments, '--out-dir', tmp_path / 'out')
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob('*.onnx'))


@pytest.fixture(scope='module')
def files(ssdlite, lraspp, tmp_path_factory):
    out = str(tmp_path_factory.mktemp('files'))
    detector = export(str(ssdlite), ['onnx'], out_dir=f'{out}/a', log=lambda line: None)[0]
    segmenter = export(str(lraspp), ['onnx'], size=(128, 160), out_dir=f'{out}/b', log=lambda line: None)[0]
    return detector, segmenter


@pytest.fixture(scope='module')
def bare(tmp_path_factory):
    """Environment in which only numpy, OpenCV and onnxruntime can be imported of the installed packages."""
    folder = tmp_path_factory.mktemp('bare')
    (folder / 'sitecustomize.py').write_text(
        'import sys\n'
        "for name in ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'timm', 'onnx', 'PIL', 'rich'):\n"
        '    sys.modules[name] = None\n'
    )
    return dict(os.environ, PYTHONPATH=str(folder))


@pytest.mark.parametrize('which', [0, 1])
def test_the_example_needs_only_its_requirements(which, files, bare, repository, photos, tmp_path):
    path = files[which]
    drawn = tmp_path / 'drawn.png'
    command = [sys.executable, str(repository / 'examples/run_onnx.py'), str(path), str(photos[0]), '--out', str(drawn)]
    command += ['--score-thr', '0.05']
    done = subprocess.run(command, capture_output=True, text=True, env=bare)
    assert done.returncode == 0, done.stderr
    found = load(path)(photos[0])
    lines = done.stdout.splitlines()
    if which == 0:
        shown = found.scores >= 0.05
        assert len(lines) == shown.sum() > 5
        scores = [float(line.split()[-5]) for line in lines]
        np.testing.assert_allclose(scores, found.scores[shown], atol=1e-3)
        boxes = [[float(side) for side in line.split()[-4:]] for line in lines]
        np.testing.assert_allclose(boxes, found.boxes[shown], atol=0.1)
    else:
        assert len(lines) == len(np.unique(found.class_map)) > 3
    assert cv2.imread(str(drawn)).shape == cv2.imread(str(photos[0])).shape


def test_the_package_runs_files_without_torch_and_openmmlab(files, bare, repository, photos):
    code = (
        f'import sys; sys.path.insert(0, {str(repository)!r})\n'
        'from mnv4_mm.runtime import load\n'
        f'print(len(load({str(files[0])!r})({str(photos[0])!r}).scores))\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=bare)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(load(files[0])(photos[0]).scores) > 20


def test_mistakes_of_the_example_are_one_line(files, bare, repository, tmp_path, photos):
    damaged = tmp_path / files[0].name
    data = bytearray(files[0].read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    (tmp_path / f'{damaged.name}.json').write_bytes((files[0].parent / f'{files[0].name}.json').read_bytes())
    alone = tmp_path / 'alone.onnx'
    alone.write_bytes(files[0].read_bytes())
    (tmp_path / 'empty.jpg').touch()
    for arguments, message in (
        ((damaged, photos[0]), 'is damaged'),
        ((tmp_path / 'gone.onnx', photos[0]), 'no file'),
        ((alone, photos[0]), 'no alone.onnx.json beside it'),
        ((files[0], tmp_path / 'empty.jpg'), 'not a readable image'),
        ((files[0], tmp_path / 'gone.jpg'), 'not a readable image'),
    ):
        command = [sys.executable, str(repository / 'examples/run_onnx.py'), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=bare)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
