"""CVAT's XML for images."""

import pytest
from small_data import boxes, findings, write_file, write_images

from mnv4_mm.data.form import ALL, TRAIN, VAL
from mnv4_mm.data.formats.cvat import read
from mnv4_mm.errors import UserError

META = '<meta><task><labels>{}</labels></task></meta>'
BOX = '<box label="cat" xtl="1.00" ytl="2.00" xbr="4.00" ybr="6.00" occluded="0" source="manual" z_order="0"/>'
CAT = ('cat', (1, 2, 3, 4))


def label(*names):
    return META.format(''.join(f'<label><name>{name}</name><color>#fff</color></label>' for name in names))


def image(name='a.jpg', *shapes, more='', number=0):
    return f'<image id="{number}" name="{name}" width="32" height="24" {more}>{"".join(shapes)}</image>'


@pytest.fixture
def load(tmp_path):
    def load(*content, images=('images/a.jpg',), name='annotations.xml'):
        start = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
        document = f'{start}{"".join(content)}</annotations>'
        write_file(tmp_path / name, document)
        write_images(tmp_path, images)
        return read(tmp_path)

    return load


def test_boxes_and_classes(load):
    data = load(label('dog', 'cat'), image('a.jpg', BOX))
    assert boxes(data) == {'images/a.jpg': [CAT]}
    assert (data.classes, data.category_ids) == (('dog', 'cat'), (1, 2))
    assert data.splits[ALL][0].size == (32, 24)
    assert (data.findings, data.notes) == ([], [])


def test_points_of_a_skeleton_are_no_classes(load):
    point = '<label><name>nose</name><type>points</type><parent>cat</parent></label>'
    data = load(META.format(f'<label><name>cat</name><type>skeleton</type></label>{point}'), image('a.jpg', BOX))
    assert data.classes == ('cat',)


@pytest.mark.parametrize('path', ['a.jpg', 'images/a.jpg', 'images/default/a.jpg', 'data/a.jpg', 'x/y/a.jpg'])
def test_places_of_images(load, path):
    assert boxes(load(label('cat'), image('a.jpg', BOX), images=[path])) == {path: [CAT]}


def test_subsets_of_a_project(load):
    data = load(
        label('cat'),
        image('a.jpg', BOX, more='subset="Train"'),
        image('a.jpg', more='subset="Validation"'),
        images=('images/Train/a.jpg', 'images/Validation/a.jpg'),
    )
    assert {split: [image.name for image in group] for split, group in data.splits.items()} == {
        TRAIN: ['images/Train/a.jpg'],
        VAL: ['images/Validation/a.jpg'],
    }


def test_images_that_no_file_lists_are_counted(load):
    data = load(label('cat'), image('a.jpg', BOX), images=['images/a.jpg', 'images/b.jpg', 'masks/a.png'])
    assert data.notes == ['1 image beside the listed ones, not used: images/b.jpg']


def test_a_file_for_each_split(load):
    load(label('cat', 'dog'), image('a.jpg', BOX), images=['train/images/a.jpg'], name='train/annotations.xml')
    data = load(
        label('dog', 'cat', 'cow'), image('a.jpg', BOX), images=['val/images/a.jpg'], name='val/annotations.xml'
    )
    assert {split: [image.name for image in group] for split, group in data.splits.items()} == {
        TRAIN: ['train/images/a.jpg'],
        VAL: ['val/images/a.jpg'],
    }
    assert boxes(data) == {'train/images/a.jpg': [CAT], 'val/images/a.jpg': [CAT]}
    assert data.classes == ('cat', 'dog', 'cow')
    assert data.notes == ['val/annotations.xml has labels that the other files do not have: cow']


@pytest.mark.parametrize(
    ('shape', 'expected'),
    [
        ('<polygon label="cat" points="1.00,2.00;4.00,2.00;4.00,6.00"/>', (1, 2, 3, 4)),
        ('<ellipse label="cat" cx="2.5" cy="4" rx="1.5" ry="2"/>', (1, 2, 3, 4)),
        ('<mask label="cat" rle="0,12" left="1" top="2" width="3" height="4"/>', (1, 2, 3, 4)),
        ('<box label="cat" xtl="8" ytl="8" xbr="12" ybr="10" rotation="90.00"/>', (9, 7, 2, 4)),
        # Its corners leave the image of 32x24, and so would the box around them.
        ('<box label="cat" xtl="0" ytl="0" xbr="8" ybr="8" rotation="45"/>', (0, 0, 4 + 2**5.5 / 8, 4 + 2**5.5 / 8)),
        ('<box label="cat" xtl="10.10" ytl="0.00" xbr="30.30" ybr="6.00"/>', (10.1, 0, 20.2, 6)),
    ],
)
def test_shapes(load, shape, expected):
    ((_, box),) = boxes(load(label('cat'), image('a.jpg', shape)))['images/a.jpg']
    assert box == pytest.approx(expected, abs=1e-9)
    if 'rotation' not in shape:
        assert box == expected


def test_shapes_without_area_are_left_out(load):
    shapes = ('<points label="cat" points="1,2"/>', '<polyline label="cat" points="1,2;3,4"/>', '<tag label="cat"/>')
    data = load(label('cat'), image('a.jpg', *shapes))
    assert boxes(data) == {'images/a.jpg': []}
    assert sorted(data.notes) == [
        '1 shape of the kind points: left out',
        '1 shape of the kind polyline: left out',
    ]


def test_crowds(load):
    crowd = BOX.replace('/>', '><attribute name="is_crowd">true</attribute></box>')
    data = load(label('cat'), image('a.jpg', BOX, crowd))
    assert [box.is_crowd for box in data.splits[ALL][0].boxes] == [False, True]


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (image('a.jpg', BOX.replace('xtl="1.00"', 'xtl="x"')), [('box-invalid', 'images/a.jpg, shape 1')]),
        (image('a.jpg', BOX.replace('xtl="1.00"', '')), [('box-invalid', 'images/a.jpg, shape 1')]),
        (image('a.jpg', '<polygon label="cat" points="1;2"/>'), [('box-invalid', 'images/a.jpg, shape 1')]),
        (image('a.jpg', '<polygon label="cat"/>'), [('box-invalid', 'images/a.jpg, shape 1')]),
        (image('a.jpg', '<ellipse label="cat" cx="1"/>'), [('box-invalid', 'images/a.jpg, shape 1')]),
        (image('a.jpg', BOX.replace('cat', 'cow')), [('class-unlisted', 'images/a.jpg, shape 1')]),
        (image('../../outside.jpg', BOX), [('path-outside', 'image 0')]),
        (image('', BOX), [('entry-invalid', 'image 0')]),
        (image('a.jpg') + image('a.jpg', number=1), [('image-twice', 'image 1')]),
    ],
)
def test_wrong_entries_are_findings(load, content, expected):
    data = load(label('cat'), content)
    assert [(kind, entry) for kind, entry, _ in findings(data)] == expected


def test_labels_that_nobody_lists(load):
    data = load(image('a.jpg', BOX.replace('cat', 'dog'), BOX))
    assert data.classes == ('cat', 'dog')
    assert 'the files list no labels' in data.notes[0]


def test_files_that_are_refused(load, tmp_path):
    with pytest.raises(
        UserError, match=r'annotations.xml has the tracks of a video: export the task as "CVAT for images'
    ):
        load(label('cat'), '<track id="0" label="cat"><box frame="0" xtl="1" ytl="2" xbr="3" ybr="4"/></track>')
    write_file(tmp_path / 'annotations.xml', '<annotations><image')
    with pytest.raises(UserError, match=r'annotations.xml is not XML'):
        read(tmp_path)
    write_file(tmp_path / 'annotations.xml', '<project/>')
    assert read(tmp_path) is None
