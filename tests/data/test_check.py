"""Images and boxes of a detection data set are checked: each kind of finding, and the rule for it."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mnv4_mm.data.check import CheckedImages, _check_units, _choose_splits, check_detection, is_inside
from mnv4_mm.data.checked import Count, describe
from mnv4_mm.data.findings import KINDS, Finding, Rule
from mnv4_mm.data.form import ALL, TRAIN, VAL, Box, DetectionData, LabelledImage

WIDTH, HEIGHT = 64, 48


def make_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))


@pytest.fixture
def data(tmp_path: Path) -> DetectionData:
    """Six training and two validation images with two boxes each."""
    splits = {}
    for split, count in ((TRAIN, 6), (VAL, 2)):
        images = []
        for i in range(count):
            name = f'{split}/{i}.png'
            make_image(tmp_path / name, seed=len(split) * 10 + i)
            number = len(images) * 2 + 1
            boxes = [
                Box((4.0 + i, 5, 20, 10), 0, f'annotation {number}', 200, annotation_id=number),
                Box((30, 6.0 + i, 8, 30), 1, f'annotation {number + 1}', 240, annotation_id=number + 1),
            ]
            images.append(LabelledImage(name, tmp_path / f'{split}.json', boxes, (WIDTH, HEIGHT), i))
        splits[split] = images
    return DetectionData(tmp_path, 'COCO JSON', ('cat', 'dog'), splits, (1, 2))


@pytest.mark.parametrize(
    ('given', 'expected', 'note'),
    [
        ('train all', {'all': 'train all'}, 'some of the training images are used'),
        ('val all', {'train': 'all', 'val': 'val'}, 'the 1 images of no split are for training'),
        ('train val all', {'train': 'train', 'val': 'val'}, '1 images of no split are not used'),
        ('train test all', {'train': 'train', 'val': 'test'}, '1 images of no split are not used'),
        ('train', {'all': 'train'}, 'some of the training images are used'),
    ],
)
def test_no_image_of_a_split_is_lost_without_a_note(given, expected, note):
    splits = {name: [LabelledImage(f'{name}.jpg', Path('x'), [], (8, 8), 0)] for name in given.split()}
    notes = _choose_splits(splits)
    left = {name: ' '.join(image.name.removesuffix('.jpg') for image in images) for name, images in splits.items()}
    assert left == expected
    assert any(note in line for line in notes)


def kinds(result: CheckedImages) -> dict[str, int]:
    return dict(Counter(finding.kind for finding in result.checked.findings))


def refusal(result: CheckedImages) -> str:
    return '; '.join(result.checked.refusals())


def test_valid_data_has_no_findings_and_stays_as_it_is(data):
    result = check_detection(data)
    assert result.checked.findings == ()
    assert result.splits == data.splits
    train = result.checked.splits[TRAIN]
    assert (train.images, train.objects, train.histogram) == (6, 12, {'cat': 6, 'dog': 6})
    assert train.image_sizes == {'64x48': 6}
    assert train.box_sides == {'cat': [14.1] * 6, 'dog': [15.5] * 6}


# Change of the first box of the first training image -> kind, and the box that is left; None if none is.
BOXES = {
    'nan': ((math.nan, 1, 2, 3), 'box-not-finite', None),
    'infinite': ((1, 1, math.inf, 3), 'box-not-finite', None),
    'no-width': ((1, 1, 0, 3), 'box-empty', None),
    'zero-among-others': ((0, 0, 0, 0), 'box-empty', None),
    'negative': ((1, 1, -5, 3), 'box-negative', None),
    'sub-pixel': ((1, 1, 0.9, 3), 'box-sub-pixel', None),
    'two-pixels-outside': ((-2, 5, 20, 45), 'box-clipped', (0, 5, 18, 43)),
    'rounding': ((-0.001, 5, 20, 40), None, (-0.001, 5, 20, 40)),
    'far-outside': ((1, 1, 100, 10), 'box-outside', None),
    'beyond-the-image': ((70, 1, 10, 10), 'box-outside', None),
    'beyond-the-image-by-little': ((64, 1, 2, 10), 'box-outside', None),
}


@pytest.mark.parametrize('case', BOXES)
def test_boxes(data, case):
    xywh, kind, left = BOXES[case]
    image = data.splits[TRAIN][0]
    image.boxes[0] = replace(image.boxes[0], xywh=xywh)
    result = check_detection(data)
    assert kinds(result) == ({kind: 1} if kind else {})
    assert [box.xywh for box in result.splits[TRAIN][0].boxes] == [*([left] if left else []), (30, 6, 8, 30)]
    if left is None:
        assert KINDS[kind].rule is Rule.DROPPED
        assert '1 of 16 boxes (6.25 %) would be left out, more than 1 %' in refusal(result)
        assert 'annotation 1' in refusal(result)
        assert '--allow-dropped' in refusal(result)
        assert result.checked.refusals(allow_dropped=True) == []
    else:
        assert refusal(result) == ''


def test_one_percent_may_be_dropped(data):
    image = data.splits[TRAIN][0]
    image.boxes += [Box((i % 30, 1 + i // 30, 20, 20), 0, f'annotation {100 + i}', 400) for i in range(188)]
    image.boxes[0] = replace(image.boxes[0], xywh=(1, 1, 0, 3))
    image.boxes[2] = replace(image.boxes[2], xywh=(1, 1, 0, 3))
    assert refusal(check_detection(data)) == ''
    image.boxes[3] = replace(image.boxes[3], xywh=(1, 1, 0, 3))
    assert '3 of 204 boxes (1.47 %)' in refusal(check_detection(data))


def many_training_images(data: DetectionData) -> None:
    first = data.splits[TRAIN][0]
    for i in range(300):
        name = f'train/more{i}.png'
        (data.root / name).symlink_to(data.root / first.name)
        data.splits[TRAIN].append(replace(first, name=name, image_id=100 + i))


def test_one_percent_is_that_of_a_split(data):
    many_training_images(data)
    assert refusal(check_detection(data)) == ''
    image = data.splits[VAL][0]
    image.boxes[0] = replace(image.boxes[0], xywh=(1, 1, 0, 3))
    assert '1 of 4 validation boxes (25 %) would be left out, more than 1 %' in refusal(check_detection(data))
    cut(data.root / image.name)
    result = check_detection(data)
    assert '1 of 2 validation images (50 %) would be left out, more than 1 %' in refusal(result)
    assert result.checked.counts['images'] == Count(308, 1)
    assert result.checked.refusals(allow_dropped=True) == []


def test_what_the_reader_has_left_out_counts_in_its_split(data):
    many_training_images(data)
    data.findings = [Finding('box-invalid', data.root / 'val.json', 'x', 'annotation 3')]
    assert '1 of 5 validation boxes (20 %)' in refusal(check_detection(data))
    data.findings = [Finding('annotation-missing', data.root / 'lists/val.txt', 'x', 'line 3')]
    assert '1 of 3 validation images' in refusal(check_detection(data))
    data.findings = [Finding('box-invalid', data.root / 'train.json', 'x', 'annotation 3')]
    assert refusal(check_detection(data)) == ''


@pytest.mark.parametrize(
    ('area', 'kind'),
    [
        (0, 'area-zero'),
        (-1, 'area-zero'),
        (math.nan, 'area-zero'),
        (None, None),
        (1e9, 'area-too-large'),
        (21 * 11 + 1, 'area-too-large'),
    ],
)
def test_an_area_that_cannot_be_is_width_times_height(data, area, kind):
    image = data.splits[TRAIN][0]
    image.boxes[0] = replace(image.boxes[0], area=area)
    result = check_detection(data)
    assert kinds(result) == ({kind: 1} if kind else {})
    assert result.splits[TRAIN][0].boxes[0].area == 200
    assert refusal(result) == ''


@pytest.mark.parametrize('area', [77, 21 * 11])  # of a polygon, and of a box with inclusive corners
def test_the_area_of_a_shape_is_kept(data, area):
    image = data.splits[TRAIN][0]
    image.boxes[0] = replace(image.boxes[0], area=area)
    result = check_detection(data)
    assert result.splits[TRAIN][0].boxes[0].area == area
    assert not result.checked.findings


def every_box(data: DetectionData, change: Callable[[Box], Box], splits=(TRAIN, VAL)) -> None:
    for split in splits:
        for image in data.splits[split]:
            image.boxes[:] = [change(box) for box in image.boxes]


def test_boxes_as_shares_are_refused(data):
    every_box(data, lambda box: replace(box, xywh=tuple(v / s for v, s in zip(box.xywh, (64, 48) * 2, strict=True))))
    result = check_detection(data)
    assert kinds(result) == {'boxes-as-shares': 1}
    assert '16 of 16 boxes are within one pixel' in refusal(result)
    assert result.checked.refusals(allow_dropped=True)


@pytest.mark.parametrize(
    ('side', 'count', 'scale', 'expected'),
    [
        (640, 20, 1.0, ['boxes-as-percent']),
        (640, 20, 0.98, []),  # boxes of a logo in the corner: none ends at 100
        (640, 20, 1.2, []),
        (640, 19, 1.0, []),
        (200, 20, 1.0, []),
    ],
)
def test_boxes_in_percent_are_recognised(tmp_path, side, count, scale, expected):
    corners = [(5 * i % 60, 4 * i % 60) for i in range(count)]
    boxes = [Box((scale * x, scale * y, scale * (100 - x), scale * (100 - y)), 0, f'box {x}') for x, y in corners]
    images = [LabelledImage(f'{i}.jpg', tmp_path / 'train.json', [box], (side, side), i) for i, box in enumerate(boxes)]
    findings = list(_check_units({TRAIN: images}))
    assert [finding.kind for finding in findings] == expected
    assert all('all 20 boxes end within 100 pixels, such as [0, 0, 100, 100]' in one.problem for one in findings)


def test_boxes_in_percent_with_areas_in_pixels_are_refused(data):
    """Too few boxes, and too small images, to know percent by the boxes alone."""
    every_box(data, lambda box: replace(box, xywh=tuple(value / 3 for value in box.xywh)))
    result = check_detection(data)
    assert kinds(result) == {'area-unit': 1}
    assert '16 of 16 boxes are smaller than their areas, such as [1.33333, 1.66667, ' in refusal(result)
    assert 'boxes and areas are of different units' in refusal(result)


@pytest.mark.parametrize(
    'area',
    [
        lambda width, height: width * height / 20,  # of a thin polygon
        lambda width, height: (width + 1) * (height + 1),
        lambda width, height: None,
        lambda width, height: math.nan,
    ],
    ids=['polygon', 'inclusive corners', 'none', 'nan'],
)
@pytest.mark.parametrize('shape', [(20, 10), (2, 3)], ids=['box', 'tiny box'])
def test_other_areas_are_of_the_unit_of_the_boxes(data, area, shape):
    every_box(data, lambda box: replace(box, xywh=(*box.xywh[:2], *shape), area=area(*shape)))
    assert refusal(check_detection(data)) == ''


def test_a_few_areas_that_are_too_large_are_no_other_unit(data):
    for image in data.splits[TRAIN][:4]:
        image.boxes = [replace(box, area=4 * box.area) for box in image.boxes]
    assert kinds(check_detection(data)) == {'area-too-large': 8}


def test_boxes_as_corners_are_refused(data):
    def corners(box: Box) -> Box:
        x, y, w, h = box.xywh
        return replace(box, xywh=(x + 20, y + 2, x + 20 + w, y + 2 + h))

    every_box(data, corners)
    result = check_detection(data)
    assert kinds(result) == {'boxes-as-corners': 1}
    assert 'look like (x1, y1, x2, y2)' in refusal(result)


@pytest.mark.parametrize('splits', [(TRAIN,), (VAL,), (TRAIN, VAL)])
def test_a_split_of_crowds_is_refused(data, splits):
    every_box(data, lambda box: replace(box, is_crowd=True), splits)
    result = check_detection(data)
    assert kinds(result) == {'crowd-all': len(splits)}
    assert 'set iscrowd, ignore or difficult to 0' in refusal(result)
    assert result.checked.refusals(allow_dropped=True)


def test_an_image_with_the_zero_box_alone_has_no_objects(data):
    image = data.splits[VAL][0]
    image.boxes[:] = [replace(image.boxes[0], xywh=(0, 0, 0, 0))]
    result = check_detection(data)
    assert kinds(result) == {'zero-box': 1}
    assert result.splits[VAL][0].boxes == []
    assert refusal(result) == ''


@pytest.mark.parametrize(('split', 'purpose'), [(TRAIN, 'training'), (VAL, 'validation')])
def test_a_split_without_boxes_or_images_is_refused(data, split, purpose):
    for image in data.splits[split]:
        image.boxes.clear()
    result = check_detection(data)
    assert kinds(result) == {f'no-{purpose}-boxes': 1}
    assert result.checked.refusals(allow_dropped=True)
    for image in data.splits[split]:
        (data.root / image.name).write_bytes(b'')
    result = check_detection(data)
    assert kinds(result) == {f'no-{purpose}-images': 1, 'unreadable-image': len(data.splits[split])}
    assert f'no {purpose} images remain' in '; '.join(result.checked.refusals(allow_dropped=True))


def test_classes_without_boxes_are_named(data):
    data = replace(data, classes=('cat', 'dog', 'cow'), category_ids=(1, 2, 3))
    for image in data.splits[VAL]:
        image.boxes.pop()
    result = check_detection(data)
    assert kinds(result) == {'class-without-training-boxes': 1, 'class-without-validation-boxes': 1}
    assert refusal(result) == ''
    assert [finding.problem for finding in result.checked.findings] == ["the class 'cow'", "the classes 'dog', 'cow'"]


@pytest.mark.parametrize('name', [' dog', 'dog ', '<b>', 'a/b'])
def test_unusual_class_names_are_named(data, name):
    result = check_detection(replace(data, classes=('cat', name)))
    assert kinds(result) == {'class-name-unusual': 1}
    assert repr(name) in result.checked.lines()[0]
    assert refusal(result) == ''


def test_there_must_be_a_class(data):
    data = replace(data, classes=(), category_ids=())
    for images in data.splits.values():
        for image in images:
            image.boxes.clear()
    assert kinds(check_detection(data)) == {'no-classes': 1}
    data.findings.append(Finding('annotation-unreadable', data.root / 'a.xml', 'it is not XML'))
    assert kinds(check_detection(data)) == {
        'annotation-unreadable': 1,
        'no-training-boxes': 1,
        'no-validation-boxes': 1,
    }
    data = replace(data, splits={TRAIN: []})
    assert refusal(check_detection(data)).startswith('1 of 1 images (100 %) would be left out')


def test_what_the_reader_has_left_out_counts(data):
    data.findings.append(Finding('annotation-unreadable', data.root / 'a.xml', 'no XML'))
    data.findings.append(Finding('box-invalid', data.root / 'b.xml', 'no box', 'object 1'))
    assert '1 of 9 images (11.1 %) and 1 of 17 boxes (5.88 %)' in refusal(check_detection(data))


def test_repeated_boxes_are_used_once(data):
    image = data.splits[TRAIN][0]
    image.boxes += [replace(image.boxes[0], annotation_id=50), replace(image.boxes[1], label=0, annotation_id=51)]
    result = check_detection(data)
    assert kinds(result) == {'box-twice': 1, 'box-two-classes': 1}
    assert [box.annotation_id for box in result.splits[TRAIN][0].boxes] == [1, 2, 51]


def test_many_boxes_with_a_near_copy_are_mentioned(data):
    """As if two people had labelled the same objects."""

    def add_copies(image: LabelledImage, shift: float) -> None:
        image.boxes += [
            replace(b, xywh=(b.xywh[0] + shift, *b.xywh[1:]), entry=f'copy of {b.entry}') for b in image.boxes
        ]

    add_copies(data.splits[TRAIN][1], 0.5)  # of 20 and 8 pixels: IoU 0.95 and 0.88
    result = check_detection(data)
    (found,) = result.checked.findings
    assert (found.kind, found.entry) == ('boxes-nearly-twice', 'copy of annotation 3')
    assert found.problem == (
        '2 of 18 boxes have a near copy of the same class, such as [5, 5, 20, 10] and [5.5, 5, 20, 10] of train/1.png'
    )
    assert result.splits == data.splits
    assert refusal(result) == ''
    add_copies(data.splits[TRAIN][0], 2)  # IoU 0.82: no near copies, of which there are now 2 of 20
    assert check_detection(data).checked.findings == ()


def test_near_copies_are_of_one_class_and_one_image(data):
    for image in data.splits[TRAIN]:
        first, _ = image.boxes
        x, y, width, height = first.xywh
        others = [(x + 0.1, y, width, height), (x, y, width, 2 * height), (x, y + 8, width, height)]
        image.boxes = [first, replace(first, xywh=others[0], label=1), *(replace(first, xywh=b) for b in others[1:])]
        image.boxes.append(replace(first, xywh=others[0], is_crowd=True))
    assert check_detection(data).checked.findings == ()


def test_near_copies_among_many_boxes_of_one_left_edge(data):
    """Between the two in the order of their left edges are others."""
    for image in data.splits[TRAIN]:
        image.boxes = [Box((4 + i / 100, 4 * i + 1, 20, 3), int(i == 9), f'line {i}') for i in range(10)]
        image.boxes.append(replace(image.boxes[0], xywh=(4.5, 1, 20, 3), entry='copy'))
    (found,) = check_detection(data).checked.findings
    assert found.problem.startswith(
        '12 of 70 boxes have a near copy of the same class, such as [4, 1, 20, 3] and [4.5, 1'
    )


@pytest.mark.parametrize(('count', 'is_mentioned'), [(1, False), (2, True), (8, False)])
def test_many_images_without_boxes_are_mentioned(data, count, is_mentioned):
    images = [image for images in data.splits.values() for image in images]
    for image in [*images[: count - 1], images[-1]]:
        image.boxes = []
    notes = check_detection(data).checked.notes
    note = '2 of 8 images have no boxes, taken as images without objects: train/0.png, val/1.png'
    assert notes == ((note,) if is_mentioned else ())


def test_images_without_a_label_file_are_not_named_twice(data):
    data.has_centres = True
    for image in data.splits[TRAIN][:3]:
        image.boxes, image.source = [], data.root / 'data.yaml'
    assert check_detection(data).checked.notes == ()
    data.splits[VAL][0].boxes, data.splits[VAL][0].source = [], data.root / 'val/0.txt'
    assert check_detection(data).checked.notes[0].startswith('4 of 8 images have no boxes')


def test_a_crowd_with_the_box_of_an_object_is_no_repetition(data):
    image = data.splits[TRAIN][0]
    image.boxes.insert(0, replace(image.boxes[0], is_crowd=True, entry='annotation 100'))
    result = check_detection(data)
    assert not result.checked.findings
    assert [box.is_crowd for box in result.splits[TRAIN][0].boxes] == [True, False, False]


@pytest.mark.filterwarnings('error')
def test_a_huge_box_is_left_out_without_a_warning(data):
    image = data.splits[TRAIN][0]
    image.boxes[0] = replace(image.boxes[0], xywh=(1e308, 1e308, 1e308, 1e308))
    assert kinds(check_detection(data)) == {'box-outside': 1}


def cut(path: Path) -> None:
    """Keep the first third of a JPEG, which has its whole header."""
    cv2.imwrite(str(path.with_suffix('.jpg')), cv2.resize(cv2.imread(str(path)), (WIDTH, HEIGHT)))
    content = path.with_suffix('.jpg').read_bytes()
    path.with_suffix('.jpg').unlink()
    path.write_bytes(content[: len(content) // 3])


@pytest.mark.parametrize(
    ('break_it', 'kind'),
    [
        (cut, 'unreadable-image'),
        (lambda path: path.write_bytes(b'not an image'), 'unreadable-image'),
        (lambda path: path.write_bytes(b''), 'unreadable-image'),
        (lambda path: (path.unlink(), path.mkdir()), 'unreadable-image'),
        (lambda path: Image.fromarray(np.zeros((48, 64), np.float32)).save(path, 'TIFF'), 'unreadable-image'),
        (lambda path: path.unlink(), 'missing-image'),
    ],
)
def test_images_that_cannot_be_read_are_left_out(data, break_it, kind):
    break_it(data.root / 'train/3.png')
    result = check_detection(data)
    assert kinds(result) == {kind: 1}
    assert [image.name for image in result.splits[TRAIN]] == [f'train/{i}.png' for i in (0, 1, 2, 4, 5)]
    assert '1 of 8 images (12.5 %) would be left out' in refusal(result)
    assert 'train/3.png' in refusal(result)
    assert result.checked.refusals(allow_dropped=True) == []


def test_the_stated_size_must_be_that_of_the_image(data):
    data.splits[TRAIN][0] = replace(data.splits[TRAIN][0], size=(128, 96))
    assert 'train/0.png is 64x48, not 128x96' in refusal(check_detection(data))
    data.splits[TRAIN][0] = replace(data.splits[TRAIN][0], size=None)  # YOLO has none
    result = check_detection(data)
    assert result.checked.findings == ()
    assert result.splits[TRAIN][0].size == (WIDTH, HEIGHT)


def test_exif_is_named_as_the_reason_of_a_swapped_size(data):
    exif = Image.Exif()
    exif[0x0112] = 6
    name = 'train/turned.jpg'
    with Image.open(data.root / 'train/0.png') as image:
        image.transpose(Image.Transpose.ROTATE_90).save(data.root / name, exif=exif)  # stored 48x64, shown 64x48
    data.splits[TRAIN][0] = replace(data.splits[TRAIN][0], name=name)
    assert check_detection(data).checked.findings == ()
    data.splits[TRAIN][0] = replace(data.splits[TRAIN][0], size=(HEIGHT, WIDTH))
    result = check_detection(data)
    assert kinds(result) == {'image-size-exif': 1}
    assert 'turned.jpg is 64x48, not 48x64: its EXIF orientation 6 turns it' in refusal(result)


TURNED = {
    'half-turn': (3, (WIDTH, HEIGHT), (WIDTH, HEIGHT), True),
    'mirrored': (2, (WIDTH, HEIGHT), None, True),
    'quarter-turn': (6, (WIDTH, HEIGHT), (WIDTH, HEIGHT), False),  # the labels are of the turned image
    'quarter-turn-without-size': (6, (WIDTH, HEIGHT), None, True),
    'square': (6, (WIDTH, WIDTH), (WIDTH, WIDTH), True),
    'upright': (1, (WIDTH, HEIGHT), None, False),
}


@pytest.mark.parametrize('case', TURNED)
def test_images_that_exif_turns_are_mentioned(data, case):
    orientation, size, stated, is_mentioned = TURNED[case]
    save_turned(data.root / 'train/turned.png', size, orientation)
    save_turned(data.root / 'val/turned.png', size, orientation)
    data.splits[TRAIN][0] = replace(data.splits[TRAIN][0], name='train/turned.png', size=stated)
    data.splits[VAL][0] = replace(data.splits[VAL][0], name='val/turned.png', size=stated, boxes=[])
    result = check_detection(data)
    note = '1 image turned by EXIF, and labels read as of the turned image: train/turned.png'
    assert [line for line in result.checked.notes if 'EXIF' in line] == [note] * is_mentioned
    assert refusal(result) == ''


def save_turned(path: Path, size: tuple[int, int], orientation: int) -> None:
    """Write an image that has a size, (width, height), when EXIF has turned it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(orientation).integers(0, 256, (*(size if orientation > 4 else size[::-1]), 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path, exif=exif)


def test_exif_is_named_if_boxes_leave_an_image_that_it_turns(data):
    save_turned(data.root / 'train/turned.png', (HEIGHT, WIDTH), 6)
    data.splits[TRAIN][0] = replace(data.splits[TRAIN][0], name='train/turned.png', size=None)
    data.splits[TRAIN][0].boxes[0] = Box((30, 5, 30, 10), 0, 'object 1', 300)
    data.splits[TRAIN][1].boxes[0] = Box((60, 5, 30, 10), 0, 'object 1', 300)
    found = check_detection(data).checked.findings
    assert [finding.kind for finding in found] == ['box-outside'] * 2
    assert found[0].problem.endswith('train/turned.png reaches 12 pixels outside of its 48x64 image, which EXIF turns')
    assert found[1].problem.endswith('26 pixels outside of its 64x48 image')


def test_16_bit_images_of_a_12_bit_sensor_are_named(data):
    values = np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH)).astype(np.uint16)
    cv2.imwrite(str(data.root / 'train/0.png'), values)
    result = check_detection(data)
    assert kinds(result) == {'dark-image': 1}
    assert 'its brightest value is 15 of 255' in '\n'.join(result.checked.lines())
    assert refusal(result) == ''


@pytest.mark.parametrize(
    'name', ['../x.png', '/etc/x.png', 'a/../../x.png', r'..\..\x.png', r'C:\x.png', 'C:x.png', r'\\host\x']
)
def test_an_image_outside_of_the_folder_is_refused(data, name):
    make_image(data.root.parent / 'x.png', 1)
    assert not is_inside(name)
    data.splits[TRAIN][0] = replace(data.splits[TRAIN][0], name=name)
    result = check_detection(data)
    assert kinds(result) == {'path-outside': 1}
    assert f'the image {name} is outside of' in refusal(result)
    assert result.checked.refusals(allow_dropped=True)


def test_near_duplicates_of_the_splits_are_named(data):
    pixels = cv2.imread(str(data.root / 'train/2.png'))
    cv2.imwrite(str(data.root / 'val/1.png'), np.clip(pixels.astype(int) + 6, 0, 255).astype(np.uint8))
    result = check_detection(data)
    assert kinds(result) == {'near-duplicate': 1}
    assert 'val/1.png: it is a near-duplicate of the training image train/2.png' in '\n'.join(result.checked.lines())
    assert refusal(result) == ''


def test_data_without_a_split_is_split_and_stays_so_when_images_are_added(data):
    images = [*data.splits[TRAIN], *data.splits[VAL]]
    whole = replace(data, splits={ALL: [replace(image, image_id=i) for i, image in enumerate(images)]})
    result = check_detection(whole)
    assert {name: len(images) for name, images in result.splits.items()} == {TRAIN: 6, VAL: 2}
    assert result.checked.notes[0].startswith('6 images are for training and 2 for validation')
    previous = {image.name: split for split, images in result.splits.items() for image in images}
    for i in range(7):
        make_image(data.root / f'new/{i}.png', 900 + i)
        whole.splits[ALL].append(replace(images[0], name=f'new/{i}.png', image_id=100 + i, boxes=[]))
    again = check_detection(whole, previous)
    now = {image.name: split for split, images in again.splits.items() for image in images}
    assert {name: now[name] for name in previous} == previous
    assert len(again.splits[VAL]) == 3


@pytest.mark.parametrize(
    ('given', 'expected', 'note'),
    [
        ({TRAIN: TRAIN, 'test': VAL}, (6, 2), 'the test images are used'),
        ({TRAIN: TRAIN}, (5, 1), 'some of the training images are used'),
        ({TRAIN: TRAIN, VAL: VAL, 'test': VAL}, (6, 2), 'the 2 test images are not used'),
    ],
)
def test_other_splits(data, given, expected, note):
    result = check_detection(replace(data, splits={name: data.splits[source] for name, source in given.items()}))
    assert (len(result.splits[TRAIN]), len(result.splits[VAL])) == expected
    assert note in '\n'.join(result.checked.notes)
    assert refusal(result) == ''


def test_validation_images_alone_are_refused(data):
    assert 'no training images remain' in refusal(check_detection(replace(data, splits={VAL: data.splits[VAL]})))


@pytest.mark.parametrize('has_centres', [True, False])
def test_corners_in_the_place_of_a_centre_are_noticed(tmp_path, has_centres):
    """YOLO's rows with x1 y1 x2 y2: what is read has its centre at the upper left corner."""
    corners = [(i, 2 * i, 60 + i, 70 + i) for i in range(1, 9)]
    boxes = [Box((x - w / 2, y - h / 2, w, h), 0, f'line {x}') for x, y, w, h in corners]
    images = [LabelledImage(f'{i}.jpg', tmp_path / f'{i}.txt', [box], (100, 100)) for i, box in enumerate(boxes)]
    kinds = [finding.kind for finding in _check_units({TRAIN: images}, has_centres)]
    assert kinds == ['boxes-as-corners'] * has_centres


def test_the_folder_itself_is_not_named(data):
    assert describe([Finding('no-classes', data.root, 'no class is named')], data.root).startswith(
        'no class is named: '
    )
