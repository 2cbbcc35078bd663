"""Every layout and convention of masks is read, and prepared as the masks that it means."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from mask_folders import ADE, FLAT, SPLIT, Layout, pattern, save_image, save_mask, write
from PIL import Image

from mnv4_mm.cli import main
from mnv4_mm.data.check_masks import check_masks
from mnv4_mm.data.form import DetectionData, MaskData
from mnv4_mm.data.formats.masks import read, require
from mnv4_mm.data.formats.public_classes import CAMVID_CLASSES, CITYSCAPES_CLASSES, CITYSCAPES_IDS, VOC_CLASSES
from mnv4_mm.data.formats.recognise import recognise
from mnv4_mm.data.mask_split import read_names
from mnv4_mm.data.mask_values import decode_masks
from mnv4_mm.data.prepare_masks import MaskLayout, prepare_masks
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_mask

VOC_COLOURS = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)}
RGB = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 0, 255)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MNV4_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'data'


def prepared_values(layout: MaskLayout) -> dict[str, np.ndarray]:
    """Return the prepared masks by name of the image."""
    return {
        f'{split.images.relative_to(layout.root)}/{name}': read_mask(split.masks / f'{name}.png')
        for split in (layout.train, layout.val)
        for name in read_names(split.names_file)
    }


class Case(NamedTuple):
    """A data set, and the canonical value that each mask value must become."""

    layout: Layout
    canonical: Mapping[int, int]  # its keys are the values that occur
    classes: tuple[str, ...]
    files: Mapping[str, str] = {}
    mode: str = 'L'
    colours: Mapping[int, tuple[int, int, int]] | None = None
    note: str = ''  # part of one of the notes


CASES = {
    # Conventions, by the number of names.
    'ade': Case(ADE, {0: 0, 1: 1, 2: 2}, ('cat', 'dog'), {'classes.txt': 'cat\ndog\n'}, note='0 is unlabelled'),
    'ade-with-255': Case(
        ADE, {0: 1, 1: 2, 2: 3, 255: 0}, ('background', 'cat', 'dog'), {'classes.txt': 'cat\ndog\n'},
        note='no name for the value 0',
    ),
    'ade-background-first': Case(
        ADE, {0: 1, 1: 2, 255: 0}, ('background', 'cat'), {'classes.txt': 'background\ncat\n'},
        note='mask values 0 to 1 are classes (255 is unlabelled)',
    ),
    'from-zero': Case(
        FLAT, {0: 1, 1: 2, 2: 3}, ('a', 'b', 'c'), {'classes.txt': 'a\nb\nc\n'}, note='values 0 to 2 are classes'
    ),
    'from-zero-255': Case(FLAT, {0: 1, 1: 2, 255: 0}, ('a', 'b'), {'classes.txt': 'a\nb\n'}, note='255 is 33 % of'),
    'from-one': Case(SPLIT, {1: 1, 2: 2, 3: 3}, ('a', 'b', 'c'), {'classes.txt': 'a\nb\nc\n'}),
    'from-one-255': Case(SPLIT, {1: 1, 2: 2, 255: 0}, ('a', 'b'), {'classes.txt': 'a\nb\n'}),
    'zero-unlabelled': Case(
        SPLIT, {0: 0, 1: 1, 2: 2}, ('a', 'b'), {'classes.txt': 'a\nb\n'}, note='0 is 33 % of all pixels',
    ),
    'void-by-name': Case(
        FLAT, {0: 1, 1: 2, 2: 0}, ('sky', 'tree'), {'classes.txt': 'sky\ntree\nvoid\n'}, note='2 is unlabelled'
    ),
    'void-first': Case(FLAT, {0: 0, 1: 1, 2: 2}, ('sky', 'tree'), {'classes.txt': 'Unlabelled\nsky\ntree\n'}),
    'not-consecutive': Case(
        FLAT, {0: 1, 100: 2, 200: 3}, ('a', 'b', 'c'), {'classes.txt': 'a\nb\nc\n'}, note='not consecutive'
    ),
    'not-consecutive-255': Case(
        FLAT, {0: 1, 128: 2, 255: 3}, ('a', 'b', 'c'), {'classes.txt': 'a\nb\nc\n'}, note='0 a, 128 b, 255 c'
    ),
    'not-consecutive-ignore-255': Case(
        FLAT, {0: 1, 128: 2, 255: 0}, ('a', 'b'), {'classes.txt': 'a\nb\n', 'masks.yaml': 'ignore: [255]'},
        note='0 a, 128 b (255 is unlabelled)',
    ),
    'smoothed-edges-ignored': Case(
        FLAT, {0: 1, 127: 0, 255: 2}, ('a', 'b'), {'classes.txt': 'a\nb\n', 'masks.yaml': 'ignore: [127]'},
        note='0 a, 255 b (127 is unlabelled)',
    ),
    # One class and binary masks.
    'one-class': Case(
        ADE, {0: 1, 1: 2}, ('background', 'cat'), {'classes.txt': 'cat\n'}, note='no name for what is not'
    ),
    'one-class-255': Case(FLAT, {0: 1, 1: 2, 255: 0}, ('background', 'cat'), {'classes.txt': 'cat\n'}),
    'binary': Case(FLAT, {0: 1, 255: 2}, ('background', 'cat'), {'classes.txt': 'cat\n'}),
    'binary-two-names': Case(FLAT, {0: 1, 255: 2}, ('rest', 'cat'), {'classes.txt': 'rest\ncat\n'}),
    'binary-no-names': Case(FLAT, {0: 1, 255: 2}, ('background', 'foreground'), note='no file with class names'),
    'one-bit': Case(FLAT, {0: 1, 1: 2}, ('background', 'foreground'), mode='1'),
    'grey-in-three-channels': Case(FLAT, {0: 1, 255: 2}, ('background', 'foreground'), mode='GREY'),
    'binary-16-bit': Case(FLAT, {0: 1, 65535: 2}, ('background', 'foreground'), mode='I;16'),
    # No names.
    'unnamed': Case(FLAT, {0: 1, 3: 2, 7: 3}, ('class_0', 'class_3', 'class_7'), note='0 class_0, 3 class_3'),
    'unnamed-255': Case(FLAT, {0: 1, 1: 2, 2: 3, 255: 0}, ('class_0', 'class_1', 'class_2'), note='255 is unlabelled'),
    'unnamed-from-one': Case(FLAT, {1: 1, 2: 2}, ('class_1', 'class_2')),
    # Depths and palettes.
    '16-bit': Case(
        FLAT, {0: 1, 300: 2, 65535: 0}, ('class_0', 'class_300'), {'masks.yaml': 'ignore: [65535]'}, 'I;16',
    ),
    '16-bit-named': Case(
        FLAT, {0: 1, 300: 2, 1000: 3}, ('a', 'b', 'c'), {'masks.yaml': 'classes: {0: a, 300: b, 1000: c}\n'}, 'I;16'
    ),
    'palette': Case(SPLIT, {0: 1, 1: 2}, ('a', 'b'), {'classes.txt': 'a\nb\n'}, 'P', RGB),
    # Colours.
    'labelmap': Case(
        FLAT, {0: 1, 1: 2, 2: 3}, ('background', 'red', 'blue'),
        {'labelmap.txt': '# label:color_rgb:parts:actions\nbackground:0,0,0::\nred:255,0,0::\nblue:0,0,255::\n'},
        'RGB', RGB, '3 colours of labelmap.txt',
    ),
    'labelmap-palette-in-other-order': Case(
        FLAT, {0: 1, 1: 3, 2: 2}, ('background', 'blue', 'red'),
        {'labelmap.txt': 'background:0,0,0::\nblue:0,0,255::\nred:255,0,0::\n'}, 'P', RGB,
    ),
    'labelmap-alpha': Case(
        FLAT, {1: 1, 2: 2}, ('red', 'blue'), {'labelmap.txt': 'red:255,0,0::\nblue:0,0,255::\n'}, 'RGBA', RGB
    ),
    'black-not-named': Case(
        FLAT, {0: 0, 1: 1, 2: 2}, ('red', 'blue'), {'labelmap.txt': 'red:255,0,0::\nblue:0,0,255::\n'}, 'RGB', RGB,
        'black is unlabelled (33 % of all pixels)',
    ),
    'one-colour': Case(
        FLAT, {0: 1, 1: 2}, ('background', 'red'), {'labelmap.txt': 'red:255,0,0::\n'}, 'RGB', RGB,
        'it is the class background',
    ),
    'class-dict': Case(
        SPLIT, {0: 0, 1: 1, 2: 2}, ('red', 'blue'),
        {'class_dict.csv': 'name,r,g,b\nVoid,0,0,0\nred,255,0,0\nblue,0,0,255\n'}, 'RGB', RGB,
    ),
    'label-colours': Case(
        FLAT, {0: 1, 1: 2, 2: 3}, ('none', 'red car', 'blue'),
        {'label_colors.txt': '0 0 0\tnone\n255 0 0\tred car\n0 0 255\tblue\n'}, 'RGB', RGB,
    ),
    # Names by value.
    'roboflow': Case(
        Layout('{split}/{i}.jpg', '{split}/{i}_mask.png', ('train', 'valid')), {0: 1, 1: 2, 2: 3},
        ('background', 'cat', 'dog'), {'train/_classes.csv': 'Pixel Value, Class\n0, background\n1, cat\n2, dog\n'},
        note="'_mask' at its end",
    ),
    'numbered-lines': Case(FLAT, {1: 1, 5: 2}, ('cat', 'dog'), {'classes.txt': '1: cat\n5: dog\n'}),
    'data-yaml': Case(FLAT, {0: 1, 1: 2}, ('cat', 'no'), {'data.yaml': 'names:\n  0: cat\n  1: "no"\n'}),
    'id2label': Case(FLAT, {0: 1, 2: 2}, ('a', 'b'), {'id2label.json': '{"0": "a", "2": "b"}'}),
    'codes': Case(FLAT, {0: 1, 1: 2}, ('a', 'b'), {'codes.txt': 'a\nb'}),
    # The user's own decision.
    'first-class-0': Case(
        ADE, {0: 1, 1: 2}, ('cat', 'dog'), {'classes.txt': 'cat\ndog\n', 'masks.yaml': 'first_class: 0\n'},
        note='masks.yaml was heeded',
    ),
    'first-class-1': Case(
        ADE, {0: 0, 1: 1}, ('cat', 'dog'), {'classes.txt': 'cat\ndog\n', 'masks.yaml': 'first_class: 1\n'}
    ),
    'ignored-by-user': Case(
        FLAT, {0: 1, 1: 2, 2: 0}, ('a', 'b'), {'masks.yaml': 'classes: [a, b]\nfirst_class: 0\nignore: [2]\n'}
    ),
    # Layouts.
    'masks-with-ending': Case(
        Layout('img/{i}.jpg', 'gt/{i}_L.png', ('',)), {0: 1, 1: 2}, ('background', 'foreground'),
    ),
    'split-first': Case(
        Layout('{split}/images/{i}.png', '{split}/masks/{i}.png'), {0: 1, 1: 2, 2: 3}, ('class_0', 'class_1', 'class_2')
    ),
    'trainannot': Case(
        Layout('{split}/{i}.png', '{split}annot/{i}.png'), {0: 1, 1: 2, 2: 3}, ('class_0', 'class_1', 'class_2')
    ),
    'whole-name': Case(
        Layout('images/{i}.jpg', 'masks/{i}.jpg.png', ('',)), {0: 1, 1: 2}, ('background', 'foreground')
    ),
    'other-words': Case(
        Layout('images/img_{i}.jpg', 'labels/mask_{i}.png', ('',)), {0: 1, 1: 2}, ('background', 'foreground')
    ),
    'one-folder': Case(Layout('{i}.jpg', '{i}.png', ('',)), {0: 1, 1: 2}, ('background', 'foreground')),
    'mmseg': Case(
        Layout('img_dir/{split}/{i}.jpg', 'ann_dir/{split}/{i}.png'), {0: 1, 1: 2, 255: 0}, ('background', 'foreground')
    ),
    'train2017': Case(
        Layout('images/{split}2017/{i}.jpg', 'annotations/{split}2017/{i}.png'), {0: 1, 1: 2, 2: 3},
        ('class_0', 'class_1', 'class_2'),
    ),
    'masks-in-the-folder-of-images': Case(
        Layout('{i}.jpg', 'masks/{i}.png', ('',)), {0: 1, 1: 2}, ('background', 'foreground')
    ),
    'masks-in-the-folder-of-a-split': Case(
        Layout('{split}/{i}.jpg', '{split}/masks/{i}.png'), {0: 1, 1: 2}, ('background', 'foreground')
    ),
    'carvana': Case(
        Layout('train/{i}.jpg', 'train_masks/{i}_mask.gif', ('train',)), {0: 1, 1: 2}, ('background', 'foreground')
    ),
    'pets': Case(
        Layout('images/{i}.jpg', 'annotations/trimaps/{i}.png', ('',)), {1: 1, 2: 2, 3: 3},
        ('class_1', 'class_2', 'class_3'),
    ),
    'nested': Case(
        Layout('download/mydata/Images/{i}.tif', 'download/mydata/Labels/{i}.tif', ('',)), {0: 1, 1: 2},
        ('a', 'b'), {'download/mydata/classes.txt': 'a\nb\n'},
    ),
    # Public data sets.
    'voc': Case(
        Layout('kit/VOC2012/JPEGImages/2007_{i:06}.jpg', 'kit/VOC2012/SegmentationClass/2007_{i:06}.png', ('',)),
        {0: 1, 1: 2, 2: 3, 255: 0}, VOC_CLASSES, mode='P', colours=VOC_COLOURS, note='0 to 20 are classes (255 is',
    ),
    'voc-own-classes': Case(
        Layout('JPEGImages/{i}.jpg', 'SegmentationClass/{i}.png', ('',)), {0: 1, 1: 2, 2: 3, 255: 0},
        ('_background_', 'cat', 'dog'), {'class_names.txt': '_background_\ncat\ndog\n'}, 'P', VOC_COLOURS,
    ),
    'cityscapes-train-ids': Case(
        Layout('leftImg8bit/{split}/bonn/{i}_leftImg8bit.png', 'gtFine/{split}/bonn/{i}_gtFine_labelTrainIds.png'),
        {0: 1, 13: 14, 18: 19, 255: 0}, CITYSCAPES_CLASSES,
    ),
    'cityscapes-ids': Case(
        Layout('leftImg8bit/{split}/bonn/{i}_leftImg8bit.png', 'gtFine/{split}/bonn/{i}_gtFine_labelIds.png'),
        {0: 0, 7: 1, 26: 14, 33: 19, 4: 0}, CITYSCAPES_CLASSES, note='its other ids are unlabelled',
    ),
    'camvid': Case(
        Layout('images/{split}/0001TP_{i:06}.jpg', 'masks/{split}/0001TP_{i:06}.png'), {0: 1, 3: 4, 10: 11, 11: 0},
        CAMVID_CLASSES, note='mask values 0 to 10 are classes (11 is unlabelled)',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', CASES)
def test_masks_become_canonical(root, name):
    case = CASES[name]
    write(root, case.layout, list(case.canonical), mode=case.mode, colours=case.colours, files=case.files)
    layout = prepare_masks(root)
    assert layout.classes == case.classes
    table = np.zeros(2**16, np.uint8)
    table[list(case.canonical)] = list(case.canonical.values())
    values = prepared_values(layout)
    assert len(values) == 3 * len(case.layout.splits)
    for number, split in enumerate(case.layout.splits):
        for index in range(3 * number, 3 * number + 3):
            name_of_image = case.layout.image.format(split=split, i=index)
            own = [mask for key, mask in values.items() if Path(key) == Path(name_of_image)]
            assert len(own) == 1, name_of_image
            np.testing.assert_array_equal(own[0], table[pattern(list(case.canonical), index)])
    assert any(case.note in note for note in layout.checked.notes)
    assert not layout.checked.refusals()


def test_splits_are_those_of_folders(root):
    layout = prepare_masks(write(root, SPLIT, [0, 1, 2]))
    assert read_names(layout.train.names_file) == ['0.jpg', '1.jpg', '2.jpg']
    assert read_names(layout.val.names_file) == ['3.jpg', '4.jpg', '5.jpg']
    assert layout.train.images == root / 'images/train'
    assert layout.train.image_files() == [root / f'images/train/{i}.jpg' for i in range(3)]


def test_a_split_is_made_where_there_is_none(root):
    layout = prepare_masks(write(root, FLAT, [0, 1, 2], count=10))
    train, val = (read_names(split.names_file) for split in (layout.train, layout.val))
    assert sorted(train + val) == [f'{i}.jpg' for i in range(10)]
    assert len(val) == 2
    assert any('8 images are for training and 2 for validation' in note for note in layout.checked.notes)


def test_lists_select_images(root):
    files = {'ImageSets/Segmentation/train.txt': '0\n2\n', 'ImageSets/Segmentation/val.txt': '1\n'}
    write(root, Layout('JPEGImages/{i}.jpg', 'SegmentationClass/{i}.png', ('',)), [0, 1, 255], count=4, files=files)
    (root / 'SegmentationClass/3.png').unlink()  # as most images of VOC
    layout = prepare_masks(root)
    assert read_names(layout.train.names_file) == ['0.jpg', '2.jpg']
    assert read_names(layout.val.names_file) == ['1.jpg']
    (root / 'ImageSets/Segmentation/val.txt').write_text('1\n3\n7\n')
    with pytest.raises(UserError, match='2 of 5 images') as error:
        prepare_masks(root)
    assert 'JPEGImages/3.jpg, line 2: val.txt lists it, and it has no mask' in str(error.value)
    assert 'ImageSets/Segmentation/val.txt, line 3: there is no image 7' in str(error.value)


def test_cvats_export(root):
    """Masks with a palette, the colours in labelmap.txt, and one list of all images."""
    files = {
        'labelmap.txt': '# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:255,0,0::\ndog:0,0,255::\n',
        'ImageSets/Segmentation/default.txt': ''.join(f'{i}\n' for i in range(6)),
    }
    layout = Layout('JPEGImages/{i}.png', 'SegmentationClass/{i}.png', ('',))
    write(root, layout, [0, 1, 2], mode='P', colours=RGB, count=6, files=files)
    write(root, layout._replace(mask='SegmentationObject/{i}.png'), [0, 1], mode='P', colours=RGB, count=6)
    assert prepare_masks(root).classes == ('background', 'cat', 'dog')


def test_masks_of_a_labelling_tool_without_images(root):
    write(root, FLAT._replace(mask='SegmentationClass/{i}.png'), [0, 1])
    for path in (root / 'images').iterdir():
        path.unlink()
    with pytest.raises(UserError, match='has masks but no images'):
        read(root)


def test_canonical_masks_are_linked_and_others_not(root):
    write(root, ADE, [0, 1, 2], files={'classes.txt': 'cat\ndog\n'})
    save_mask(root / 'annotations/training/1.png', pattern([1, 2]), 'I;16')
    layout = prepare_masks(root)
    own = root / 'annotations/training'
    assert (layout.train.masks / '0.jpg.png').resolve() == (own / '0.png').resolve()
    assert not (layout.train.masks / '1.jpg.png').is_symlink()
    np.testing.assert_array_equal(read_mask(layout.train.masks / '1.jpg.png'), pattern([1, 2]))


def test_two_and_four_bits_are_the_stored_values(root):
    """Pillow returns them spread over 0 to 255."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    write(root, FLAT, [0, 1, 2])
    for bits, name in ((2, '0'), (4, '1')):
        values = pattern([0, 1, 2])
        per_byte = 8 // bits
        rows = values.reshape(10, 12 // per_byte, per_byte)
        packed = sum(rows[..., i] << bits * (per_byte - 1 - i) for i in range(per_byte)).astype(np.uint8)
        raw = b''.join(b'\0' + row.tobytes() for row in packed)
        header = struct.pack('>IIBBBBB', 12, 10, bits, 0, 0, 0, 0)
        png = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(raw)) + chunk(b'IEND', b'')
        (root / f'masks/{name}.png').write_bytes(png)
    layout = prepare_masks(root)
    assert layout.classes == ('class_0', 'class_1', 'class_2')
    values = prepared_values(layout)
    for name in ('0', '1'):
        np.testing.assert_array_equal(values[f'images/{name}.jpg'], pattern([0, 1, 2]) + 1)


def test_classes_in_the_order_of_a_checkpoint(root):
    write(root, ADE, [0, 1, 2], files={'classes.txt': 'cat\ndog\n'})
    layout = prepare_masks(root, classes=['dog', 'cat'])
    assert layout.classes == ('dog', 'cat')
    np.testing.assert_array_equal(
        read_mask(layout.train.masks / '0.jpg.png'), np.array([0, 2, 1], np.uint8)[pattern([0, 1, 2])]
    )
    with pytest.raises(UserError, match=r"only the data set has 'dog'; only the checkpoint has 'horse'"):
        prepare_masks(root, classes=['cat', 'horse'])
    assert prepare_masks(root).classes == ('cat', 'dog')


def test_nothing_is_done_twice(root, monkeypatch):
    write(root, ADE, [0, 1, 2], files={'classes.txt': 'cat\ndog\n'})
    first = prepare_masks(root)

    def fail(*args: object) -> None:
        raise AssertionError('the data is read again')

    with monkeypatch.context() as patch:
        patch.setattr('mnv4_mm.data.prepare_masks.require', fail)
        assert prepare_masks(root) == first
    save_mask(root / 'annotations/training/0.png', pattern([2, 1]))
    again = prepare_masks(root)
    assert again.train.masks != first.train.masks
    np.testing.assert_array_equal(read_mask(again.train.masks / '0.jpg.png'), pattern([2, 1]))


def test_a_damaged_cache_is_made_again(root):
    write(root, FLAT, [0, 1], count=6)
    folder = prepare_masks(root).train.names_file.parent
    (folder / 'masks.json').write_text('{')
    (folder.parent / 'masks.json').write_text('[1')
    (folder.parent / 'images.json').write_text('')
    assert len(prepared_values(prepare_masks(root))) == 6
    (folder / 'masks.json').write_text('{"root": "."}')
    assert len(prepared_values(prepare_masks(root))) == 6


def test_the_originals_are_not_changed(root):
    write(root, SPLIT, [0, 1, 255], mode='P', files={'classes.txt': 'a\nb\n'})
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob('*') if path.is_file()}
    prepare_masks(root)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob('*') if path.is_file()}


def test_histogram_and_sizes(root):
    write(root, SPLIT, [0, 1, 255], files={'classes.txt': 'a\nb\n'})
    train = prepare_masks(root).checked.splits['train']
    assert (train.images, train.histogram, train.image_sizes) == (3, {'a': 120, 'b': 120}, {'12x10': 3})


def test_hidden_files_are_passed_over(root):
    write(root, FLAT, [0, 1], count=6)
    (root / 'images/._0.jpg').write_bytes(b'\0' * 9)
    (root / 'masks/.DS_Store').write_bytes(b'\0')
    (root / 'masks/._0.png').write_bytes(b'\0' * 9)
    assert not read(root).findings


def test_links_to_folders_are_followed_once(root, tmp_path):
    write(tmp_path / 'elsewhere', SPLIT, [0, 1, 2])
    for kind in ('images', 'masks'):
        (root / kind).mkdir(parents=True)
        for split in ('train', 'val'):
            (root / kind / split).symlink_to(tmp_path / 'elsewhere' / kind / split)
        (root / kind / 'loop').symlink_to(root / kind)
    assert sorted(prepared_values(prepare_masks(root))) == [
        f'images/{split}/{i}.jpg' for split, numbers in (('train', '012'), ('val', '345')) for i in numbers
    ]


def test_test_images_need_no_masks(root):
    write(root, SPLIT, [0, 1, 2])
    for i in range(5):
        save_image(root / f'images/test/{i}.jpg', i)
    assert '5 test images have no mask and are not used' in prepare_masks(root).checked.notes


def test_folders_without_masks_are_not_segmentation(root):
    save_image(root / 'images/0.jpg', 0)
    (root / 'labels').mkdir()
    (root / 'labels/0.txt').write_text('0 0.5 0.5 0.1 0.1\n')
    assert read(root) is None
    with pytest.raises(UserError, match=r'has no masks beside images: --data takes a folder with images/'):
        require(root)
    with pytest.raises(UserError, match='no folder'):
        prepare_masks(root / 'none')


def test_a_data_set_of_boxes_is_not_segmentation(repository):
    assert read(repository / 'data/mini/coco') is None


def test_masks_are_recognised_among_all_formats(root, drawn):
    """Without a task, boxes come first where a folder has both, as drawn data has."""
    write(root, Layout('images/{i}.jpg', 'labels/{i}.png', ('',)), [0, 1], count=6)
    assert isinstance(recognise(root), MaskData)
    assert isinstance(recognise(drawn), DetectionData)
    assert isinstance(recognise(drawn, 'segmentation'), MaskData)


def test_mnv4_check_names_and_mends(root, tmp_path, capsys):
    write(root, FLAT, [0, 1, 255], count=6, files={'classes.txt': 'cat\ndog\n'})
    save_mask(root / 'masks/0.png', pattern([0, 1, 7]))
    assert main(['check', str(root), '--allow-dropped', '--fix', str(tmp_path / 'fixed')]) == 0
    out = ' '.join(capsys.readouterr().out.split())
    assert 'mask values 0 to 1 are classes (255 is unlabelled)' in out
    assert 'masks/0.png: 40 pixels have the value 7' in out
    assert main(['check', str(root)]) == 2
    assert '1 of 6 images (16.7 %)' in ' '.join(capsys.readouterr().err.split())
    assert len(prepared_values(prepare_masks(tmp_path / 'fixed'))) == 5


def test_the_small_real_and_the_drawn_data_set(repository, drawn):
    for path, classes, count in ((repository / 'data/mini/ade', 150, 26), (drawn, 7, 128)):
        layout = prepare_masks(path)
        assert len(layout.classes) == classes
        assert len(read_names(layout.train.names_file)) == count
        assert all((layout.train.masks / f'{name}.png').is_symlink() for name in read_names(layout.train.names_file))


def test_check_lists_what_training_refuses(root):
    write(root, FLAT, [0, 1], count=6)
    (root / 'masks/0.png').unlink()
    result = check_masks(read(root))
    assert result.checked.lines() == ['dropped: images/0.jpg: the image has no mask: the image is left out']
    assert result.checked.counts['images'].dropped == 1
    assert result.checked.counts['images'].found == 6


def test_an_image_of_another_kind_beside(root):
    """a.jpg and a.png would share a mask."""
    write(root, FLAT, [0, 1], count=6)
    save_image(root / 'images/0.png', 9)
    with pytest.raises(UserError, match=r'2 of 7 images .* has the same mask, masks/0.png'):
        prepare_masks(root)
    assert len(prepared_values(prepare_masks(root, allow_dropped=True))) == 5


def test_palettes_that_differ(root):
    write(root, FLAT, [0, 1], count=5, mode='P', colours=RGB)
    save_mask(root / 'masks/0.png', pattern([0, 1]), 'P', {0: (0, 0, 0), 1: (0, 255, 0)})
    with pytest.raises(UserError, match=r'palettes differ: the index 1 is \(0, 255, 0\) in masks/0.png .*read: values'):
        prepare_masks(root)
    (root / 'masks.yaml').write_text('read: values\n')
    assert prepare_masks(root).classes == ('background', 'foreground')
    save_mask(root / 'masks/3.png', pattern([0, 1]), 'RGB', RGB)
    with pytest.raises(UserError, match=r'masks/3\.png is in RGB colours, which are no values: save it with one'):
        prepare_masks(root)


def test_values_above_16_bits(root):
    """Such a value may be in other masks than the one that is converted."""
    layout = Layout('images/{i}.png', 'masks/{i}.tif', ('',))
    write(root, layout, [0, 1], count=4, files={'masks.yaml': 'classes: {0: a, 1: b, 70000: c}'})
    Image.fromarray(pattern([0, 70000])).save(root / 'masks/2.tif')
    values = prepared_values(prepare_masks(root))
    np.testing.assert_array_equal(values['images/2.png'], np.where(pattern([0, 1]) == 1, 3, 1))
    np.testing.assert_array_equal(values['images/1.png'], pattern([0, 1], 1) + 1)


def test_camvids_names_with_other_values_are_not_camvid(root):
    layout = Layout('images/{i}/0001TP_{i:06}.jpg', 'masks/{i}/0001TP_{i:06}.png', ('',))
    write(root, layout, [0, 31], count=6)
    assert prepare_masks(root).classes == ('class_0', 'class_31')


def test_cityscapes_ids_are_those_of_the_classes():
    assert dict(zip(CITYSCAPES_IDS, CITYSCAPES_CLASSES, strict=True))[26] == 'car'
    mmseg = pytest.importorskip('mmseg.datasets')
    assert mmseg.CityscapesDataset.METAINFO['classes'] == CITYSCAPES_CLASSES
    assert mmseg.PascalVOCDataset.METAINFO['classes'] == VOC_CLASSES


def test_a_palette_image_keeps_its_indices_when_linked(root):
    write(root, ADE, [0, 1, 2], mode='P', colours=RGB, files={'classes.txt': 'cat\ndog\n'})
    layout = prepare_masks(root)
    with Image.open(layout.train.masks / '0.jpg.png') as image:
        assert image.mode == 'P'
    np.testing.assert_array_equal(read_mask(layout.train.masks / '0.jpg.png'), pattern([0, 1, 2]))


def test_an_edit_with_the_same_size_and_modification_time_is_noticed(tmp_path):
    for value in (1, 2):
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / 'a.bmp')
        os.utime(tmp_path / 'a.bmp', ns=(1, 1))
        time.sleep(0.02)  # the clock of a file system may tick in hundredths of a second
        assert decode_masks(tmp_path, ['a.bmp'])['a.bmp'].counts == {value: 64}


@pytest.mark.parametrize(('values', 'names'), [([0, 1, 2, 255], 'a\nb\nc\nd\ne\n'), ([0, 0, 0, 1, 255], 'a\nb\n')])
def test_a_background_without_a_name_is_not_taken_for_the_first_class(tmp_path, values, names):
    """As in Pascal VOC, if the last class occurs in no mask."""
    write(tmp_path, FLAT, values, files={'classes.txt': names})
    with pytest.raises(UserError, match=r'of all pixels: is it a, or a background without a name\? Write `first_class'):
        prepare_masks(tmp_path)
    (tmp_path / 'classes.txt').write_text('background\n' + names)
    assert prepare_masks(tmp_path).classes == ('background', *names.split())


@pytest.mark.parametrize(
    ('values', 'names'),
    [
        ([0, 127, 255], 'background\ncell\n'),  # 127 is the smoothed edge of the object, 255
        ([0, 254, 255], 'rest\ncell\n'),
        ([0, 85, 170, 255], 'a\nb\nc\n'),
        ([0, 127, 255], 'cell\n'),
        ([0, 128, 255], None),
        ([0, 300, 65535], None),
    ],
)
def test_255_is_not_taken_for_unlabelled_beside_values_that_are_no_numbers_of_classes(root, values, names):
    mode = 'I;16' if max(values) > 255 else 'L'
    write(root, FLAT, values, mode=mode, files={'classes.txt': names} if names else {})
    share = round(100 / len(values))
    message = (
        rf'{values[-2]} \({share} % of all pixels\) and {values[-1]} \({share} % .*is {values[-1]} a class, or '
        rf'unlabelled\? Write `ignore: \[{values[-1]}\]` into masks\.yaml if'
    )
    with pytest.raises(UserError, match=message):
        prepare_masks(root)
    (root / 'masks.yaml').write_text(f'ignore: [{values[-1]}]')
    assert len(prepare_masks(root).classes) == len(values) - 1
    named = ', '.join(f'{value}: class {value}' for value in values)
    (root / 'masks.yaml').write_text(f'classes: {{{named}}}')
    assert len(prepare_masks(root).classes) == len(values)


def test_a_binary_mask_with_a_few_smoothed_edges(root):
    """255 would be unlabelled, and no pixel the class cell, since 127 occurs in few masks."""
    write(root, FLAT, [0, 255], count=6, files={'classes.txt': 'background\ncell\n'})
    save_mask(root / 'masks/0.png', pattern([0, 127, 255]))
    with pytest.raises(UserError, match='is 255 a class, or unlabelled'):
        prepare_masks(root)
    (root / 'masks.yaml').write_text('ignore: [127]')
    assert prepare_masks(root).classes == ('background', 'cell')
