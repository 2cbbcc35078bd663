"""Export compares each file with PyTorch, and refuses what its precision cannot hold."""

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from mnv4_mm.apis.model import load_model
from mnv4_mm.deploy.describe import describe
from mnv4_mm.deploy.export import export
from mnv4_mm.deploy.graph import build_graph, reference
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.deploy.verify import LIMITS, MismatchError, beyond_half, check_file, verify
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.runtime import load
from mnv4_mm.runtime.meta import sha256
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.preprocess import prepare
from mnv4_mm.runtime.results import select


@pytest.fixture(scope='module')
def large_weights(lraspp, tmp_path_factory):
    """A checkpoint with the outputs of ``lraspp``, whose stem, norm folded in, has weights beyond fp16.

    The norm of the stem is 1e7 times as large, and the convolution behind its ReLU as much smaller.
    """
    content = torch.load(lraspp, weights_only=False)
    state = content['state_dict']
    for name in ('weight', 'bias'):
        state[f'backbone.bn1.{name}'] *= 1e7
    state['backbone.blocks.0.0.conv.weight'] /= 1e7
    path = tmp_path_factory.mktemp('large') / 'large.pth'
    torch.save(content, path)
    return path


@pytest.fixture(scope='module')
def segmenter(lraspp, photos):
    """Model, metadata, PyTorch as a predictor, and inputs."""
    model = load_model(str(lraspp), device='cpu')
    meta = describe(model, TARGETS['onnx'], kind='logits', size=(64, 96))
    inputs = [prepare(read_image(photo), meta.input, meta.resize)[0] for photo in photos[:2]]
    return model, meta, reference(model, meta), inputs


def changed(pytorch, change, **meta):
    """Return a predictor whose outputs are those of PyTorch, changed."""
    return Predictor(
        dataclasses.replace(pytorch.meta, **meta), lambda batch: [change(value) for value in pytorch.run(batch)]
    )


def noise(share):
    rng = np.random.default_rng(0)
    return lambda value: value + np.float32(share) * value.std() * rng.standard_normal(value.shape).astype(np.float32)


@pytest.mark.parametrize(
    ('precision', 'change', 'passes'),
    [
        ('fp32', lambda value: value, True),
        ('fp32', noise(1e-4), True),
        ('fp32', noise(1e-2), False),
        ('fp16', noise(1e-2), True),
        ('fp16', noise(0.3), False),
        ('int8', noise(0.3), True),
        ('int8', lambda value: 0 * value, False),
        ('int8', lambda value: value[..., ::-1].copy(), False),
        ('fp32', lambda value: value * np.float32(np.nan), False),
        ('int8', lambda value: np.where(value == value.max(), np.float32(np.inf), value), False),
    ],
)
@pytest.mark.filterwarnings('ignore:invalid value')
def test_the_limit_depends_on_the_precision(precision, change, passes, segmenter):
    _, _, pytorch, inputs = segmenter
    result = verify(pytorch, changed(pytorch, change, precision=precision), inputs)
    assert result.passes is passes
    assert not result.inconclusive
    assert result.limit == LIMITS[precision].outputs


def test_a_diverged_checkpoint_is_one_line(segmenter):
    _, _, pytorch, inputs = segmenter
    with pytest.raises(UserError, match='the outputs of PyTorch are not finite'):
        verify(changed(pytorch, lambda value: value * np.float32(np.nan)), pytorch, inputs)


def test_detections_without_a_match_count(ssdlite, photos):
    model = load_model(str(ssdlite), device='cpu')
    meta = describe(model, TARGETS['onnx'], kind='nms', precision='fp16')
    pytorch = reference(model, meta)
    inputs = [prepare(read_image(photo), meta.input, meta.resize)[0] for photo in photos[:2]]

    def file(scores, boxes=0.0):
        def run(batch):
            raw = pytorch.run(batch)
            found = select(raw[0][0], raw[1][0], meta.selection)
            return [found.boxes + np.float32(boxes), found.scores * np.float32(scores), found.labels]

        return Predictor(meta, run)

    for predictor, passes in ((file(1), True), (file(0.98, 3), True), (file(0.5), False), (file(1, 60), False)):
        result = verify(pytorch, predictor, inputs)
        assert result.passes is passes
        assert not result.inconclusive
    # int8 has a wide tolerance, which only detections with high scores exceed.
    wide = dataclasses.replace(meta, precision='int8')
    empty = [np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)]
    for run, passes in ((file(0.9).session, True), (lambda batch: empty, False), (file(1, 200).session, False)):
        result = verify(pytorch, Predictor(wide, run), inputs)
        assert result.passes is passes
        assert not result.inconclusive
    faint = Predictor(pytorch.meta, lambda batch: [pytorch.run(batch)[0], 0.2 * pytorch.run(batch)[1]])
    assert (
        'no score in these images is high enough for the tolerance of int8'
        in verify(faint, Predictor(wide, lambda batch: empty), inputs).inconclusive
    )
    assert not verify(faint, Predictor(wide, file(1).session), inputs).passes  # detects what PyTorch does not
    silent = changed(pytorch, lambda value: value, kind='raw')
    silent = Predictor(silent.meta, lambda batch: [pytorch.run(batch)[0], 0 * pytorch.run(batch)[1]])
    nothing = Predictor(meta, lambda batch: [np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int)])
    result = verify(silent, nothing, inputs)
    assert 'no detections' in result.inconclusive
    assert result.passes


def test_nms_may_keep_the_other_of_two_equal_boxes(ssdlite, photos):
    model = load_model(str(ssdlite), device='cpu')
    meta = describe(model, TARGETS['onnx'], kind='nms', precision='fp16')
    inputs = [prepare(read_image(photos[0]), meta.input, meta.resize)[0]]
    # IoU 0.82 and 0. The last box is the first one again, with a lower score, as of a neighbouring anchor.
    boxes = np.array([[10, 10, 110, 110], [20, 10, 120, 110], [200, 10, 240, 60], [11, 10, 111, 110]], np.float32)
    scores = np.zeros((4, len(meta.classes)), np.float32)
    scores[:, 4] = 0.9, 0.899, 0.5, 0.6
    pytorch = Predictor(dataclasses.replace(meta, kind='raw'), lambda batch: [boxes[None], scores[None]])

    def file(kept, shift=0.0, label=4):
        found = [boxes[kept] + np.float32(shift), scores[kept, 4], np.full(len(kept), label)]
        return Predictor(meta, lambda batch: found)

    for predictor, difference in (
        (file([0, 2]), 0),
        (file([1, 2]), 0),
        (file([0, 1, 2]), 1 / 3),  # without suppression
        (file([1, 2], shift=40), 2),  # boxes that PyTorch has not found
        (file([1, 2], label=5), 2),
        (file([1, 2], label=80), 2),  # there are 80 classes, from 0 to 79
        (file([1]), 1 / 2),  # the other detection is lost
        (file([3, 2]), 1),  # suppressed by the first box, which the file has lost
    ):
        result = verify(pytorch, predictor, inputs)
        assert result.difference == pytest.approx(difference)
        assert not result.inconclusive


def test_a_higher_score_of_another_object_is_no_choice_of_nms(ssdlite, photos):
    model = load_model(str(ssdlite), device='cpu')
    meta = describe(model, TARGETS['onnx'], kind='nms', precision='int8')
    inputs = [prepare(read_image(photos[0]), meta.input, meta.resize)[0]]
    corners = np.array([[20 + 60 * i, 20 + 60 * j] for i in range(4) for j in range(4)], np.float32)
    boxes = np.concatenate([corners, corners + 50], axis=1)  # 10 pixels apart: no two overlap
    scores = np.zeros((16, len(meta.classes)), np.float32)
    scores[:, 4] = np.where((np.arange(16) // 4 + np.arange(16)) % 2, 0.9, 0.4)
    pytorch = Predictor(dataclasses.replace(meta, kind='raw'), lambda batch: [boxes[None], scores[None]])
    inflated = [boxes, np.full(16, 0.9, np.float32), np.full(16, 4)]
    result = verify(pytorch, Predictor(meta, lambda batch: inflated), inputs)
    assert result.difference == pytest.approx(1)  # the 8 weak ones are missing, and 8 are too much
    assert not result.passes


def test_weights_beyond_half_precision_are_named(large_weights, segmenter):
    assert beyond_half(build_graph(segmenter[0], segmenter[1])) == {}
    model = load_model(str(large_weights), device='cpu')
    meta = describe(model, TARGETS['onnx'], kind='logits', precision='fp16', size=(64, 96))
    graph = build_graph(model, meta)
    layers = beyond_half(graph)
    assert list(layers) == ['backbone_conv_stem']
    assert layers['backbone_conv_stem'] > 1e6
    # Core ML's files cannot run here, and without images no file can be compared: the weights decide.
    with pytest.raises(MismatchError, match=r'fp16 holds numbers up to 65504.*backbone_conv_stem \(\d'):
        check_file(graph, reference(model, meta), None, segmenter[3])
    exact = build_graph(model, dataclasses.replace(meta, precision='fp32'))
    assert check_file(exact, reference(model, meta), None, ()) is None


@pytest.mark.parametrize(
    'name', ['onnx', pytest.param('ncnn', marks=pytest.mark.long), pytest.param('openvino', marks=pytest.mark.long)]
)
def test_fp16_that_cannot_hold_the_weights_is_refused(name, large_weights, tmp_path, photos):
    if TARGETS[name].absent(convert=True):
        pytest.skip(TARGETS[name].absent(convert=True))
    lines = []
    options = dict(out_dir=str(tmp_path), size=(64, 96), kind='logits', calibration=str(photos[0].parent))
    if name == 'openvino':  # keeps such weights in fp32
        (path,) = export(str(large_weights), [name], precision='fp16', log=lines.append, **options)
        assert 'compared with PyTorch on 4 images' in lines[-1]
        assert path.is_file()
        return
    with pytest.raises(UserError, match=r'large_logits_fp16.* is not written.*conv_stem \(.*--unchecked') as caught:
        export(str(large_weights), [name], precision='fp16', log=lines.append, **options)
    assert '\n' not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert lines == []


@pytest.mark.long
def test_unchecked_writes_files_that_differ(large_weights, tmp_path, photos):
    options = dict(out_dir=str(tmp_path), size=(64, 96), kind='logits', calibration=str(photos[0].parent))
    lines = []
    (path,) = export(str(large_weights), ['onnx'], precision='fp16', unchecked=True, log=lines.append, **options)
    assert load(path).meta.precision == 'fp16'
    assert 'error of the outputs relative to their standard deviation' in lines[-1]


@pytest.mark.parametrize(('kind', 'advice'), [(MismatchError, True), (UserError, False)])
def test_a_file_that_is_not_written_does_not_stop_the_others(kind, advice, lraspp, tmp_path, photos, monkeypatch):
    written = []

    def write(graph, target, path, *args):
        if target.name == 'onnx':
            raise kind('its reason')
        written.append(path.name)
        return dataclasses.replace(graph.meta, files={}), None

    monkeypatch.setattr('mnv4_mm.deploy.export.write', write)
    options = dict(out_dir=str(tmp_path), size=(64, 96), calibration=str(photos[0].parent), log=lambda line: None)
    with pytest.raises(UserError, match=r'net_class_map_fp32_64x96\.onnx is not written: its reason') as caught:
        export(str(lraspp), ['onnx', 'openvino'], **options)
    assert ('--unchecked' in str(caught.value)) == advice
    assert written == ['net_class_map_fp32_64x96.xml']


def test_a_client_can_check_itself(once, ssdlite, photos):
    """The given input has the results of sample.json; so has PyTorch; a preprocessing of one's own is near."""
    folder = once(
        'exported ssdlite onnx', lambda out: export(str(ssdlite), ['onnx'], out_dir=str(out), log=lambda line: None)
    )
    path = next(folder.glob('*.onnx'))
    content = json.loads((folder / f'{path.name}.sample.json').read_text())
    predictor = load(path)
    given = content['tolerance']['given_input']['scores']
    png = folder / content['input']['file']
    assert content['input']['sha256'] == sha256(png)
    batch = cv2.cvtColor(cv2.imread(str(png)), cv2.COLOR_BGR2RGB)[None]
    assert list(batch.shape) == content['input']['shape']
    assert batch.mean() == pytest.approx(content['input']['mean'], abs=1e-6)
    outputs = dict(zip(('boxes', 'scores', 'labels'), predictor.run(batch), strict=True))
    for name, value in outputs.items():
        assert list(value.shape) == content['outputs'][name]['shape']
        assert value.mean() == pytest.approx(content['outputs'][name]['mean'], rel=1e-3)
    # Of one-dimensional outputs ``middle`` holds the first values.
    np.testing.assert_allclose(outputs['scores'][:5], content['outputs']['scores']['middle'], atol=given)
    np.testing.assert_allclose(outputs['boxes'][len(outputs['boxes']) // 2][:5], content['outputs']['boxes']['middle'])
    for kind in ('outputs', 'results'):
        expected, found = content['pytorch'][kind], content[kind]
        assert expected.keys() == found.keys()
    np.testing.assert_allclose(content['pytorch']['results']['scores'], content['results']['scores'], atol=given)
    # Rounding half up instead of as OpenCV does, and a decoder that differs by a unit.
    rng = np.random.default_rng(0)
    near = np.clip(batch + rng.integers(-1, 2, batch.shape), 0, 255).astype(np.uint8)
    own = content['tolerance']['own_input']
    assert abs(float(near.mean()) - content['input']['mean']) < own['input_mean']
    np.testing.assert_allclose(predictor.run(near)[1][:5], content['results']['scores'], atol=own['scores'])


def test_operator_sets_are_declared_once(once, ssdlite):
    import onnx

    folder = once(
        'exported ssdlite onnx', lambda out: export(str(ssdlite), ['onnx'], out_dir=str(out), log=lambda line: None)
    )
    model = onnx.load(next(folder.glob('*_nms_*.onnx')))
    domains = [entry.domain for entry in model.opset_import]
    assert len(domains) == len(set(domains))
    assert [entry.version for entry in model.opset_import if entry.domain == ''] == [18]


@pytest.mark.long
def test_a_path_with_blanks_and_other_scripts(lraspp, tmp_path, photos):
    folder = tmp_path / 'my run (1) - v2.0 図'
    folder.mkdir()
    checkpoint = shutil.copy(lraspp, folder / 'net 2.0.pth')
    path = export(str(checkpoint), ['onnx'], size=(64, 96), log=lambda line: None)[0]
    assert path.parent == folder / 'exported'
    assert load(path)(photos[0]).class_map.shape == read_image(photos[0]).shape[:2]
