"""Every unusual image file has the same pixels, or the same error, wherever it is read."""

import io
import os
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image, ImageOps

from mnv4_mm.apis import infer
from mnv4_mm.data.augment.ssd import read_reduced
from mnv4_mm.errors import UserError
from mnv4_mm.images import (
    JPEG_SUFFIXES,
    MAX_BYTES,
    ImageFacts,
    check_image_file,
    image_facts,
    image_size,
    read_for_resize,
    read_image,
    read_mask,
    write_image,
    write_mask,
)
from mnv4_mm.runtime.meta import Input, Meta, Resize
from mnv4_mm.runtime.predictor import Predictor

HEIGHT, WIDTH = 48, 64
SMALL = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
PIXELS = cv2.resize(SMALL, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)  # BGR
RGB = Image.fromarray(PIXELS[..., ::-1])
DEEP = (257 * PIXELS.astype(np.uint16)).clip(0, 65000) + 99


def pillow(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def opencv(suffix, pixels):
    return cv2.imencode(suffix, pixels)[1].tobytes()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def png_chunk(kind, content):
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def png_header(width, height):
    """A PNG whose header claims a size, and that has next to no content."""
    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    content = png_chunk(b'IHDR', header) + png_chunk(b'IDAT', zlib.compress(bytes(99))) + png_chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + content


def with_chunks(png, *chunks, late=False):
    """Insert chunks after the header of a PNG, or after its pixels."""
    place = len(png) - 12 if late else 33
    return png[:place] + b''.join(png_chunk(*chunk) for chunk in chunks) + png[place:]


def damaged(data, part, count):
    """Overwrite bytes after the first occurrence of a part."""
    start = data.index(part) + len(part) + 2
    return data[:start] + count * b'\xff' + data[start + count :]


def with_size(data, size):
    """Make the header of a JPEG claim a size."""
    position = data.index(b'\xff\xc0') + 5
    return data[:position] + struct.pack('>HH', *size[::-1]) + data[position + 4 :]


def with_exif(content):
    """A JPEG whose EXIF block has a content."""
    return JPEG[:2] + b'\xff\xe1' + struct.pack('>H', len(content) + 8) + b'Exif\0\0' + content + JPEG[2:]


def with_alpha():
    image = RGB.copy()
    image.putalpha(Image.fromarray(np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH), np.uint8)))
    return image


def first_frames(kind):
    return pillow(RGB, kind, save_all=True, append_images=[ImageOps.flip(RGB)], **LOSSLESS.get(kind, {}))


LOSSLESS = dict(WEBP=dict(lossless=True, exact=True), AVIF=dict(quality=100, subsampling='4:4:4'))
COLOURS = RGB.convert('P', palette=Image.Palette.ADAPTIVE, colors=200)
FEW_COLOURS = RGB.convert('P', palette=Image.Palette.ADAPTIVE, colors=10)
JPEG, PNG = pillow(RGB, 'JPEG'), pillow(RGB, 'PNG')
# Decompressed it is 100 MB: Pillow refuses more than 64 MB of text.
TEXT = zlib.compress(bytes(100_000_000), 9)
# Orientation as LONG, as some writers have it, and as BYTE, which is not read.
LONG = b'II*\0\x08\0\0\0' + struct.pack('<HHHIII', 1, 0x0112, 4, 1, 6, 0)
BYTE = b'MM\0*\0\0\0\x08' + struct.pack('>HHHI4sI', 1, 0x0112, 1, 1, b'\6\0\0\0', 0)

# Name of the file -> its bytes, and how Pillow reads it where both should agree.
READABLE = {
    'plain.jpg': JPEG,
    'progressive.jpg': pillow(RGB, 'JPEG', progressive=True),
    'plain.png': PNG,
    'plain.bmp': pillow(RGB, 'BMP'),
    'plain.tif': pillow(RGB, 'TIFF'),
    'plain.webp': pillow(RGB, 'WEBP', **LOSSLESS['WEBP']),
    **{f'exif_{i}.jpg': pillow(RGB, 'JPEG', exif=exif(i)) for i in range(1, 9)},
    'exif.png': pillow(RGB, 'PNG', exif=exif(6)),
    'exif_late.png': with_chunks(PNG, (b'eXIf', exif(6).tobytes()[6:]), late=True),
    'exif.tiff': pillow(RGB, 'TIFF', exif=exif(6)),
    'alpha.png': pillow(with_alpha(), 'PNG'),
    'alpha.webp': pillow(with_alpha(), 'WEBP', **LOSSLESS['WEBP']),
    'grey.png': pillow(RGB.convert('L'), 'PNG'),
    'grey.jpeg': pillow(RGB.convert('L'), 'JPEG'),
    'grey_alpha.png': pillow(with_alpha().convert('LA'), 'PNG'),
    'bits.png': pillow(RGB.convert('1'), 'PNG'),
    'palette.png': pillow(COLOURS, 'PNG'),
    'palette_4_bits.png': pillow(FEW_COLOURS, 'PNG', transparency=0),
    'cmyk.jpg': pillow(RGB.convert('CMYK'), 'JPEG'),
    'frames.webp': first_frames('WEBP'),
    'frames.png': first_frames('PNG'),
    'frames.jpg': first_frames('GIF'),  # the content decides, not the suffix
    'pages.tif': first_frames('TIFF'),
    'a_jpeg.png': JPEG,
    'a_png.jpg': PNG,
    'a_tiff_turned.jpg': pillow(RGB, 'TIFF', exif=exif(6)),
    'trailer.jpg': JPEG + bytes(1000),
    'two_views.jpg': pillow(RGB, 'MPO', save_all=True, append_images=[ImageOps.flip(RGB)], exif=exif(6)),
    'text.png': with_chunks(PNG, (b'tEXt', b'Software\0' + bytes(999)), (b'pHYs', bytes(9))),
    'Grüße 図.jpg': JPEG,
    'long' + 240 * 'g' + '.jpg': JPEG,
}
# Pillow does not turn, blend or convert these as OpenCV does; mmcv does.
ONLY_MMCV = {
    'alpha.tif': pillow(with_alpha(), 'TIFF'),
    'deep.png': opencv('.png', DEEP),
    'deep_grey.png': opencv('.png', DEEP[..., 0]),
    'deep_alpha.png': opencv('.png', np.dstack([DEEP, DEEP[..., :1]])),
    'deep.tif': opencv('.tif', DEEP),
    'deep_grey.tif': opencv('.tif', DEEP[..., 0]),
}
Image.init()
AVIF = range(1, 9) if 'AVIF' in Image.SAVE else ()  # orientations; Pillow writes AVIF since 11.3
# mmcv does not turn these; Pillow does.
ONLY_PILLOW = {
    **{f'exif_{i}.webp': pillow(RGB, 'WEBP', exif=exif(i), **LOSSLESS['WEBP']) for i in range(2, 9)},
    **{f'exif_{i}.avif': pillow(RGB, 'AVIF', exif=exif(i), **LOSSLESS['AVIF']) for i in AVIF},
    **({'alpha_turned.avif': pillow(with_alpha(), 'AVIF', exif=exif(7), **LOSSLESS['AVIF'])} if AVIF else {}),
    'exif_lossy.webp': pillow(RGB, 'WEBP', exif=exif(6)),
    'long.jpg': with_exif(LONG),
    'byte.jpg': with_exif(BYTE),
}
# Pillow raises an error for these, does not turn them, or turns them twice (some TIFF).
ONLY_OURS = {
    'junk_exif.jpg': (with_exif(b'junk, not TIFF'), 1),
    'cut_exif.jpg': (with_exif(b'II*\0\xff\xff\xff\xff'), 1),
    'no_exif.jpg': (with_exif(b''), 1),
    'orientation_9.jpg': (with_exif(LONG.replace(b'\6', b'\x09')), 1),
    'zipped_text.png': (with_chunks(PNG, (b'zTXt', b'Comment\0\0' + TEXT)), 1),
    'long_text.png': (with_chunks(PNG, (b'iTXt', b'Comment\0\1\0\0\0' + TEXT)), 1),
    'profile.png': (with_chunks(PNG, (b'iCCP', b'profile\0\0' + TEXT)), 1),
    'texts.png': (with_chunks(PNG, *[(b'tEXt', b'Comment\0a')] * 3000, (b'eXIf', exif(6).tobytes()[6:])), 6),
    'grey_turned.tif': (pillow(RGB.convert('L').convert('RGB'), 'TIFF', exif=exif(7)), 7),
    'palette_turned.tif': (pillow(RGB.convert('P'), 'TIFF', exif=exif(8)), 8),
}
LARGE_JPEG = pillow(RGB.resize((800, 600)), 'JPEG', quality=95)
UNREADABLE = {
    'empty.jpg': (b'', 'is empty'),
    'text.png': (b'not an image', 'is not a readable image'),
    'float.tif': (
        opencv('.tif', PIXELS.astype(np.float32) / 255),
        'has float32 values; only 8- and 16-bit images are supported',
    ),
    'grey-float.tif': (
        opencv('.tif', PIXELS[..., 0].astype(np.float32) / 255),
        'has float32 values; only 8- and 16-bit images are supported',
    ),
    'bomb.png': (png_header(40000, 40000), '40000x40000 is over 268435456 pixels'),
    'bomb.jpg': (with_size(JPEG, (60000, 60000)), '60000x60000 is over 268435456 pixels'),
    'bomb_gif.png': (b'GIF89a' + struct.pack('<HH', 65535, 65535) + bytes(99), '65535x65535 is over'),
    'bomb.bmp': (b'BM' + bytes(12) + struct.pack('<Iii', 40, 100_000, -100_000) + bytes(99), '100000x100000 is over'),
    'bomb.webp': (b'RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0' + b'\xff' * 6 + bytes(9), '16777216x16777216 is over'),
    'bomb.tif': (
        b'II*\0\x08\0\0\0' + struct.pack('<HHHIIHHII', 2, 256, 4, 1, 50000, 257, 4, 1, 50000),
        '50000x50000 is over',
    ),
    # OpenCV 4.12 crashes (opencv/opencv#27744), and allocates 2 GB for a chunk.
    'damaged_animation.png': (damaged(first_frames('PNG'), b'IDAT', 40), 'is not a readable image'),
    'long_chunk.png': (with_chunks(PNG, (b'PLTE', bytes(9))).replace(b'\0\0\0\x09PLTE', b'\x7f\0\0\0PLTE'), 'is not a'),
    'lfs.jpg': (
        b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n',
        'a pointer of Git LFS; get the file by `git lfs pull`',
    ),
    'phone.jpg': (b'\0\0\0\x18ftypheic' + bytes(99), 'HEIC is not read; convert it to JPEG'),
    'wide.png': (png_header(2_000_000, 2), '2000000x2 is over'),
    'zero.png': (png_header(0, 5), 'its size is 0x5'),
    'half.jpg': (LARGE_JPEG[: len(LARGE_JPEG) // 2], 'truncated'),
    'no_end.jpg': (LARGE_JPEG[:-2], 'truncated'),
    **{
        f'half.{kind.lower()}': (
            (data := pillow(RGB, kind, **LOSSLESS.get(kind, {})))[: len(data) // 2],
            'is not a readable image',
        )
        for kind in ('PNG', 'WEBP', 'TIFF', 'BMP')
    },
}


@pytest.fixture
def readers(tmp_path):
    """Functions from a path to pixels: each way in which the package reads an image."""
    meta = Meta(
        task='segmentation',
        kind='class_map',
        target='onnx',
        precision='fp32',
        classes=('a', 'b'),
        input=Input((32, 32), 'NHWC', 'uint8', 'RGB', False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        resize=Resize('stretch', (0, 0, 0)),
    )
    predictor = Predictor(meta, lambda batch: [np.zeros((1, 32, 32), np.uint8)])

    def inferred(path):
        class Record:
            task = 'segmentation'

            def __call__(self, image):
                images.append(image)
                return predictor(image)

        images = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(infer, 'load', lambda *_, **__: Record())
            infer.infer(str(path), 'net.onnx', out_dir=str(tmp_path / 'out'))
        (image,) = images  # a file of several pages or frames is one image
        return image

    return dict(
        read_image=read_image,
        Predictor=lambda path: predictor(path).image,
        infer=inferred,
        training=lambda path: read_reduced(str(path), (0, 0, WIDTH, HEIGHT), (WIDTH, HEIGHT))[0],
    )


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


def by_pillow(path):
    with Image.open(path) as image:
        return np.array(ImageOps.exif_transpose(image).convert('RGB'))[..., ::-1]


def check_readers(path, readers, expected, atol=0):
    for read in readers.values():
        np.testing.assert_allclose(read(path), expected, rtol=0, atol=atol)
    facts = image_facts(path)
    assert image_size(path) == expected.shape[1::-1] == (facts.width, facts.height)
    check_image_file(path)


@pytest.mark.parametrize('name', [*READABLE, *ONLY_MMCV])
def test_all_readers_return_the_same_pixels(name, readers, tmp_path):
    path = write(tmp_path, name, READABLE.get(name) or ONLY_MMCV[name])
    expected = LoadImageFromFile()(dict(img_path=str(path)))['img']
    check_readers(path, readers, expected)
    if name in READABLE:
        np.testing.assert_allclose(expected, by_pillow(path), rtol=0, atol=1 if name == 'cmyk.jpg' else 0)
    elif name.startswith('deep'):
        scaled = DEEP // 256 if name.endswith('.png') else np.round(DEEP / 257)
        scaled = np.repeat(scaled[..., :1], 3, axis=2) if 'grey' in name else scaled
        np.testing.assert_allclose(expected, scaled, rtol=0, atol=1 if name == 'deep_grey.tif' else 0)


@pytest.mark.parametrize('name', ONLY_PILLOW)
def test_orientation_is_applied_whatever_the_format(name, readers, tmp_path):
    path = write(tmp_path, name, ONLY_PILLOW[name])
    check_readers(path, readers, by_pillow(path), atol=2 if name == 'exif_lossy.webp' else 0)


@pytest.mark.parametrize('name', ONLY_OURS)
def test_damaged_metadata_does_not_matter(name, readers, tmp_path, capfd):
    data, orientation = ONLY_OURS[name]
    path = write(tmp_path, name, data)
    with Image.open(write(tmp_path, 'plain', PNG if name.endswith('png') else JPEG)) as image:
        stored = image.convert('RGB')
    if name.endswith('tif'):
        stored = (RGB.convert('P') if 'palette' in name else RGB.convert('L')).convert('RGB')
    stored.getexif()[0x0112] = orientation
    capfd.readouterr()
    check_readers(path, readers, np.array(ImageOps.exif_transpose(stored))[..., ::-1])
    assert capfd.readouterr().err == ''  # libpng has warnings of its own


def test_facts_about_an_image(tmp_path):
    sensor = (DEEP >> 4)[..., 0]  # 12 bits
    for name, data, channels, bits, max_value, orientation in (
        ('grey.jpg', pillow(RGB.convert('L'), 'JPEG', exif=exif(6)), 1, 8, None, 6),
        ('colours.jpg', JPEG, 3, 8, None, 1),
        ('print.jpg', READABLE['cmyk.jpg'], 4, 8, None, 1),
        ('thermal.png', opencv('.png', sensor), 1, 16, int(sensor.max()), 1),
        ('thermal.tif', opencv('.tif', sensor), 1, 16, int(sensor.max()), 1),
        ('alpha.png', READABLE['alpha.png'], 4, 8, int(PIXELS.max()), 1),
        ('grey_alpha.png', READABLE['grey_alpha.png'], 2, 8, None, 1),
        ('deep.png', ONLY_MMCV['deep.png'], 3, 16, int(DEEP.max()), 1),
        ('alpha.webp', READABLE['alpha.webp'], 4, 8, int(PIXELS.max()), 1),
        *(('turned.avif', ONLY_PILLOW['exif_5.avif'], 3, 8, None, 5) for _ in AVIF[:1]),
        ('other.jpg', opencv('.ppm', PIXELS), None, 8, int(PIXELS.max()), 1),
    ):
        path = write(tmp_path, name, data)
        facts = image_facts(path)
        pixels = read_image(path)
        if max_value is None:
            max_value = int(pixels.max())
        height, width = pixels.shape[:2]
        assert facts == ImageFacts(width, height, channels, bits, max_value, orientation), name
    assert read_image(tmp_path / 'thermal.png').max() < 16


@pytest.mark.parametrize('name', UNREADABLE)
def test_all_readers_raise_the_same_line(name, readers, tmp_path):
    data, message = UNREADABLE[name]
    path = write(tmp_path, name, data)
    lines = set()
    for read in readers.values():
        with pytest.raises(UserError) as caught:
            read(path)
        lines.add(str(caught.value))
    assert len(lines) == 1
    for line in lines:
        assert message in line
        assert str(path) in line
        assert '\n' not in line
    assert not (tmp_path / 'out' / 'predictions.json').exists()


def test_paths_that_cannot_be_read_are_one_line(readers, tmp_path):
    same = ('read_image', 'Predictor', 'training')  # infer takes a folder
    for path, message in (
        (tmp_path / 'gone.jpg', 'no image'),
        (tmp_path, 'Is a directory'),
        (tmp_path / ('x' * 300 + '.jpg'), 'File name too long'),
        ('nul\0.jpg', 'cannot be read'),
    ):
        for read in (image_size, image_facts, read_mask, check_image_file, *(readers[name] for name in same)):
            with pytest.raises(UserError, match=message) as caught:
                read(path)
            assert '\n' not in str(caught.value)


def test_images_larger_than_pillows_limit_are_read(tmp_path):
    path = tmp_path / 'large.png'
    bits = Image.new('1', (14000, 13000), 1)
    path.write_bytes(pillow(bits, 'PNG'))
    assert path.stat().st_size < 50_000
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert image_size(path) == (14000, 13000)
        pixels = read_image(path)
    assert pixels.shape == (13000, 14000, 3)
    assert pixels.min() == 255


def test_paths_that_are_no_files_or_too_large_are_refused_at_once(tmp_path):
    sparse = tmp_path / 'sparse.jpg'
    with sparse.open('wb') as file:
        file.write(JPEG)
        file.truncate(MAX_BYTES + 1)
    os.mkfifo(tmp_path / 'pipe.jpg')
    for path, message in (
        ('/dev/zero', 'it is not a file'),
        (tmp_path / 'pipe.jpg', 'it is not a file'),
        (sparse, f'{MAX_BYTES + 1} bytes; an image may have'),
    ):
        for read in (read_image, image_size, image_facts, read_mask, check_image_file):
            with pytest.raises(UserError, match=message):
                read(path)


@pytest.mark.parametrize('reduction', [2, 4, 8])
@pytest.mark.parametrize(
    'name', ['plain.jpg', 'exif_6.jpg', 'exif.tiff', 'a_tiff_turned.jpg', 'grey.png', 'exif_6.webp']
)
def test_reduced_images_have_their_sides_divided_and_rounded_up(name, reduction, tmp_path):
    path = write(tmp_path, name, READABLE.get(name) or ONLY_PILLOW[name])
    whole, reduced = read_image(path), read_image(path, reduction)
    height, width = whole.shape[:2]
    assert reduced.shape == (-(-height // reduction), -(-width // reduction), 3)
    mean = cv2.resize(whole, reduced.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.astype(int) - mean).mean() < 12


@pytest.mark.parametrize(
    ('name', 'needed', 'shape'),
    [
        ('plain.jpg', (48, 64), (48, 64)),
        ('plain.jpg', (25, 32), (48, 64)),
        ('plain.jpg', (24, 32), (24, 32)),
        ('plain.jpg', (13, 16), (24, 32)),
        ('plain.jpg', (12, 16), (12, 16)),
        ('plain.jpg', (1, 1), (6, 8)),
        ('exif_6.jpg', (32, 24), (32, 24)),
        ('exif_6.jpg', (24, 32), (64, 48)),
        ('grey.png', (1, 1), (48, 64)),
        ('exif.tiff', (1, 1), (64, 48)),
    ],
)
def test_an_image_to_resize_is_read_no_larger_than_needed(name, needed, shape, tmp_path):
    content = READABLE.get(name) or ONLY_PILLOW[name]
    path, given = write(tmp_path, name, content), []

    def resized(height, width):
        given.append((height, width))
        return needed

    pixels, size, reduction = read_for_resize(path, resized)
    assert pixels.shape[:2] == shape
    assert size == image_size(path)[::-1]
    assert reduction == size[0] // shape[0]
    assert given in ([], [size])
    np.testing.assert_array_equal(pixels, read_image(path, reduction))
    np.testing.assert_array_equal(read_for_resize(content, resized, 'name').pixels, pixels)
    odd = write(tmp_path, 'odd.jpg', cv2.imencode('.jpg', PIXELS[:47, :63])[1].tobytes())
    assert read_for_resize(odd, lambda *_: (24, 32)).pixels.shape[:2] == (24, 32)
    with pytest.raises(UserError, match=r'name is not a readable image'):
        read_for_resize(content[: len(content) // 2], resized, 'name')


def test_masks_are_read_as_values(tmp_path):
    values = np.random.default_rng(0).integers(0, 10, (20, 30), np.uint8)
    indexed = Image.fromarray(values, 'P')
    indexed.putpalette(list(range(30)))
    for name, data in (
        ('grey.png', opencv('.png', values)),
        ('indexed.png', pillow(indexed, 'PNG')),
        ('indexed_4_bits.png', pillow(indexed, 'PNG', bits=4)),
        ('grey_16_bits.png', opencv('.png', values.astype(np.uint16))),
        ('grey_32_bits.tif', pillow(Image.fromarray(values.astype(np.int32)), 'TIFF')),
        ('indexed.bmp', pillow(indexed, 'BMP')),
    ):
        np.testing.assert_array_equal(read_mask(write(tmp_path, name, data)), values)
    with pytest.raises(UserError, match='has 3 channels; a mask has one'):
        read_mask(write(tmp_path, 'colours.png', PNG))


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'BMP'])
def test_masks_of_1_bit_are_0_and_1(kind, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 2, (20, 30)).astype(bool))
    path = write(tmp_path, f'bits.{kind.lower()}', pillow(image, kind))
    results = dict(seg_map_path=str(path), seg_fields=[], reduce_zero_label=False)
    mask = read_mask(path)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, np.array(image))
    np.testing.assert_array_equal(mask, LoadAnnotations()(results)['gt_seg_map'])


@pytest.mark.parametrize(
    ('name', 'values', 'message'),
    [
        ('deep.png', np.full((4, 5), 300, np.uint16), 'has the value 300; masks hold 0 to 255'),
        ('deep.tif', np.full((4, 5), 1000, np.int32), 'has the value 1000'),
        ('negative.tif', np.full((4, 5), -1, np.int32), 'has the value -1'),
        ('float.tif', np.full((4, 5), 2.7, np.float32), 'has float32 values; a mask has integers'),
    ],
)
def test_masks_with_values_that_do_not_fit_are_refused(name, values, message, tmp_path):
    path = write(tmp_path, name, pillow(Image.fromarray(values), 'PNG' if name.endswith('png') else 'TIFF'))
    with pytest.raises(UserError, match=message) as caught:
        read_mask(path)
    assert str(path) in str(caught.value)


def test_empty_arrays_are_not_written(tmp_path):
    for write_empty in (
        lambda path: write_image(path, np.zeros((0, 5, 3), np.uint8)),
        lambda path: write_mask(path, np.zeros((0, 5), np.uint8), [(0, 0, 0)]),
        lambda path: write_mask(path, np.zeros((5, 0), np.uint8), [(0, 0, 0)] * 300),
    ):
        with pytest.raises(UserError, match=r'empty\.png cannot be written: its size is [05]x[05]$'):
            write_empty(tmp_path / 'empty.png')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('suffix', JPEG_SUFFIXES)
def test_every_suffix_of_jpeg_is_written_and_read(tmp_path, suffix):
    """OpenCV's encoder does not know .jfif."""
    path = tmp_path / f'a{suffix.upper()}'
    write_image(path, PIXELS)
    assert path.read_bytes().startswith(b'\xff\xd8\xff')
    assert read_image(path).shape == PIXELS.shape


def test_files_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / 'file').touch()
    for path, message in (
        (tmp_path / 'a.xyz', 'cannot be written'),
        (tmp_path / 'file' / 'a.png', 'cannot be written'),
        (tmp_path / ('x' * 300 + '.png'), 'File name too long'),
    ):
        with pytest.raises(UserError, match=message) as caught:
            write_image(path, PIXELS)
        assert '\n' not in str(caught.value)
    write_image(tmp_path / 'new' / 'Grüße.png', PIXELS)
    np.testing.assert_array_equal(read_image(tmp_path / 'new' / 'Grüße.png'), PIXELS)


def test_opencvs_log_level_is_restored(tmp_path):
    before = cv2.getLogLevel()
    with pytest.raises(UserError):
        read_image(write(tmp_path, 'half.png', PNG[:99]))
    assert cv2.getLogLevel() == before
