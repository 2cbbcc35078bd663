"""Exported files run in an environment with numpy, OpenCV and ONNX Runtime only."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest
from onnx import parser

from mnv4_mm.runtime.meta import Input, Meta, Resize, Selection, sha256, sidecar

SIZE = 32
HEADER = '<ir_version: 10, opset_import: ["" : 18]>\n'
# One box over the middle of the input, whose score is the mean of the image; its label is 1.
DETECTOR = f"""detector (uint8[1, {SIZE}, {SIZE}, 3] image) => (float[1, 4] boxes, float[1] scores, int64[1] labels)
<float[1, 4] box = {{8, 8, 24, 24}}, int64[1] label = {{1}}, float white = {{255}}>
{{
    values = Cast <to = 1> (image)
    mean = ReduceMean <keepdims = 0> (values)
    score = Div (mean, white)
    one = Shape (label)
    scores = Expand (score, one)
    boxes = Identity (box)
    labels = Identity (label)
}}"""
# The class of a pixel is the channel with the largest value.
SEGMENTER = f"""segmenter (uint8[1, {SIZE}, {SIZE}, 3] image) => (uint8[1, {SIZE}, {SIZE}] class_map)
{{
    values = Cast <to = 1> (image)
    largest = ArgMax <axis = 3, keepdims = 0> (values)
    class_map = Cast <to = 2> (largest)
}}"""
META = Meta(
    task='detection',
    kind='nms',
    target='onnx',
    precision='fp32',
    classes=('cat', 'dog', 'cow'),
    input=Input((SIZE, SIZE), 'NHWC', 'uint8', 'RGB', False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    resize=Resize('stretch', (0, 0, 0)),
    selection=Selection(0.0, 0.5, 10, -1.0, 100),
    category_ids=(3, 5, 9),
)
# Hides packages from `import` and from `find_spec`, as if they were not installed.
HIDE = """
import sys
from importlib.abc import MetaPathFinder
HIDDEN = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'PIL', 'rich', 'onnx', 'timm', 'mnv4_mm.deploy')
class Hiding(MetaPathFinder):
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if any(name == hidden or name.startswith(hidden + '.') for hidden in HIDDEN):
            return None
        return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""
# Loads and runs both files; the last line names the modules of the package that were imported.
RUN = """
import json
import mnv4_mm.runtime
box = mnv4_mm.runtime.load('detector.onnx')('images/street.png')
classes = mnv4_mm.runtime.load('segmenter.onnx', threads=1)('images/street.png')
from mnv4_mm.apis.infer import infer
import mnv4_mm
assert type(mnv4_mm.load('detector.onnx')('images/street.png')) is type(box)
infer('images', 'detector.onnx', out_dir='boxes')
infer('images', 'segmenter.onnx', out_dir='maps')
for hidden in ('torch', 'PIL'):
    try:
        __import__(hidden)
    except ModuleNotFoundError:
        pass
    else:
        raise AssertionError(hidden)
print(json.dumps(dict(
    boxes=box.boxes.tolist(), scores=box.scores.tolist(), coco=box.to_coco(1), drawn=box.plot().shape,
    classes=classes.class_map.tolist(), modules=[name for name in sys.modules if name.startswith('mnv4_mm')],
)))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    segmenter = replace(
        META, task='segmentation', kind='class_map', selection=None, category_ids=None, first_value=1,
        palette=((255, 0, 0), (0, 255, 0), (0, 0, 255)),
    )  # fmt: skip
    for name, text, meta in (('detector', DETECTOR, META), ('segmenter', SEGMENTER, segmenter)):
        path = folder / f'{name}.onnx'
        model = parser.parse_model(HEADER + text)
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString())
        sidecar(path).write_text(replace(meta, files={path.name: sha256(path)}).to_json())
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :48, 2] = 200  # red
    image[:, 48:, 0] = 100  # blue
    (folder / 'images').mkdir()
    cv2.imwrite(str(folder / 'images/street.png'), image)
    cv2.imwrite(str(folder / 'images/white.jpg'), np.full((40, 20, 3), 255, np.uint8))
    return folder


@pytest.fixture(scope='module')
def output(folder, repository):
    environment = dict(os.environ, PYTHONPATH=str(repository))
    done = subprocess.run(
        [sys.executable, '-c', HIDE + RUN], cwd=folder, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    return json.loads(done.stdout)


def test_files_run_without_pytorch_and_openmmlab(output):
    assert output['boxes'] == [[24, 16, 72, 48]]  # in pixels of the image
    assert output['scores'] == [pytest.approx((200 + 100) / 2 / 3 / 255, abs=1e-6)]
    assert output['coco'] == [dict(image_id=1, category_id=5, bbox=[24, 16, 48, 32], score=output['scores'][0])]
    assert output['drawn'] == [64, 96, 3]
    np.testing.assert_array_equal(output['classes'], np.repeat([[0] * 48 + [2] * 48], 64, axis=0))


def test_only_the_rooms_below_are_imported(output):
    rooms = {'.'.join(name.split('.')[1:2]) for name in output['modules']}
    assert rooms <= {
        '',
        'version',
        'registration',
        'lazy',
        'quiet',
        'files',
        'errors',
        'digest',
        'paths',
        'image_headers',
        'images',
        'runtime',
        'apis',
    }
    assert {name for name in output['modules'] if name.startswith('mnv4_mm.apis.')} == {
        'mnv4_mm.apis.infer', 'mnv4_mm.apis.load',
    }  # fmt: skip


def test_infer_writes_predictions_and_drawn_images(folder, output):
    boxes = json.loads((folder / 'boxes/predictions.json').read_text())
    assert [image['file_name'] for image in boxes['images']] == ['street.png', 'white.jpg']
    assert [(image['width'], image['height']) for image in boxes['images']] == [(96, 64), (20, 40)]
    assert boxes['categories'] == [dict(id=3, name='cat'), dict(id=5, name='dog'), dict(id=9, name='cow')]
    assert [row['category_id'] for row in boxes['annotations']] == [5, 5]
    assert boxes['annotations'][1]['bbox'] == [5, 10, 10, 20]
    assert boxes['annotations'][1]['score'] == pytest.approx(1)
    assert [row['area'] for row in boxes['annotations']] == [48 * 32, 200]
    drawn, original = (cv2.imread(str(folder / part / 'white.jpg')) for part in ('boxes', 'images'))
    assert drawn.shape == original.shape
    assert np.abs(drawn.astype(int) - original).max() > 100
    maps = json.loads((folder / 'maps/predictions.json').read_text())
    assert maps['values'] == dict(cat=1, dog=2, cow=3)
    assert maps['images'][0] == dict(
        id=1, file_name='street.png', class_map='class_maps/street.png', share=dict(cat=0.5, cow=0.5)
    )
    from PIL import Image

    with Image.open(folder / 'maps/class_maps/street.png') as image:
        assert image.mode == 'P'
        np.testing.assert_array_equal(np.array(image), np.repeat([[1] * 48 + [3] * 48], 64, axis=0))
        assert image.convert('RGB').getpixel((90, 5)) == (0, 0, 255)


def test_arguments_of_checkpoints_do_not_fit_exported_files(folder, tmp_path):
    from mnv4_mm.apis.infer import infer
    from mnv4_mm.apis.load import load
    from mnv4_mm.errors import UserError

    for arguments in (dict(config='x.py'), dict(device='cpu'), dict(inference='whole')):
        with pytest.raises(UserError, match=r'is for checkpoints; .*detector\.onnx is an exported file'):
            infer(str(folder / 'images'), str(folder / 'detector.onnx'), out_dir=str(tmp_path / 'out'), **arguments)
        assert not (tmp_path / 'out').exists()
    with pytest.raises(UserError, match='no checkpoint'):
        load(tmp_path / 'gone.pth')
    with pytest.raises(UserError, match='no file'):
        load(tmp_path / 'gone.onnx')
    with pytest.raises(UserError, match='fast_jpeg is for exported files'):
        load(tmp_path / 'gone.pth', fast_jpeg=True)
    with pytest.raises(UserError, match='threads is for exported files'):
        load(tmp_path / 'gone.pth', threads=1)
