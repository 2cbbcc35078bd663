"""A data set that is written in each format is read back with the same classes, images and boxes, in the same order."""

import dataclasses
import json
import posixpath

import pytest
from write_formats import WRITERS, write_yolo

from mnv4_mm.data.form import TRAIN, VAL
from mnv4_mm.data.formats.recognise import recognise
from mnv4_mm.data.prepare import prepare_detection


def content(data):
    """Classes, and per split and image the boxes exactly, without what only some formats can hold."""
    return data.classes, {
        split: [(posixpath.basename(image.name), [(box.xywh, box.label) for box in image.boxes]) for image in images]
        for split, images in data.splits.items()
    }


@pytest.fixture(scope='module')
def bccd(repository):
    return recognise(repository / 'data/mini/bccd', 'detection')


def test_bccd_is_read_as_cloned(bccd):
    assert bccd.format == 'Pascal VOC'
    assert bccd.classes == ('Platelets', 'RBC', 'WBC')
    assert {split: len(images) for split, images in bccd.splits.items()} == dict(train=205, val=87, test=72)
    boxes = [box for images in bccd.splits.values() for image in images for box in image.boxes]
    assert [sum(box.label == label for box in boxes) for label in range(3)] == [361, 4155, 372]
    assert (bccd.findings, bccd.notes) == ([], [])


@pytest.mark.parametrize('name', WRITERS)
def test_bccd_in_each_format_has_the_same_boxes(bccd, name, tmp_path):
    WRITERS[name](bccd, tmp_path)
    data = recognise(tmp_path, 'detection')
    assert data.format == name
    assert content(data) == content(bccd)
    split = ['the split is that of the folders of the annotation files'] if name == 'LabelMe JSON' else []
    assert (data.findings, data.notes) == ([], split)


@pytest.mark.parametrize('name', WRITERS)
def test_coordinates_with_decimals_in_each_format_are_the_same(repository, name, tmp_path):
    coco = recognise(repository / 'data/mini/coco', 'detection')
    # VOC and LabelMe have no list of classes: they are those of the boxes, sorted.
    present = sorted(
        {coco.classes[box.label] for group in coco.splits.values() for image in group for box in image.boxes}
    )
    for image in (image for group in coco.splits.values() for image in group):
        for box in image.boxes:
            box.label = present.index(coco.classes[box.label])
    coco.classes, coco.category_ids = tuple(present), tuple(range(1, len(present) + 1))
    WRITERS[name](coco, tmp_path)
    data = recognise(tmp_path, 'detection')
    assert content(data) == content(coco)
    crowds = [[box.is_crowd for image in group for box in image.boxes] for group in data.splits.values()]
    expected = [[box.is_crowd for image in group for box in image.boxes] for group in coco.splits.values()]
    assert any(any(group) for group in expected)
    if name in ('COCO JSON', 'Pascal VOC', 'CVAT XML'):
        assert crowds == expected


@pytest.mark.parametrize('digits', [5, 6, 7, 9, 16])
def test_yolo_of_any_number_of_digits_has_the_same_boxes(bccd, digits, tmp_path):
    part = dataclasses.replace(bccd, splits={split: bccd.splits[split][:40] for split in (TRAIN, VAL)})
    write_yolo(part, tmp_path, digits)
    assert content(recognise(tmp_path, 'detection')) == content(part)


@pytest.mark.parametrize('name', ['COCO JSON', 'YOLO', 'CVAT XML'])
def test_what_is_trained_on_is_the_same_for_each_format(bccd, name, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    part = dataclasses.replace(bccd, splits={TRAIN: bccd.splits[TRAIN][:8], VAL: bccd.splits[VAL][:4]})
    prepared = []
    for writer in ('Pascal VOC', name):
        WRITERS[writer](part, tmp_path / writer)
        layout = prepare_detection(tmp_path / writer)
        for split in (layout.train, layout.val):
            written = json.loads(split.annotations.read_text())
            # Images are numbered in the order of their paths, which differ; each number is replaced by the name.
            names = {image.pop('id'): posixpath.basename(image.pop('file_name')) for image in written['images']}
            for annotation in written['annotations']:
                annotation['image_id'] = names[annotation['image_id']]
            prepared.append((list(names.values()), written))
    assert prepared[:2] == prepared[2:]
    assert [len(names) for names, _ in prepared[:2]] == [8, 4]


def test_supervision_reads_the_same_boxes_of_bccd(bccd):
    """Number of boxes and sums of left, top, right and bottom for each class, as supervision 0.31.2 reads them::

        data = supervision.DetectionDataset.from_pascal_voc('JPEGImages', 'Annotations')  # in data/mini/bccd
        for label, name in enumerate(data.classes):
            edges = [x.xyxy[x.class_id == label] for x in data.annotations.values()]
            print(name, sum(map(len, edges)), numpy.concatenate(edges).astype(float).sum(0))

    It counts the last pixel as part of the box, which adds 1 to right and bottom.
    """
    expected = {
        'RBC': (4155, 1129544, 777957, 1567612, 1199031),
        'WBC': (372, 74634, 62458, 147169, 128153),
        'Platelets': (361, 102323, 79311, 117693, 94177),
    }
    boxes = [box for images in bccd.splits.values() for image in images for box in image.boxes]
    for name, (count, left, top, right, bottom) in expected.items():
        found = [box.xywh for box in boxes if bccd.classes[box.label] == name]
        x, y, width, height = (sum(values) for values in zip(*found, strict=True))
        assert (len(found), x, y, x + width + count, y + height + count) == (count, left, top, right, bottom)
