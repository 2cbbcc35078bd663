import cv2
import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import DefaultScope
from PIL import Image

from mnv4_mm import images
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.runtime.meta import Input, Resize
from mnv4_mm.runtime.preprocess import prepare

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def taking(size, layout='NHWC', normalise=False):
    return Input(size, layout, 'float32' if normalise else 'uint8', 'RGB', normalise, MEAN, STD)


@pytest.mark.parametrize('shape', [(480, 640), (333, 500), (500, 333), (30, 700), (320, 320), (7, 5)])
@pytest.mark.parametrize('mode', ['stretch', 'letterbox', 'any size'])
def test_a_picture_is_prepared_as_mmdet_does(shape, mode):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    # mmdet's two numbers are of the long and the short side, whichever they are; ours are the input's.
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
    batch, at = prepare(image, taking(size), resize)
    np.testing.assert_array_equal(batch[0], found['img'][..., ::-1])
    factor = np.array(at.placed) / at.original
    np.testing.assert_allclose(factor, found['scale_factor'][::-1])
    normalised, _ = prepare(image, taking(size, 'NCHW', True), resize)
    np.testing.assert_allclose(
        normalised[0],
        (batch[0].transpose(2, 0, 1) - np.float32(MEAN)[:, None, None]) / np.float32(STD)[:, None, None],
        rtol=1e-6,
        atol=1e-6,
    )


def test_pictures_are_read_as_in_training(tmp_path, repository):
    source = Image.open(next((repository / 'data/mini/coco/val2017').glob('*.jpg')))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    source.save(tmp_path / 'turned.jpg', exif=exif)
    source.convert('L').save(tmp_path / 'grey.png')
    source.save(tmp_path / 'colour.webp')
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_image(path), images.read_image(path))


def test_what_is_no_picture_is_one_line(tmp_path, repository):
    Image.new('RGBA', (20, 10)).save(tmp_path / 'alpha.png')
    (tmp_path / 'empty.png').touch()
    (tmp_path / 'text.jpg').write_text('not a picture')
    cv2.imwrite(str(tmp_path / 'deep.png'), np.zeros((4, 4, 3), np.uint16))
    for name, message in (
        ('alpha.png', 'has 4 channels'),
        ('empty.png', 'is empty'),
        ('text.jpg', 'is not a readable picture'),
        ('deep.png', 'must be .* uint8'),
        ('absent.png', 'No such file'),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read_image(tmp_path / name)
        assert '\n' not in str(caught.value)
    for array in (
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 3)),
        np.zeros((1, 5, 5, 3), np.uint8),
    ):
        with pytest.raises(UserError, match='must be'):
            prepare(array, taking((32, 32)), Resize('stretch', (0, 0, 0)))
