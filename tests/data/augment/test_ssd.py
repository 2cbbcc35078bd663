"""SSDAugmentation equals mmdet's chain of transforms: for the same random parameters, and in distribution."""

import copy

import cv2
import mmdet.datasets.transforms.transforms as mmdet_transforms
import numpy as np
import pytest
import torch
from augmentation import NO_DISTORTION, P_VALUE, SAMPLES, Scripted, assert_same_colours, same_distribution
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope

from mnv4_mm.data.augment.pixels import distort_float, read_reduced
from mnv4_mm.data.augment.ssd import SSDAugmentation, SSDParams, crop_window

MEAN = (123.675, 116.28, 103.53)


def ssd(scale=(320, 320), **settings):
    return SSDAugmentation(scale=scale, mean=MEAN, **settings)


def mmdet_chain(scale=(320, 320), photometric=True, **settings):
    steps = [
        dict(type='Expand', mean=list(MEAN), to_rgb=True, ratio_range=(1, 4)),
        dict(type='MinIoURandomCrop', **{'min_ious': (0.1, 0.3, 0.5, 0.7, 0.9), 'min_crop_size': 0.3, **settings}),
        dict(type='Resize', scale=scale, keep_ratio=False),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion', hue_delta=18),
    ]
    with DefaultScope.overwrite_default_scope('mmdet'):
        return Compose(steps if photometric else steps[:-1])


def sample(image, boxes):
    """Results as after mmdet's loading transforms."""
    return dict(
        img=image,
        img_shape=image.shape[:2],
        ori_shape=image.shape[:2],
        height=image.shape[0],
        width=image.shape[1],
        gt_bboxes=HorizontalBoxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_bboxes_labels=np.arange(len(boxes)),
        gt_ignore_flags=np.arange(len(boxes)) % 3 == 1,
    )


def replay_mmdet(monkeypatch, results, params, scale=(320, 320)):
    """Run mmdet's chain with the given random parameters."""
    chain = mmdet_chain(scale)
    expand, crop, _, flip, colour = chain.transforms
    ratio, left, top = params.expansion or (1, 0, 0)
    expand._random_prob = lambda: 0 if params.expansion else 1
    expand._random_ratio = lambda: ratio
    expand._random_left_top = lambda *_: (left, top)
    crop._random_mode = lambda: 1 if params.crop is None else 0
    if params.crop:
        x1, y1, x2, y2 = params.crop
        monkeypatch.setattr(mmdet_transforms, 'random', Scripted([x2 - x1, y2 - y1, x1, y1]))
    flip._choose_direction = lambda: 'horizontal' if params.flip else None
    c = params.colour
    flags = [int(value is not None) for value in (c.brightness, c.contrast, c.saturation, c.hue)]
    colour._random_flags = lambda: (
        int(not c.contrast_last), *flags, 1, c.brightness, c.contrast, c.saturation, c.hue, list(c.channels),
    )  # fmt: skip
    return chain(results)


def is_valid_crop(params):
    """Return True if mmdet accepts the aspect ratio of the crop, which is rounded to pixels here."""
    if params.crop is None:
        return True
    x1, y1, x2, y2 = params.crop
    return 0.5 <= (y2 - y1) / (x2 - x1) <= 2


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


@pytest.fixture(scope='module')
def images(repository):
    files = sorted((repository / 'data/mini/coco/train2017').glob('*.jpg'))[:8]
    return [cv2.imread(str(file)) for file in files]


def random_boxes(rng, height, width, count):
    corners = rng.uniform(0, 0.7, (count, 2)) * (width, height)
    return np.hstack([corners, corners + rng.uniform(0.05, 0.3, (count, 2)) * (width, height)])


def test_boxes_and_image_are_mmdets_for_the_same_parameters(images, monkeypatch):
    ours, rng = ssd(), np.random.default_rng(0)
    np.random.seed(0)
    cases = set()
    for turn in range(120):
        image = images[turn % len(images)]
        results = sample(image, random_boxes(rng, *image.shape[:2], turn % 6))
        params = ours.sample_params(*image.shape[:2], results['gt_bboxes'].numpy())
        if not is_valid_crop(params):
            continue
        cases.add((params.expansion is not None, params.crop is not None, params.flip))
        theirs = replay_mmdet(monkeypatch, copy.deepcopy(results), params)
        mine = ours.apply(results, image, params)
        torch.testing.assert_close(mine['gt_bboxes'].tensor, theirs['gt_bboxes'].tensor, rtol=0, atol=1e-3)
        assert mine['gt_bboxes_labels'].tolist() == theirs['gt_bboxes_labels'].tolist()
        assert mine['gt_ignore_flags'].tolist() == theirs['gt_ignore_flags'].tolist()
        assert mine['img_shape'] == theirs['img_shape'] == mine['img'].shape[:2]
        assert mine['scale_factor'] == pytest.approx(theirs['scale_factor'])
        assert mine['flip'] == theirs['flip']
        assert mine['img'].dtype == theirs['img'].dtype
        difference = np.abs(mine['img'] - theirs['img'])
        assert difference.mean() < 2  # of 255
    assert len(cases) == 8


def test_a_crop_inside_the_image_is_exact(images, monkeypatch):
    ours = ssd()
    np.random.seed(1)
    for image in images:
        params = ours.sample_params(*image.shape[:2], np.zeros((0, 4)))
        params = params._replace(expansion=None, crop=(10, 20, 210, 180))
        theirs = replay_mmdet(monkeypatch, sample(image, []), params)
        np.testing.assert_allclose(ours.apply(sample(image, []), image, params)['img'], theirs['img'], atol=2e-3)


def test_a_reduced_image_is_aligned_with_the_full_one(images, tmp_path):
    """An image decoded at half its size or less gives the same result but for blur: it is not shifted."""
    ours = ssd()
    np.random.seed(2)
    path = str(tmp_path / 'x.jpg')
    reduced_images = 0
    for turn in range(60):
        image = cv2.GaussianBlur(images[turn % len(images)], (0, 0), 6)
        cv2.imwrite(path, image, [cv2.IMWRITE_JPEG_QUALITY, 98])
        height, width = image.shape[:2]
        params = ours.sample_params(height, width, np.zeros((0, 4)))._replace(colour=NO_DISTORTION)
        reduced, reduction = read_reduced(path, crop_window(height, width, params), (320, 320))
        if reduction == 1:
            continue
        reduced_images += 1
        from_full = ours.apply(sample(image, []), image, params)['img']
        from_reduced = ours.apply(sample(image, []), reduced, params, reduction)['img']
        assert np.abs(from_full - from_reduced).mean() < 1.5
    assert reduced_images > 10


def test_colours_are_mmdets_for_the_same_parameters(images, monkeypatch):
    ours = ssd()
    np.random.seed(3)
    for turn in range(60):
        image = cv2.resize(images[turn % len(images)], (96, 80))
        image[:20] //= 16  # dark: negative after a change of brightness
        colour = ours.sample_params(80, 96, np.zeros((0, 4))).colour
        params = SSDParams(None, None, False, colour)
        theirs = replay_mmdet(monkeypatch, sample(image, []), params, (96, 80))['img']
        np.testing.assert_allclose(distort_float(image, colour), theirs, atol=2e-3)


@pytest.mark.parametrize(
    ('count', 'samples'),
    [(0, SAMPLES), pytest.param(0, 10_000, marks=pytest.mark.long), pytest.param(3, 3_000, marks=pytest.mark.long)],
)
def test_parameters_have_mmdets_distribution(count, samples):
    """Crop, boxes and flip over many samples of a small image. With boxes, mmdet's crop takes 25 ms."""
    height, width, size = 60, 80, 32
    boxes = random_boxes(np.random.default_rng(count + 1), height, width, count)
    # The colour encodes the position, so that it shows which region was cropped.
    ramp = np.dstack([np.tile(np.linspace(0, 255, width), (height, 1))] * 3).astype(np.uint8)
    geometry = mmdet_chain((size, size), photometric=False)
    ours = ssd((size, size))
    measured = {}
    for name in ('ours', 'theirs'):
        np.random.seed(5 if name == 'ours' else 6)
        rows = []
        for _ in range(samples):
            results = sample(ramp, boxes)
            if name == 'theirs':
                results = geometry(results)
            else:
                params = ours.sample_params(height, width, results['gt_bboxes'].numpy())
                results = ours.apply(results, ramp, params._replace(colour=NO_DISTORTION))
            x, y = results['scale_factor']
            left = results['gt_bboxes'].tensor.numpy()
            extent = (left[:, 2:] - left[:, :2]).prod(1)
            rows.append(
                dict(
                    area=1 / (x * y),
                    aspect=y / x,
                    count=len(left),
                    box_area=extent.mean() if len(left) else -1,
                    box_x=left[:, 0].mean() if len(left) else -1,
                    flip=float(results['flip']),
                    centre_pixel=float(results['img'][size // 2, size // 2, 0]),
                )
            )
        measured[name] = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    for key, values in measured['ours'].items():
        assert same_distribution(values, measured['theirs'][key]) > P_VALUE, key
    # The test can fail: it detects a minimum size of crops that is half as large again.
    np.random.seed(7)
    other = ssd((size, size), min_crop_size=0.45)
    areas = [area(crop_window(height, width, other.sample_params(height, width, boxes))) for _ in range(samples)]
    assert same_distribution(np.array(areas) / size**2, measured['theirs']['area']) < P_VALUE


def test_colours_have_mmdets_distribution(images):
    image, ours = cv2.resize(images[0], (12, 10)), ssd()
    with DefaultScope.overwrite_default_scope('mmdet'):
        reference = Compose([dict(type='PhotoMetricDistortion', hue_delta=18)])
    assert_same_colours(
        lambda: distort_float(image, ours.sample_params(10, 12, np.zeros((0, 4))).colour),
        lambda: reference(dict(img=image))['img'],
    )


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_reduced_images_fill_the_result(suffix, tmp_path):
    """JPEG files are decoded at 1/2 or 1/4, PNG files are not; neither factor divides the sides of this image."""
    path = tmp_path / f'x{suffix}'
    cv2.imwrite(str(path), np.full((1283, 1287, 3), 80, np.uint8))
    for _ in range(20):
        results = sample(np.zeros((1283, 1287, 3), np.uint8), [[1, 1, 1280, 1280]])
        ours = ssd(expand_prob=0, brightness_delta=0, contrast_range=(1, 1), saturation_range=(1, 1), hue_delta=0)
        image = ours.transform(dict(results, img_path=str(path)))['img']
        assert np.abs(image - 80).max() < 2


def test_the_size_of_the_image_overrides_that_of_the_annotation(repository):
    """As in mmdet, boxes are then in pixels of the image."""
    path = sorted((repository / 'data/mini/coco/train2017').glob('*.jpg'))[0]
    height, width = cv2.imread(str(path)).shape[:2]
    for error in (1, 40):
        annotated = sample(np.zeros((height + error, width, 3), np.uint8), [[1, 1, 50, 50]])
        results = ssd(expand_prob=0, min_ious=()).transform(dict(annotated, img_path=str(path)))
        assert results['ori_shape'] == (height, width)
