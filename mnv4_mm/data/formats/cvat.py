"""Read CVAT's XML, "CVAT for images 1.1"."""

import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mnv4_mm.data.documents import read_xml
from mnv4_mm.data.findings import Finding
from mnv4_mm.data.form import ALL, Box, DetectionData, LabelledImage
from mnv4_mm.data.formats.classes import check_names, composed
from mnv4_mm.data.formats.files import (
    Files,
    amount,
    beginning,
    complete_splits,
    first,
    locate,
    note_unlisted,
    split_by_folder,
    split_of,
)
from mnv4_mm.data.formats.geometry import Xywh, box_around, box_around_rotated, box_of_edges
from mnv4_mm.errors import UserError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

NAME = 'CVAT XML'
SHAPES = ('box', 'polygon', 'ellipse', 'mask', 'polyline', 'points', 'cuboid', 'skeleton')
WITHOUT_AREA = ('polyline', 'points', 'cuboid', 'skeleton')
# Attributes that mark groups of objects and objects that do not count, as in CVAT's exports to COCO and Pascal VOC.
CROWD = ('is_crowd', 'iscrowd', 'ignored', 'difficult')


def find(files: Files) -> list[str]:
    """Return the CVAT annotation files of a data set, sorted. XML files beside an image of the same name do not count.

    Returns:
        Paths relative to the root. An empty list if there are none.
    """
    names = [name for name in files.with_suffix('.xml') if posixpath.splitext(name)[0] not in _stems(files)]
    return [name for name in names if b'<annotations>' in beginning(files.root / name, 2**12)]


def _stems(files: Files) -> frozenset[str]:
    return frozenset(posixpath.splitext(name)[0] for name in files.images)


def read(root: Path, files: Files | None = None) -> DetectionData | None:
    """Read a data set in the format "CVAT for images 1.1".

    - The split is the ``subset`` of an image or, without one, the split that the name or folder of the XML file names.
      If only some images have a split, the splits are not used.
    - Classes are in the order of the labels in the first file. Labels that only other files have follow. If no file
      lists labels, the classes are those of the shapes, sorted by name.
    - Polygons, ellipses, masks and rotated boxes become the boxes around them. Lines, points, cuboids and skeletons are
      left out.
    - A shape with a true attribute of ``CROWD``, e.g. ``difficult``, becomes a crowd, which is neither trained on nor
      counted as missed.

    Args:
        root: Folder of the data set.
        files: Files of ``root``, if they have been listed already. If None, they are listed first.

    Returns:
        The data set. None if there are no CVAT annotation files.

    Raises:
        UserError: A file is not XML or has the tracks of a video, or it is unclear in which folder its images are.
    """
    files = files or Files(root)
    names = find(files)
    if not names:
        return None
    data = DetectionData(root, NAME, (), {})
    trees = {name: read_xml(root / name) for name in names}
    for name, tree in trees.items():
        if tree.find('track') is not None:
            raise UserError(
                f'{root / name} has the tracks of a video: export the task as "CVAT for images 1.1" or "COCO 1.0", '
                'with its images'
            )
    data.classes = tuple(_classes(trees, data))
    data.category_ids = tuple(range(1, len(data.classes) + 1))
    data.findings += check_names(data.classes, root / names[0])
    splits: dict[str, list[LabelledImage]] = {}
    reader = _ShapeReader({name: label for label, name in reversed(list(enumerate(data.classes)))}, data)
    sources: dict[str, str] = {}
    for name, tree in trees.items():
        for split, elements in _by_split(name, tree).items():
            for element, image in _images(files, name, split, elements, data):
                if image.name in sources:
                    problem = f'{image.name!r} is listed in {sources[image.name]} too'
                    data.findings.append(Finding('image-twice', root / name, problem))
                    continue
                sources[image.name] = name
                image.boxes = list(reader.read(root / name, image.name, element))
                splits.setdefault(split, []).append(image)
    reader.add_notes()
    note_unlisted(files, sources, data)
    for images in splits.values():
        images.sort(key=lambda image: image.name)
    if ALL in splits and len(splits) > 1:
        data.notes.append('not all images have a subset: the data is split anew')
        splits = {ALL: sorted((image for group in splits.values() for image in group), key=lambda image: image.name)}
    data.splits = split_by_folder(complete_splits(splits), data.notes)
    return data


def _classes(trees: dict[str, 'Element'], data: DetectionData) -> list[str]:
    """Return the class names that the files list, the first file first. If none lists any, those of the shapes."""
    result: list[str] = []
    for name, tree in trees.items():
        # The points of a skeleton are labels with a parent: they are not objects.
        labels = (label for label in tree.iterfind('meta//labels/label') if label.find('parent') is None)
        listed = [composed(label.findtext('name', '')) for label in labels]
        # Exports of a task and of a project list the labels in different places.
        listed = [label for label in dict.fromkeys(listed) if label]
        new = [label for label in listed if label not in result]
        if result and new:
            data.notes.append(f'{name} has labels that the other files do not have: {first(new)}')
        result += new
    if not result:
        shapes = (shape for tree in trees.values() for image in tree.iterfind('image') for shape in image)
        result = sorted(
            {label for shape in shapes if shape.tag in SHAPES and (label := composed(shape.get('label', '')))}
        )
        data.notes.append('the files list no labels: classes are those of the shapes, sorted by name')
    return result


def _by_split(name: str, tree: 'Element') -> dict[str, list['Element']]:
    result: dict[str, list[Element]] = {}
    for element in tree.iterfind('image'):
        subset = element.get('subset', '')
        result.setdefault(split_of(subset) or split_of(name) or ALL, []).append(element)
    return result


def _images(
    files: Files, name: str, split: str, elements: list['Element'], data: DetectionData
) -> Iterator[tuple['Element', LabelledImage]]:
    path = files.root / name
    listed: dict[str, Element] = {}
    where: dict[str, str] = {}
    for number, element in enumerate(elements):
        file_name = element.get('name', '').strip()
        entry = f'image {element.get("id", f"number {number + 1}")}'
        if not file_name:
            data.findings.append(Finding('entry-invalid', path, 'it has no name', entry))
        elif file_name in listed:
            data.findings.append(Finding('image-twice', path, f'{file_name!r} is listed before', entry))
        else:
            listed[file_name], where[file_name] = element, entry
    folder = posixpath.dirname(name)
    subset = elements[0].get('subset', '')
    preferred = [posixpath.join(folder, *end) for end in (('images', subset), ('images',), ('data',))]
    sizes = {file_name: size for file_name, element in listed.items() if (size := _size(element))}
    located = locate(files, name, where, preferred, None if split == ALL else split, sizes)
    data.findings += located.findings
    data.notes += located.notes
    for file_name, target in located.names.items():
        yield listed[file_name], LabelledImage(target, path, size=sizes.get(file_name))


def _size(element: 'Element') -> tuple[int, int] | None:
    sides = element.get('width', ''), element.get('height', '')
    is_size = all(side.isdecimal() and int(side) > 0 for side in sides)
    return (int(sides[0]), int(sides[1])) if is_size else None


class _ShapeReader:
    """Reads the shapes of images.

    Args:
        labels: Label by class name.
        data: Data set that findings are added to.
    """

    def __init__(self, labels: dict[str, int], data: DetectionData) -> None:
        self.labels = labels
        self.data = data
        self.around = 0
        self.left_out: dict[str, int] = {}

    def read(self, path: Path, image: str, element: 'Element') -> Iterator[Box]:
        shapes = [shape for shape in element if shape.tag in SHAPES]
        for number, shape in enumerate(shapes, 1):
            entry, label = f'{image}, shape {number}', composed(shape.get('label', ''))
            if shape.tag in WITHOUT_AREA:
                self.left_out[shape.tag] = self.left_out.get(shape.tag, 0) + 1
                continue
            if label not in self.labels:
                self.data.findings.append(Finding('class-unlisted', path, f'the label {label!r} is not listed', entry))
                continue
            try:
                xywh = self._box(shape, _size(element))
            except ValueError as error:
                self.data.findings.append(Finding('box-invalid', path, f'{shape.tag}: {error}', entry))
                continue
            attributes = {item.get('name', ''): (item.text or '').strip() for item in shape.iterfind('attribute')}
            is_crowd = any(attributes.get(name, '').lower() in ('true', '1') for name in CROWD)
            yield Box(xywh, self.labels[label], entry, is_crowd=is_crowd)

    def _box(self, shape: 'Element', image: tuple[int, int] | None) -> Xywh:
        rotation = _number(shape, 'rotation') if shape.get('rotation') else 0.0
        if shape.tag == 'box':
            edges = [shape.get(key, '') for key in ('xtl', 'ytl', 'xbr', 'ybr')]
            xywh = box_of_edges(edges[0], edges[1], edges[2], edges[3])
        elif shape.tag == 'polygon':
            points = [pair.split(',') for pair in shape.get('points', '').split(';')]
            if any(len(point) != 2 for point in points):
                raise ValueError(f'points are {shape.get("points", "")[:80]!r}, not "x,y;x,y;..."')
            xywh = box_around(points)
        elif shape.tag == 'ellipse':
            cx, cy, rx, ry = (_number(shape, key) for key in ('cx', 'cy', 'rx', 'ry'))
            xywh = cx - rx, cy - ry, 2 * rx, 2 * ry
        else:
            left, top, width, height = (_number(shape, key) for key in ('left', 'top', 'width', 'height'))
            xywh = left, top, width, height
        self.around += shape.tag != 'box' or rotation != 0
        return box_around_rotated(*xywh, rotation, image) if rotation else xywh

    def add_notes(self) -> None:
        if self.around:
            self.data.notes.append(
                f'{amount(self.around, "shape")} other than upright boxes: the box around each is used'
            )
        for kind, count in self.left_out.items():
            self.data.notes.append(f'{amount(count, "shape")} of the kind {kind}: left out')


def _number(shape: 'Element', key: str) -> float:
    try:
        return float(shape.get(key, ''))
    except ValueError as error:
        raise ValueError(f'{key} is {shape.get(key)!r}, not a number') from error
