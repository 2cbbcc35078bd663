"""Predictions as labels for CVAT and Label Studio."""

import json
import zipfile
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO

from mnv4_mm.cli import main
from mnv4_mm.errors import UserError
from mnv4_mm.images import write_mask
from mnv4_mm.runtime.labels import FORMS, write_labels

CLASSES = ['red "cell"', 'a: b & <c>']


@pytest.fixture
def predictions(tmp_path):
    """Predictions for three images: a box over the edge, one with a low score, one outside, and no box."""
    images = [
        dict(id=7, file_name='cam 0/a.jpg', width=100, height=50),
        dict(id=9, file_name='cam1/a.png', width=40, height=40),
        dict(id=12, file_name='empty.jpg', width=10, height=10),
    ]
    boxes = [(7, 5, [-10, 10, 30, 20], 0.9), (7, 3, [50, 0, 50, 50], 0.6), (7, 3, [1, 1, 2, 2], 0.29)]
    boxes += [(9, 3, [10, 10, 20, 20], 0.3), (9, 3, [50, 50, 10, 10], 0.8)]
    annotations = [
        dict(id=i, image_id=image, category_id=category, bbox=box, score=score, area=box[2] * box[3], iscrowd=0)
        for i, (image, category, box, score) in enumerate(boxes, 1)
    ]
    categories = [dict(id=5, name=CLASSES[0]), dict(id=3, name=CLASSES[1])]
    path = tmp_path / 'predictions.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return path


def test_the_command_offers_every_form(capsys):
    with pytest.raises(SystemExit):
        main(['infer', '--help'])
    assert f'--labels {{{",".join(FORMS)}}}' in capsys.readouterr().out


def test_coco(predictions):
    path = write_labels(predictions, 'coco', score_thr=0.3)
    coco = COCO(path)
    assert [coco.loadImgs(i)[0]['file_name'] for i in (7, 9, 12)] == ['cam 0/a.jpg', 'cam1/a.png', 'empty.jpg']
    found = [(one['image_id'], one['category_id'], one['bbox'], one['score']) for one in coco.anns.values()]
    assert found == [(7, 5, [0, 10, 20, 20], 0.9), (7, 3, [50, 0, 50, 50], 0.6), (9, 3, [10, 10, 20, 20], 0.3)]
    assert [one['area'] for one in coco.anns.values()] == [400, 2500, 400]
    assert {one['id']: one['name'] for one in coco.cats.values()} == {5: CLASSES[0], 3: CLASSES[1]}


def test_yolo(predictions):
    path = write_labels(predictions, 'yolo', score_thr=0.3)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
    data = yaml.safe_load(files.pop('data.yaml'))
    assert data == dict(path='./', train='train.txt', names=dict(enumerate(CLASSES)))
    assert files.pop('train.txt').splitlines() == [
        'images/train/cam 0/a.jpg',
        'images/train/cam1/a.png',
        'images/train/empty.jpg',
    ]
    rows = {name: [list(map(float, line.split())) for line in text.splitlines()] for name, text in files.items()}
    assert rows == {
        'labels/train/cam 0/a.txt': [[0, 0.1, 0.4, 0.2, 0.4], [1, 0.75, 0.5, 0.5, 1]],
        'labels/train/cam1/a.txt': [[1, 0.5, 0.5, 0.5, 0.5]],
        'labels/train/empty.txt': [],
    }


def test_label_studio(predictions):
    path = write_labels(predictions, 'label-studio', score_thr=0.3, folder='my images', model='best.onnx')
    tasks = json.loads(path.read_text())
    assert [unquote(task['data']['image']) for task in tasks] == [
        f'/data/local-files/?d=my images/{name}' for name in ('cam 0/a.jpg', 'cam1/a.png', 'empty.jpg')
    ]
    assert ' ' not in tasks[0]['data']['image']
    (prediction,) = tasks[0]['predictions']
    assert prediction['model_version'] == 'best.onnx'
    first = prediction['result'][0]
    assert (first['original_width'], first['original_height'], first['score']) == (100, 50, 0.9)
    assert first['value'] == dict(x=0, y=20, width=20, height=40, rotation=0, rectanglelabels=[CLASSES[0]])
    assert len({one['id'] for one in prediction['result']}) == 2
    # The labels refer to the tags of the configuration beside the file.
    view = ElementTree.parse(path.with_name('label_studio_config.xml')).getroot()
    rectangles = view.find('RectangleLabels')
    assert (first['from_name'], first['to_name']) == (rectangles.get('name'), rectangles.get('toName'))
    assert view.find('Image').get('name') == first['to_name']
    assert [label.get('value') for label in rectangles] == CLASSES


def test_frames_of_a_video_are_named_as_in_cvat(predictions):
    content = json.loads(predictions.read_text())
    content['images'][0]['file_name'] = 'clip.mp4#12'
    predictions.write_text(json.dumps(content))
    coco = json.loads(write_labels(predictions, 'coco', score_thr=0.3).read_text())
    assert coco['images'][0]['file_name'] == 'frame_000012.jpg'


def test_two_images_that_would_share_a_label_file_are_refused(predictions):
    content = json.loads(predictions.read_text())
    content['images'][1]['file_name'] = 'cam 0/a.png'
    predictions.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r'cam 0/a\.png and cam 0/a\.jpg would share labels/train/cam 0/a\.txt'):
        write_labels(predictions, 'yolo', score_thr=0.3)


# pycocotools decodes with numpy 1's protocol.
@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')
def test_class_maps(tmp_path):
    values = np.array([[1, 1, 2], [2, 2, 2]])
    write_mask(tmp_path / 'class_maps/a.png', values, [(0, 0, 0), (255, 0, 0), (0, 255, 0)])
    content = dict(
        values=dict(sky=1, road=2),
        images=[dict(file_name='a.jpg', class_map='class_maps/a.png', share=dict(road=4 / 6, sky=2 / 6))],
    )
    path = tmp_path / 'predictions.json'
    path.write_text(json.dumps(content))
    coco = COCO(write_labels(path, 'coco', score_thr=0.3))
    assert coco.loadImgs(1)[0] == dict(id=1, file_name='a.jpg', width=3, height=2)
    masks = {one['category_id']: coco.annToMask(one) for one in coco.anns.values()}
    assert {value: mask.tolist() for value, mask in masks.items()} == {
        value: (values == value).astype(int).tolist() for value in (1, 2)
    }
    assert [one['bbox'] for one in coco.anns.values()] == [[0, 0, 3, 2], [0, 0, 2, 1]]
    for form in FORMS.keys() - {'coco'}:
        with pytest.raises(UserError, match=f'--labels {form} holds boxes'):
            write_labels(path, form, score_thr=0.3)
