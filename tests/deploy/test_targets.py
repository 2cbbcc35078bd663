"""Tests of every runtime that is installed here; CI has all of them. The browser has its own in ``test_web.py``."""

import dataclasses
import json
import platform

import cv2
import numpy as np
import onnx
import pytest
import torch

from mnv4_mm.apis.infer import infer
from mnv4_mm.apis.load import load as load_any
from mnv4_mm.apis.model import load_model
from mnv4_mm.deploy.difference import difference
from mnv4_mm.deploy.export import export
from mnv4_mm.deploy.graph import reference
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.models.arch import ARCHS
from mnv4_mm.runtime import load
from mnv4_mm.runtime.meta import Meta, read_meta, sidecar
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.preprocess import prepare
from mnv4_mm.runtime.results import Detections
from mnv4_mm.runtime.sessions import RUNTIMES

INSTALLED = [name for name, target in TARGETS.items() if name != 'web' and not target.absent(convert=True)]
RUNNABLE = [name for name in INSTALLED if not TARGETS[name].cannot_run()]


@pytest.fixture(scope='module')
def exported(once, ssdlite, lraspp):
    """Return the file of a runtime for one of two nets, converted once for all workers."""

    def path(target, net='ssdlite', **options):
        checkpoint = dict(ssdlite=ssdlite, lraspp=lraspp)[net]
        size = (128, 160) if net == 'lraspp' else None

        def convert(folder):
            export(str(checkpoint), [target], out_dir=str(folder), size=size, log=lambda line: None, **options)

        folder = once(' '.join(['exported', net, target, *map(str, sorted(options.items()))]), convert)
        # The JSON files of samples and layers belong to no file of their own.
        return next(file for json in folder.glob('*.json') if (file := json.with_suffix('')).exists())

    return path


@pytest.fixture(scope='module')
def pytorch(ssdlite, lraspp):
    models = {}

    def make(meta):
        checkpoint = ssdlite if meta.task == 'detection' else lraspp
        if meta.task not in models:
            models[meta.task] = load_model(str(checkpoint), device='cpu')
        return reference(models[meta.task], meta)

    return make


@pytest.mark.skipif(platform.machine() != 'x86_64', reason='not every runtime has wheels for other machines')
def test_the_tested_set_has_every_runtime_but_litert():
    """`make env` installs them: without this test the others would pass by skipping."""
    assert [name for name in TARGETS if name not in INSTALLED and name not in ('litert', 'web')] == []


def inputs(meta, photos):
    return [prepare(read_image(photo), meta.input, meta.resize)[0] for photo in photos[:3]]


@pytest.mark.parametrize(
    ('name', 'net'),
    [
        # Their converters are slow. Other tests convert SSDLite with them, and the long suite converts every net.
        pytest.param(name, net, marks=pytest.mark.long if net == 'lraspp' and name in ('litert', 'executorch') else [])
        for name in RUNNABLE
        for net in ('ssdlite', 'lraspp')
    ],
)
def test_raw_outputs_are_pytorchs(name, net, exported, pytorch, photos):
    path = exported(name, net, kind='raw' if net == 'ssdlite' else 'logits')
    predictor = load(path)
    found = difference(pytorch(predictor.meta), predictor, inputs(predictor.meta, photos))
    assert found.largest < 1e-4
    assert found.kind == 'raw'


@pytest.mark.long
@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('name', RUNNABLE)
def test_every_net_has_the_outputs_of_pytorch(name, arch, make_checkpoint, photos, tmp_path):
    checkpoint = make_checkpoint('mnv4_lraspp_ade20k-mini', f'mnv4_{arch}')
    options = dict(out_dir=str(tmp_path), size=(128, 160), kind='logits', log=lambda line: None)
    predictor = load(export(str(checkpoint), [name], **options)[0])
    model = reference(load_model(str(checkpoint), device='cpu'), predictor.meta)
    assert difference(model, predictor, inputs(predictor.meta, photos)).largest < 1e-3


@pytest.mark.parametrize('net', ['ssdlite', 'lraspp'])
@pytest.mark.parametrize('name', ['onnx', 'openvino'])
def test_selection_inside_a_file_equals_selection_outside(name, net, exported, pytorch, photos):
    if name not in RUNNABLE:
        pytest.skip(TARGETS[name].absent(convert=True))
    predictor = load(exported(name, net))  # with NMS, or with the class map
    assert predictor.meta.kind == ('nms' if net == 'ssdlite' else 'class_map')
    found = difference(pytorch(predictor.meta), predictor, inputs(predictor.meta, photos))
    assert found.largest < 1e-3
    assert not found.inconclusive


@pytest.mark.parametrize('name', RUNNABLE)
def test_an_image_has_the_same_result_in_every_runtime(name, exported, pytorch, photos):
    predictor = load(exported(name, kind='raw'), threads=1)
    expected = pytorch(predictor.meta)(photos[0])
    found = predictor(photos[0])
    assert isinstance(found, Detections)
    assert len(found.scores) > 20
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    again = load(exported(name, kind='raw'))(read_image(photos[0]))  # all threads, an image in memory
    np.testing.assert_allclose(again.scores, found.scores, atol=1e-4)
    height, width = read_image(photos[0]).shape[:2]
    assert found.boxes.min() >= 0
    assert found.boxes[:, 2].max() <= width + 1e-3
    assert found.boxes[:, 3].max() <= height + 1e-3
    assert (found.classes, found.category_ids) == (expected.classes, expected.category_ids)


@pytest.mark.parametrize('net', ['ssdlite', 'lraspp'])
def test_checkpoint_and_file_have_the_same_results(net, exported, ssdlite, lraspp, photos, tmp_path):
    checkpoint = dict(ssdlite=ssdlite, lraspp=lraspp)[net]
    path = exported('onnx', net)
    # A segmenter's file has a size of its own: an image of that size is enlarged by neither.
    image = cv2.resize(read_image(photos[0]), (160, 128))
    outputs = {}
    for name, file in (('pytorch', checkpoint), ('onnx', path)):
        predictor = load_any(file, **(dict(device='cpu') if file == checkpoint else {}))
        outputs[name] = predictor(image)
        infer(str(photos[0]), str(file), out_dir=str(tmp_path / name))
    a, b = outputs.values()
    assert type(a) is type(b)
    assert a.classes == b.classes
    if net == 'ssdlite':
        np.testing.assert_allclose(a.scores[:20], b.scores[:20], atol=1e-3)
        assert a.plot().shape == b.plot().shape == image.shape
    else:
        assert a.plot(legend=False).shape == b.plot(legend=False).shape == image.shape
    assert a.to_coco(1)[0].keys() == b.to_coco(1)[0].keys()
    names = [sorted(str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob('*')) for name in outputs]
    assert names[0] == names[1]
    contents = [json.loads((tmp_path / name / 'predictions.json').read_text()) for name in outputs]
    assert contents[0].keys() == contents[1].keys()
    if net == 'ssdlite':
        assert contents[0]['categories'] == contents[1]['categories']
        assert contents[0]['annotations'][0].keys() == contents[1]['annotations'][0].keys()
    else:
        assert contents[0]['values'] == contents[1]['values']


def check_empty(predictor, photos):
    for photo in photos[:2]:
        found = predictor(photo)
        assert [value.shape for value in (found.boxes, found.scores, found.labels)] == [(0, 4), (0,), (0,)]
        assert found.to_coco(1) == []
        np.testing.assert_array_equal(found.plot(), read_image(photo))


@pytest.mark.parametrize('name', RUNNABLE)
def test_no_detections_are_arrays_without_rows(name, exported, pytorch, photos):
    """Above a threshold that no score reaches, in every runtime and in PyTorch."""
    file = load(exported(name, kind='raw'))
    meta = dataclasses.replace(file.meta, selection=dataclasses.replace(file.meta.selection, score_thr=1.0))
    for run in (file.run, pytorch(file.meta).run):
        check_empty(Predictor(meta, run), photos)


def test_a_selection_inside_that_selects_nothing_has_outputs_without_rows(exported, tmp_path, photos):
    """As above, with the threshold inside the file."""
    path = exported('onnx')
    model = onnx.load(path)
    (threshold,) = (tensor for tensor in model.graph.initializer if tensor.name == 'tail_score_thr')
    value = np.ones_like(onnx.numpy_helper.to_array(threshold))
    threshold.CopyFrom(onnx.numpy_helper.from_array(value, threshold.name))
    onnx.save(model, tmp_path / path.name)
    predictor = Predictor(read_meta(path), RUNTIMES['onnx'].session(tmp_path / path.name, read_meta(path)))
    check_empty(predictor, photos)


@pytest.fixture
def silent(ssdlite, tmp_path):
    """A checkpoint to which everything is background."""
    content = torch.load(ssdlite, weights_only=False)
    count = 1 + len(content['meta']['dataset_meta']['classes'])  # the background is the last one
    for key, value in content['state_dict'].items():
        if key.startswith('bbox_head.cls_convs') and key.endswith('.bias') and len(value) % count == 0:
            value.view(-1, count)[:, -1] += 1000
    torch.save(content, tmp_path / 'silent.pth')
    return tmp_path / 'silent.pth'


def test_a_checkpoint_that_detects_nothing_has_empty_results(silent, photos):
    check_empty(load_any(silent, device='cpu'), photos)


@pytest.mark.long
@pytest.mark.parametrize('name', RUNNABLE)
def test_a_file_that_detects_nothing_has_empty_results(name, silent, photos):
    check_empty(load(export(str(silent), [name], log=lambda line: None)[0]), photos)


@pytest.mark.parametrize('name', RUNNABLE)
def test_results_are_not_overwritten_by_the_next_image(name, exported, photos):
    predictor = load(exported(name, kind='raw'))
    first = predictor.run(inputs(predictor.meta, photos)[0])
    copies = [value.copy() for value in first]
    predictor.run(inputs(predictor.meta, photos)[1])
    for value, copy in zip(first, copies, strict=True):
        np.testing.assert_array_equal(value, copy)


@pytest.mark.parametrize('name', INSTALLED)
def test_one_flipped_byte_is_one_line(name, exported, tmp_path):
    source = exported(name, kind='raw')
    for file in read_meta(source).files:
        data = bytearray((source.parent / file).read_bytes())
        data[len(data) // 2] ^= 0x10
        for other in (*read_meta(source).files, sidecar(source).name):
            (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / other).write_bytes((source.parent / other).read_bytes())
        (tmp_path / file).write_bytes(data)
        with pytest.raises(UserError, match='is damaged or was changed') as caught:
            load(tmp_path / source.name)
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', RUNNABLE)
def test_a_file_that_its_runtime_refuses_is_one_line(name, exported, tmp_path):
    """A file with the right suffix and metadata, and other content."""
    meta = read_meta(exported(name, kind='raw'))
    path = tmp_path / f'net{TARGETS[name].suffix}'
    path.write_bytes(b'not a net')
    with pytest.raises(UserError, match='cannot be loaded') as caught:
        RUNTIMES[name].session(path, meta)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', RUNNABLE)
def test_an_input_of_another_size_is_one_line(name, exported):
    predictor = load(exported(name, kind='raw'))
    shape = (1, 64, 64, 3) if predictor.meta.input.layout == 'NHWC' else (1, 3, 64, 64)
    for batch in (np.zeros(shape, predictor.meta.input.dtype), np.zeros((1, 320, 320, 3)), np.zeros(5)):
        with pytest.raises(UserError, match='this file takes'):
            predictor.run(batch)


@pytest.mark.parametrize('name', ['onnx', 'openvino', pytest.param('executorch', marks=pytest.mark.long)])
def test_a_description_is_inside_the_file_too(name, exported):
    if name not in INSTALLED:
        pytest.skip(TARGETS[name].absent(convert=True))
    path = exported(name)
    inside = path.read_bytes()
    if name == 'onnx':
        import onnxruntime

        inside = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map['mnv4_mm'].encode()
        assert dataclasses.replace(read_meta(path), files={}) == Meta.from_json(inside, path)
    elif name == 'executorch':
        from executorch.runtime import Runtime

        (text,) = Runtime.get().load_program(path).load_method('mnv4_mm').execute([])
        inside = text.encode()
        assert dataclasses.replace(read_meta(path), files={}) == Meta.from_json(inside, path)
    assert b'letterbox' in inside or b'stretch' in inside
    source = read_meta(path).source
    assert len(source['sha256']) == 64
    assert {'checkpoint', 'mnv4_mm', 'torch'} < source.keys()


def test_core_mls_description_is_compared_with_the_metadata(exported):
    if 'coreml' not in INSTALLED:
        pytest.skip(TARGETS['coreml'].absent(convert=True))
    path = exported('coreml', kind='raw')
    text = TARGETS['coreml'].inspect(path, read_meta(path))
    assert "'image': 'imageType'" in text
    other = dataclasses.replace(read_meta(path), kind='logits', task='segmentation')
    with pytest.raises(UserError, match='its metadata does not fit'):
        TARGETS['coreml'].inspect(path, other)


@pytest.mark.parametrize('name', ['onnx', 'openvino'])
def test_any_size(name, make_checkpoint, tmp_path, photos):
    if name not in RUNNABLE:
        pytest.skip(TARGETS[name].absent(convert=True))
    checkpoint = make_checkpoint('mnv4_segformer_ade20k-mini')
    path = export(str(checkpoint), [name], dynamic=True, kind='class_map', log=lambda line: None)[0]
    predictor = load(path)
    by = reference(load_model(str(checkpoint), device='cpu'), predictor.meta)
    batches = inputs(predictor.meta, photos)
    assert len({batch.shape for batch in batches}) > 1
    assert difference(by, predictor, batches).largest < 1e-3
    assert predictor(photos[0]).class_map.shape == read_image(photos[0]).shape[:2]


@pytest.mark.parametrize(
    ('name', 'config', 'kind'),
    [
        pytest.param('onnx', 'mnv4_rtmdet_coco', 'raw', marks=pytest.mark.long),
        ('openvino', 'mnv4_segformer_ade20k-mini', 'logits'),
    ],
)
def test_any_batch_size(name, config, kind, make_checkpoint, tmp_path, photos):
    if name not in RUNNABLE:
        pytest.skip(TARGETS[name].absent(convert=True))
    checkpoint = make_checkpoint(config)
    path = export(str(checkpoint), [name], dynamic=True, kind=kind, out_dir=str(tmp_path), log=lambda line: None)[0]
    predictor = load(path)
    images = [cv2.resize(read_image(photo), (160, 96))[None] for photo in photos[:3]]
    together = predictor.run(np.concatenate(images))
    for i, image in enumerate(images):
        for value, alone in zip(together, predictor.run(image), strict=True):
            np.testing.assert_allclose(value[i : i + 1], alone, rtol=0, atol=1e-4 * np.abs(alone).max())
    with pytest.raises(UserError, match=r'this file takes \(any number, a multiple of 32, a multiple of 32, 3\) uint8'):
        predictor.run(np.zeros((0, 96, 160, 3), np.uint8))


@pytest.mark.parametrize(
    'name', ['onnx', *(pytest.param(name, marks=pytest.mark.long) for name in ('openvino', 'ncnn', 'litert'))]
)
def test_half_precision_is_half_the_size(name, exported, pytorch, photos):
    if name not in RUNNABLE:
        pytest.skip(TARGETS[name].absent(convert=True))

    def size(path):
        return sum((path.parent / file).stat().st_size for file in read_meta(path).files)

    single, half = (exported(name, kind='raw', precision=precision) for precision in ('fp32', 'fp16'))
    assert size(half) < 0.6 * size(single)
    predictor = load(half)
    assert 1e-6 < difference(pytorch(predictor.meta), predictor, inputs(predictor.meta, photos)).largest < 0.15


def test_an_absent_runtime_is_named_with_its_command(ssdlite, tmp_path, monkeypatch, exported):
    path = exported('onnx')
    monkeypatch.setattr(RUNTIMES['ncnn'], 'modules', ('no_such_module',))
    monkeypatch.setattr(RUNTIMES['onnx'], 'modules', ('another_module',))
    with pytest.raises(UserError, match=r'no_such_module.*mnv4_mm\[export,ncnn\].*onnx is not installed here'):
        export(str(ssdlite), ['ncnn', 'onnx'], out_dir=str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()
    with pytest.raises(UserError, match=r'another_module.*pip install "mnv4_mm\[onnx\]"'):
        load(path)


def test_a_failed_conversion_leaves_nothing(ssdlite, tmp_path, monkeypatch):
    def fails(graph, path, precision, calibration):
        path.write_bytes(b'half a file')
        raise RuntimeError('out of memory')

    monkeypatch.setattr(TARGETS['onnx'], 'convert', fails)
    with pytest.raises(RuntimeError):
        export(str(ssdlite), ['onnx'], out_dir=str(tmp_path / 'out'))
    assert list((tmp_path / 'out').iterdir()) == []


def test_an_unknown_runtime_in_a_description_is_one_line(exported, tmp_path):
    path = exported('onnx')
    (tmp_path / path.name).write_bytes(path.read_bytes())
    sidecar(tmp_path / path.name).write_text(dataclasses.replace(read_meta(path), target='tensorrt').to_json())
    with pytest.raises(UserError, match="no runtime 'tensorrt'"):
        load(tmp_path / path.name)
