"""infer reads images of every kind, folders and videos, and writes predictions in COCO format."""

import json

import cv2
import numpy as np
import pytest
import torch
from end_to_end import IN_PROCESS
from mmengine.registry import DefaultScope

from mnv4_mm.apis.infer import infer
from mnv4_mm.apis.load import load
from mnv4_mm.apis.model import load_model
from mnv4_mm.apis.train import train
from mnv4_mm.data.coco_files import read_annotations
from mnv4_mm.errors import UserError
from mnv4_mm.runtime import Detections


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory, drawn):
    """A checkpoint as train.py writes it, after two steps."""
    work_dir = tmp_path_factory.mktemp('run')
    options = {
        **IN_PROCESS,
        'train_dataloader.dataset.times': 1,
        'train_dataloader.dataset.dataset.indices': 8,
        'train_dataloader.batch_size': 4,
    }
    train('mnv4_ssdlite_coco-mini', data=str(drawn), work_dir=str(work_dir / 'w'), epochs=1, cfg_options=options)
    return str(work_dir / 'w/epoch_1.pth')


def check(path, names, sizes):
    content = read_annotations(path)
    assert [i['file_name'] for i in content['images']] == names
    assert [(i['width'], i['height']) for i in content['images']] == sizes
    assert [c['name'] for c in content['categories']][:2] == ['disc', 'square']
    assert all(0 <= a['score'] <= 1 for a in content['annotations'])
    for a in content['annotations']:
        x, y, w, h = a['bbox']
        width, height = sizes[a['image_id'] - 1]
        assert -1e-3 <= x <= x + w <= width + 1e-3
        assert -1e-3 <= y <= y + h <= height + 1e-3


def test_an_image(checkpoint, tmp_path, repository):
    source = (
        repository
        / 'data/mini/coco/val2017'
        / sorted(p.name for p in (repository / 'data/mini/coco/val2017').iterdir())[0]
    )
    height, width = cv2.imread(str(source)).shape[:2]
    path = infer(str(source), checkpoint, out_dir=str(tmp_path / 'out'))
    check(path, [source.name], [(width, height)])
    assert cv2.imread(str(tmp_path / 'out' / source.name)).shape == (height, width, 3)


def test_a_folder_of_unusual_images(checkpoint, tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    rng = np.random.default_rng(0)
    cv2.imwrite(str(folder / 'a_grey.png'), rng.integers(0, 255, (50, 70), np.uint8))
    cv2.imwrite(str(folder / 'b_alpha.png'), rng.integers(0, 255, (50, 70, 4), np.uint8))
    cv2.imwrite(str(folder / 'c_deep.png'), rng.integers(0, 65535, (50, 70, 3), np.uint16))
    cv2.imwrite(str(folder / 'd_tiny.JPG'), rng.integers(0, 255, (3, 5, 3), np.uint8))
    (folder / 'notes.txt').write_text('not an image')
    path = infer(str(folder), checkpoint, out_dir=str(tmp_path / 'out'))
    check(path, ['a_grey.png', 'b_alpha.png', 'c_deep.png', 'd_tiny.JPG'], [(70, 50)] * 3 + [(5, 3)])


def test_a_video(checkpoint, tmp_path):
    video = tmp_path / 'in.avi'
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*'MJPG'), 10, (64, 48))
    for i in range(3):
        writer.write(np.full((48, 64, 3), 80 * i, np.uint8))
    writer.release()
    path = infer(str(video), checkpoint, out_dir=str(tmp_path / 'out'))
    check(path, ['in.avi#0', 'in.avi#1', 'in.avi#2'], [(64, 48)] * 3)
    played = cv2.VideoCapture(str(tmp_path / 'out/in.mp4'))
    assert played.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    (tmp_path / 'broken.mp4').write_bytes(b'no')
    with pytest.raises(UserError, match='not a readable video'):
        infer(str(tmp_path / 'broken.mp4'), checkpoint, out_dir=str(tmp_path / 'out2'))
    assert not (tmp_path / 'out2').exists()
    with pytest.raises(UserError, match=r'--annotations .* is for images'):
        infer(str(video), checkpoint, out_dir=str(tmp_path / 'out2'), annotations=str(path))


def test_a_video_that_ends_early(checkpoint, tmp_path, capsys, monkeypatch):
    """Frames that cannot be read are counted; an interrupted run keeps its predictions."""
    video = tmp_path / 'in.avi'
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*'MJPG'), 10, (64, 48))
    for i in range(20):
        writer.write(np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8))
    writer.release()
    content = video.read_bytes()
    cut = tmp_path / 'cut.avi'
    cut.write_bytes(content[: len(content) // 2])
    path = infer(str(cut), checkpoint, out_dir=str(tmp_path / 'cut'))
    frames = len(json.loads(path.read_text())['images'])
    assert 5 < frames < 15
    assert f'warning: {cut} ends after {frames} of 20 frames' in capsys.readouterr().err

    predictor = load(checkpoint)
    seen = []

    def stopped(pixels):
        seen.append(pixels)
        if len(seen) > 4:
            raise KeyboardInterrupt
        return predictor(pixels)

    stopped.task, stopped.classes = predictor.task, predictor.classes
    monkeypatch.setattr('mnv4_mm.apis.infer.load', lambda *_, **__: stopped)
    with pytest.raises(KeyboardInterrupt):
        infer(str(video), checkpoint, out_dir=str(tmp_path / 'out'))
    check(tmp_path / 'out/predictions.json', [f'in.avi#{i}' for i in range(4)], [(64, 48)] * 4)
    assert 'the predictions before the error are in' in capsys.readouterr().err


def test_a_checkpoint_of_something_else(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=False)
    content['state_dict'].pop('backbone.conv_stem.weight')
    torch.save(content, tmp_path / 'part.pth')
    with pytest.raises(UserError, match=r'1 missing \(backbone.conv_stem.weight\)'):
        load_model(str(tmp_path / 'part.pth'))
    torch.save(dict(state_dict=content['state_dict']), tmp_path / 'bare.pth')
    with pytest.raises(UserError, match='carries no config'):
        load_model(str(tmp_path / 'bare.pth'))


def test_category_ids_are_those_of_the_data_set(checkpoint, tmp_path, repository):
    content = torch.load(checkpoint, weights_only=False)
    assert content['meta']['category_ids'] == [1, 2, 3, 4, 5, 6]
    content['meta']['category_ids'] = [1, 2, 3, 7, 11, 13]
    torch.save(content, tmp_path / 'gaps.pth')
    image = sorted((repository / 'data/mini/coco/val2017').iterdir())[0]
    path = infer(str(image), str(tmp_path / 'gaps.pth'), out_dir=str(tmp_path / 'out'), device='cpu')
    found = read_annotations(path)
    assert [c['id'] for c in found['categories']] == [1, 2, 3, 7, 11, 13]
    assert {a['category_id'] for a in found['annotations']} <= {1, 2, 3, 7, 11, 13}


def test_an_absent_device(checkpoint):
    with pytest.raises(UserError, match='--device'):
        load_model(checkpoint, device='cuda:7')


def test_detections_are_those_of_mmdet(checkpoint, repository):
    """A detector built here and by mmdet has equal detections, also through ``load``."""
    from mmdet.apis import inference_detector, init_detector

    from mnv4_mm.config.checkpoint import checkpoint_config
    from mnv4_mm.engine.step import use_channels_last
    from mnv4_mm.weights.checkpoint import read_checkpoint

    image = str(sorted((repository / 'data/mini/coco/val2017').iterdir())[0])
    with DefaultScope.overwrite_default_scope('mmdet'):
        ours = inference_detector(load_model(checkpoint, device='cpu'), image).pred_instances
    cfg = checkpoint_config(read_checkpoint(checkpoint))
    model = init_detector(cfg, checkpoint, device='cpu', palette='random')
    use_channels_last(model)  # the same order of sums
    theirs = inference_detector(model, image).pred_instances
    loaded = load(checkpoint, device='cpu')(image)
    assert isinstance(loaded, Detections)
    assert loaded.classes[:2] == ('disc', 'square')
    for values, expected in (
        (loaded.boxes, theirs.bboxes),
        (loaded.scores, theirs.scores),
        (loaded.labels, theirs.labels),
    ):
        np.testing.assert_array_equal(values, expected.numpy())
    assert loaded.boxes.dtype == loaded.scores.dtype == np.float32
    assert loaded.labels.dtype == np.int64
    assert loaded.plot().shape == cv2.imread(image).shape
    assert torch.equal(ours.bboxes, theirs.bboxes)
    assert torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.labels, theirs.labels)
