"""One warp and one colour pass give what mmdet's and mmseg's chains give: draw by draw, and in distribution."""

import copy

import cv2
import mmdet.datasets.transforms.transforms as mmdet_transforms
import mmseg.datasets.transforms.transforms as mmseg_transforms
import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from scipy import stats

from mnv4_mm.data import transforms
from mnv4_mm.data.augment.ssd import Colour, SegAugmentation, SSDAugmentation
from mnv4_mm.errors import UserError

MEAN = (123.675, 116.28, 103.53)
PLAIN = Colour(None, None, False, None, None)
DRAWS = 2_000
P_VALUE = 1e-3  # of each test; the draws are seeded, so a test that passes passes always
LONG, SHORT = 160, 64  # of a scaled picture, and of a crop, in the tests of distributions


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


def mmseg_chain(photometric=True, cat_max_ratio=0.75):
    steps = [
        dict(type='RandomResize', scale=(LONG, SHORT), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(SHORT, SHORT), cat_max_ratio=cat_max_ratio),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
    ]
    with DefaultScope.overwrite_default_scope('mmseg'):
        return Compose(steps if photometric else steps[:-1])


def sample(picture, boxes):
    """What mmdet's loading hands on."""
    return dict(
        img=picture,
        img_shape=picture.shape[:2],
        ori_shape=picture.shape[:2],
        height=picture.shape[0],
        width=picture.shape[1],
        gt_bboxes=HorizontalBoxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_bboxes_labels=np.arange(len(boxes)),
        gt_ignore_flags=np.arange(len(boxes)) % 3 == 1,
    )


class Scripted:
    """Stands for numpy's random module: gives the same number at each call of a kind until the next is set."""

    def __init__(self, values):
        self.values = list(values)

    def uniform(self, *_):
        return self.values.pop(0)

    randint = uniform


def replay_mmdet(monkeypatch, results, draw, scale=(320, 320)):
    """mmdet's chain with a draw of ours."""
    chain = mmdet_chain(scale)
    expand, crop, _, flip, colour = chain.transforms
    ratio, left, top = draw.expansion or (1, 0, 0)
    expand._random_prob = lambda: 0 if draw.expansion else 1
    expand._random_ratio = lambda: ratio
    expand._random_left_top = lambda *_: (left, top)
    crop._random_mode = lambda: 1 if draw.patch is None else 0
    if draw.patch:
        x1, y1, x2, y2 = draw.patch
        monkeypatch.setattr(mmdet_transforms, 'random', Scripted([x2 - x1, y2 - y1, x1, y1]))
    flip._choose_direction = lambda: 'horizontal' if draw.flip else None
    c = draw.colour
    flags = [int(value is not None) for value in (c.brightness, c.contrast, c.saturation, c.hue)]
    colour._random_flags = lambda: (
        int(not c.contrast_last), *flags, 1, c.brightness, c.contrast, c.saturation, c.hue, list(c.channels),
    )  # fmt: skip
    return chain(results)


def square(draw):
    """Whether a patch of whole pixels is still of an aspect that mmdet's replay accepts."""
    if draw.patch is None:
        return True
    x1, y1, x2, y2 = draw.patch
    return 0.5 <= (y2 - y1) / (x2 - x1) <= 2


@pytest.fixture(scope='module')
def pictures(repository):
    files = sorted((repository / 'data/mini/coco/train2017').glob('*.jpg'))[:8]
    return [cv2.imread(str(file)) for file in files]


def some_boxes(rng, height, width, count):
    corners = rng.uniform(0, 0.7, (count, 2)) * (width, height)
    return np.hstack([corners, corners + rng.uniform(0.05, 0.3, (count, 2)) * (width, height)])


def test_ssd_gives_mmdets_boxes_and_picture_for_the_same_draw(pictures, monkeypatch):
    ours, rng = ssd(), np.random.default_rng(0)
    np.random.seed(0)
    seen = set()
    for turn in range(120):
        picture = pictures[turn % len(pictures)]
        results = sample(picture, some_boxes(rng, *picture.shape[:2], turn % 6))
        draw = ours.draw(*picture.shape[:2], results['gt_bboxes'].numpy())
        if not square(draw):
            continue
        seen.add((draw.expansion is not None, draw.patch is not None, draw.flip))
        theirs = replay_mmdet(monkeypatch, copy.deepcopy(results), draw)
        mine = ours.apply(results, picture, draw)
        torch.testing.assert_close(mine['gt_bboxes'].tensor, theirs['gt_bboxes'].tensor, rtol=0, atol=1e-3)
        assert mine['gt_bboxes_labels'].tolist() == theirs['gt_bboxes_labels'].tolist()
        assert mine['gt_ignore_flags'].tolist() == theirs['gt_ignore_flags'].tolist()
        assert mine['img_shape'] == theirs['img_shape'] == mine['img'].shape[:2]
        assert mine['scale_factor'] == pytest.approx(theirs['scale_factor'])
        assert mine['flip'] == theirs['flip']
        assert mine['img'].dtype == theirs['img'].dtype
        difference = np.abs(mine['img'] - theirs['img'])
        assert difference.mean() < 2  # of 255
    assert len(seen) == 8


def test_a_patch_within_the_picture_is_the_same_to_the_last_bit(pictures, monkeypatch):
    ours = ssd()
    np.random.seed(1)
    for picture in pictures:
        draw = ours.draw(*picture.shape[:2], np.zeros((0, 4)))._replace(expansion=None, patch=(10, 20, 210, 180))
        theirs = replay_mmdet(monkeypatch, sample(picture, []), draw)
        np.testing.assert_allclose(ours.apply(sample(picture, []), picture, draw)['img'], theirs['img'], atol=2e-3)


def test_a_reduced_picture_lies_where_the_whole_one_does(pictures, tmp_path):
    """A picture decoded at a half or less gives the same as the whole, blurred as much: nothing is moved."""
    ours = ssd()
    np.random.seed(2)
    path = str(tmp_path / 'x.jpg')
    tried = 0
    for turn in range(60):
        picture = cv2.GaussianBlur(pictures[turn % len(pictures)], (0, 0), 6)
        cv2.imwrite(path, picture, [cv2.IMWRITE_JPEG_QUALITY, 98])
        height, width = picture.shape[:2]
        draw = ours.draw(height, width, np.zeros((0, 4)))._replace(colour=PLAIN)
        reduced, reduction = transforms.read_reduced(path, transforms.window(height, width, draw), (320, 320))
        if reduction == 1:
            continue
        tried += 1
        whole = ours.apply(sample(picture, []), picture, draw)['img']
        small = ours.apply(sample(picture, []), reduced, draw, reduction)['img']
        assert np.abs(whole - small).mean() < 1.5
    assert tried > 10


def test_a_reduced_picture_fits_its_mask(pairs, tmp_path):
    """Of a large picture that is scaled down; crop, flip and mask stay together."""
    picture, mask = pairs[0]
    picture = cv2.GaussianBlur(cv2.resize(picture, (1801, 1203)), (0, 0), 20)  # half a pixel is then little
    mask = cv2.resize(mask, (1801, 1203), interpolation=cv2.INTER_NEAREST)
    path = str(tmp_path / 'x.jpg')
    cv2.imwrite(path, picture, [cv2.IMWRITE_JPEG_QUALITY, 98])
    cv2.imwrite(str(tmp_path / 'x.png'), mask)
    ours = SegAugmentation(scale=(1024, 256), crop_size=(128, 128), cat_max_ratio=0.75)
    table = transforms.labels(True, {})
    np.random.seed(11)
    reductions = set()
    for _ in range(20):
        draw = ours.draw(mask, table)._replace(colour=PLAIN)
        reduced, reduction = transforms.read_reduced(path, (0, 0, 1801, 1203), draw.size)
        reductions.add(reduction)
        whole = ours.apply({}, picture, mask, table, draw)
        small = ours.apply({}, reduced, mask, table, draw)
        assert np.array_equal(whole['gt_seg_map'], small['gt_seg_map'])
        assert np.abs(whole['img'].astype(int) - small['img']).mean() < 2
    assert reductions == {2, 4}
    given = dict(img_path=path, seg_map_path=tmp_path / 'x.png', reduce_zero_label=True)
    assert ours.transform(given)['ori_shape'] == (1203, 1801)


def test_ssds_colours_are_mmdets(pictures, monkeypatch):
    ours = ssd()
    np.random.seed(3)
    for turn in range(60):
        picture = cv2.resize(pictures[turn % len(pictures)], (96, 80))
        picture[:20] //= 16  # dark: negative after a change of brightness
        colour = ours.draw(80, 96, np.zeros((0, 4))).colour
        draw = transforms.SSDDraw(None, None, False, colour)
        theirs = replay_mmdet(monkeypatch, sample(picture, []), draw, (96, 80))['img']
        np.testing.assert_allclose(transforms.distort(picture, colour), theirs, atol=2e-3)


@pytest.mark.parametrize(
    ('count', 'draws'),
    [(0, DRAWS), pytest.param(0, 10_000, marks=pytest.mark.long), pytest.param(3, 3_000, marks=pytest.mark.long)],
)
def test_ssds_draws_have_mmdets_distribution(count, draws):
    """Crop, boxes, flip and colours over many draws; a small picture serves as well as a large one.

    mmdet's crop round boxes takes 25 ms.
    """
    height, width, size = 60, 80, 32
    boxes = some_boxes(np.random.default_rng(count + 1), height, width, count)
    # Position as colour, to see what was cut out: no other colour is changed.
    ramp = np.dstack([np.tile(np.linspace(0, 255, width), (height, 1))] * 3).astype(np.uint8)
    geometry = mmdet_chain((size, size), photometric=False)
    ours = ssd((size, size))
    measured = {}
    for name in ('ours', 'theirs'):
        np.random.seed(5 if name == 'ours' else 6)
        rows = []
        for _ in range(draws):
            results = sample(ramp, boxes)
            if name == 'theirs':
                results = geometry(results)
            else:
                draw = ours.draw(height, width, results['gt_bboxes'].numpy())
                results = ours.apply(results, ramp, draw._replace(colour=PLAIN))
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
                    first_pixel=float(results['img'][size // 2, size // 2, 0]),
                )
            )
        measured[name] = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    for key, values in measured['ours'].items():
        assert same_distribution(values, measured['theirs'][key]) > P_VALUE, key
    # The test can fail: crops half as large again, at the least, are told apart.
    np.random.seed(7)
    other = ssd((size, size), min_crop_size=0.45)
    areas = [
        (w := transforms.window(height, width, other.draw(height, width, boxes))) and area(w) for _ in range(draws)
    ]
    assert same_distribution(np.array(areas) / size**2, measured['theirs']['area']) < P_VALUE


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def same_distribution(a, b):
    """p-value of the two-sample Kolmogorov-Smirnov test, which also holds (is cautious) for whole numbers."""
    return stats.ks_2samp(a, b, method='asymp').pvalue


def test_colours_have_the_originals_distribution(pictures):
    """Mean, spread and differences of the channels over 10,000 draws, for both tasks."""
    picture = cv2.resize(pictures[0], (12, 10))
    mask = np.full((10, 12), 3, np.uint8)
    ours = ssd()
    seg = SegAugmentation(scale=(LONG, SHORT), crop_size=(SHORT, SHORT))
    with DefaultScope.overwrite_default_scope('mmdet'):
        detection = Compose([dict(type='PhotoMetricDistortion', hue_delta=18)])
    with DefaultScope.overwrite_default_scope('mmseg'):
        segmentation = Compose([dict(type='PhotoMetricDistortion')])
    ways = [
        (lambda: transforms.distort(picture, ours.draw(10, 12, np.zeros((0, 4))).colour), detection),
        (lambda: transforms.distort_bytes(picture, seg.draw(mask, np.arange(256)).colour), segmentation),
    ]
    for mine, theirs in ways:
        rows = []
        for seed, way in ((8, mine), (9, lambda chain=theirs: chain(dict(img=picture))['img'])):
            np.random.seed(seed)
            values = np.array([way() for _ in range(DRAWS)], np.float32)
            means = values.mean((1, 2))
            rows.append([*means.T, *values.std((1, 2)).T, means[:, 0] - means[:, 1], means[:, 1] - means[:, 2]])
        for a, b in zip(*rows, strict=True):
            assert same_distribution(a, b) > P_VALUE


def seg_sample(picture, mask):
    return dict(
        img=picture, gt_seg_map=mask, seg_fields=['gt_seg_map'], img_shape=picture.shape[:2], ori_shape=mask.shape,
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


def replay_mmseg(monkeypatch, results, draw):
    with DefaultScope.overwrite_default_scope('mmseg'):
        chain = Compose(
            [
                dict(type='Resize', scale=draw.size, keep_ratio=False),
                dict(type='RandomCrop', crop_size=(512, 512)),
                dict(type='RandomFlip', prob=0.5),
                dict(type='PhotoMetricDistortion'),
            ]
        )
    _, crop, flip, _ = chain.transforms
    x1, y1, x2, y2 = draw.crop
    crop.crop_bbox = lambda _: (y1, y2, x1, x2)
    flip._choose_direction = lambda: 'horizontal' if draw.flip else None
    script_colour(monkeypatch, draw.colour)
    return chain(results)


def script_colour(monkeypatch, colour):
    """In the order in which mmseg's PhotoMetricDistortion asks: a flag, and if it is 1, a value."""

    def asked(value):
        return [0] if value is None else [1, value]

    contrast = asked(colour.contrast)
    script = [*asked(colour.brightness), int(not colour.contrast_last)]
    script += ([] if colour.contrast_last else contrast) + asked(colour.saturation) + asked(colour.hue)
    script += contrast if colour.contrast_last else []
    monkeypatch.setattr(mmseg_transforms, 'random', Scripted(script))


def test_seg_gives_mmsegs_mask_and_picture_for_the_same_draw(pairs, monkeypatch):
    ours = SegAugmentation(scale=(2048, 512), crop_size=(512, 512), cat_max_ratio=0.75)
    table = transforms.labels(True, {})
    np.random.seed(0)
    smaller = 0
    for turn in range(48):
        picture, mask = pairs[turn % len(pairs)]
        picture = cv2.GaussianBlur(picture, (0, 0), 3)  # half a pixel more or less is then little
        draw = ours.draw(mask, table)
        smaller += min(draw.size) < 512
        mine = ours.apply({}, picture, mask, table, draw)
        theirs = replay_mmseg(monkeypatch, seg_sample(picture, table[mask]), draw)
        assert mine['img_shape'] == theirs['img_shape'] == mine['img'].shape[:2] == mine['gt_seg_map'].shape
        assert mine['img'].dtype == theirs['img'].dtype == np.uint8
        assert mine['gt_seg_map'].dtype == theirs['gt_seg_map'].dtype
        assert (mine['gt_seg_map'] != theirs['gt_seg_map']).mean() < 0.03  # half a pixel along the outlines
        assert np.abs(mine['img'].astype(int) - theirs['img']).mean() < 2  # of 255
    assert smaller > 5


def test_what_is_not_moved_between_pixels_has_mmsegs_very_mask(pairs, monkeypatch):
    ours = SegAugmentation(scale=(2048, 512), crop_size=(512, 512))
    table = transforms.labels(True, {})
    for picture, mask in pairs:
        size = (mask.shape[1] * 2, mask.shape[0] * 2)
        draw = transforms.SegDraw(size, (64, 32, 64 + 512, 32 + 512), True, PLAIN)
        mine = ours.apply({}, picture, mask, table, draw)
        theirs = replay_mmseg(monkeypatch, seg_sample(picture, table[mask]), draw)
        assert np.array_equal(mine['gt_seg_map'], theirs['gt_seg_map'])
        # Beyond its edge the crop's outermost pixels have nothing to be mixed with.
        assert np.array_equal(mine['img'][1:-1, 1:-1], theirs['img'][1:-1, 1:-1])


def test_segs_colours_are_mmsegs(pairs, monkeypatch):
    ours = SegAugmentation(scale=(2048, 512), crop_size=(512, 512))
    np.random.seed(4)
    for turn in range(80):
        picture, mask = pairs[turn % len(pairs)]
        colour = ours.draw(mask, np.arange(256)).colour
        script_colour(monkeypatch, colour)
        theirs = mmseg_transforms.PhotoMetricDistortion().transform(dict(img=picture))['img']
        mine = transforms.distort_bytes(picture, colour)
        if colour.saturation is None or colour.hue is None:
            assert np.array_equal(mine, theirs)
        else:  # one rounding to bytes less
            assert np.abs(mine.astype(int) - theirs).mean() < 1.5


def test_segs_draws_have_mmsegs_distribution():
    """Size, place and content of the crop over 10,000 draws, with the rule on the largest class in force."""
    height, width = 60, 90
    mask = np.zeros((height, width), np.uint8)
    mask[10:50, 15:70], mask[:8], mask[:, :5] = 1, 2, 255  # class 1 is often too large
    ramp = np.dstack([np.tile(np.linspace(0, 255, width), (height, 1))] * 3).astype(np.uint8)
    geometry = mmseg_chain(photometric=False)
    ours = SegAugmentation(scale=(LONG, SHORT), crop_size=(SHORT, SHORT), cat_max_ratio=0.75)
    plain = SegAugmentation(scale=(LONG, SHORT), crop_size=(SHORT, SHORT))
    table = transforms.labels(False, {})

    def drawn(augmentation):
        draw = augmentation.draw(mask, table)
        return augmentation.apply({}, ramp, mask, table, draw._replace(colour=PLAIN))

    measured = []
    ways = (lambda: drawn(ours), lambda: geometry(seg_sample(ramp, mask)), lambda: drawn(plain))
    for seed, way in enumerate(ways):
        np.random.seed(seed)
        rows = []
        for _ in range(DRAWS):
            results = way()
            truth = results['gt_seg_map']
            rows.append(
                dict(
                    scale=results['scale_factor'][0],
                    width=results['img_shape'][1],
                    height=results['img_shape'][0],
                    flip=float(results['flip']),
                    x=float(results['img'].mean()),
                    ones=float((truth == 1).mean()),
                    unlabelled=float((truth == 255).mean()),
                )
            )
        measured.append({key: np.array([row[key] for row in rows]) for key in rows[0]})
    mine, theirs, without_the_rule = measured
    for key in mine:
        # Shares of a class fall on other whole numbers where half a pixel is missing: rounded to 2 %.
        a, b = (np.round(rows[key] / 0.02) if key in ('ones', 'unlabelled') else rows[key] for rows in (mine, theirs))
        assert same_distribution(a, b) > P_VALUE, key
    assert same_distribution(without_the_rule['ones'], theirs['ones']) < P_VALUE


def test_labels_are_mmsegs(tmp_path):
    """reduce_zero_label and label_map, for every value, as mmseg's LoadAnnotations makes them."""
    from mmseg.datasets.transforms import LoadAnnotations

    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    cv2.imwrite(str(tmp_path / 'mask.png'), values)
    for reduced in (False, True):
        for label_map in ({}, {0: 7, 7: 255, 12: 0}):
            given = dict(seg_map_path=tmp_path / 'mask.png', reduce_zero_label=reduced, seg_fields=[])
            theirs = LoadAnnotations().transform({**given, 'label_map': label_map or None})['gt_seg_map']
            assert np.array_equal(transforms.labels(reduced, label_map)[values], theirs)


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_reduced_pictures_reach_to_their_edges(suffix, tmp_path):
    """JPEG is decoded at a half or a quarter, PNG is not; neither divides the sides."""
    path = tmp_path / f'x{suffix}'
    cv2.imwrite(str(path), np.full((1283, 1287, 3), 80, np.uint8))
    for _ in range(20):
        given = sample(np.zeros((1283, 1287, 3), np.uint8), [[1, 1, 1280, 1280]])
        ours = ssd(expand_prob=0, brightness_delta=0, contrast_range=(1, 1), saturation_range=(1, 1), hue_delta=0)
        shown = ours.transform(dict(given, img_path=str(path)))['img']
        assert np.abs(shown - 80).max() < 2


def test_a_picture_of_another_size_is_taken_as_it_is(repository):
    """As mmdet does: its boxes then count in the picture's pixels."""
    picture = sorted((repository / 'data/mini/coco/train2017').glob('*.jpg'))[0]
    height, width = cv2.imread(str(picture)).shape[:2]
    for wrong in (1, 40):
        given = sample(np.zeros((height + wrong, width, 3), np.uint8), [[1, 1, 50, 50]])
        results = ssd(expand_prob=0, min_ious=()).transform(dict(given, img_path=str(picture)))
        assert results['ori_shape'] == (height, width)


def test_pictures_and_masks_of_different_sizes_are_named(repository, tmp_path):
    picture = sorted((repository / 'data/mini/coco/train2017').glob('*.jpg'))[0]
    height, width = cv2.imread(str(picture)).shape[:2]
    cv2.imwrite(str(tmp_path / 'mask.png'), np.zeros((height, width + 1), np.uint8))
    with pytest.raises(UserError, match='not of the same size'):
        SegAugmentation((512, 512), (64, 64)).transform(
            dict(img_path=picture, seg_map_path=tmp_path / 'mask.png', reduce_zero_label=True)
        )
