"""Folders as users have them: unreadable, hidden and nested images, and ids of a data set's annotation file.

The model is an ONNX file of a few operators, so that nothing is trained and PyTorch is not needed.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import parser
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mnv4_mm.apis import infer as infer_module
from mnv4_mm.apis.data_ids import DataIds
from mnv4_mm.apis.infer import infer
from mnv4_mm.cli import main
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Input, Meta, Resize, Selection, sha256, sidecar

# One box over the middle of the image.
DETECTOR = """<ir_version: 10, opset_import: ["" : 18]>
detector (uint8[1, 32, 32, 3] image) => (float[1, 4] boxes, float[1] scores, int64[1] labels)
<float[1, 4] box = {8, 8, 24, 24}, int64[1] label = {1}, float[1] score = {0.9}>
{
    boxes = Identity (box)
    scores = Identity (score)
    labels = Identity (label)
}"""
# The class of a pixel is the channel with the largest value.
SEGMENTER = """<ir_version: 10, opset_import: ["" : 18]>
segmenter (uint8[1, 32, 32, 3] image) => (uint8[1, 32, 32] class_map)
{
    values = Cast <to = 1> (image)
    largest = ArgMax <axis = 3, keepdims = 0> (values)
    class_map = Cast <to = 2> (largest)
}"""
META = Meta(
    task='detection',
    kind='nms',
    target='onnx',
    precision='fp32',
    classes=('$', '$$', '$$$'),
    input=Input((32, 32), 'NHWC', 'uint8', 'RGB', False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    resize=Resize('stretch', (0, 0, 0)),
    selection=Selection(0.0, 0.5, 10, -1.0, 100),
)
NUMBERED = 'images are numbered from 1; --annotations FILE gives them the ids of a data set'


@pytest.fixture(scope='module')
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp('nets')
    maps = replace(META, task='segmentation', kind='class_map', selection=None, first_value=1)
    for name, text, meta in (('detector', DETECTOR, META), ('segmenter', SEGMENTER, maps)):
        path = folder / f'{name}.onnx'
        path.write_bytes(parser.parse_model(text).SerializeToString())
        onnx.checker.check_model(path)
        sidecar(path).write_text(replace(meta, files={path.name: sha256(path)}).to_json())
    return dict(detector=str(folder / 'detector.onnx'), segmenter=str(folder / 'segmenter.onnx'))


def draw(path: Path, width=64, height=48, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), value, np.uint8)
    pixels[..., 2] = np.linspace(0, 255, width)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
    return path


def content(out):
    return json.loads((out / 'predictions.json').read_text())


def names(out):
    return [image['file_name'] for image in content(out)['images']]


@pytest.mark.parametrize('net', ['detector', 'segmenter'])
def test_an_unreadable_image_does_not_stop_a_folder(net, nets, tmp_path, capsys):
    for name in 'abcde':
        draw(tmp_path / f'in/{name}.jpg')
    for name, share in (('b', 0), ('d', 0.5)):  # in the middle, not only the last one
        data = (tmp_path / f'in/{name}.jpg').read_bytes()
        (tmp_path / f'in/{name}.jpg').write_bytes(data[: int(len(data) * share)])
    (tmp_path / 'in/text.png').write_text('not an image')
    out = tmp_path / 'out'
    assert main(['infer', str(tmp_path / 'in'), nets[net], '--out-dir', str(out)]) == 1
    assert names(out) == ['a.jpg', 'c.jpg', 'e.jpg']
    assert sorted(file.name for file in out.glob('*.jpg')) == ['a.jpg', 'c.jpg', 'e.jpg']
    assert [entry['file_name'] for entry in content(out)['unreadable']] == ['b.jpg', 'd.jpg', 'text.png']
    lines = capsys.readouterr().err.splitlines()
    assert [line.split('/')[-1][:6] for line in lines[:3]] == ['b.jpg ', 'd.jpg ', 'text.p']
    assert all(line.startswith('left out: ') for line in lines[:3])
    assert lines[3] == '3 of 6 images could not be read and have no predictions'
    assert infer(str(tmp_path / 'in'), nets[net], out_dir=str(out)) == out / 'predictions.json'


def test_images_of_formats_that_are_not_read_are_named(nets, tmp_path, capsys):
    draw(tmp_path / 'in/a.jpg')
    for name in ('photo.HEIC', 'scan.jp2'):
        (tmp_path / 'in' / name).write_bytes(b'\0\0\0\x18ftypheic')
    assert main(['infer', str(tmp_path / 'in'), nets['detector'], '--out-dir', str(tmp_path / 'out')]) == 1
    assert names(tmp_path / 'out') == ['a.jpg']
    assert [entry['file_name'] for entry in content(tmp_path / 'out')['unreadable']] == ['photo.HEIC', 'scan.jp2']
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith('photo.HEIC is not a readable image: HEIC is not read; convert it to JPEG')
    assert lines[-1] == '2 of 3 images could not be read and have no predictions'
    assert main(['infer', str(tmp_path / 'in/photo.HEIC'), nets['detector'], '--out-dir', str(tmp_path / 'out')]) == 2
    assert 'HEIC is not read' in capsys.readouterr().err


def test_a_raw_file_beside_a_jpeg_of_the_same_name_is_passed_over(nets, tmp_path, capsys):
    draw(tmp_path / 'in/day/photo.JPG')
    (tmp_path / 'in/day/photo.CR2').write_bytes(b'raw')
    assert main(['infer', str(tmp_path / 'in'), nets['detector'], '--out-dir', str(tmp_path / 'out')]) == 0
    assert names(tmp_path / 'out') == ['day/photo.JPG']
    (line,) = capsys.readouterr().err.splitlines()
    assert line == 'skipped, because an image of the same name is next to it: day/photo.CR2'
    (tmp_path / 'in/photo.CR2').write_bytes(b'raw')  # in another folder, so it has no JPEG
    assert main(['infer', str(tmp_path / 'in'), nets['detector'], '--out-dir', str(tmp_path / 'out')]) == 1
    assert [entry['file_name'] for entry in content(tmp_path / 'out')['unreadable']] == ['photo.CR2']
    assert '1 of 2 images could not be read' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('names_', 'form', 'message'),
    [
        ([b'b\xe4r.png'], 'coco', r"the file name 'b\udce4r.png' is not UTF-8; rename the file"),
        (['a.png', 'a.jpg'], 'yolo', 'a.png and a.jpg would share labels/train/a.txt; rename one of them'),
    ],
)
def test_names_that_labels_cannot_have_are_refused_at_once(names_, form, message, nets, tmp_path, capsys):
    for name in names_:
        draw(tmp_path / 'in' / os.fsdecode(name))
    command = ['infer', str(tmp_path / 'in'), nets['detector'], '--out-dir', str(tmp_path / 'out')]
    assert main([*command, '--labels', form]) == 2
    assert capsys.readouterr().err == f'error: --labels {form}: {message}\n'
    assert not (tmp_path / 'out').exists()
    assert main(command) == 0
    assert sorted(names(tmp_path / 'out')) == sorted(map(os.fsdecode, names_))


def test_images_next_to_black_are_mentioned(nets, tmp_path, capsys):
    (tmp_path / 'in').mkdir()
    thermal = np.random.default_rng(0).integers(3000, 4000, (32, 32)).astype(np.uint16)  # 12 bits in 16
    for name, pixels in (('a.png', thermal), ('b.png', thermal), ('c.png', 16 * thermal)):
        cv2.imwrite(str(tmp_path / 'in' / name), pixels)
    assert main(['infer', str(tmp_path / 'in'), nets['detector'], '--out-dir', str(tmp_path / 'out')]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        'warning: a.png is almost black: its brightest value is 15 of 255 (and 1 more); scale the values of 16-bit '
        'images to their full range',
    ]


def test_a_folder_without_readable_images_is_an_error(nets, tmp_path, capsys):
    for name in ('a.png', 'b.png'):
        (tmp_path / 'in').mkdir(exist_ok=True)
        (tmp_path / 'in' / name).write_text('not an image')
    assert main(['infer', str(tmp_path / 'in'), nets['detector'], '--out-dir', str(tmp_path / 'out')]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert 'a.png is not a readable image' in error
    assert 'none of the other 1 images' in error
    assert not (tmp_path / 'out').exists()


def test_predictions_survive_a_failure(nets, tmp_path, monkeypatch, capsys):
    for name in 'abc':
        draw(tmp_path / f'in/{name}.png')

    def fails(path, pixels):
        if path.name == 'c.png':
            raise UserError(f'{path} cannot be written: No space left on device')

    monkeypatch.setattr(infer_module, 'write_image', fails)
    with pytest.raises(UserError, match='No space left'):
        infer(str(tmp_path / 'in'), nets['detector'], out_dir=str(tmp_path / 'out'))
    assert names(tmp_path / 'out') == ['a.png', 'b.png', 'c.png']
    assert 'the predictions before the error are in' in capsys.readouterr().err


def test_hidden_files_are_passed_over(nets, tmp_path, capsys):
    draw(tmp_path / 'in/a.jpg')
    (tmp_path / 'in/._a.jpg').write_bytes(b'\0\5\x16\7 Mac OS X')
    (tmp_path / 'in/.DS_Store').write_bytes(b'\0\0\0\1Bud1')
    draw(tmp_path / 'in/.thumbnails/a.jpg')
    (tmp_path / 'in/__MACOSX').mkdir()
    (tmp_path / 'in/__MACOSX/._b.jpg').write_bytes(b'\0\5\x16\7 Mac OS X')
    assert main(['infer', str(tmp_path / 'in'), nets['detector'], '--out-dir', str(tmp_path / 'out')]) == 0
    assert names(tmp_path / 'out') == ['a.jpg']
    captured = capsys.readouterr()
    assert captured.err == ''
    assert captured.out.splitlines()[1] == NUMBERED
    # A hidden folder that is named is no hidden folder.
    infer(str(tmp_path / 'in/.thumbnails'), nets['detector'], out_dir=str(tmp_path / 'out2'))
    assert names(tmp_path / 'out2') == ['a.jpg']


@pytest.mark.parametrize('net', ['detector', 'segmenter'])
def test_names_in_subfolders_are_kept(net, nets, tmp_path):
    expected = ['a.jpg', 'cam0/0000.jpg', 'cam0/0001.jpg', 'cam1/0000.jpg', 'cam1/0000.png']
    for name in expected:
        draw(tmp_path / 'in' / name)
    out = tmp_path / 'in/out'  # results in the folder of the images are no images of a second run
    for _ in range(2):
        infer(str(tmp_path / 'in'), nets[net], out_dir=str(out))
        assert names(out) == expected
        drawn = [file.relative_to(out).as_posix() for file in out.rglob('*.*') if 'class_maps' not in file.parts]
        assert sorted(drawn) == [*expected, 'predictions.json']
    if net == 'segmenter':
        maps = [image['class_map'] for image in content(out)['images']]
        assert maps == [
            'class_maps/a.png', 'class_maps/cam0/0000.png', 'class_maps/cam0/0001.png', 'class_maps/cam1/0000.png',
            'class_maps/cam1/0000.png.png',
        ]  # fmt: skip
        assert all((out / path).is_file() for path in maps)


def test_a_net_that_detects_nothing_writes_empty_results(nets, tmp_path):
    from mnv4_mm.runtime.results import Detections
    from mnv4_mm.runtime.writer import DetectionWriter

    (tmp_path / 'out').mkdir()
    writer = DetectionWriter(tmp_path / 'out', coco=True)
    image = np.zeros((4, 6, 3), np.uint8)
    empty = Detections(
        np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ('a',), image=image
    )
    np.testing.assert_array_equal(writer.add('a.png', empty), image)
    writer.save()
    assert content(tmp_path / 'out') == dict(
        images=[dict(id=1, file_name='a.png', width=6, height=4)], annotations=[], categories=[dict(id=1, name='a')]
    )
    assert json.loads((tmp_path / 'out/coco_results.json').read_text()) == []


def test_images_are_not_overwritten(nets, tmp_path):
    inner = draw(tmp_path / 'data/images/images/a.jpg')
    before = inner.read_bytes()
    draw(tmp_path / 'data/images/b.jpg')
    with pytest.raises(UserError, match='is the folder of the images'):
        infer(str(inner.parent), nets['detector'], out_dir=str(inner.parent))
    draw(tmp_path / 'data/images/data/images/images/a.jpg')
    with pytest.raises(UserError, match='is one of the images, which would be overwritten'):
        infer(str(tmp_path / 'data/images'), nets['detector'], out_dir=str(tmp_path))
    draw(tmp_path / 'maps/class_maps/a.jpg')
    with pytest.raises(UserError, match='has a folder class_maps'):
        infer(str(tmp_path / 'maps'), nets['segmenter'], out_dir=str(tmp_path / 'out'))
    assert inner.read_bytes() == before
    assert not (tmp_path / 'out').exists()


@pytest.fixture
def data(tmp_path):
    """A COCO data set whose ids are neither dense nor in the order of names, and whose file names have a folder."""
    files = ['cam1/0000.png', 'cam0/0000.png', 'z.png']
    images = []
    for number, name in zip((77, 5, 2**60), files, strict=True):
        draw(tmp_path / 'data/images' / name, width=64 if number == 77 else 32)
        images.append(dict(id=number, file_name=f'images/{name}', width=64 if number == 77 else 32, height=48))
    categories = [dict(id=number, name=name) for number, name in ((9, '$$'), (4, '$'), (11, '$$$'))]
    boxes = [dict(image_id=77, bbox=[16, 12, 32, 24]), dict(image_id=5, bbox=[8, 12, 16, 24])]
    boxes.append(dict(image_id=2**60, bbox=[8, 12, 16, 24]))
    annotations = [
        dict(box, id=i, category_id=9, iscrowd=0, area=box['bbox'][2] * box['bbox'][3])
        for i, box in enumerate(boxes, 1)
    ]
    path = tmp_path / 'data/instances.json'
    path.write_text(json.dumps(dict(images=images, categories=categories, annotations=annotations)))
    return path


def average_precision(truth, found):
    evaluation = COCOeval(truth, found, 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


def test_predictions_have_the_ids_of_the_data(data, nets, tmp_path, capsys):
    out = tmp_path / 'out'
    images = data.parent / 'images'
    infer(str(images), nets['detector'], out_dir=str(out), annotations=str(data), coco=True)
    assert 'numbered' not in capsys.readouterr().err
    assert {image['file_name']: image['id'] for image in content(out)['images']} == {
        'cam0/0000.png': 5, 'cam1/0000.png': 77, 'z.png': 2**60,
    }  # fmt: skip
    assert content(out)['categories'] == [dict(id=4, name='$'), dict(id=9, name='$$'), dict(id=11, name='$$$')]
    truth = COCO(str(data))
    # Both files fit the annotation file: the list by loadRes, the data set as it is.
    assert average_precision(truth, truth.loadRes(str(out / 'coco_results.json'))) == pytest.approx(1)
    assert average_precision(truth, COCO(str(out / 'predictions.json'))) == pytest.approx(1)
    row = json.loads((out / 'coco_results.json').read_text())[0]
    assert row == dict(image_id=5, category_id=9, bbox=[8, 12, 16, 24], score=pytest.approx(0.9))


def test_a_single_image_and_other_folders_have_the_ids_of_the_data(data, nets, tmp_path):
    image = data.parent / 'images/cam1/0000.png'
    infer(str(image), nets['detector'], out_dir=str(tmp_path / 'out'), annotations=str(data))
    assert [entry['id'] for entry in content(tmp_path / 'out')['images']] == [77]
    # The folders in the JSON are those of another machine: the name alone decides, if it is unique.
    windows = data.read_text().replace('images/z.png', '..\\\\..\\\\upload\\\\z.png')
    data.write_text('\ufeff' + windows, encoding='utf-8')
    infer(str(data.parent / 'images/z.png'), nets['detector'], out_dir=str(tmp_path / 'out'), annotations=str(data))
    assert [entry['id'] for entry in content(tmp_path / 'out')['images']] == [2**60]


def test_class_maps_are_written_as_coco_results(data, nets, tmp_path):
    out = tmp_path / 'out'
    images = data.parent / 'images'
    infer(str(images), nets['segmenter'], out_dir=str(out), annotations=str(data), coco=True)
    rows = json.loads((out / 'coco_results.json').read_text())
    assert {row['image_id'] for row in rows} == {5, 77, 2**60} == {image['id'] for image in content(out)['images']}
    first = content(out)['images'][0]
    values = cv2.imread(str(out / first['class_map']), cv2.IMREAD_UNCHANGED)
    assert first['id'] == 5
    total = sum(int(mask.area(row['segmentation'])) for row in rows if row['image_id'] == 5)
    assert total == values.shape[0] * values.shape[1]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['images'].pop(), r'does not list .*z\.png'),
        (lambda c: c['categories'].pop(0), r"has no category '\$\$', a class of the model; it has \$, "),
        (lambda c: c['images'][2].update(width=48, height=32), 'is 32x48, but 48x32 in .*EXIF'),
        (lambda c: c.pop('images'), "is not a COCO annotation file.* KeyError 'images'"),
        (lambda c: c['images'][0].pop('id'), "KeyError 'id'"),
        (lambda c: c['images'].append(7), 'TypeError'),
    ],
)
def test_an_annotation_file_that_does_not_fit_is_one_line(change, message, data, nets, tmp_path):
    loaded = json.loads(data.read_text())
    change(loaded)
    data.write_text(json.dumps(loaded))
    with pytest.raises(UserError, match=message) as caught:
        infer(str(data.parent / 'images'), nets['detector'], out_dir=str(tmp_path / 'out'), annotations=str(data))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('text', ['', '[', '[]', '7', 'null', '[' * 100_000])
def test_an_annotation_file_of_other_content_is_one_line(text, tmp_path):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(UserError, match=r'a\.json is (not (a COCO|JSON)|empty|nested too deeply)') as caught:
        DataIds(tmp_path / 'a.json')
    assert '\n' not in str(caught.value)
    with pytest.raises(UserError, match=r'cannot be read|no file'):
        DataIds(tmp_path / 'gone.json')


def test_two_files_with_one_entry_are_one_line(data, tmp_path):
    data.write_text(data.read_text().replace('images/z.png', 'z.png'))
    copies = [draw(tmp_path / folder / 'z.png') for folder in ('x', 'y')]
    with pytest.raises(UserError, match='has one entry for'):
        DataIds(data).indices(copies)


ALL_KINDS = {
    'alpha.png': ('.png', np.full((48, 64, 4), (10, 20, 200, 0), np.uint8), (10, 20, 200)),
    'grey.png': ('.png', np.full((48, 64), 130, np.uint8), (130, 130, 130)),
    'thermal.png': ('.png', np.full((48, 64), 200 * 256 + 99, np.uint16), (200, 200, 200)),
    'deep.png': ('.png', np.full((48, 64, 3), (256, 512, 65535), np.uint16), (1, 2, 255)),
    'tiny.png': ('.png', np.full((1, 1, 3), (1, 2, 3), np.uint8), (1, 2, 3)),
    'thin [1] .png': ('.png', np.full((2, 4000, 3), (1, 2, 3), np.uint8), (1, 2, 3)),
    'Größe 図.png': ('.png', np.full((48, 64, 3), (1, 2, 3), np.uint8), (1, 2, 3)),
    'wrong_suffix.jpg': ('.png', np.full((48, 64, 3), (1, 2, 3), np.uint8), (1, 2, 3)),
}


@pytest.mark.parametrize('net', ['detector', 'segmenter'])
def test_images_of_every_kind(net, nets, tmp_path, monkeypatch):
    """Each is found once, with its size, and the exported file sees the pixels that training sees."""
    (tmp_path / 'in').mkdir()
    for name, (suffix, pixels, _) in ALL_KINDS.items():
        (tmp_path / 'in' / name).write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())
    seen = {}
    load = infer_module.load

    def recorded(*args, **kwargs):
        predictor = load(*args, **kwargs)
        predict = predictor.predict
        order = iter(sorted(ALL_KINDS))
        predictor.predict = lambda pixels: (seen.update({next(order): pixels}), predict(pixels))[1]
        return predictor

    monkeypatch.setattr(infer_module, 'load', recorded)
    infer(str(tmp_path / 'in'), nets[net], out_dir=str(tmp_path / 'out'))
    assert names(tmp_path / 'out') == sorted(ALL_KINDS)
    for name, (_, pixels, colour) in ALL_KINDS.items():
        assert seen[name].shape == (*pixels.shape[:2], 3)
        assert tuple(seen[name][0, 0].tolist()) == colour
    for image in content(tmp_path / 'out')['images'] if net == 'detector' else ():
        height, width = ALL_KINDS[image['file_name']][1].shape[:2]
        assert (image['width'], image['height']) == (width, height)
