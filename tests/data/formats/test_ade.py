"""A segmentation data set is recognised, and what is wrong with a pair is named before anything is trained."""

import numpy as np
import pytest
from PIL import Image

from mnv4_mm.data.formats.ade import MaskSplit, check_pairs, find_ade
from mnv4_mm.errors import UserError


@pytest.fixture
def root(tmp_path):
    """3 training pairs and 1 validation pair of 2 classes, 12 wide and 10 high."""
    for split, count in (('training', 3), ('validation', 1)):
        for kind in ('images', 'annotations'):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(count):
            Image.new('RGB', (12, 10)).save(tmp_path / f'images/{split}/{i}.jpg')
            Image.fromarray(np.full((10, 12), i % 3, np.uint8)).save(tmp_path / f'annotations/{split}/{i}.png')
    (tmp_path / 'classes.txt').write_text('cat\ndog\n')
    return tmp_path


def check(root):
    layout = find_ade(root)
    for split in (layout.train, layout.val):
        check_pairs(split, len(layout.classes), reduce_zero_label=True)


def test_a_good_one(root):
    layout = find_ade(root)
    assert layout.classes == ('cat', 'dog')
    assert layout.train == MaskSplit(root / 'images/training', root / 'annotations/training')
    check(root)
    (root / 'images/training').rename(root / 'images/train')
    (root / 'annotations/training').rename(root / 'annotations/train')
    check(root)


def test_the_repositorys_and_the_drawn_one(repository, drawn):
    for path, classes, count in ((repository / 'data/mini/ade', 150, 26), (drawn, 7, 128)):
        layout = find_ade(path)
        assert len(layout.classes) == classes
        assert len(list(layout.train.masks.iterdir())) == count
        check(path)


def test_ade20ks_own_folder_has_its_classes(root):
    (root / 'classes.txt').unlink()
    with pytest.raises(UserError, match=r'no .*classes.txt'):
        find_ade(root)
    (root / 'objectInfo150.txt').touch()
    classes = find_ade(root).classes
    assert (len(classes), classes[0], classes[-1]) == (150, 'wall', 'flag')


@pytest.mark.parametrize(
    ('values', 'message'),
    [(3, r'0\.png has the value 3: 0 is unlabelled, 1 to 2 are the classes'), (255, 'has the value 255')],
)
def test_values_that_are_no_classes(root, values, message):
    Image.fromarray(np.full((10, 12), values, np.uint8)).save(root / 'annotations/training/0.png')
    with pytest.raises(UserError, match=message):
        check(root)


def test_all_150_classes_and_no_more(root):
    split = find_ade(root).train
    Image.fromarray(np.full((10, 12), 150, np.uint8)).save(root / 'annotations/training/0.png')
    check_pairs(split, 150, reduce_zero_label=True)
    Image.fromarray(np.full((10, 12), 151, np.uint8)).save(root / 'annotations/training/0.png')
    with pytest.raises(UserError, match=r'0\.png has the value 151: 0 is unlabelled, 1 to 150'):
        check_pairs(split, 150, reduce_zero_label=True)


def test_without_reduce_zero_label_255_is_unlabelled(root):
    split = find_ade(root).train
    Image.fromarray(np.full((10, 12), 255, np.uint8)).save(root / 'annotations/training/0.png')
    check_pairs(split, 3, reduce_zero_label=False)
    with pytest.raises(UserError, match=r'2\.png has the value 2: 0 to 1 are the classes, 255 is unlabelled'):
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


def break_picture(root):
    (root / 'images/training/1.jpg').write_bytes(b'no')


@pytest.mark.parametrize(
    ('broken', 'message'),
    [
        (lambda root: (root / 'annotations/training/1.png').unlink(), r'no mask for the picture .*training/1\.jpg'),
        (lambda root: (root / 'images/training/1.jpg').unlink(), r'no picture for the mask .*training/1\.png'),
        (break_size, r'training/1\.png is 10x12, its picture .*1\.jpg 12x10'),
        (break_colour, r'1\.png has RGB pixels'),
        (break_depth, r'1\.png has I;16 pixels'),
        (break_mask, r'1\.png is not a readable mask'),
        (break_picture, r'1\.jpg is not a readable picture'),
        (lambda root: (root / 'classes.txt').write_text('cat\n'), 'at least 2 classes'),
        (lambda root: (root / 'classes.txt').write_text('cat\ncat\n'), 'repeats'),
        (lambda root: (root / 'classes.txt').write_bytes(b'\xff\xfe\n'), 'not UTF-8'),
        (lambda root: (root / 'classes.txt').write_text('\n'.join(map(str, range(255)))), 'can hold 254'),
        (lambda root: Image.new('RGB', (12, 10)).save(root / 'images/training/9.png'), 'pictures of 2 kinds'),
        (lambda root: (root / 'images/validation').rename(root / 'images/test'), r'no .*images/validation'),
    ],
)
def test_mistakes_are_named(root, broken, message):
    broken(root)
    with pytest.raises(UserError, match=message):
        check(root)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match='no folder'):
        find_ade(tmp_path / 'none')


def test_masks_with_a_palette_are_their_values(root):
    image = Image.frombytes('P', (12, 10), bytes([2]) * 120)
    image.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0])
    image.save(root / 'annotations/training/0.png')
    check(root)


def test_a_turned_picture_is_as_large_as_it_is_shown(root):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new('RGB', (10, 12)).save(root / 'images/training/0.jpg', exif=exif)
    check(root)


def test_many_mistakes_are_counted(root):
    for i in range(3):
        Image.fromarray(np.full((10, 12), 7, np.uint8)).save(root / f'annotations/training/{i}.png')
    (root / 'images/training/1.jpg').unlink()
    with pytest.raises(UserError, match=r'no picture for the mask .*0\.png has .*2\.png has'):
        check(root)
    (root / 'images/training/2.jpg').unlink()
    (root / 'images/training/0.jpg').unlink()
    with pytest.raises(UserError, match='no picture'):
        check_pairs(MaskSplit(root / 'images/training', root / 'annotations/training'), 2, True)


def test_a_list_of_names_picks(root):
    listed = root / 'list.txt'
    listed.write_text('0\n2\n')
    (root / 'annotations/training/1.png').unlink()  # not in the list: no mistake
    split = find_ade(root).train._replace(listed=listed)
    check_pairs(split, 2, reduce_zero_label=True)
    listed.write_text('0\n7\n')
    with pytest.raises(UserError, match=r'no picture .*7\.jpg'):
        check_pairs(split, 2, reduce_zero_label=True)
