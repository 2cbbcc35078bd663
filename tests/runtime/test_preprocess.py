import io

import cv2
import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import DefaultScope
from PIL import ExifTags, Image

from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Input, Resize
from mnv4_mm.runtime.preprocess import prepare, prepare_reduced

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def make_input(size, layout='NHWC', normalise=False):
    return Input(size, layout, 'float32' if normalise else 'uint8', 'RGB', normalise, MEAN, STD)


@pytest.mark.parametrize('shape', [(480, 640), (333, 500), (500, 333), (30, 700), (320, 320), (7, 5)])
@pytest.mark.parametrize('mode', ['stretch', 'letterbox', 'any size'])
def test_an_image_is_prepared_as_by_mmdet(shape, mode):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    # mmdet's scale is of the long and the short side, whichever is the height; ours is the size of the input.
    scale = (320, 320) if mode == 'letterbox' else (384, 320)  # width, height
    steps = [dict(type='Resize', scale=scale, keep_ratio=mode != 'stretch')]
    size = scale[::-1]
    if mode == 'letterbox':
        steps += [dict(type='Pad', size=scale, pad_val=dict(img=(1, 2, 3)))]
    elif mode == 'any size':
        steps += [dict(type='Pad', size_divisor=32, pad_val=dict(img=(1, 2, 3)))]
        size = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        found = Compose(steps)(dict(img=image, img_shape=shape, ori_shape=shape))
    resize = Resize('stretch' if mode == 'stretch' else 'letterbox', (3, 2, 1), scale if size is None else None)
    batch, placement = prepare(image, make_input(size), resize)
    np.testing.assert_array_equal(batch[0], found['img'][..., ::-1])
    factor = np.array(placement.placed) / placement.original
    np.testing.assert_allclose(factor, found['scale_factor'][::-1])
    normalised, _ = prepare(image, make_input(size, 'NCHW', True), resize)
    np.testing.assert_allclose(
        normalised[0],
        (batch[0].transpose(2, 0, 1) - np.float32(MEAN)[:, None, None]) / np.float32(STD)[:, None, None],
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize('mode', ['stretch', 'letterbox', 'any size'])
@pytest.mark.parametrize('side', [160, 320, 640, 800])
def test_a_reduced_image_is_placed_as_the_whole_one(mode, side, repository):
    """Reduced pixels are averages of squares of the photo's pixels, but for what JPEG's arithmetic adds."""
    resize = Resize('stretch' if mode == 'stretch' else 'letterbox', (3, 2, 1), (side, side))
    to = make_input(None if mode == 'any size' else (side, side))
    for path in sorted((repository / 'data/mini/coco/val2017').glob('*.jpg'))[:4]:
        image = cv2.imread(str(path))
        whole, placement = prepare(image, to, resize)
        sides = np.array(image.shape[:2])
        factor = max(
            factor for factor in (1, 2, 4, 8) if factor == 1 or (-(-sides // factor) >= placement.placed).all()
        )
        # The mean of each square, with the last row and column repeated, then the same resizing as of the whole photo.
        squares = cv2.copyMakeBorder(
            image, 0, int(-sides[0] % factor), 0, int(-sides[1] % factor), cv2.BORDER_REPLICATE
        )
        means = cv2.resize(squares, tuple(-(-sides // factor)[::-1]), interpolation=cv2.INTER_AREA)
        expected = prepare(means, to, resize, image.shape[:2])[0] if factor > 1 else whole
        for given in (path, path.read_bytes()):
            reduced, place = prepare_reduced(given, to, resize, 'name')
            assert place == placement
            limit = 0 if factor == 1 else 2 if not (sides % factor).any() else 5
            assert np.abs(reduced.astype(int) - expected).mean() <= limit


@pytest.mark.parametrize('orientation', [1, 2, 3, 6, 8])
@pytest.mark.parametrize(('side', 'length'), [(1025, 128), (1031, 128), (2049, 320), (640, 320), (641, 320)])
def test_a_reduced_image_is_not_shifted(side, length, orientation):
    """A bright spot near the bottom right corner is found where it is, in pixels of the photo."""
    centre = side - 41.0
    ys, xs = np.mgrid[:side, :side]
    spot = 255 * np.exp(-((ys - centre) ** 2 + (xs - centre) ** 2) / (2 * 12**2))
    # What is stored so that it is upright after the turn. Pillow writes the tag.
    turned = {1: spot, 2: spot[:, ::-1], 3: spot[::-1, ::-1], 6: np.rot90(spot), 8: np.rot90(spot, -1)}[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = io.BytesIO()
    Image.fromarray(turned.astype(np.uint8)).save(content, 'JPEG', quality=98, exif=exif)
    to, resize = make_input((length, length)), Resize('stretch', (0, 0, 0))
    batch, placement = prepare_reduced(content.getvalue(), to, resize, 'spot.jpg')
    values = batch[0, ..., 0].astype(float)
    values[values < 8] = 0
    for axis in (0, 1):
        found = (values.sum(1 - axis) * np.arange(length)).sum() / values.sum()
        assert (found + 0.5) * side / length - 0.5 == pytest.approx(centre, abs=0.25)
    assert placement.original == (side, side)


def test_other_arrays_are_one_line():
    for array in (
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3)),
        np.zeros((1, 5, 5, 3), np.uint8),
    ):
        with pytest.raises(UserError, match=r'must be \(H, W, 3\) uint8'):
            prepare(array, make_input((32, 32)), Resize('stretch', (0, 0, 0)))
