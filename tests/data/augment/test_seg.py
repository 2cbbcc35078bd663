"""SegAugmentation equals mmseg's chain of transforms: for the same random parameters, and in distribution."""

import cv2
import mmseg.datasets.transforms.transforms as mmseg_transforms
import numpy as np
import pytest
from augmentation import NO_DISTORTION, P_VALUE, SAMPLES, Scripted, assert_same_colours, same_distribution
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmseg.datasets.transforms import LoadAnnotations

from mnv4_mm.data.augment.pixels import distort_uint8, read_reduced
from mnv4_mm.data.augment.seg import SegAugmentation, SegParams, build_label_table
from mnv4_mm.errors import UserError

LONG, SHORT = 160, 64  # sides of the scaled image and of the crop in the tests of distributions


def mmseg_chain(cat_max_ratio=0.75):
    steps = [
        dict(type='RandomResize', scale=(LONG, SHORT), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(SHORT, SHORT), cat_max_ratio=cat_max_ratio),
        dict(type='RandomFlip', prob=0.5),
    ]
    with DefaultScope.overwrite_default_scope('mmseg'):
        return Compose(steps)


def sample(image, mask):
    """Results as after mmseg's loading transforms."""
    return dict(
        img=image, gt_seg_map=mask, seg_fields=['gt_seg_map'], img_shape=image.shape[:2], ori_shape=mask.shape
    )  # fmt: skip


@pytest.fixture(scope='module')
def pairs(repository):
    folder = repository / 'data/mini/ade'
    files = sorted((folder / 'images/training').glob('*.jpg'))[:8]
    masks = [folder / 'annotations/training' / f'{file.stem}.png' for file in files]
    return [
        (cv2.imread(str(file)), cv2.imread(str(mask), cv2.IMREAD_UNCHANGED))
        for file, mask in zip(files, masks, strict=True)
    ]


def replay_mmseg(monkeypatch, results, params):
    """Run mmseg's chain with the given random parameters."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        chain = Compose(
            [
                dict(type='Resize', scale=params.size, keep_ratio=False),
                dict(type='RandomCrop', crop_size=(512, 512)),
                dict(type='RandomFlip', prob=0.5),
                dict(type='PhotoMetricDistortion'),
            ]
        )
    _, crop, flip, _ = chain.transforms
    x1, y1, x2, y2 = params.crop
    crop.crop_bbox = lambda _: (y1, y2, x1, x2)
    flip._choose_direction = lambda: 'horizontal' if params.flip else None
    script_colour(monkeypatch, params.colour)
    return chain(results)


def script_colour(monkeypatch, colour):
    """Return the numbers in the order in which mmseg's PhotoMetricDistortion samples them: a flag, if 1 a value."""

    def numbers(value):
        return [0] if value is None else [1, value]

    contrast = numbers(colour.contrast)
    script = [*numbers(colour.brightness), int(not colour.contrast_last)]
    script += ([] if colour.contrast_last else contrast) + numbers(colour.saturation) + numbers(colour.hue)
    script += contrast if colour.contrast_last else []
    monkeypatch.setattr(mmseg_transforms, 'random', Scripted(script))


def test_image_and_mask_are_mmsegs_for_the_same_parameters(pairs, monkeypatch):
    ours = SegAugmentation(scale=(2048, 512), crop_size=(512, 512), cat_max_ratio=0.75)
    table = build_label_table(True, {})
    np.random.seed(0)
    smaller = 0
    for turn in range(48):
        image, mask = pairs[turn % len(pairs)]
        image = cv2.GaussianBlur(image, (0, 0), 3)  # a shift by half a pixel then changes little
        params = ours.sample_params(mask, table)
        smaller += min(params.size) < 512
        mine = ours.apply({}, image, mask, table, params)
        theirs = replay_mmseg(monkeypatch, sample(image, table[mask]), params)
        assert mine['img_shape'] == theirs['img_shape'] == mine['img'].shape[:2] == mine['gt_seg_map'].shape
        assert mine['img'].dtype == theirs['img'].dtype == np.uint8
        assert mine['gt_seg_map'].dtype == theirs['gt_seg_map'].dtype
        assert (mine['gt_seg_map'] != theirs['gt_seg_map']).mean() < 0.03  # half a pixel along the outlines
        assert np.abs(mine['img'].astype(int) - theirs['img']).mean() < 2  # of 255
    assert smaller > 5


def test_a_crop_at_whole_pixels_is_exact(pairs, monkeypatch):
    ours = SegAugmentation(scale=(2048, 512), crop_size=(512, 512))
    table = build_label_table(True, {})
    for image, mask in pairs:
        size = (mask.shape[1] * 2, mask.shape[0] * 2)
        params = SegParams(size, (64, 32, 64 + 512, 32 + 512), True, NO_DISTORTION)
        mine = ours.apply({}, image, mask, table, params)
        theirs = replay_mmseg(monkeypatch, sample(image, table[mask]), params)
        assert np.array_equal(mine['gt_seg_map'], theirs['gt_seg_map'])
        # The outermost pixels of the crop are interpolated without their neighbours outside of it.
        assert np.array_equal(mine['img'][1:-1, 1:-1], theirs['img'][1:-1, 1:-1])


def test_a_reduced_image_is_aligned_with_its_mask(pairs, tmp_path):
    image, mask = pairs[0]
    image = cv2.GaussianBlur(cv2.resize(image, (1801, 1203)), (0, 0), 20)  # a shift by half a pixel changes little
    mask = cv2.resize(mask, (1801, 1203), interpolation=cv2.INTER_NEAREST)
    path = str(tmp_path / 'x.jpg')
    cv2.imwrite(path, image, [cv2.IMWRITE_JPEG_QUALITY, 98])
    cv2.imwrite(str(tmp_path / 'x.png'), mask)
    ours = SegAugmentation(scale=(1024, 256), crop_size=(128, 128), cat_max_ratio=0.75)
    table = build_label_table(True, {})
    np.random.seed(11)
    reductions = set()
    for _ in range(20):
        params = ours.sample_params(mask, table)._replace(colour=NO_DISTORTION)
        reduced, reduction = read_reduced(path, (0, 0, 1801, 1203), params.size)
        reductions.add(reduction)
        from_full = ours.apply({}, image, mask, table, params)
        from_reduced = ours.apply({}, reduced, mask, table, params)
        assert np.array_equal(from_full['gt_seg_map'], from_reduced['gt_seg_map'])
        assert np.abs(from_full['img'].astype(int) - from_reduced['img']).mean() < 2
    assert reductions == {2, 4}
    results = dict(img_path=path, seg_map_path=tmp_path / 'x.png', reduce_zero_label=True)
    assert ours.transform(results)['ori_shape'] == (1203, 1801)


def test_colours_are_mmsegs_for_the_same_parameters(pairs, monkeypatch):
    ours = SegAugmentation(scale=(2048, 512), crop_size=(512, 512))
    np.random.seed(4)
    for turn in range(80):
        image, mask = pairs[turn % len(pairs)]
        colour = ours.sample_params(mask, np.arange(256)).colour
        script_colour(monkeypatch, colour)
        theirs = mmseg_transforms.PhotoMetricDistortion().transform(dict(img=image))['img']
        mine = distort_uint8(image, colour)
        if colour.saturation is None or colour.hue is None:
            assert np.array_equal(mine, theirs)
        else:  # ours rounds to uint8 once less
            assert np.abs(mine.astype(int) - theirs).mean() < 1.5


def test_parameters_have_mmsegs_distribution():
    """Size, position and content of the crop over many samples, with a limit on the share of a class in effect."""
    height, width = 60, 90
    mask = np.zeros((height, width), np.uint8)
    mask[10:50, 15:70], mask[:8], mask[:, :5] = 1, 2, 255  # class 1 often exceeds the limit
    ramp = np.dstack([np.tile(np.linspace(0, 255, width), (height, 1))] * 3).astype(np.uint8)
    geometry = mmseg_chain()
    ours = SegAugmentation(scale=(LONG, SHORT), crop_size=(SHORT, SHORT), cat_max_ratio=0.75)
    unlimited = SegAugmentation(scale=(LONG, SHORT), crop_size=(SHORT, SHORT))
    table = build_label_table(False, {})

    def augment(augmentation):
        params = augmentation.sample_params(mask, table)
        return augmentation.apply({}, ramp, mask, table, params._replace(colour=NO_DISTORTION))

    measured = []
    variants = (lambda: augment(ours), lambda: geometry(sample(ramp, mask)), lambda: augment(unlimited))
    for seed, variant in enumerate(variants):
        np.random.seed(seed)
        rows = []
        for _ in range(SAMPLES):
            results = variant()
            labels = results['gt_seg_map']
            rows.append(
                dict(
                    scale=results['scale_factor'][0],
                    width=results['img_shape'][1],
                    height=results['img_shape'][0],
                    flip=float(results['flip']),
                    x=float(results['img'].mean()),
                    ones=float((labels == 1).mean()),
                    unlabelled=float((labels == 255).mean()),
                )
            )
        measured.append({key: np.array([row[key] for row in rows]) for key in rows[0]})
    mine, theirs, without_limit = measured
    for key in mine:
        # A shift by half a pixel moves shares of a class between the few values that occur: rounded to 2 %.
        a, b = (np.round(rows[key] / 0.02) if key in ('ones', 'unlabelled') else rows[key] for rows in (mine, theirs))
        assert same_distribution(a, b) > P_VALUE, key
    assert same_distribution(without_limit['ones'], theirs['ones']) < P_VALUE


def test_colours_have_mmsegs_distribution(repository):
    image = cv2.resize(cv2.imread(str(min((repository / 'data/mini/coco/train2017').glob('*.jpg')))), (12, 10))
    mask = np.full((10, 12), 3, np.uint8)
    ours = SegAugmentation(scale=(LONG, SHORT), crop_size=(SHORT, SHORT))
    with DefaultScope.overwrite_default_scope('mmseg'):
        reference = Compose([dict(type='PhotoMetricDistortion')])
    assert_same_colours(
        lambda: distort_uint8(image, ours.sample_params(mask, np.arange(256)).colour),
        lambda: reference(dict(img=image))['img'],
    )


def test_labels_are_mmsegs(tmp_path):
    """``reduce_zero_label`` and ``label_map`` for every mask value, compared with mmseg's LoadAnnotations."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    cv2.imwrite(str(tmp_path / 'mask.png'), values)
    for reduced in (False, True):
        for label_map in ({}, {0: 7, 7: 255, 12: 0}):
            results = dict(seg_map_path=tmp_path / 'mask.png', reduce_zero_label=reduced, seg_fields=[])
            theirs = LoadAnnotations().transform({**results, 'label_map': label_map or None})['gt_seg_map']
            assert np.array_equal(build_label_table(reduced, label_map)[values], theirs)


def test_images_and_masks_of_different_sizes_are_refused(repository, tmp_path):
    path = sorted((repository / 'data/mini/coco/train2017').glob('*.jpg'))[0]
    height, width = cv2.imread(str(path)).shape[:2]
    cv2.imwrite(str(tmp_path / 'mask.png'), np.zeros((height, width + 1), np.uint8))
    with pytest.raises(UserError, match='not of the same size'):
        SegAugmentation((512, 512), (64, 64)).transform(
            dict(img_path=path, seg_map_path=tmp_path / 'mask.png', reduce_zero_label=True)
        )
