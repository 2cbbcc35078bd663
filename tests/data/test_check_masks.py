"""What is wrong with masks is corrected, left out and counted, or refused with the way out."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from mask_folders import ADE, FLAT, SPLIT, Layout, pattern, save_image, save_mask, write
from PIL import Image

from mnv4_mm.data.check_masks import check_masks
from mnv4_mm.data.checked import CheckedData
from mnv4_mm.data.findings import KINDS
from mnv4_mm.data.formats.masks import read
from mnv4_mm.data.mask_split import read_names
from mnv4_mm.data.prepare_masks import examine_masks, prepare_masks, write_fixed
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_mask


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MNV4_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def root(tmp_path):
    """Six images, 12 x 10 pixels, with masks of two classes."""
    return write(tmp_path / 'data', FLAT, [0, 1, 255], count=6, files={'classes.txt': 'cat\ndog\n'})


def check(root: Path) -> CheckedData:
    return check_masks(read(root)).checked


def turn(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.new('RGB', (12, 10)).save(root / 'images/0.jpg', exif=exif)


def smooth(root: Path) -> None:
    values = np.round(np.linspace(0, 255, 120)).astype(np.int32).reshape(10, 12)
    save_mask(root / 'masks/0.png', values)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def save_noise(root: Path) -> None:
    Image.fromarray(np.random.default_rng(0).random((10, 12), np.float32)).save(root / 'masks/0.tif')
    (root / 'masks/0.png').unlink()


DROPPED = {
    'unreadable-image': (lambda root: cut(root / 'images/0.jpg'), r'images/0\.jpg: it is not a readable image'),
    'unreadable-mask': (lambda root: cut(root / 'masks/0.png'), r'masks/0\.png: it is'),
    'empty': (lambda root: (root / 'masks/0.png').write_bytes(b''), r'masks/0\.png: it is empty'),
    'float': (save_noise, r'masks/0\.tif: it has F pixels; a mask has integers'),
    'mask-size': (
        lambda root: save_mask(root / 'masks/0.png', pattern([0, 1]).T),
        r'masks/0\.png: it is 10x12, but its image .* is 12x10',
    ),
    'mask-size-exif': (turn, r'it is 12x10, but its image images/0\.jpg is 10x12 as its EXIF orientation 6 turns it'),
    'mask-value': (
        lambda root: save_mask(root / 'masks/0.png', pattern([0, 1, 7])),
        r'masks/0\.png: 40 pixels have the value 7: 0 to 1 are the classes, and 255 is unlabelled',
    ),
    'smoothed': (smooth, r'masks/0\.png: 118 pixels have the values 2, 4, 6, 9, 11 and'),
    'mask-missing': (lambda root: (root / 'masks/0.png').unlink(), r'images/0\.jpg: the image has no mask'),
    'mask-without-image': (lambda root: (root / 'images/0.jpg').unlink(), r'masks/0\.png: the mask has no image'),
    'mask-jpeg': (
        lambda root: (save_mask(root / 'masks/0.jpg', pattern([0, 1])), (root / 'masks/0.png').unlink()),
        r'masks/0\.jpg: it is a JPEG file .* save it as PNG',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', DROPPED)
def test_what_cannot_be_used_is_left_out_and_counted(root, name):
    damage, message = DROPPED[name]
    damage(root)
    with pytest.raises(UserError, match=rf'1 of \d (images|masks) \(1\d\.\d %\).* would be left out.*{message}'):
        prepare_masks(root)
    layout = prepare_masks(root, allow_dropped=True)
    names = {name for split in (layout.train, layout.val) for name in read_names(split.names_file)}
    assert names == {f'{i}.jpg' for i in range(1, 6)}
    assert re.search(message, '\n'.join(layout.checked.lines()))


def test_one_percent_may_be_left_out(tmp_path):
    root = write(tmp_path / 'data', FLAT, [0, 1, 255], count=100, files={'classes.txt': 'cat\ndog\n'})
    (root / 'masks/7.png').write_bytes(b'no')
    assert prepare_masks(root).checked.counts['images'].dropped == 1
    (root / 'masks/8.png').write_bytes(b'no')
    with pytest.raises(UserError, match=r'2 of 100 images \(2 %\)'):
        prepare_masks(root)


@pytest.mark.parametrize('file', ['masks/val/105.png', 'images/val/105.jpg'])
@pytest.mark.parametrize('is_removed', [True, False])
def test_one_percent_is_that_of_a_split(tmp_path, file, is_removed):
    root = write(tmp_path / 'data', SPLIT, [0, 1, 255], count=105, files={'classes.txt': 'cat\ndog\n'})
    for i in range(109, 210):
        (root / f'images/val/{i}.jpg').unlink()
        (root / f'masks/val/{i}.png').unlink()
    if is_removed:
        (root / file).unlink()
    else:
        cut(root / file)
    counts = check(root).counts
    assert counts['images' if file.startswith('masks') or not is_removed else 'masks'].dropped == 1
    if file.startswith('masks') or not is_removed:
        with pytest.raises(UserError, match=r'1 of 4 validation images \(25 %\)'):
            prepare_masks(root)
    else:
        prepare_masks(root)  # a mask without an image is left out, but no image is


# The cases of users' data: masks-*.


def test_masks_in_colours_without_their_meaning(tmp_path):
    colours = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 0, 255)}
    root = write(tmp_path / 'data', ADE, [0, 1, 2], mode='RGB', colours=colours, files={'classes.txt': 'cat\ndog\n'})
    with pytest.raises(UserError) as error:
        prepare_masks(root)
    message = str(error.value)
    assert 'masks are in colours (first: annotations/training/0.png)' in message
    assert 'classes.txt has names without colours: write labelmap.txt with a line for each' in message
    for line in ('name:0,0,0::', 'name:255,0,0::', 'name:0,0,255::'):
        assert line in message
    # The advice works.
    (root / 'labelmap.txt').write_text('rest:0,0,0::\ncat:255,0,0::\ndog:0,0,255::\n')
    assert prepare_masks(root).classes == ('rest', 'cat', 'dog')


def test_colours_of_no_class(tmp_path):
    colours = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 0, 255)}
    files = {'labelmap.txt': 'rest:0,0,0::\ncat:255,0,0::\n'}
    root = write(tmp_path / 'data', FLAT, [0, 1], mode='RGB', colours=colours, files=files, count=6)
    save_mask(root / 'masks/0.png', pattern([0, 1, 2]), 'RGB', colours)
    with pytest.raises(UserError, match=r'0\.png: 40 pixels have colours of no class: \(0, 0, 255\).*labelmap\.txt'):
        prepare_masks(root)


def test_swapped_red_and_blue_is_named(tmp_path):
    files = {'labelmap.txt': 'rest:0,0,0::\ncat:255,0,0::\ndog:0,128,64::\n'}
    swapped = {0: (0, 0, 0), 1: (0, 0, 255), 2: (64, 128, 0)}
    root = write(tmp_path / 'data', FLAT, [0, 1, 2], mode='RGB', colours=swapped, files=files)
    with pytest.raises(UserError, match=r'those of labelmap\.txt with red and blue swapped'):
        prepare_masks(root)
    (root / 'labelmap.txt').write_text('rest:0,0,0::\ncat:0,0,255::\ndog:64,128,0::\n')
    assert prepare_masks(root).classes == ('rest', 'cat', 'dog')


def test_photographs_are_no_masks(tmp_path):
    root = write(tmp_path / 'data', FLAT, [0, 1], count=4)
    pixels = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    for i in range(4):
        Image.fromarray(pixels).save(root / f'masks/{i}.png')
    with pytest.raises(UserError, match=r'masks/0\.png has 3\d\d\d colours: it is a photograph, or a mask that was'):
        prepare_masks(root)


def test_vocs_masks(tmp_path):
    """0 is the background, which is a class of its own since 255 is what has no label."""
    root = write(tmp_path / 'data', ADE, [0, 1, 2, 255], mode='P', files={'classes.txt': 'cat\ndog\n'})
    layout = prepare_masks(root)
    assert layout.classes == ('background', 'cat', 'dog')
    assert 'classes.txt has no name for the value 0: it is the class background' in layout.checked.notes


def test_masks_as_jpeg(tmp_path):
    layout = Layout('images/{split}/{i}.jpg', 'annotations/{split}/{i}.jpg', ('training', 'validation'))
    root = write(tmp_path / 'data', layout, [0, 120, 250], files={'classes.txt': 'cat\ndog\n'})
    with pytest.raises(UserError, match=r'6 masks are JPEG files \(.* JPEG does not keep .* save the masks as PNG'):
        prepare_masks(root)


def test_one_class(tmp_path):
    root = write(tmp_path / 'data', ADE, [0, 1], files={'classes.txt': 'cat\n'})
    layout = prepare_masks(root)
    assert layout.classes == ('background', 'cat')
    np.testing.assert_array_equal(read_mask(layout.train.masks / '0.jpg.png'), pattern([0, 1]) + 1)
    assert any('classes.txt has no name for what is not the object' in note for note in layout.checked.notes)


def test_no_validation_pixel_has_a_label(tmp_path):
    root = write(tmp_path / 'data', ADE, [0, 1, 2], files={'classes.txt': 'cat\ndog\n'})
    for path in (root / 'annotations/validation').iterdir():
        save_mask(path, pattern([0]))
    with pytest.raises(UserError, match=r'no pixel of the 3 validation masks has a label: mIoU cannot be measured'):
        prepare_masks(root)


def test_no_training_pixel_has_a_label(tmp_path):
    root = write(tmp_path / 'data', SPLIT, [0, 1, 255], files={'classes.txt': 'cat\ndog\n'})
    for path in (root / 'masks/train').iterdir():
        save_mask(path, pattern([255]))
    with pytest.raises(UserError, match='no pixel of the 3 training masks has a label'):
        prepare_masks(root)


def test_nothing_is_left(root):
    for path in (root / 'images').iterdir():
        path.write_bytes(b'no')
    assert any('no training images remain' in reason for reason in check(root).refusals(allow_dropped=True))
    for path in (root / 'masks').iterdir():
        path.write_bytes(b'no')
    with pytest.raises(UserError, match=r'no mask can be read; masks/0\.png: it is'):
        prepare_masks(root)


def test_classes_without_pixels_are_named(tmp_path):
    root = write(
        tmp_path / 'data',
        SPLIT,
        [0, 1, 255],
        files={'classes.txt': 'cat\ndog\nhorse\n', 'masks.yaml': 'first_class: 0\n'},
    )
    for path in (root / 'masks/val').iterdir():
        save_mask(path, pattern([0]))
    lines = '\n'.join(check(root).lines())
    assert 'no training pixel is horse (1 of 3 classes): the model cannot learn it' in lines
    assert 'no validation pixel is dog, horse (2 of 3 classes)' in lines
    assert not check(root).refusals()


def test_a_mask_without_a_label_is_mentioned(tmp_path):
    root = write(tmp_path / 'data', SPLIT, [0, 1, 255], files={'classes.txt': 'cat\ndog\n'})
    save_mask(root / 'masks/train/1.png', pattern([255]))
    assert 'harmless: masks/train/1.png: no pixel has a label' in '\n'.join(check(root).lines())


def test_an_image_that_is_almost_black_is_mentioned(tmp_path):
    root = write(tmp_path / 'data', SPLIT, [0, 1], files={'classes.txt': 'cat\ndog\n'})
    dark = np.random.default_rng(0).integers(0, 2**12, cv2.imread(str(root / 'images/train/0.jpg')).shape, np.uint16)
    cv2.imwrite(str(root / 'images/train/0.png'), dark)
    (root / 'images/train/0.jpg').unlink()
    assert 'harmless: images/train/0.png: its brightest value is 15 of 255' in '\n'.join(check(root).lines())


def test_an_image_that_exif_turns_upside_down_is_mentioned(tmp_path):
    root = write(tmp_path / 'data', SPLIT, [0, 1], files={'classes.txt': 'cat\ndog\n'})
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(root / 'images/train/0.jpg') as image:
        image.load()
        image.save(root / 'images/train/0.jpg', exif=exif)
    assert '1 image turned by EXIF, and labels read as of the turned image: images/train/0.jpg' in check(root).notes


def test_several_masks_of_an_image(tmp_path):
    root = write(tmp_path / 'data', FLAT._replace(mask='masks/{i}_mask_0.png'), [0, 1], count=4)
    save_mask(root / 'masks/2_mask_1.png', pattern([0, 1]))
    with pytest.raises(UserError, match=r'masks/2_mask_1\.png: images/2\.jpg has the mask masks/2_mask_0\.png too'):
        prepare_masks(root)


def test_the_same_image_in_both_splits(tmp_path):
    root = write(tmp_path / 'data', SPLIT, [0, 1, 255])
    (root / 'images/val/3.jpg').write_bytes((root / 'images/train/0.jpg').read_bytes())
    assert 'near-duplicate of the training image images/train/0.jpg' in '\n'.join(check(root).lines())


def list_images(root: Path, train: list[int], val: list[int]) -> None:
    for name, numbers in (('train', train), ('val', val)):
        (root / f'{name}.txt').write_text('\n'.join(map(str, numbers)))


def test_an_image_on_both_lists_is_refused(root):
    list_images(root, [0, 1, 2, 3], [3, 4, 5])
    message = (
        r"masks/3\.png: 'images/3\.jpg' is for val, and for training in .*masks/3\.png: list each image in one split"
    )
    with pytest.raises(UserError, match=message):
        prepare_masks(root)


def test_identical_lists_are_split_anew(root):
    list_images(root, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    layout = prepare_masks(root)
    train, val = (set(read_names(split.names_file)) for split in (layout.train, layout.val))
    assert not train & val
    assert len(train | val) == 6
    assert 'the same images are for training and validation: they are split anew' in layout.checked.notes


def test_no_split_is_written_if_no_image_is_left(root):
    for path in (root / 'images').iterdir():
        path.write_bytes(b'version https://git-lfs.github.com/spec/v1')
    checked = examine_masks(root).checked
    assert checked.split_file is None
    assert not any('split is written' in note for note in checked.notes)


# Where values and names do not tell what is meant, the user is asked.
AMBIGUOUS = {
    'last class never occurs': (ADE, [0, 1], 'cat\ndog\n', r'the values 0, 1 and classes\.txt has 2 names: is the'),
    'neither 0 nor the last': (SPLIT, [1, 2], 'a\nb\nc\n', r'the first name value 0 or value 1\? Write `first_class:'),
    'background and one more': (SPLIT, [0, 1, 2], 'background\ncat\n', r'of which the first is background'),
    'too many values': (SPLIT, list(range(7)), 'a\nb\n', r'7 values \(0 to 6\), but classes\.txt has 2 names'),
    'only background': (SPLIT, [0, 1], 'background\n', r'classes\.txt has background alone'),
    'nothing of the class': (SPLIT, [0], 'cat\n', r'no pixel of any mask is cat: all have the value 0'),
    'empty': (SPLIT, [0, 1], '\n', r'classes\.txt has no class names'),
    'nothing but labelme\'s first line': (SPLIT, [0], '__ignore__\n', r'classes\.txt has no class names'),
    'empty line': (SPLIT, [0, 1], 'a\n\nb\n', r'classes\.txt, line 2 is empty'),
    'twice': (SPLIT, [0, 1], 'a\na\n', r"classes\.txt has the class 'a' 2 times: give each class its own name"),
}  # fmt: skip


@pytest.mark.parametrize('name', AMBIGUOUS)
def test_what_is_not_clear_is_asked(tmp_path, name):
    layout, values, names, message = AMBIGUOUS[name]
    root = write(tmp_path / 'data', layout, values, files={'classes.txt': names})
    with pytest.raises(UserError, match=message):
        prepare_masks(root)


def test_a_value_in_one_mask_does_not_shift_all_classes(tmp_path):
    """With 2 in one mask, values 0 to 2 and two names would read as 0 unlabelled."""
    root = write(tmp_path / 'data', FLAT, [0, 1], count=20, files={'classes.txt': 'cat\ndog\n'})
    save_mask(root / 'masks/3.png', pattern([0, 1, 2]))
    with pytest.raises(UserError, match='2 occurs in 1 of 20 masks: is 0 the first class, or unlabelled'):
        prepare_masks(root)
    (root / 'masks.yaml').write_text('first_class: 0\n')
    with pytest.raises(UserError, match=r'1 of 20 images .*3\.png: 40 pixels have the value 2'):
        prepare_masks(root)


def test_binary_masks_of_two_kinds(tmp_path):
    """1 and 255 are the same object: 255 is not unlabelled here."""
    root = write(tmp_path / 'data', FLAT, [0, 1], count=6, files={'classes.txt': 'cat\n'})
    for i in (2, 4):
        save_mask(root / f'masks/{i}.png', pattern([0, 255]))
    with pytest.raises(UserError, match=r'4 masks have the value 1 and no 255 \(.*\); 2 have 255 and no 1 \(.*2\.png'):
        prepare_masks(root)
    (root / 'masks.yaml').write_text('ignore: [255]\n')
    assert prepare_masks(root).classes == ('background', 'cat')


def test_masks_of_instances(tmp_path):
    root = write(tmp_path / 'data', FLAT, list(range(12)), count=8)
    for i in range(8):
        save_mask(root / f'masks/{i}.png', pattern(range(12 * i, 12 * i + 12)))
    with pytest.raises(UserError, match=r'masks have 96 values .* masks of instances a value for each object'):
        prepare_masks(root)


SETTINGS = {
    'list': ('- a\n', 'must be a mapping'),
    'unknown key': ('frist_class: 0\n', 'unknown key frist_class; masks.yaml in the data folder may have: classes'),
    'first class': ('first_class: one\n', "first_class must be a mask value, got 'one'"),
    'negative': ('first_class: -1\n', 'first_class must be a mask value'),
    'ignore': ('ignore: [none]\n', "ignore must be a list of values or of colours .* got 'none'"),
    'read': ('read: both\n', "read must be values or colours, got 'both'"),
    'classes': ('classes: 3\n', 'classes must be a list of class names'),
    'both': ('classes: {0: a, 1: b}\nfirst_class: 1\n', 'first_class does not go with a name for each value'),
    'not yaml': ('a: [\n', r'masks\.yaml cannot be read as YAML'),
    'aliases': ('classes: &a [x]\nignore: *a\n', 'alias'),
    'code': ('classes: !!python/object/apply:os.system ["true"]\n', r'masks\.yaml cannot be read as YAML'),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_wrong_settings(root, name):
    text, message = SETTINGS[name]
    (root / 'masks.yaml').write_text(text)
    with pytest.raises(UserError, match=message):
        prepare_masks(root)


FILES = {
    'labelmap.txt': ('cat;255,0,0\n', r'labelmap\.txt, line 1 must be name:red,green,blue::'),
    'class_dict.csv': (
        'name,r,g,b\ncat,1,2\n',
        r"csv, line 2: expected a name and a colour .*, got 'cat,1,2'",
    ),
    'class_dict.csv, titles only': ('name,r,g,b\n', r'class_dict\.csv has no class names: write them into it'),
    '_classes.csv': (
        'Pixel Value, Class\nnone, cat\n',
        r"csv, line 2: expected a value and a class, got 'none,cat'",
    ),
    'id2label.json': ('{', r'id2label\.json is not JSON'),
    'data.yaml': ('names: 3\n', r'data\.yaml: names must be a list'),
}


@pytest.mark.parametrize('name', FILES)
def test_wrong_files_of_classes(root, name):
    text, message = FILES[name]
    (root / 'classes.txt').unlink()
    (root / name.split(',')[0]).write_text(text)
    with pytest.raises(UserError, match=message):
        prepare_masks(root)


def test_classes_that_are_no_text(root):
    (root / 'classes.txt').write_bytes(b'caf\xe9\ndog\n')
    with pytest.raises(UserError, match=r'classes\.txt is not UTF-8 text'):
        prepare_masks(root)
    (root / 'classes.txt').write_bytes('café\ndog\n'.encode('utf-16'))
    assert prepare_masks(root).classes == ('café', 'dog')
    (root / 'classes.txt').write_bytes('\ufeffcafé\r\ndog\r\n'.encode())
    assert prepare_masks(root).classes == ('café', 'dog')


def test_a_name_that_a_list_cannot_hold(root):
    (root / 'images/0.jpg').rename(root / 'images/0 .jpg ')
    save_image(root / 'images/a\nb.jpg', 3)
    save_mask(root / 'masks/a\nb.png', pattern([0, 1]))
    lines = '\n'.join(check(root).lines())
    assert "the name 'images/a\\nb.jpg' begins or ends with a blank or has a control character" in lines


def test_a_fixed_copy(root, tmp_path):
    (root / 'masks/0.png').unlink()
    save_mask(root / 'masks/1.png', pattern([0, 1]), 'I;16')
    out = write_fixed(root, tmp_path / 'fixed', allow_dropped=True)
    assert (out / 'classes.txt').read_text() == 'cat\ndog\n'
    masks = {path.stem: read_mask(path) for path in out.rglob('annotations/*/*.png')}
    assert sorted(masks) == ['1', '2', '3', '4', '5']
    np.testing.assert_array_equal(masks['1'], pattern([0, 1]) + 1)
    np.testing.assert_array_equal(masks['2'], np.where(pattern([0, 1, 255], 2) == 255, 0, pattern([0, 1, 255], 2) + 1))
    for image in out.rglob('images/*/*.jpg'):
        assert image.read_bytes() == (root / 'images' / image.name).read_bytes()
    again = prepare_masks(out)
    assert again.classes == ('cat', 'dog')
    assert not again.checked.counts['images'].dropped


def test_a_fixed_copy_is_not_written_over_anything(root, tmp_path):
    with pytest.raises(UserError, match='which is never changed'):
        write_fixed(root, root / 'fixed')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/a.txt').touch()
    with pytest.raises(UserError, match='not an empty folder'):
        write_fixed(root, tmp_path / 'full')
    (root / 'masks/0.png').unlink()
    with pytest.raises(UserError, match='1 of 6 images'):
        write_fixed(root, tmp_path / 'fixed')
    assert not list(tmp_path.glob('*fixed*'))


def test_every_kind_has_a_rule():
    source = ''.join(
        path.read_text()
        for name in ('check_masks.py', 'formats/mask_pairs.py')
        for path in [Path(__file__).parents[2] / 'mnv4_mm/data' / name]
    )
    used = set(re.findall(r"Finding\(\s*f?'([a-z{}-]+)'", source))
    for kind in used:
        kinds = [kind.replace('{purpose}', purpose) for purpose in ('training', 'validation')]
        assert set(kinds) <= KINDS.keys()


@pytest.mark.parametrize('grey', [0, 255])
def test_masks_whose_alpha_differs_are_refused(root, grey):
    write(root, FLAT, (0, 1), files={'classes.txt': 'background\ncell\n'})
    for path in root.glob('masks/*.png'):
        alpha = np.zeros((40, 48), np.uint8)
        alpha[10:20] = 255
        Image.fromarray(np.dstack([np.full((40, 48, 3), grey, np.uint8), alpha])).save(path)
    with pytest.raises(UserError, match=r'masks/0\.png: it has one colour, and only its alpha'):
        read(root)


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        ({'classes.txt': 'background\ncell\n'}, r'masks have 13 values \(0 to 12\), classes.txt has 2 names'),
        ({}, r'masks have 13 values \(0 to 12\), of which 12 are in one mask only, which suggests ids'),
    ],
)
def test_ids_of_instances_are_refused(root, files, message):
    if not files:
        (root / 'classes.txt').unlink()
    write(root, FLAT, (0, 1), count=6, files=files)
    for i, path in enumerate(sorted(root.glob('masks/*.png'))):
        values = np.zeros((40, 48), np.uint8)
        values[:10], values[10:20] = 2 * i + 1, 2 * i + 2
        save_mask(path, values)
    with pytest.raises(UserError, match=rf'{message}.*ids of instances'):
        read(root)


@pytest.mark.parametrize(('largest', 'are_ids'), [((7, 5, 6, 7), True), ((2, 3, 2, 1), False), ((7, 7, 7, 7), False)])
def test_ids_that_are_numbered_in_each_mask_are_refused(tmp_path, largest, are_ids):
    """An organ and its tumour are numbered as well, and all classes may be in all masks."""
    root = write(tmp_path / 'data', FLAT, [0, 1], count=len(largest))
    for i, number in enumerate(largest):
        save_mask(root / f'masks/{i}.png', pattern(range(number + 1)))
    if not are_ids:
        assert len(prepare_masks(root).classes) == max(largest) + 1
        return
    with pytest.raises(UserError, match=r'8 values \(0 to 7\), in most masks 1, 2, \.\.\. without gaps up to a'):
        prepare_masks(root)
    (root / 'classes.txt').write_text('\n'.join('abcdefgh'))
    (root / 'masks.yaml').write_text('first_class: 0')
    assert len(prepare_masks(root).classes) == 8


def test_values_of_validation_masks_that_no_training_mask_has(tmp_path):
    root = write(tmp_path / 'data', SPLIT, [0, 1, 2])
    for path in (root / 'masks/val').iterdir():
        save_mask(path, pattern([0, 1, 80, 160]))
    with pytest.raises(
        UserError, match=r'180 of the 270 validation pixels .* \(80, 160; training masks have 0, 1, 2\): save all masks'
    ):
        prepare_masks(root)
    (root / 'masks.yaml').write_text('classes: {0: a, 1: b, 2: c, 80: d, 160: e}')
    assert not check(root).refusals()
    for path in (root / 'masks/val').iterdir():
        save_mask(path, pattern([0, 1, 2, 3]))
    (root / 'masks.yaml').unlink()
    assert not check(root).refusals()


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_ids_of_instances_in_many_masks_are_refused(root, dtype):
    write(root, FLAT, (0, 1), count=6, files={'classes.txt': 'background\ncell\n'})
    for path in root.glob('masks/*.png'):
        Image.fromarray(np.repeat(np.arange(48) // 8, 40).reshape(48, 40).T.astype(dtype)).save(path)
    with pytest.raises(UserError, match=r'masks have 6 values .*ids of instances.*Write a name .* if they are classes'):
        read(root)
