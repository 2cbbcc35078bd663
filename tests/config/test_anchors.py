"""Input size, levels and anchors of a detector follow the options of training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import TASK_UTILS
from mmengine.registry import DefaultScope

from mnv4_mm.apis.evaluate import evaluate
from mnv4_mm.config import anchors
from mnv4_mm.config.anchors import (
    best_iou,
    check_same_anchors,
    fit_anchors,
    levels_of,
    set_levels,
    training_boxes,
)
from mnv4_mm.config.check import check_config
from mnv4_mm.config.data import LOADERS, innermost_dataset
from mnv4_mm.config.input_size import set_size
from mnv4_mm.config.load import load_config
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.training import training_config
from mnv4_mm.errors import UserError
from mnv4_mm.tasks import build_model
from mnv4_mm.weights.checkpoint import Checkpoint

WITH_ANCHORS = ['mnv4_ssdlite_coco', 'mnv4_ssdlite_bccd', 'mnv4_retinanet_coco']
SMALL, LARGE = (22, 20), (100, 90)  # width and height of the boxes in `cells`


@pytest.fixture
def cells(tmp_path):
    """Annotations of 24 images of 640x320 with two classes of boxes, and their path."""
    rng = np.random.default_rng(0)
    images = [dict(id=i, file_name=f'{i}.jpg', width=640, height=320) for i in range(24)]
    annotations = []
    for image in images:
        for label, (width, height) in enumerate((SMALL, SMALL, SMALL, LARGE)):
            w, h = width * rng.uniform(0.9, 1.1), height * rng.uniform(0.9, 1.1)
            x, y = rng.uniform(0, 640 - w), rng.uniform(0, 320 - h)
            number, category = len(annotations) + 1, 7 if label == 3 else 4
            annotations.append(dict(id=number, image_id=image['id'], category_id=category, bbox=[x, y, w, h]))
    annotations.append(dict(id=999, image_id=0, category_id=4, bbox=[0, 0, 600, 300], iscrowd=1))
    categories = [dict(id=7, name='large'), dict(id=4, name='small')]
    path = tmp_path / 'train.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return path


def with_boxes(name: str, path) -> object:
    cfg = load_config(name)
    dataset = innermost_dataset(cfg.train_dataloader.dataset)
    dataset.update(data_root='', ann_file=str(path), metainfo=dict(classes=('small', 'large')))
    return cfg


def generator_of(cfg) -> dict:
    return cfg.model.bbox_head.anchor_generator


def level_sizes(cfg, height: int, width: int) -> list[tuple[int, int]]:
    cfg.model.backbone.pop('init_cfg', None)
    model = build_model(cfg).eval()
    with torch.no_grad():
        return [tuple(level.shape[2:]) for level in model(torch.zeros(1, 3, height, width))[0]]


@pytest.mark.parametrize('name', WITH_ANCHORS)
def test_anchors_are_those_of_mmdet(name):
    cfg = load_config(name)
    levels = list(levels_of(generator_of(cfg)))
    with DefaultScope.overwrite_default_scope('mmdet'):
        built = TASK_UTILS.build(dict(generator_of(cfg)))
    assert len(levels) == len(built.base_anchors)
    for (step, centre, sizes), stride, corners in zip(levels, built.strides, built.base_anchors, strict=True):
        assert tuple(step) == stride
        expected = corners.double().numpy()
        np.testing.assert_allclose((expected[:, 2:] + expected[:, :2]) / 2, np.tile(centre, (len(sizes), 1)), atol=1e-4)
        sides = expected[:, 2:] - expected[:, :2]
        assert sorted(map(tuple, sides.round(1))) == sorted(map(tuple, sizes.round(1)))


def test_iou_with_the_best_anchor():
    boxes = anchors.Boxes(
        centres=np.array([[8.0, 8.0], [12.0, 8.0], [32.0, 20.0]]),
        sizes=np.array([[16.0, 16.0], [16.0, 16.0], [16.0, 8.0]]),
        classes=np.zeros(3, int),
        names=('a',),
        input_size=(64, 64),
    )
    generator = dict(type='AnchorGenerator', strides=[8], scales=[2.0], ratios=[1.0])
    # On an anchor; half a stride beside two; half a stride below, and half as high: 8 * 16 of 16 * 16 are covered.
    assert best_iou(boxes, generator) == pytest.approx([1, 12 / 20, 0.5])


@pytest.mark.parametrize('name', ['mnv4_ssdlite_bccd', 'mnv4_retinanet_coco-mini'])
def test_anchors_are_fitted_to_the_boxes(name, cells):
    cfg = with_boxes(name, cells)
    boxes = training_boxes(cfg)
    assert boxes.names == ('small', 'large')
    assert np.bincount(boxes.classes).tolist() == [72, 24]  # without the crowd
    width, height = cfg.input_size
    expected = (SMALL[0] * width / 640, SMALL[1] * height / 320)
    np.testing.assert_allclose(np.median(boxes.sizes[boxes.classes == 0], 0), expected, rtol=0.1)
    before, old = best_iou(boxes, generator_of(cfg)), dict(generator_of(cfg))
    weights = [tuple(p.shape) for p in build_model(cfg).bbox_head.parameters()]
    report = fit_anchors(cfg)

    after = best_iou(boxes, generator_of(cfg))
    for label, line in enumerate(report.splitlines()[1:3]):
        mine = boxes.classes == label
        assert line.split() == [boxes.names[label], f'{before[mine].mean():.3f}', '->', f'{after[mine].mean():.3f}']
    assert after.mean() > before.mean() + 0.05
    assert after[boxes.classes == 0].mean() > 0.55  # 11x16 pixels on a grid of 8
    # As many anchors as before, on the same levels; plain numbers, which a checkpoint's config can hold.
    assert [tuple(p.shape) for p in build_model(cfg).bbox_head.parameters()] == weights
    assert generator_of(cfg)['strides'] == old['strides']
    assert all(type(value) is float for key in ('scales', 'min_sizes') for value in generator_of(cfg).get(key, []))


def test_fitting_is_repeatable(cells):
    first, second = (with_boxes('mnv4_retinanet_coco-mini', cells) for _ in range(2))
    assert fit_anchors(first) == fit_anchors(second)
    assert generator_of(first) == generator_of(second)


def test_anchors_that_fit_already_stay(cells, monkeypatch):
    cfg = with_boxes('mnv4_ssdlite_bccd', cells)
    monkeypatch.setattr(anchors, 'best_iou', lambda boxes, generator: np.ones(len(boxes.sizes)))
    old = dict(generator_of(cfg))
    assert 'no better anchors were found, so those of the config stay' in fit_anchors(cfg)
    assert generator_of(cfg) == old


def test_no_boxes_to_fit_anchors_to(cells):
    cells.write_text(json.dumps(dict(images=[], annotations=[], categories=[dict(id=1, name='small')])))
    with pytest.raises(UserError, match='the training images have no boxes'):
        fit_anchors(with_boxes('mnv4_ssdlite_coco', cells))


@pytest.mark.parametrize('size', [(320,), (320, 320)])
def test_the_same_size_changes_nothing(size):
    cfg = load_config('mnv4_ssdlite_coco')
    assert set_size(load_config('mnv4_ssdlite_coco'), size).to_dict() == cfg.to_dict()


@pytest.mark.parametrize('name', ['mnv4_ssdlite_coco', 'mnv4_ssdlite_bccd', 'mnv4_ssdlite_coco-mini'])
@pytest.mark.parametrize(('height', 'width'), [(320, 320), (256, 320), (416, 672)])
def test_size_reaches_pipelines_and_anchors_of_ssdlite(name, height, width):
    old = load_config(name)
    cfg = set_size(load_config(name), (height, width))
    assert cfg.input_size == (width, height)
    for loader in LOADERS:
        steps = innermost_dataset(cfg[loader].dataset).pipeline
        sizes = [step[key] for step in steps for key in ('scale', 'size', 'crop_size') if key in step]
        assert sizes
        assert set(sizes) == {(width, height)}
    maps = level_sizes(cfg, height, width)
    for (rows, columns), stride in zip(maps, generator_of(cfg)['strides'], strict=True):
        across, down = (stride, stride) if isinstance(stride, int | float) else stride
        assert (columns, rows) == pytest.approx((width / across, height / down), rel=0.005)
    factor = ((width * height) / (old.input_size[0] * old.input_size[1])) ** 0.5
    for key in ('min_sizes', 'max_sizes'):
        expected = [side * factor for side in generator_of(old)[key]]
        assert generator_of(cfg)[key] == pytest.approx(expected, abs=0.06)


def test_sizes_of_a_mosaic_are_scaled_in_proportion():
    cfg = set_size(load_config('mnv4_rtmdet_coco'), (320,))
    steps = {step['type']: step for step in innermost_dataset(cfg.train_dataloader.dataset).pipeline}
    assert steps['CachedMosaic']['img_scale'] == steps['RandomCrop']['crop_size'] == steps['Pad']['size'] == (320, 320)
    assert steps['RandomResize']['scale'] == (640, 640)  # twice the input, as in the config
    switched = next(hook for hook in cfg.custom_hooks if 'switch_pipeline' in hook)['switch_pipeline']
    assert {step.get('size', (320, 320)) for step in switched} == {(320, 320)}


@pytest.mark.parametrize('backbone', ['mnv4_conv_s', 'mnv4_hybrid_m'])
def test_a_level_of_stride_8(backbone):
    options = TrainOptions(work_dir='w', backbone=backbone, levels=8, size=[256, 320])
    cfg = training_config('mnv4_ssdlite_coco-mini', options)
    assert level_sizes(cfg, 256, 320) == [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3), (1, 2), (1, 1)]
    assert generator_of(cfg)['min_sizes'][:2] == pytest.approx([21.5, 42.9], abs=0.1)  # half of 48, both by sqrt(0.8)
    assert set_levels(cfg, 8) is cfg
    assert len(generator_of(cfg)['strides']) == 7


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        (
            'mnv4_rtmdet_coco',
            dict(fit_anchors=True),
            '--fit-anchors is for SSDLite and RetinaNet; this config has MlvlPointG',
        ),
        ('mnv4_fpn_ade20k', dict(fit_anchors=True), '--fit-anchors is for SSDLite and RetinaNet'),
        ('mnv4_fpn_ade20k', dict(size=[320]), '--size is for detectors'),
        ('mnv4_retinanet_coco', dict(levels=8), '--levels is for SSDLite on MobileNetV4 or a timm net; RetinaNet and'),
        ('mnv4_ssdlite_bccd', dict(levels=16), 'the finest level of this config has stride 8'),
    ],
)
def test_options_that_do_not_fit_the_config(name, options, message):
    options = TrainOptions(work_dir='w', **options)
    with pytest.raises(UserError, match=message):
        check_config(name, options)  # before anything heavy is imported
    apply = {'fit_anchors': fit_anchors, 'size': lambda cfg: set_size(cfg, [320])}
    apply['levels'] = lambda cfg: set_levels(cfg, options.levels)
    cfg = load_config(name)
    with pytest.raises(UserError, match=message):
        apply[next(key for key in apply if getattr(options, key))](cfg)


@pytest.mark.parametrize('size', [(), (300,), (0,), (-32,), (320, 320, 320), 320, '320', (320.0,), (True,)])
def test_sizes_that_are_none(size):
    with pytest.raises(UserError, match='--size takes one or two multiples of 32'):
        TrainOptions(size=size)


def test_a_checkpoint_of_other_anchors_is_refused():
    trained = set_levels(load_config('mnv4_ssdlite_coco-mini'), 8)
    checkpoint = Checkpoint(Path('net.pth'), dict(state_dict={}, meta=dict(cfg=trained.pretty_text)))
    check_same_anchors(trained, checkpoint)
    check_same_anchors(load_config('mnv4_ssdlite_coco'), Checkpoint(Path('net.pth'), dict(state_dict={})))
    other = set_levels(load_config('mnv4_ssdlite_coco-mini'), 8)
    generator_of(other).min_sizes = [20.0, *generator_of(other).min_sizes[1:]]
    for cfg in (load_config('mnv4_ssdlite_coco-mini'), other):
        with pytest.raises(UserError, match=r'net\.pth was trained with other anchors.*--fit-anchors'):
            check_same_anchors(cfg, checkpoint)
    coder = set_levels(load_config('mnv4_ssdlite_coco-mini'), 8)
    coder.model.bbox_head.bbox_coder.target_means = (0.0, 0.0, 0.0, 0.5)
    with pytest.raises(UserError, match=r'net\.pth was trained with another bbox_coder'):
        check_same_anchors(coder, checkpoint)
    with pytest.raises(UserError, match='was trained with other anchors'):
        evaluate(other, checkpoint, work_dir=Path('never'))
    assert not Path('never').exists()
