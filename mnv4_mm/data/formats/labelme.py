"""Read LabelMe, also as X-AnyLabeling and AnyLabeling write it: one JSON file per image."""

import math
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnv4_mm.data.documents import read_json, read_text
from mnv4_mm.data.findings import Finding
from mnv4_mm.data.form import ALL, TEST, TRAIN, VAL, Box, DetectionData, LabelledImage
from mnv4_mm.data.formats.classes import check_names, composed, note_composed
from mnv4_mm.data.formats.files import (
    VOC_OBJECT,
    Files,
    amount,
    beginning,
    complete_splits,
    describe_outside,
    first,
    folder_splits,
    images_of_stem,
    join,
    match_by_stem,
    note_unlabelled,
    split_by_folder,
)
from mnv4_mm.data.formats.geometry import Xywh, box_around
from mnv4_mm.errors import UserError

NAME = 'LabelMe JSON'
SNIFFED = 5  # JSON files named as an image that are opened to see whether they are LabelMe's
MARKS = (b'"shapes"', b'"imagePath"')
# Kinds of shapes whose points span their box. LabelMe's masks have the corners of their box as points.
SPANNED = ('rectangle', 'polygon', 'mask', 'rotation', 'quadrilateral', '')
NOT_CLASSES = ('_background_', '__ignore__')  # in LabelMe's lists of labels


def find(files: Files) -> list[str]:
    """Return the LabelMe annotation files of a data set, sorted.

    Only a few of the JSON files with the name of an image are opened. If one of these is LabelMe's, all count. JSON
    files with other names are opened one by one.

    Returns:
        Paths relative to the root. An empty list if there are none.
    """
    names = files.with_suffix('.json')
    twins = [name for name in names if posixpath.splitext(posixpath.basename(name))[0] in files.images_by_stem]
    others = [name for name in names if name not in set(twins)]
    sample = twins[:: max(1, len(twins) // SNIFFED)]
    found = twins if any(_is_labelme(files.root / name) for name in sample) else []
    return sorted([*found, *(name for name in others if _is_labelme(files.root / name))])


def _is_labelme(path: Path) -> bool:
    start = beginning(path)
    return start.startswith(b'{') and any(mark in start for mark in MARKS)


def read(root: Path, files: Files | None = None) -> DetectionData | None:
    """Read a data set in LabelMe's format.

    - The image of a JSON file is its ``imagePath`` or, if that does not exist, the image with the same name as the JSON
      file. Images without a JSON file are not used.
    - Polygons, circles, masks and rotated rectangles become the boxes around them. Points and lines are left out.
    - Shapes of one class with the same ``group_id`` are parts of one object, as in LabelMe's own export to COCO.
    - Folders determine the split. Classes are in the order of ``labels.txt`` if there is one, else sorted by name.

    Args:
        root: Folder of the data set.
        files: Files of ``root``, if they have been listed already. If None, they are listed first.

    Returns:
        The data set. None if there are no LabelMe annotation files.

    Raises:
        UserError: ``labels.txt`` cannot be read, or the images are in the JSON files only.
    """
    files = files or Files(root)
    names = find(files)
    if not names:
        return None
    data = DetectionData(root, NAME, (), {})
    contents: dict[str, dict[str, Any]] = {}
    embedded: set[str] = set()  # files that hold their image, in base64
    for name in names:
        try:
            content = read_json(root / name)
        except UserError as error:
            problem = str(error).removeprefix(f'{root / name} ')
            data.findings.append(Finding('annotation-unreadable', root / name, problem))
            continue
        if isinstance(content, dict) and isinstance(content.get('shapes'), list):
            contents[name] = content
            if content.pop('imageData', None):
                embedded.add(name)
        else:
            data.findings.append(Finding('annotation-unreadable', root / name, 'it has no list of shapes'))
    labels = _labels(files, contents, data)
    reader = _ShapeReader(labels, data)
    sources: dict[str, str] = {}
    splits: dict[str, list[LabelledImage]] = {}
    assigned = folder_splits(list(contents), data.notes, 'annotation file')
    lost: list[str] = []
    for name, content in contents.items():
        split = assigned.get(name, ALL)
        image = _read_image(files, name, content, split, data)
        if name in embedded and not (images_of_stem(files, name) if image is None else image.name in files.names):
            lost.append(name)
        if image is None:
            continue
        if image.name in sources:
            problem = f'it is for the image {image.name}, as {sources[image.name]} is'
            data.findings.append(Finding('image-twice', root / name, problem))
            continue
        sources[image.name] = name
        image.boxes = list(reader.read(root / name, content['shapes']))
        if name in assigned or not assigned:
            splits.setdefault(split, []).append(image)
    reader.add_notes()
    if lost:
        _describe_embedded(files, lost, len(names), data)
    bare = [name for name in files.images if name not in sources]
    note_unlabelled(files, bare, data, {'.xml': VOC_OBJECT})
    for images in splits.values():
        images.sort(key=lambda image: image.name)
    splits = {split: splits[split] for split in (TRAIN, VAL, TEST, ALL) if split in splits}
    data.splits = split_by_folder(complete_splits(splits), data.notes)
    return data


def _describe_embedded(files: Files, lost: list[str], count: int, data: DetectionData) -> None:
    """Add a note on images that are in their JSON files only, not in files of their own.

    Args:
        files: Files of the data set.
        lost: Their annotation files.
        count: Number of annotation files.
        data: The data set, to which the note is added.

    Raises:
        UserError: No annotation file has an image in a file of its own.
    """
    problem = (
        f'{len(lost)} of {count} images are in their JSON files only, as imageData (first: {lost[0]}): write '
        'each into an image file of the same name, e.g. by `labelme_export_json FILE` of LabelMe 5, whose img.png is '
        'the image'
    )
    if len(lost) == count:
        raise UserError(f'{files.root}: {problem}')
    data.notes.append(problem)


def _labels(files: Files, contents: dict[str, dict[str, Any]], data: DetectionData) -> dict[str, int]:
    """Set the classes of the data set and return the label by class name."""
    present = {
        label
        for content in contents.values()
        for shape in content['shapes']
        if isinstance(shape, dict) and (label := _label_of(shape)) is not None
    }
    note_composed(present, data.notes)
    classes = sorted({composed(name) for name in present} - set(NOT_CLASSES))
    source = data.root
    if 'labels.txt' in files.names:
        source = data.root / 'labels.txt'
        listed = [composed(line.strip()) for line in read_text(source).splitlines()]
        listed = [line for line in listed if line and line not in NOT_CLASSES]
        missing = [name for name in classes if name not in listed]
        if missing:
            data.notes.append(f'labels.txt does not list {first(missing)}')
        classes = [*listed, *missing]
    data.classes = tuple(classes)
    data.category_ids = tuple(range(1, len(classes) + 1))
    data.findings += check_names(classes, source)
    return {name: label for label, name in reversed(list(enumerate(classes)))}


def _read_image(
    files: Files, name: str, content: dict[str, Any], split: str, data: DetectionData
) -> LabelledImage | None:
    """Return the image of an annotation file, without boxes. None if its path leaves the root, or several fit."""
    path, folder = files.root / name, posixpath.dirname(name)
    listed = content.get('imagePath')
    target = None
    if isinstance(listed, str) and listed.strip():
        straight = listed.replace('\\', '/')
        target = join(folder, straight)
        if target is None or '\0' in listed:
            data.findings.append(Finding('path-outside', path, describe_outside(files, listed), 'imagePath'))
            return None
        if straight != listed:
            data.findings.append(Finding('path-separator', path, f'imagePath is {listed!r}', 'imagePath'))
    if target not in files.names:
        part, listed_name = None if split == ALL else split, target or ''
        by_name = match_by_stem(files, name, part, listed=listed_name)
        if by_name is None and (several := images_of_stem(files, name, part, listed=listed_name)):
            data.findings.append(Finding('image-ambiguous', path, f'it may be for {" or ".join(several[:3])}'))
            return None
        if by_name and target and posixpath.basename(target) != posixpath.basename(by_name):
            problem = f'there is no {listed!r}; {by_name} has the name of the file'
            data.findings.append(Finding('name-differs', path, problem, 'imagePath'))
        target = by_name or target or f'{posixpath.splitext(name)[0]}.jpg'
    sides = content.get('imageWidth'), content.get('imageHeight')
    is_size = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    return LabelledImage(str(target), path, size=(sides[0], sides[1]) if is_size else None)  # type: ignore[arg-type]


class _ShapeReader:
    """Reads the shapes of an image.

    Args:
        labels: Label by class name.
        data: Data set that findings are added to.
    """

    def __init__(self, labels: dict[str, int], data: DetectionData) -> None:
        self.labels = labels
        self.data = data
        self.around = self.joined = 0
        self.left_out: dict[str, int] = {}

    def read(self, path: Path, shapes: list[Any]) -> Iterator[Box]:
        groups: dict[Any, list[tuple[str, str, list]]] = {}
        for number, shape in enumerate(shapes, 1):
            entry = f'shape {number}'
            try:
                name, kind, points = _parse(shape)
            except ValueError as error:
                self.data.findings.append(Finding('box-invalid', path, str(error), entry))
                continue
            if name in NOT_CLASSES:
                kind = name
            if kind == 'circle':
                points = _circle(points)
            if kind not in SPANNED and kind != 'circle':
                self.left_out[kind] = self.left_out.get(kind, 0) + 1
                continue
            group = shape.get('group_id')
            key = (name, group) if isinstance(group, int | str) else entry
            groups.setdefault(key, []).append((name, entry, points))
            self.around += kind != 'rectangle'
        for parts in groups.values():
            name, entry, _ = parts[0]
            self.joined += len(parts) - 1
            xywh: Xywh = box_around([point for _, _, points in parts for point in points])
            yield Box(xywh, self.labels[name], entry)

    def add_notes(self) -> None:
        if self.around:
            self.data.notes.append(f'{amount(self.around, "shape")} other than rectangles: the box around each is used')
        if self.joined:
            self.data.notes.append(f'{amount(self.joined, "shape")} joined with others of the same class and group_id')
        for kind, count in self.left_out.items():
            self.data.notes.append(f'{amount(count, "shape")} of the kind {kind}: left out')


def _label_of(shape: dict[str, Any]) -> str | None:
    """Return the label of a shape, of which a number is read as its text. None if it has none."""
    label = shape.get('label')
    return str(label) if type(label) in (str, int, float) else None  # not isinstance, for which True is a number


def _parse(shape: Any) -> tuple[str, str, list[list[float]]]:
    """Return label, kind and points of a shape.

    Raises:
        ValueError: The shape has no label, its points are not pairs of finite numbers, or a rectangle or circle has too
            few or too many points.
    """
    label = _label_of(shape) if isinstance(shape, dict) else None
    if label is None:
        raise ValueError('the shape has no label')
    points, kind = shape.get('points'), shape.get('shape_type') or ''
    is_pairs = isinstance(points, list) and all(isinstance(point, list) and len(point) == 2 for point in points)
    if not (is_pairs and points):
        raise ValueError(f'points are {points!r:.80}, not [[x, y], [x, y], ...]')
    values = [value for point in points for value in point]
    # Compared, not math.isfinite: an integer can be too large for a float.
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e300 for v in values):
        raise ValueError(f'points are {points!r:.80}, not finite numbers')
    if kind == 'rectangle' and len(points) < 2:
        raise ValueError('a rectangle needs two points')
    if kind == 'circle' and len(points) != 2:
        raise ValueError('a circle needs its centre and a point on it')
    return composed(label), str(kind), points


def _circle(points: list[list[float]]) -> list[list[float]]:
    """Return two opposite corners of the box around a circle, given its centre and a point on it."""
    (x, y), edge = points[0], points[1]
    radius = math.dist((x, y), edge)
    return [[x - radius, y - radius], [x + radius, y + radius]]
