"""Images and masks that a config names are checked, and mistakes are reported with their files."""

import numpy as np
import pytest
from PIL import Image

from mnv4_mm.data.mask_split import MaskSplit, check_pairs
from mnv4_mm.errors import UserError


@pytest.fixture
def root(tmp_path):
    """3 training pairs and 1 validation pair of 2 classes, 12 x 10 pixels (width x height)."""
    for split, count in (('training', 3), ('validation', 1)):
        for kind in ('images', 'annotations'):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(count):
            Image.new('RGB', (12, 10)).save(tmp_path / f'images/{split}/{i}.jpg')
            value = (i + (split == 'validation')) % 3
            Image.fromarray(np.full((10, 12), value, np.uint8)).save(tmp_path / f'annotations/{split}/{i}.png')
    return tmp_path


def split_of(root, name='training', suffix='.jpg'):
    return MaskSplit(root / 'images' / name, root / 'annotations' / name, suffix)


def check(root):
    for name in ('training', 'validation'):
        check_pairs(split_of(root, name), 2, reduce_zero_label=True)


def test_a_valid_data_set(root):
    check(root)


def test_the_small_real_and_the_drawn_data_set_are_valid(repository, drawn):
    for path, classes in ((repository / 'data/mini/ade', 150), (drawn, 7)):
        for name in ('training', 'validation'):
            check_pairs(split_of(path, name), classes, reduce_zero_label=True)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (3, r'0\.png: 120 pixels have the value 3: 1 to 2 are the classes, and 0, 255 are unlabelled: correct it, or'),
        (254, 'have the value 254'),
    ],
)
def test_invalid_mask_values_are_reported(root, values, message):
    Image.fromarray(np.full((10, 12), values, np.uint8)).save(root / 'annotations/training/0.png')
    with pytest.raises(UserError, match=message):
        check(root)


def test_all_150_classes_and_no_more(root):
    split = split_of(root)
    Image.fromarray(np.full((10, 12), 150, np.uint8)).save(root / 'annotations/training/0.png')
    check_pairs(split, 150, reduce_zero_label=True)
    Image.fromarray(np.full((10, 12), 151, np.uint8)).save(root / 'annotations/training/0.png')
    with pytest.raises(UserError, match=r'0\.png: 120 pixels have the value 151: 1 to 150 are'):
        check_pairs(split, 150, reduce_zero_label=True)


def test_255_is_unlabelled_beside_0(root):
    for name in ('0', '1'):
        Image.fromarray(np.full((10, 12), 255, np.uint8)).save(root / f'annotations/training/{name}.png')
    check(root)


def test_without_reduce_zero_label_255_is_unlabelled(root):
    split = split_of(root)
    Image.fromarray(np.full((10, 12), 255, np.uint8)).save(root / 'annotations/training/0.png')
    check_pairs(split, 3, reduce_zero_label=False)
    with pytest.raises(UserError, match=r'2\.png: .* have the value 2: 0 to 1 are the classes, and 255 is unlabelled'):
        check_pairs(split, 2, reduce_zero_label=False)


def break_size(root):
    Image.new('L', (10, 12)).save(root / 'annotations/training/1.png')


def break_colour(root):
    Image.new('RGB', (12, 10)).save(root / 'annotations/training/1.png')


def break_depth(root):
    Image.fromarray(np.zeros((10, 12), np.uint16)).save(root / 'annotations/training/1.png')


def break_mask(root):
    path = root / 'annotations/training/1.png'
    path.write_bytes(path.read_bytes()[:45])


def break_image(root):
    (root / 'images/training/1.jpg').write_bytes(b'no')


def cut_image(root):
    path = root / 'images/training/1.jpg'
    Image.effect_noise((12, 10), 90).save(path)
    path.write_bytes(path.read_bytes()[:-60])


def break_format(root):
    Image.fromarray(np.ones((10, 12), np.uint8)).save(root / 'annotations/training/1.png', format='JPEG')


@pytest.mark.parametrize(
    ('broken', 'message'),
    [
        (
            lambda root: (root / 'annotations/training/1.png').unlink(),
            r'training/1\.png: there is no such file',
        ),
        (lambda root: (root / 'images/training/1.jpg').unlink(), r'images/training/1\.jpg: there is no such file'),
        (break_size, r'training/1\.png: it is 10x12, but its image .*1\.jpg is 12x10'),
        (break_colour, r'8-bit PNG files of one channel, which annotations/training/1\.png is not'),
        (break_depth, r'8-bit PNG files of one channel, which annotations/training/1\.png is not'),
        (break_mask, r'1\.png: it is not a readable mask'),
        (break_image, r'1\.jpg: it is not a readable image'),
        (cut_image, r'1\.jpg: it is not a readable image'),
        (break_format, r'1\.png: it is a JPEG file with'),
    ],
)
def test_mistakes_are_reported(root, broken, message):
    broken(root)
    with pytest.raises(UserError, match=message):
        check(root)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match=r'no data: looked for .*; fetch it'):
        check_pairs(split_of(tmp_path / 'none'), 2, True, hint='fetch it')


def test_masks_with_a_palette_are_read_as_indices(root):
    image = Image.frombytes('P', (12, 10), bytes([2]) * 120)
    image.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0])
    image.save(root / 'annotations/training/0.png')
    check(root)


def test_exif_rotation_is_applied_to_the_size(root):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new('RGB', (10, 12)).save(root / 'images/training/0.jpg', exif=exif)
    check(root)


def test_many_mistakes_are_counted(root):
    for i in range(3):
        Image.fromarray(np.full((10, 12), 7, np.uint8)).save(root / f'annotations/training/{i}.png')
    (root / 'images/training/1.jpg').unlink()
    with pytest.raises(UserError, match=r'2 times mask-value: .*0\.png: 120 pixels.*1\.jpg: there is no such file'):
        check(root)
    (root / 'images/training/2.jpg').unlink()
    (root / 'images/training/0.jpg').unlink()
    with pytest.raises(UserError, match='3 times unreadable-image: correct it'):
        check_pairs(split_of(root), 2, True)


def test_a_names_file_selects_pairs(root):
    listed = root / 'list.txt'
    listed.write_text('0\n2\n')
    (root / 'annotations/training/1.png').unlink()  # not in the list, so not an error
    split = split_of(root)._replace(names_file=listed)
    check_pairs(split, 2, reduce_zero_label=True)
    listed.write_text('0\n7\n')
    with pytest.raises(UserError, match=r'7\.jpg: there is no such file'):
        check_pairs(split, 2, reduce_zero_label=True)


def test_names_with_suffixes_select_images_of_several_kinds(root):
    """The form in which a user's data is prepared."""
    Image.new('RGB', (12, 10)).save(root / 'images/training/1.png')
    listed = root / 'list.txt'
    listed.write_text('0.jpg\n1.png\n')
    masks = root / 'masks'
    masks.mkdir()
    for name, source in (('0.jpg', '0'), ('1.png', '1')):
        (masks / f'{name}.png').symlink_to(root / f'annotations/training/{source}.png')
    split = MaskSplit(root / 'images/training', masks, image_suffix='', names_file=listed)
    assert split.image_files() == [root / 'images/training/0.jpg', root / 'images/training/1.png']
    check_pairs(split, 2, reduce_zero_label=True)
    (masks / '1.png.png').unlink()
    with pytest.raises(UserError, match=r'masks/1\.png\.png: there is no such file'):
        check_pairs(split, 2, reduce_zero_label=True)


def test_the_images_of_a_folder(root):
    assert split_of(root).image_files() == [root / f'images/training/{i}.jpg' for i in range(3)]
