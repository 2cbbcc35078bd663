"""YOLO data of Ultralytics, Roboflow, CVAT, Label Studio, supervision and darknet."""

import pytest
from small_data import boxes, findings, write_file, write_images

from mnv4_mm.data.check import check_detection
from mnv4_mm.data.findings import Rule
from mnv4_mm.data.form import ALL, TEST, TRAIN, VAL, DetectionData
from mnv4_mm.data.formats import yolo
from mnv4_mm.data.formats.files import Files
from mnv4_mm.data.formats.recognise import recognise
from mnv4_mm.data.formats.yolo import read
from mnv4_mm.errors import UserError

ROW = '1 0.25 0.25 0.25 0.5'  # of 32 x 24 pixels
DOG = ('dog', (4, 0, 8, 12))
YAML = 'train: images/train\nval: images/val\nnames: [cat, dog]\n'


@pytest.fixture
def load(tmp_path):
    def load(files, images=('images/train/a.jpg', 'images/val/b.jpg')):
        for name, content in files.items():
            write_file(tmp_path / name, content)
        write_images(tmp_path, images)
        return read(tmp_path)

    return load


def names(data):
    return {split: [image.name for image in images] for split, images in data.splits.items()}


@pytest.mark.parametrize(
    'description',
    [
        YAML,
        YAML.replace('[cat, dog]', '{0: cat, 1: dog}'),
        YAML + 'nc: 2\n',
        YAML.replace('[cat, dog]', '\n  - cat\n  - dog'),
        YAML.replace('[cat, dog]', "\"['cat', 'dog']\""),
        'path: .\n' + YAML,
        'path: images\ntrain: train\nval: val\nnames: [cat, dog]',
        'path: ../datasets/pets\n' + YAML,
        'path: /content/pets\n' + YAML,
        r'path: C:\pets' + '\n' + YAML.replace('images/train', r'images\train'),
        YAML.replace('images/', '../images/'),  # Roboflow
        YAML.replace('images/', '/content/pets/images/'),
        'path: /content/pets\n' + YAML.replace('images/', '/content/pets/images/'),
        YAML.replace('images/train', '[images/train]'),
        YAML.replace('images/train', 'train.txt'),
        YAML + 'test:\n',
        YAML + 'test: images/none\n',
    ],
)
def test_descriptions(load, description):
    data = load(
        {
            'data.yaml': description,
            'train.txt': './images/train/a.jpg\n',
            'labels/train/a.txt': f'{ROW}\n',
            'labels/val/b.txt': ROW,
        }
    )
    assert boxes(data) == {'images/train/a.jpg': [DOG], 'images/val/b.jpg': [DOG]}
    assert names(data) == {TRAIN: ['images/train/a.jpg'], VAL: ['images/val/b.jpg']}
    assert (data.classes, data.category_ids) == (('cat', 'dog'), (1, 2))
    assert not findings(data, Rule.FATAL, Rule.DROPPED)


@pytest.mark.parametrize(
    ('images', 'labels'),
    [
        (('train/images/a.jpg', 'valid/images/b.jpg'), ('train/labels/a.txt', 'valid/labels/b.txt')),
        (('images/train/a.jpg', 'images/val/b.jpg'), ('labels/train/a.txt', 'labels/val/b.txt')),
        (('train/a.jpg', 'val/b.jpg'), ('train/a.txt', 'val/b.txt')),
        (('Train/Images/a.jpg', 'Val/Images/b.jpg'), ('Train/Labels/a.txt', 'Val/Labels/b.txt')),
    ],
)
def test_folders_of_splits_without_a_description(load, images, labels):
    data = load({'classes.txt': 'cat\ndog\n', **dict.fromkeys(labels, ROW)}, images)
    assert boxes(data) == {image: [DOG] for image in images}
    assert names(data) == {TRAIN: [images[0]], VAL: [images[1]]}
    assert data.notes == ['the split is that of the folders of the images', 'class names are those of classes.txt']


def test_names_alone_as_supervision_writes_them(load):
    data = load({'data.yaml': 'nc: 2\nnames: [cat, dog]\n', 'labels/a.txt': ROW}, ['images/a.jpg', 'images/b.jpg'])
    assert boxes(data) == {'images/a.jpg': [DOG], 'images/b.jpg': []}
    assert list(data.splits) == [ALL]


def test_classes_that_nobody_names(load):
    data = load({'labels/a.txt': ROW}, ['images/a.jpg'])
    assert data.classes == ('0', '1')
    assert 'no file names the classes' in data.notes[0]


@pytest.mark.parametrize(
    ('listed', 'problem'),
    [
        ('dog\ncat\n', "class 0 is 'cat', but in labels/classes.txt it is 'dog'"),
        ('cat\ndog\n', None),
        ('dog\nperson\n', None),  # LabelImg's list of another project
        ('dog\ncat\nperson\n', None),
        (b'K\xfcrbis', None),  # not UTF-8
    ],
)
def test_a_list_of_classes_in_another_order_than_the_description(load, listed, problem):
    data = load({'data.yaml': YAML, 'labels/train/a.txt': ROW, 'labels/classes.txt': listed})
    assert findings(data, Rule.FATAL) == ([('class-count', '', problem)] if problem else [])
    assert data.classes == ('cat', 'dog')


def test_blank_lines_are_skipped(load):
    """Also before the first row, where the format is recognised, and without a file that names the classes."""
    data = load({'labels/a.txt': f'\n{ROW}\n \n'}, ['images/a.jpg'])
    assert data.classes == ('0', '1')
    assert [len(image.boxes) for image in data.splits[ALL]] == [1]
    assert not data.findings


def test_the_layout_of_cvat_and_darknet(load):
    data = load(
        {
            'obj.data': 'classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n',
            'obj.names': 'cat\ndog\n',
            'train.txt': 'data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n',
            'obj_train_data/a.txt': ROW,
        },
        ['obj_train_data/a.jpg', 'obj_train_data/b.jpg'],
    )
    assert boxes(data) == {'obj_train_data/a.jpg': [DOG], 'obj_train_data/b.jpg': []}
    assert not data.findings


def test_lists_of_images_that_leave_the_folder(load):
    files = {'data.yaml': YAML.replace('images/train', 'train.txt'), 'labels/train/a.txt': ROW, 'labels/val/b.txt': ROW}
    data = load(files | {'train.txt': '../../outside.jpg\nimages/train/a.jpg\n/etc/x.jpg\nimages/train/a.jpg\n'})
    assert [(kind, entry) for kind, entry, _ in findings(data)] == [
        ('listed-twice', 'line 4'),
        ('path-outside', 'line 1'),
        ('path-outside', 'line 3'),
    ]


@pytest.mark.parametrize('word', ['val', 'valid', 'validation'])
def test_lists_without_a_description(word, load):
    files = {'train.txt': 'images/a.jpg\n', f'{word}.txt': 'images/b.jpg\n', 'labels/a.txt': ROW, 'labels/b.txt': ROW}
    data = load(files, ['images/a.jpg', 'images/b.jpg', 'images/c.jpg'])
    assert names(data) == {TRAIN: ['images/a.jpg'], VAL: ['images/b.jpg']}


@pytest.mark.parametrize(
    ('description', 'kind'),
    [
        (YAML.replace('images/train', '../../elsewhere'), 'path-outside'),
        (YAML.replace('images/train', '/data/elsewhere/images'), 'path-outside'),
        (YAML.replace('images/train', 'images/none'), 'split-missing'),
        (YAML + 'nc: 3\n', 'class-count'),
        (YAML.replace('cat', 'dog'), 'class-twice'),
        (YAML.replace('cat', '""'), 'class-name'),
    ],
)
def test_mistakes_in_the_description_are_findings(load, description, kind):
    data = load({'data.yaml': description, 'labels/train/a.txt': ROW, 'labels/val/b.txt': ROW})
    assert [found for found, _, _ in findings(data, Rule.FATAL)] == [kind]


@pytest.mark.parametrize(
    ('description', 'message'),
    [
        ('train: images/train\nval: images/val\n', 'data.yaml has no names'),
        (YAML.replace('[cat, dog]', 'cat'), "names should be a list of class names .* got 'cat'"),
        (YAML.replace('[cat, dog]', '{a: cat, b: dog}'), "names has the key 'a'"),
        (YAML.replace('[cat, dog]', '{0: cat, 0: dog}'), "key '0' occurs twice"),
        (YAML.replace('[cat, dog]', '[[cat], dog]'), 'names should be a list'),
        (YAML.replace('images/train', '{a: b}'), 'train should be a path'),
        (YAML.replace('images/', 'none/'), 'names no images'),
        (YAML + 'kpt_shape: [a]\n', 'kpt_shape should be'),
        ('names: [cat', 'cannot be read as YAML'),
    ],
)
def test_descriptions_that_are_refused(load, description, message):
    with pytest.raises(UserError, match=message):
        load({'data.yaml': description, 'labels/train/a.txt': ROW})


def test_two_descriptions(load):
    with pytest.raises(UserError, match=r'has 2 files that describe it \(a.yaml, b.yaml\): leave one'):
        load({'a.yaml': YAML, 'b.yaml': YAML})
    data = load({'data.yaml': YAML})
    assert data.notes[0] == 'data.yaml describes the data; not used: a.yaml, b.yaml'


@pytest.mark.parametrize(
    ('row', 'expected'),
    [
        ('1 0.25 0.25 0.25 0.5 0.93', DOG),  # a score
        ('1 .25 .25 2.5e-1 0.50', DOG),
        ('1.0 0.25 0.25 0.25 0.5', DOG),
        ('1 0.125 0 0.375 0 0.375 0.5 0.125 0.5', DOG),  # a rotated box or polygon
        ('1 0.125 0 0.375 0.5 0.25 0.25', DOG),
        ('  1\t0.25  0.25 0.25 0.5  ', DOG),
    ],
)
def test_kinds_of_rows(load, row, expected):
    data = load({'data.yaml': YAML, 'labels/train/a.txt': f'\n{row}\n\n'})
    assert boxes(data)['images/train/a.jpg'] == [expected]
    assert data.splits[TRAIN][0].boxes[0].entry == 'line 2'
    assert not data.findings


def test_poses_have_boxes(load):
    data = load({'data.yaml': YAML + 'kpt_shape: [2, 3]\n', 'labels/train/a.txt': f'{ROW} 0.9 0.9 2 0.8 0.8 1'})
    assert boxes(data)['images/train/a.jpg'] == [DOG]
    assert not data.findings
    assert '1 pose: the box of each is used, its keypoints are not' in data.notes


@pytest.mark.parametrize(
    ('row', 'kind'),
    [
        ('1 0.25 0.25 0.25', 'box-invalid'),
        ('dog 0.25 0.25 0.25 0.5', 'box-invalid'),
        ('1,0.25,0.25,0.25,0.5', 'box-invalid'),
        ('1.5 0.25 0.25 0.25 0.5', 'box-invalid'),
        ('nan 0.25 0.25 0.25 0.5', 'box-invalid'),
        ('1 0.1 0.2 0.3 0.4 0.5 0.6 0.7', 'box-invalid'),
        ('1 0.1 0.2 nan 0.4 0.5 0.6', 'box-invalid'),
        ('3 0.25 0.25 0.25 0.5', 'class-unlisted'),
        ('-1 0.25 0.25 0.25 0.5', 'class-unlisted'),
        ('1 0.25 0.25 0.25 0.5 1.5708', 'box-invalid'),
        ('1 0.25 0.25 0.25 0.5 -0.3', 'box-invalid'),
        ('1 0.25 0.25 0.25 0.5 nan', 'box-invalid'),
        ('1 8 6 8 12', 'shares-expected'),
        ('1 0.25 0.25 0.25 inf', 'shares-expected'),
    ],
)
def test_wrong_rows_are_findings(load, row, kind):
    data = load({'data.yaml': YAML, 'labels/train/a.txt': f'{ROW}\n{row}\n'})
    assert [(found, entry) for found, entry, _ in findings(data)] == [(kind, 'line 2')]
    assert data.findings[0].file == data.root / 'labels/train/a.txt'
    assert boxes(data)['images/train/a.jpg'] == [DOG]


def test_numbers_that_are_not_finite_are_kept_for_the_check(load):
    data = load({'data.yaml': YAML, 'labels/train/a.txt': '1 nan 0.25 0.25 0.5'})
    x = boxes(data)['images/train/a.jpg'][0][1][0]
    assert x != x
    assert not data.findings


@pytest.mark.parametrize(
    ('size', 'row', 'expected'),
    [
        # 93 of 640 pixels with 5 and 6 decimals: the error of the digits is taken away.
        ((640, 480), '0 0.153906 0.495833 0.145313 0.250000', (52, 178, 93, 120)),
        ((640, 480), '0 0.15391 0.49583 0.14531 0.25000', (52, 178, 93, 120)),
        ((640, 480), '0 0.1539062 0.4958333 0.1453125 0.25', (52, 178, 93, 120)),
        # Two decimals in pixels.
        ((427, 640), '0 0.658478 0.592164 0.677002 0.779766', (136.63, 129.46, 289.08, 499.05)),
        # Digits that stand for nothing shorter are used as they are.
        ((10, 10), '0 0.5 0.5 0.123456789012 0.5', (4.38271605494, 2.5, 1.23456789012, 5)),
        # Written exactly: no digits are missing.
        ((1000, 1000), '0 0.5 0.5 0.0011 0.0013', (499.45, 499.35, 1.1, 1.3)),
    ],
)
def test_shares_become_the_pixels_that_they_were_made_of(load, size, row, expected, tmp_path):
    write_images(tmp_path, ['images/a.png'], size)
    data = load({'labels/a.txt': row}, [])
    assert boxes(data)['images/a.png'][0][1] == pytest.approx(expected, abs=1e-12)


def test_files_that_are_missing_or_unreadable(load, monkeypatch):
    monkeypatch.setattr(yolo, 'MAX_DROPPED', 0.5)
    data = load(
        {
            'data.yaml': YAML,
            'labels/train/a.txt': b'\xff\xfe\x00',
            'labels/train/c.txt': ROW,
            'labels/train/d.txt': ROW,
            'labels/train/readme.txt': 'made by us',
            'images/train/d.jpg': b'not an image',
        }
    )
    assert sorted((finding.kind, finding.file.name) for finding in data.findings) == [
        ('annotation-unreadable', 'a.txt'),
        ('annotation-without-image', 'c.txt'),
    ]
    assert boxes(data) == {'images/train/d.jpg': [], 'images/val/b.jpg': []}  # the check names d.jpg
    assert any('without a label file' in note for note in data.notes)


def test_the_same_images_for_training_and_validation_are_split_anew(tmp_path):
    write_file(tmp_path / 'data.yaml', YAML.replace('images/val', 'images/train'))
    write_file(tmp_path / 'labels/train/a.txt', ROW)
    write_images(tmp_path, ['images/train/a.jpg', 'images/train/b.jpg'])
    data = recognise(tmp_path, 'detection')
    assert names(data) == {ALL: ['images/train/a.jpg', 'images/train/b.jpg']}
    assert any('they are split anew' in note for note in data.notes)


def test_what_is_wrong_in_the_same_images_counts_once(load):
    """Also images without a label file, and labels that are found in another folder."""
    files = {'labels/a.txt': f'{ROW}\nx', 'labels/batch2/b.txt': ROW}
    images = [f'images/{name}.jpg' for name in 'abc']
    data = load({'data.yaml': 'train: images\nval: images\ntest: images\nnames: [cat, dog]', **files}, images)
    assert [(kind, problem.split()[0]) for kind, _, problem in findings(data)] == [
        ('annotation-missing', 'it'),
        ('box-invalid', "'x'"),
    ]
    assert 'labels/batch2/b.txt has its name' in data.findings[0].problem
    assert boxes(data) == {'images/a.jpg': [DOG], 'images/c.jpg': []}
    assert any(note.startswith('1 of 2 images without a label file') for note in data.notes)


def test_the_same_images_for_validation_and_testing(load):
    data = load({'data.yaml': f'{YAML}test: images/val\n', 'labels/train/a.txt': ROW, 'labels/val/b.txt': 'x'})
    assert names(data) == {TRAIN: ['images/train/a.jpg'], VAL: ['images/val/b.jpg']}
    assert len(findings(data)) == 1
    assert 'the same images are for validation and testing: they are used for validation' in data.notes


def test_classes_with_gaps_and_a_test_split(load):
    description = YAML.replace('[cat, dog]', '{3: cat, 1: dog}') + 'test: images/test\n'
    images = ['images/train/a.jpg', 'images/val/b.jpg', 'images/test/c.jpg']
    data = load({'data.yaml': description, 'labels/train/a.txt': f'{ROW}\n{ROW.replace("1", "3", 1)}'}, images)
    assert data.classes == ('dog', 'cat')
    assert [label for label, _ in boxes(data)['images/train/a.jpg']] == ['dog', 'cat']
    assert list(names(data)) == [TRAIN, VAL, TEST]


def test_folders_that_are_no_yolo_data(load):
    assert load({'images/a.txt': 'a caption', 'labels.txt': 'cat'}, ['images/a.jpg', 'masks/a.png']) is None
    assert load({'config.yaml': 'a: b'}) is None


def test_images_that_share_a_label_file_are_left_out(load):
    data = load(
        {'classes.txt': 'cat\ndog', 'labels/a.txt': ROW, 'labels/b.txt': ROW},
        ['images/a.jpg', 'images/a.png', 'images/b.jpg'],
    )
    assert boxes(data) == {'images/b.jpg': [DOG]}
    assert findings(data) == [
        ('annotation-shared', '', 'images/a.png has the same file, labels/a.txt'),
        ('annotation-shared', '', 'images/a.jpg has the same file, labels/a.txt'),
    ]


@pytest.mark.parametrize(
    ('name', 'content', 'is_labelled'),
    [
        ('b.xml', '<annotation><object></object></annotation>', True),
        ('b.xml', '<annotation></annotation>', False),
        ('json/b.json', dict(shapes=[dict(label='dog')]), True),
        ('json/b.json', dict(shapes=[]), False),
    ],
)
def test_labels_in_another_format_are_not_passed_over(load, name, content, is_labelled):
    data = load({'classes.txt': 'cat\ndog', 'a.txt': ROW, name: content}, ['a.jpg', 'b.jpg'])
    assert findings(data, Rule.FATAL) == [('annotation-format', '', 'it has the labels of b.jpg')] * is_labelled


def test_accents_of_class_names_are_composed(load):
    assert load({'classes.txt': 'cat\nTu\u0308r', 'a.txt': ROW}, ['a.jpg']).classes == ('cat', 'T\u00fcr')


@pytest.mark.parametrize(
    ('image', 'label'),
    [
        ('images/IMG_1.JPG', 'labels/img_1.txt'),
        ('Images/IMG_1.JPG', 'Labels/img_1.txt'),
        ('IMG_1.JPG', 'img_1.txt'),
        ('images/\u00dc.jpg', 'labels/U\u0308.txt'),
    ],
)
def test_label_files_in_another_spelling(load, image, label):
    data = load({'classes.txt': 'cat\ndog', label: ROW}, [image])
    assert boxes(data) == {image: [DOG]}
    assert [kind for kind, _, _ in findings(data)] == ['path-spelling']


def test_labels_of_an_image_that_is_named_as_a_list(load):
    data = load({'classes.txt': 'cat\ndog', 'labels/test.txt': ROW}, ['images/test.jpg'])
    assert boxes(data) == {'images/test.jpg': [DOG]}


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ('1 0,25 0,25 0,25 0,5', r'labels/a\.txt, line 2: .*numbers need decimal points'),
        ('1,0.25,0.25,0.25,0.5', r'labels/a\.txt, line 2: .*blanks between them, no commas'),
        ('dog 0.25 0.25 0.25 0.5', r'labels/a\.txt, line 2: .*write the number of the class'),
    ],
)
def test_label_files_that_are_not_yolo(tmp_path, row, message):
    write_images(tmp_path, ['images/a.jpg'])
    write_file(tmp_path / 'labels/a.txt', f'\n{row}\n')
    with pytest.raises(UserError, match=message):
        recognise(tmp_path, 'detection')


@pytest.mark.parametrize('folder', ['mydata', 'x/y', 'a/b/c'])
def test_a_description_in_deep_folders(load, folder):
    files = {'data.yaml': YAML.replace('cat, dog', 'dog, cat'), 'labels/train/a.txt': ROW, 'labels/val/b.txt': ROW}
    images = [f'{folder}/images/train/a.jpg', f'{folder}/images/val/b.jpg']
    data = load({f'{folder}/{name}': content for name, content in files.items()}, images)
    assert boxes(data) == {image: [('cat', DOG[1])] for image in images}
    assert names(data) == {TRAIN: images[:1], VAL: images[1:]}


def test_descriptions_of_two_sets_in_deep_folders(load):
    with pytest.raises(UserError, match=r'has 2 files that describe it \(x/a/data.yaml, x/b/data.yaml\): leave one'):
        load({'x/a/data.yaml': YAML, 'x/b/data.yaml': YAML.replace('cat, dog', 'dog, cat')})


def test_other_files_with_the_suffix_of_a_description(load):
    data = load({'data.yaml': YAML, 'x/y/model.data': b'\xff\0\xfe', 'labels/train/a.txt': ROW})
    assert boxes(data)['images/train/a.jpg'] == [DOG]


@pytest.mark.parametrize(
    ('description', 'images', 'message'),
    [
        (YAML, ['ds/images/train/a.jpg'], "train 'images/train' does not exist, or is empty; ds/images/train exists: "),
        (YAML, ['Images/Train/a.jpg'], "train 'images/train' does not exist, or is empty; Images/Train exists: write"),
        (
            YAML.replace('images', 'pictures'),
            ['images/train/a.jpg'],
            "train 'pictures/train' does not exist, or is empt",
        ),
        (
            YAML,
            ['images/train/a.HEIC'],
            "'images/train' has no images of a format that is read: convert images/train/a",
        ),
        ('names: [cat]\ntest: none\n', ['a.jpg'], 'name folders or lists as train and val'),
    ],
)
def test_descriptions_without_images_say_what_may_be_meant(load, description, images, message):
    files = dict.fromkeys(images, b'') if images[0].endswith('HEIC') else {}
    with pytest.raises(UserError, match=f'data.yaml names no images: .*{message}'):
        load({'data.yaml': description} | files, [] if files else images)


def test_files_without_a_suffix_are_named(load):
    files = {'data.yaml': YAML, 'labels/train/a.txt': ROW, 'images/val/b': b'x', 'images/val/c': b'x'}
    problem = (
        "'images/val' has no images, but 2 files without a suffix such as .jpg: add it (images/val/b, images/val/c)"
    )
    assert findings(load(files, ['images/train/a.jpg']), Rule.FATAL) == [('split-missing', 'val', problem)]


def test_a_split_without_images_is_a_finding(load):
    data = load({'data.yaml': YAML, 'labels/train/a.txt': ROW, 'images/val/b.txt': ROW}, ['images/train/a.jpg'])
    assert findings(data, Rule.FATAL) == [('split-missing', 'val', "'images/val' has no images")]


@pytest.mark.parametrize(
    ('description', 'row', 'problem'),
    [
        (
            YAML,
            ROW.replace('1', '2', 1),
            'the classes 2, seem to be counted from 1, but the list of classes (0, 1) is co',
        ),
        (
            YAML,
            f'{ROW}\n{ROW.replace("1", "2", 1)}',
            'the classes 1, 2, seem to be counted from 1, but the list of class',
        ),
        (YAML.replace('[cat, dog]', '{1: cat, 2: dog}'), ROW.replace('1', '0', 1), 'add 1 to the class of each label'),
    ],
)
def test_classes_that_are_counted_from_another_number(load, description, row, problem):
    (finding,) = load({'data.yaml': description, 'labels/train/a.txt': row}).findings
    assert (finding.kind, finding.file.name) == ('class-ids-shifted', 'data.yaml')
    assert problem in finding.problem


@pytest.mark.parametrize(
    ('names', 'used', 'is_asked'),
    [
        ('[cat, dog, cow]', '1211112222', True),
        ('[cat, dog, cow]', '121111222', False),  # too few to tell
        ('[cat, dog, cow]', '2222222222', False),
        ('[cat, dog, cow]', '0111111111', False),
        ('[cat, dog, cow]', '1231111222', False),  # class-ids-shifted says so
        ('{1: cat, 2: dog}', '0121111222', False),  # class-unlisted says so
    ],
)
def test_labels_that_may_be_counted_from_1(load, names, used, is_asked):
    rows = '\n'.join(number + ROW.removeprefix('1') for number in used)
    data = load({'data.yaml': YAML.replace('[cat, dog]', names), 'labels/train/a.txt': rows})
    asked = [note for note in data.notes if 'counted from 1?' in note]
    assert [note.split(':')[0] for note in asked] == [
        "no label has the class 0, 'cat', and all other classes have some"
    ] * is_asked


@pytest.mark.parametrize('number', ['0.93', '7', '-1', '1.0'])
def test_a_sixth_number_is_a_score_or_a_track(load, number):
    data = load({'data.yaml': YAML, 'labels/train/a.txt': f'{ROW} {number}'})
    assert data.notes[-1] == '1 line with a sixth number (a score, track id or angle), which is ignored'


@pytest.mark.parametrize('label', ['labels/a.jpg.txt', 'images/a.jpg.txt', 'labels/A.JPG.txt'])
def test_label_files_with_the_suffix_of_the_image(load, label):
    data = load({'classes.txt': 'cat\ndog', label: ROW}, ['images/a.jpg', 'images/b.jpg'])
    assert boxes(data) == {'images/a.jpg': [DOG], 'images/b.jpg': []}
    assert not findings(data, Rule.FATAL, Rule.DROPPED)
    assert [kind for kind, _, _ in findings(data)] == ['path-spelling'] * ('A.JPG' in label)


def test_images_whose_labels_may_be_lost_are_left_out(load):
    """Here one of three label files has no image; if there are few, images without labels have no objects."""
    images = [f'images/{name}.jpg' for name in 'abc']
    files = {'classes.txt': 'cat\ndog', 'labels/a.txt': ROW, 'labels/b.txt': ROW, 'labels/frame_c.txt': ROW}
    data = load(files, images)
    assert boxes(data) == {'images/a.jpg': [DOG], 'images/b.jpg': [DOG]}
    assert findings(data) == [
        ('annotation-without-image', '', 'there is no image of its name'),
        ('annotation-missing', '', 'it has no label file, and 1 label file no image, first labels/frame_c.txt'),
    ]
    assert not any('without a label file' in note for note in data.notes)
    result = check_detection(data)
    assert {image.name for group in result.splits.values() for image in group} == {'images/a.jpg', 'images/b.jpg'}


def test_label_files_that_all_lack_their_image(load):
    data = load({'data.yaml': YAML, 'labels/train/frame_a.txt': ROW})
    assert [kind for kind, _, _ in findings(data)] == ['annotation-without-image', *['annotation-missing'] * 2]
    assert boxes(data) == {}


@pytest.mark.parametrize(
    ('image', 'label', 'expected'),
    [
        ('images/train/c.jpg', 'labels/train/batch2/c.txt', 'labels/train/c.txt'),
        ('images/train/c.jpg', 'labels/c.txt', 'labels/train/c.txt'),
        ('images/train/c.jpg', 'labels/train/batch2/c.jpg.txt', 'labels/train/c.txt'),
        ('images/train/cam/c.jpg', 'labels/train/c.txt', 'labels/train/cam/c.txt'),
    ],
)
def test_labels_in_another_folder_than_that_of_the_image(load, image, label, expected):
    files = {'data.yaml': YAML, 'labels/train/a.txt': ROW, 'labels/val/b.txt': ROW, label: ROW}
    data = load(files, ['images/train/a.jpg', 'images/train/empty.jpg', 'images/val/b.jpg', image])
    problem = f'it has no label file {expected}, but {label} has its name: move that file if it is of the image'
    assert findings(data) == [('annotation-missing', '', problem)]
    assert data.findings[0].file.name == 'c.jpg'
    assert boxes(data) == {'images/train/a.jpg': [DOG], 'images/train/empty.jpg': [], 'images/val/b.jpg': [DOG]}
    assert any('1 of 3 images without a label file, taken as images without objects' in note for note in data.notes)


def test_labels_in_folders_that_no_image_has(load):
    """Those of the images themselves are elsewhere: none of them is an image without objects."""
    images = ['images/train/cam/a.jpg', 'images/val/cam/b.jpg']
    data = load({'data.yaml': YAML, 'labels/train/a.txt': ROW, 'labels/val/b.txt': ROW}, images)
    assert boxes(data) == {}
    assert [(kind, problem.partition('but ')[2].partition(' has')[0]) for kind, _, problem in findings(data)] == [
        ('annotation-missing', 'labels/train/a.txt'),
        ('annotation-missing', 'labels/val/b.txt'),
    ]


@pytest.mark.parametrize(
    ('label', 'is_lost'),
    [
        ('labels/train/batch2/frame_c.txt', True),
        ('labels/batch2/d.txt', True),  # of images/train/1/d.jpg or images/train/2/d.jpg
        ('labels/train/old/a.txt', False),
        ('labels/test/frame_c.txt', False),
        ('labels/val/c.txt', False),
    ],
)
def test_label_files_in_folders_without_images(load, label, is_lost):
    """They may be of the images without a label file, unless these are of another split or have other names."""
    files = {'data.yaml': YAML, 'labels/train/a.txt': ROW, 'labels/val/s/b.txt': ROW, label: ROW}
    bare = ['images/train/c.jpg', 'images/train/1/d.jpg', 'images/train/2/d.jpg']
    data = load(files, ['images/train/a.jpg', 'images/val/s/b.jpg', *bare])
    assert f'1 label file in other folders than those of the images, not used: {label}' in data.notes
    problem = f'it has no label file, and 1 label file no image, first {label}'
    assert findings(data) == [('annotation-missing', '', problem)] * (3 * is_lost)
    assert boxes(data).keys() == {'images/train/a.jpg', 'images/val/s/b.jpg', *(() if is_lost else bare)}


@pytest.mark.parametrize(
    ('label', 'elsewhere', 'strays', 'is_noted'),
    [
        ('labels/train/batch2/c.txt', {'images/train/c.jpg': 'labels/train/batch2/c.txt'}, [], False),
        ('images/train/batch2/c.jpg.txt', {'images/train/c.jpg': 'images/train/batch2/c.jpg.txt'}, [], False),
        ('labels/val/c.txt', {}, [], False),  # of another split; _find_orphans looks into the folder
        ('labels/val/batch2/c.txt', {}, [], True),
        ('labels/train/batch2/x.txt', {}, ['labels/train/batch2/x.txt'], True),
        ('labels/train/batch2/a.txt', {}, [], True),  # an image with labels has the name
        ('labels/batch2/d.txt', {}, ['labels/batch2/d.txt'], True),  # two images have the name
        ('images/train/batch2/x.txt', {}, [], False),  # any text
        ('labels/train/batch2/classes.txt', {}, [], False),
        ('labels/extra/e.txt', {}, [], False),  # of images/extra/e.jpg, which is in no split
    ],
)
def test_find_elsewhere(tmp_path, label, elsewhere, strays, is_noted):
    splits = {TRAIN: [f'images/train/{name}.jpg' for name in ('a', 'c', '1/d', '2/d')], VAL: ['images/val/b.jpg']}
    labels = {'images/train/a.jpg': 'labels/train/a.txt', 'images/val/b.jpg': 'labels/val/b.txt'}
    for name in [*splits[TRAIN], *splits[VAL], 'images/extra/e.jpg']:
        write_file(tmp_path / name, '')
    for name in (*labels.values(), label):
        write_file(tmp_path / name, ROW)
    data = DetectionData(tmp_path, 'YOLO', (), {})
    near = {'labels/train', 'labels/val'}
    assert yolo._find_elsewhere(Files(tmp_path), splits, labels, near, data) == (elsewhere, strays)
    note = f'1 label file in other folders than those of the images, not used: {label}'
    assert data.notes == [note] * is_noted


def test_images_of_formats_that_are_not_read(load, tmp_path):
    load({'classes.txt': 'cat\ndog', 'labels/a.txt': ROW, 'labels/b.txt': ROW, 'images/b.HEIC': b'x', 'c.jxl': b'x'})
    write_images(tmp_path, ['images/a.jpg'])
    data = recognise(tmp_path, 'detection')
    assert findings(data) == [
        ('unreadable-image', '', 'it is not a readable image: HEIC is not read; convert it to JPEG'),
    ]
    assert '1 image in formats that are not read, left out: c.jxl; convert them to JPEG' in data.notes


@pytest.mark.parametrize('suffix', ['.jfif', '.JPE'])
def test_other_suffixes_of_jpeg(load, tmp_path, suffix):
    write_images(tmp_path, ['a.jpg'])
    (tmp_path / 'images/train').mkdir(parents=True)
    (tmp_path / 'a.jpg').rename(tmp_path / f'images/train/a{suffix}')
    data = load({'data.yaml': YAML, 'labels/train/a.txt': ROW}, ['images/val/b.jpg'])
    assert boxes(data) == {f'images/train/a{suffix}': [DOG], 'images/val/b.jpg': []}
    assert not findings(data, Rule.FATAL, Rule.DROPPED)


def test_absolute_paths_in_a_list(load):
    files = {'data.yaml': YAML.replace('images/train', 'train.txt'), 'labels/train/a.txt': ROW, 'labels/val/b.txt': ROW}
    listed = '\ufeff/content/pets/images/train/a.jpg\r\nC:\\pets\\images\\train\\c.jpg\r\n/etc/x.jpg'
    data = load(files | {'train.txt': listed}, [f'images/{name}.jpg' for name in ('train/a', 'train/c', 'val/b')])
    assert names(data) == {TRAIN: ['images/train/a.jpg', 'images/train/c.jpg'], VAL: ['images/val/b.jpg']}
    assert findings(data) == [('path-outside', 'line 3', "'/etc/x.jpg' leaves the folder")]
    assert data.notes[0] == (
        "train.txt: 2 absolute paths looked up by the last parts: '/content/pets/images/train/a.jpg' is "
        'images/train/a.jpg'
    )


def test_images_with_labels_in_no_split(load):
    """Their label files are not without an image."""
    images = ['images/train/a.jpg', 'images/val/b.jpg', 'images/val/c.jpg']
    files = {'data.yaml': YAML.replace('images/val', 'val.txt'), 'val.txt': 'images/val/b.jpg', 'labels/val/c.txt': ROW}
    data = load(files, images)
    assert [kind for kind, _, _ in findings(data)] == []
    assert '1 image with labels in no split, not used: images/val/c.jpg' in data.notes
