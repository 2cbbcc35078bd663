"""Pascal VOC as LabelImg, Roboflow and CVAT write it."""

import pytest
from small_data import boxes, findings, write_file, write_images

from mnv4_mm.data.findings import Rule
from mnv4_mm.data.form import ALL, TEST, TRAIN, VAL
from mnv4_mm.data.formats.recognise import recognise
from mnv4_mm.data.formats.voc import read


def xml(*objects, filename='a.jpg', size=(32, 24)):
    size = '' if size is None else f'<size><width>{size[0]}</width><height>{size[1]}</height></size>'
    return f'<annotation><filename>{filename}</filename>{size}{"".join(objects)}</annotation>'


def obj(name='cat', box=(2, 3, 5, 7), more=''):
    edges = ''.join(f'<{k}>{v}</{k}>' for k, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True))
    return f'<object><name>{name}</name>{more}<bndbox>{edges}</bndbox></object>'


CAT = ('cat', (1, 2, 3, 4))


@pytest.fixture
def load(tmp_path):
    def load(files, images=('JPEGImages/a.jpg',)):
        for name, content in files.items():
            write_file(tmp_path / name, content)
        write_images(tmp_path, images)
        return read(tmp_path)

    return load


def test_pixels_are_counted_from_one(load):
    data = load({'Annotations/a.xml': xml(obj())})
    assert boxes(data) == {'JPEGImages/a.jpg': [CAT]}
    (image,) = data.splits[ALL]
    assert (image.size, image.image_id, image.boxes[0].entry) == ((32, 24), None, 'object 1')
    assert (data.classes, data.category_ids, data.findings, data.notes) == (('cat',), (1,), [], [])


def test_pixels_are_counted_from_zero_if_one_coordinate_is_below_one(load):
    data = load({'Annotations/a.xml': xml(obj(), obj('dog', (0, 3, 5.5, 7)))})
    assert boxes(data) == {'JPEGImages/a.jpg': [('cat', (2, 3, 3, 4)), ('dog', (0, 3, 5.5, 4))]}
    assert 'counted from 0' in data.notes[0]


def test_an_empty_box_does_not_move_the_others(load):
    """Tools write [0, 0, 0, 0] for images without objects."""
    names = ('Annotations/a.xml', 'Annotations/b.xml')
    files = (xml(obj()), xml(obj(box=(0, 0, 0, 0)), filename='b.jpg'))
    data = load(dict(zip(names, files, strict=True)), ('JPEGImages/a.jpg', 'JPEGImages/b.jpg'))
    assert boxes(data)['JPEGImages/a.jpg'] == [CAT]


def test_decimals_are_not_rounded(load):
    data = load({'Annotations/a.xml': xml(obj(box=('11.1', '2.2', '31.3', '20.5')))})
    assert boxes(data)['JPEGImages/a.jpg'] == [('cat', (10.1, 1.2, 20.2, 18.3))]


@pytest.mark.parametrize(
    ('xml_name', 'image'),
    [
        ('a.xml', 'a.jpg'),
        ('Annotations/a.xml', 'JPEGImages/a.png'),
        ('annotations/xmls/a.xml', 'images/a.JPG'),
        ('labels/cam0/a.xml', 'images/cam0/a.jpg'),
        ('VOCdevkit/VOC2012/Annotations/a.xml', 'VOCdevkit/VOC2012/JPEGImages/a.jpg'),
    ],
)
def test_layouts(load, xml_name, image):
    assert boxes(load({xml_name: xml(obj())}, [image])) == {image: [CAT]}


def test_lists_of_splits(load):
    stems = 'abcdef'
    data = load(
        {
            **{f'Annotations/{stem}.xml': xml(obj(), filename=f'{stem}.jpg') for stem in stems},
            'ImageSets/Main/train.txt': 'b\na\n\n',
            'ImageSets/Main/val.txt': 'c.jpg\r\n',
            'ImageSets/Main/trainval.txt': 'a\nb\nc\n',
            'ImageSets/Main/test.txt': '"d"\n',
            'ImageSets/Main/cat_train.txt': 'a  1\nb -1\n',
            'ImageSets/Segmentation/train.txt': 'f\n',
        },
        [f'JPEGImages/{stem}.jpg' for stem in stems],
    )
    assert {split: [image.name for image in images] for split, images in data.splits.items()} == {
        TRAIN: ['JPEGImages/a.jpg', 'JPEGImages/b.jpg'],
        VAL: ['JPEGImages/c.jpg'],
        TEST: ['JPEGImages/d.jpg'],
    }
    assert data.notes == ['not used, since no list of ImageSets/Main has them: Annotations/e.xml, Annotations/f.xml']


def test_only_trainval_is_split(load):
    files = {f'Annotations/{stem}.xml': xml(filename=f'{stem}.jpg') for stem in 'ab'}
    files |= {'ImageSets/Main/trainval.txt': 'a 1\n', 'ImageSets/Main/test.txt': 'b -1\n'}
    data = load(files, ['JPEGImages/a.jpg', 'JPEGImages/b.jpg'])
    assert {split: len(images) for split, images in data.splits.items()} == {ALL: 1, TEST: 1}


def test_two_years_of_the_devkit(load):
    files, images = {}, []
    for year in ('VOC2007', 'VOC2012'):
        for stem in 'ab':
            files[f'{year}/Annotations/{stem}.xml'] = xml(obj(), filename=f'{stem}.jpg')
            images.append(f'{year}/JPEGImages/{stem}.jpg')
        files |= {f'{year}/ImageSets/Main/train.txt': 'a\n', f'{year}/ImageSets/Main/val.txt': 'b\n'}
    data = load(files, images)
    assert [image.name for image in data.splits[TRAIN]] == ['VOC2007/JPEGImages/a.jpg', 'VOC2012/JPEGImages/a.jpg']
    assert [image.name for image in data.splits[VAL]] == ['VOC2007/JPEGImages/b.jpg', 'VOC2012/JPEGImages/b.jpg']


def test_folders_of_splits(load):
    files = {f'{split}/a.xml': xml(obj()) for split in ('train', 'valid', 'test')}
    data = load(files, [f'{split}/a.jpg' for split in ('train', 'valid', 'test')])
    assert {split: [image.name for image in images] for split, images in data.splits.items()} == {
        TRAIN: ['train/a.jpg'],
        VAL: ['valid/a.jpg'],
        TEST: ['test/a.jpg'],
    }


def test_mistakes_in_lists(load):
    data = load(
        {
            'Annotations/a.xml': xml(obj()),
            'Annotations/c.xml': xml(filename='c.jpg'),
            'ImageSets/Main/train.txt': 'a\na\nb\n../../x\nc\n',
            'ImageSets/Main/val.txt': 'a\n',
        }
    )
    assert [(kind, entry) for kind, entry, _ in findings(data)] == [
        ('listed-twice', 'line 2'),
        ('annotation-missing', 'line 3'),
        ('path-outside', 'line 4'),
        ('image-in-two-splits', 'line 1'),
    ]


def test_the_same_lists_for_training_and_validation_are_split_anew(load):
    files = {'Annotations/a.xml': xml(obj()), 'Annotations/b.xml': xml(filename='b.jpg')}
    files |= {'ImageSets/Main/train.txt': 'a\nb\n', 'ImageSets/Main/val.txt': 'b\na\n'}
    data = load(files, ['JPEGImages/a.jpg', 'JPEGImages/b.jpg'])
    assert {split: [image.name for image in images] for split, images in data.splits.items()} == {
        ALL: ['JPEGImages/a.jpg', 'JPEGImages/b.jpg']
    }
    assert data.notes == ['the same images are for training and validation: they are split anew']
    assert not data.findings


def test_difficult_objects_are_crowds(load):
    data = load({'Annotations/a.xml': xml(obj(), obj(more='<difficult>1</difficult>'))})
    assert [box.is_crowd for box in data.splits[ALL][0].boxes] == [False, True]
    assert '1 difficult object' in data.notes[0]


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (xml(obj(box=('x', 3, 5, 7))), [('box-invalid', 'object 1')]),
        (xml(obj(box=('', 3, 5, 7))), [('box-invalid', 'object 1')]),
        (xml(obj(), '<object><name>cat</name></object>'), [('box-invalid', 'object 2')]),
        (xml('<object><bndbox/></object>'), [('class-unlisted', 'object 1')]),
        (xml(obj(' ')), [('class-unlisted', 'object 1')]),
        (xml(obj(), filename='../../outside.jpg'), [('path-outside', 'filename')]),
        (xml(obj(), filename=r'C:\images\a.jpg'), [('path-outside', 'filename')]),
        (xml(obj(), obj('Cat')), [('class-similar', 'class 1')]),
        ('<annotation><object>', [('annotation-unreadable', '')]),
        ('', [('annotation-unreadable', '')]),
        ('<!DOCTYPE a [<!ENTITY e "x">]><annotation>&e;</annotation>', [('annotation-unreadable', '')]),
    ],
)
def test_wrong_entries_are_findings(load, content, expected):
    data = load(
        {'Annotations/a.xml': content, 'Annotations/b.xml': xml(filename='b.jpg')},
        ['JPEGImages/a.jpg', 'JPEGImages/b.jpg'],
    )
    assert [(kind, entry) for kind, entry, _ in findings(data)] == expected
    assert all(
        finding.file == data.root / 'Annotations/a.xml' for finding in data.findings if finding.entry != 'class 1'
    )


def test_commas_in_numbers_are_named(load):
    data = load({'Annotations/a.xml': xml(obj(box=('2,5', 3, 5, 7)))})
    ((_, _, problem),) = findings(data, Rule.DROPPED)
    assert problem.endswith('is not a box of four numbers: numbers need decimal points, no commas')


def test_boxes_that_make_no_sense_are_kept_for_the_check(load):
    data = load({'Annotations/a.xml': xml(obj(box=('nan', 3, 5, 7)), obj(box=(9, 3, 5, 7)), obj(box=(4, 4, 4, 4)))})
    first, second, third = data.splits[ALL][0].boxes
    assert first.xywh[0] != first.xywh[0]
    assert (second.xywh, third.xywh) == ((8, 2, -4, 4), (3, 3, 0, 0))


def test_the_name_inside_differs_from_that_of_the_file(load):
    files = {'Annotations/a.xml': xml(obj(), filename='b.jpg'), 'Annotations/b.xml': xml(filename='b.jpg')}
    data = load(files, ['JPEGImages/a.jpg', 'JPEGImages/b.jpg'])
    assert boxes(data) == {'JPEGImages/a.jpg': [CAT], 'JPEGImages/b.jpg': []}  # as mmdet reads it
    assert [kind for kind, _, _ in findings(data, Rule.HARMLESS)] == ['name-differs']


def test_files_that_are_numbered_name_the_image_inside(load):
    data = load({'Annotations/1.xml': xml(obj(), filename='a.jpg')})
    assert boxes(data) == {'JPEGImages/a.jpg': [CAT]}


def test_two_files_for_one_image(load):
    files = {'Annotations/a.xml': xml(obj()), 'old/a.xml': xml(obj('dog'))}
    assert [kind for kind, _, _ in findings(load(files), Rule.FATAL)] == ['image-twice']


def test_images_without_a_file_are_not_used(load):
    data = load({'Annotations/a.xml': xml(obj())}, ['JPEGImages/a.jpg', 'JPEGImages/b.jpg', 'SegmentationClass/a.png'])
    assert list(boxes(data)) == ['JPEGImages/a.jpg']
    assert data.notes == ['1 image without an annotation file, not used: JPEGImages/b.jpg']


def test_an_image_that_is_missing_is_named_for_the_check(load):
    data = load({'Annotations/a.xml': xml(obj()), 'Annotations/b.xml': xml(obj(), filename='b.png')})
    assert list(boxes(data)) == ['JPEGImages/a.jpg', 'JPEGImages/b.png']


def test_sizes_that_are_no_sizes(load):
    data = load(
        {'Annotations/a.xml': xml(obj(), size=(0, 0)), 'Annotations/b.xml': xml(obj(), filename='b.jpg', size=None)},
        ['JPEGImages/a.jpg', 'JPEGImages/b.jpg'],
    )
    assert [image.size for image in data.splits[ALL]] == [None, None]


def test_rotated_boxes_of_rolabelimg(load):
    rotated = '<robndbox><cx>11</cx><cy>11</cy><w>8</w><h>4</h><angle>1.5707963267948966</angle></robndbox>'
    data = load({'Annotations/a.xml': xml(f'<object><name>cat</name>{rotated}</object>')})
    ((_, box),) = boxes(data)['JPEGImages/a.jpg']
    assert box == pytest.approx((8, 6, 4, 8))


def test_other_xml_files_are_no_data_set(load, tmp_path):
    assert load({'a.xml': '<project><name>x</name></project>'}) is None
    write_file(tmp_path / 'a.xml', xml(obj()))
    assert recognise(tmp_path, 'detection').format == 'Pascal VOC'


def test_two_images_of_the_name(load):
    images = ['cam1/a.jpg', 'cam2/a.jpg']
    data = load({'xml/a.xml': xml(obj())}, images)
    assert findings(data, Rule.FATAL) == [('image-ambiguous', '', 'it may be for cam1/a.jpg or cam2/a.jpg')]


def test_the_suffix_inside_decides_between_two_images(load):
    data = load({'a.xml': xml(obj(), filename='a.png')}, ['a.jpg', 'a.png'])
    assert boxes(data) == {'a.png': [CAT]}


def test_labels_in_another_format_are_not_passed_over(load):
    data = load(
        {'a.xml': xml(obj()), 'b.json': dict(shapes=[dict(label='cat')], imagePath='b.jpg')}, ['a.jpg', 'b.jpg']
    )
    assert findings(data, Rule.FATAL) == [('annotation-format', '', 'it has the labels of b.jpg')]


def test_accents_of_class_names_are_composed(load):
    data = load({'a.xml': xml(obj('T\u00fcr'), obj('Tu\u0308r'))}, ['a.jpg'])
    assert data.classes == ('T\u00fcr',)
    assert len(data.splits[ALL][0].boxes) == 2
    assert data.notes[-1].startswith('accents of class names are composed')


@pytest.mark.parametrize(
    ('value', 'expected', 'count'),
    [('90.0', (2.5, 2.5, 6, 7), 1), ('0.0', (2, 3, 7, 6), 0), ('upright', (2, 3, 7, 6), 0)],
)
def test_rotation_of_cvat(load, value, expected, count):
    more = f'<attributes><attribute><name>rotation</name><value>{value}</value></attribute></attributes>'
    data = load({'Annotations/a.xml': xml(obj(box=(3, 4, 10, 10), more=more))})
    assert boxes(data)['JPEGImages/a.jpg'][0][1] == pytest.approx(expected)
    assert data.notes == ['1 rotated box: the box around each is used'] * count


def test_unreadable_files_are_not_missing(load):
    files = {'Annotations/a.xml': xml(obj()), 'Annotations/b.xml': b'<annotation><filename>B\xe4r.jpg</filename>'}
    data = load(files, [f'JPEGImages/{name}.jpg' for name in 'abc'])
    (found,) = findings(data)
    assert found[0] == 'annotation-unreadable'
    assert found[2].endswith('; save it as UTF-8')
    assert data.notes == ['1 image without an annotation file, not used: JPEGImages/c.jpg']


def test_objects_without_a_box(load):
    data = load({'Annotations/a.xml': xml(obj(), '<object><name>cat</name><polygon><x1>1</x1></polygon></object>')})
    assert findings(data) == [('box-invalid', 'object 2', 'it has no bndbox')]


def test_a_size_of_zero_is_a_finding(load):
    data = load({'Annotations/a.xml': xml(obj(), size=(0, 0))})
    assert [found[0] for found in findings(data)] == ['size-invalid']
    assert data.splits[ALL][0].size is None
    assert boxes(data) == {'JPEGImages/a.jpg': [CAT]}
