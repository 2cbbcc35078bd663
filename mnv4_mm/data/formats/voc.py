"""Read Pascal VOC, also as LabelImg, Roboflow and CVAT write it: one XML file per image, with or without lists."""

import math
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mnv4_mm.data.documents import read_text, read_xml
from mnv4_mm.data.findings import Finding
from mnv4_mm.data.form import ALL, TEST, TRAIN, VAL, Box, DetectionData, LabelledImage
from mnv4_mm.data.formats.classes import check_names, composed, note_composed
from mnv4_mm.data.formats.files import (
    LABELME_OBJECT,
    Files,
    amount,
    beginning,
    complete_splits,
    describe_outside,
    distinct_splits,
    first,
    folder_splits,
    images_of_stem,
    join,
    match_by_stem,
    note_unlabelled,
    split_by_folder,
)
from mnv4_mm.data.formats.geometry import Xywh, box_around_rotated, box_of_edges, rotation
from mnv4_mm.errors import UserError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

NAME = 'Pascal VOC'
SNIFFED = 5  # XML files that are opened to see which format they have
LISTS = {'train.txt': TRAIN, 'val.txt': VAL, 'test.txt': TEST, 'trainval.txt': ALL}
EDGES = ('xmin', 'ymin', 'xmax', 'ymax')


def find(files: Files) -> list[str]:
    """Return all XML files, relative to the root, if at least one of a sample is a Pascal VOC annotation.

    Otherwise, the list is empty. Files of LabelMe 3.0, which have polygons instead of boxes, are none.
    """
    names = files.with_suffix('.xml')
    sample = names[:: max(1, len(names) // SNIFFED)]
    starts = [beginning(files.root / name, 2**12) for name in sample]
    starts = [start for start in starts if b'<imagesize>' not in start or b'<bndbox>' in start]
    return names if any(b'<annotation>' in start or b'<annotation ' in start for start in starts) else []


def read(root: Path, files: Files | None = None) -> DetectionData | None:
    """Read a data set in Pascal VOC's format.

    - Splits are the lists ``train.txt``, ``val.txt`` and ``test.txt`` in ``ImageSets/Main``. If one of the first two is
      missing, ``trainval.txt`` replaces both. Images in no list are not used, and neither are the lists of a single
      class, ``<class>_train.txt``. Without lists, folders determine the split.
    - Pixels are counted from 1, so 1 is subtracted from all four coordinates and a box is ``xmax - xmin`` wide, as in
      mmdet's ``XMLDataset`` and LabelImg. (Boxes of the devkit, detectron2 and supervision are one pixel larger.)
      If ``xmin`` or ``ymin`` of any box that is not empty is in [0, 1), pixels are counted from 0 in the whole data set
      and nothing is subtracted.
    - Difficult objects become crowds, which are neither trained on nor counted as missed, as in ``XMLDataset`` and
      VOC's metric.
    - Rotated boxes, as CVAT and roLabelImg write them, become the boxes around them.
    - Classes are sorted by name.

    Args:
        root: Folder of the data set.
        files: Files of ``root``, if they have been listed already. If None, they are listed first.

    Returns:
        The data set. None if there are no Pascal VOC annotation files.

    Raises:
        UserError: A list of a split cannot be read.
    """
    files = files or Files(root)
    names = find(files)
    if not names:
        return None
    data = DetectionData(root, NAME, (), {})
    trees = dict(_parse(files, names, data))
    offset = 0 if any(_is_from_zero(tree) for tree in trees.values()) else 1
    if not offset:
        data.notes.append('coordinates are counted from 0, since some are below 1: they are used as they are')
    classes = sorted({name for tree in trees.values() for obj in tree.findall('object') if (name := _name(obj))})
    data.classes = tuple(classes)
    data.category_ids = tuple(range(1, len(classes) + 1))
    data.findings += check_names(classes, root)
    note_composed((obj.findtext('name', '') for tree in trees.values() for obj in tree.findall('object')), data.notes)
    labels = {name: label for label, name in enumerate(classes)}
    lists = _lists(files)
    assigned = (
        _assign(files, names, lists, data) if lists else folder_splits(list(trees), data.notes, 'annotation file')
    )
    images: dict[str, LabelledImage] = {}
    rotated = 0
    sources: dict[str, str] = {}
    for name, tree in trees.items():
        image = _read_image(files, name, tree, assigned.get(name, ALL), data)
        if image is None:
            continue
        if image.name in sources:
            problem = f'it is for the image {image.name}, as {sources[image.name]} is'
            data.findings.append(Finding('image-twice', files.root / name, problem))
            continue
        sources[image.name] = name
        image.boxes = list(_read_boxes(files.root / name, tree, labels, offset, data))
        rotated += sum(_is_rotated(obj) for obj in tree.findall('object'))
        images[name] = image
    if rotated:
        data.notes.append(f'{amount(rotated, "rotated box")}: the box around each is used')
    difficult = sum(box.is_crowd for image in images.values() for box in image.boxes)
    if difficult:
        data.notes.append(f'{amount(difficult, "difficult object")}: not trained on, and no mistake if missed')
    splits: dict[str, list[LabelledImage]] = {split: [] for split in (TRAIN, VAL, TEST, ALL)}
    for name, image in images.items():
        if name in assigned or not (assigned or lists):
            splits[assigned.get(name, ALL)].append(image)
    left_out = [name for name in images if lists and name not in assigned]
    if left_out:
        data.notes.append(f'not used, since no list of ImageSets/Main has them: {first(left_out)}')
    used = set(sources)
    bare = [name for name in files.images if name not in used and not _is_mask(name)]
    note_unlabelled(files, bare, data, {'.json': LABELME_OBJECT})
    for group in splits.values():
        group.sort(key=lambda image: image.name)
    splits = complete_splits(splits)
    data.splits = splits if lists else split_by_folder(splits, data.notes)
    return data


def _parse(files: Files, names: list[str], data: DetectionData) -> Iterator[tuple[str, 'Element']]:
    for name in names:
        path = files.root / name
        try:
            tree = read_xml(path)
        except UserError as error:
            data.findings.append(Finding('annotation-unreadable', path, str(error).removeprefix(f'{path} ')))
            continue
        if tree.tag == 'annotation':
            yield name, tree
        else:
            data.notes.append(f'{name} is not used: it is not a Pascal VOC file, but has <{tree.tag[:40]}>')


def _is_mask(name: str) -> bool:
    return any(part.startswith('Segmentation') for part in name.split('/')[:-1])


def _is_from_zero(tree: 'Element') -> bool:
    """Return True if a box begins in [0, 1). Empty boxes do not count: tools write them for images without objects."""
    for obj in tree.findall('object'):
        try:
            left, top, right, bottom = (float(obj.findtext(f'bndbox/{edge}', '')) for edge in EDGES)
        except ValueError:
            continue  # _read_boxes makes it a finding
        if right > left and bottom > top and (0 <= left < 1 or 0 <= top < 1):
            return True
    return False


def _name(obj: 'Element') -> str:
    return composed(' '.join(obj.findtext('name', '').split()))


def _lists(files: Files) -> dict[str, list[str]]:
    """Return the lists of splits by the folder that they are for, e.g. ``VOCdevkit/VOC2012``."""
    lists: dict[str, list[str]] = {}
    for name in files.names:
        folder, base = posixpath.split(name)
        if base in LISTS and folder.endswith('ImageSets/Main'):
            lists.setdefault(posixpath.dirname(posixpath.dirname(folder)), []).append(name)
    return lists


def _assign(files: Files, names: list[str], lists: dict[str, list[str]], data: DetectionData) -> dict[str, str]:
    """Return the split of each annotation file that ``lists``, the lists by folder, have."""
    by_stem: dict[tuple[str, str], str] = {}
    for name in names:
        for base in lists:
            prefix = base + '/' if base else ''
            if name.startswith(prefix):
                inner = posixpath.splitext(name[len(prefix) :])[0]
                by_stem[base, inner.split('/', 1)[-1]] = name
    # Split -> annotation file -> its stem in the list, the list, and the entry there.
    listed: dict[str, dict[str, tuple[str, Path, str]]] = {}
    for base, paths in lists.items():
        selected = {posixpath.basename(path): path for path in paths}
        if {'train.txt', 'val.txt'} <= selected.keys():
            selected.pop('trainval.txt', None)
        elif 'trainval.txt' in selected:
            # train.txt or val.txt is missing: the images of both are divided anew.
            selected = {base: name for base, name in selected.items() if LISTS[base] in (ALL, TEST)}
        for name in selected.values():
            group = listed.setdefault(LISTS[posixpath.basename(name)], {})
            for number, line in enumerate(read_text(files.root / name).splitlines(), 1):
                stem = _listed_stem(line, base, by_stem)
                if not stem:
                    continue
                entry, path = f'line {number}', files.root / name
                source = by_stem.get((base, stem))
                if join(base, stem) is None or join('', stem) is None:
                    data.findings.append(Finding('path-outside', path, f'{stem!r} leaves the folder', entry))
                elif source is None:
                    data.findings.append(
                        Finding('annotation-missing', path, f'there is no annotation file {stem}.xml', entry)
                    )
                elif source in group:
                    data.findings.append(Finding('listed-twice', path, f'{stem!r} is listed before', entry))
                else:
                    group[source] = stem, path, entry
    assigned: dict[str, str] = {}
    for split, old in distinct_splits(listed, data.notes).items():
        for source, (stem, path, entry) in listed[old].items():
            if assigned.setdefault(source, split) != split:
                problem = f'{stem!r} is listed for {assigned[source]} and {split}'
                data.findings.append(Finding('image-in-two-splits', path, problem, entry))
    return assigned


def _listed_stem(line: str, base: str, by_stem: dict[tuple[str, str], str]) -> str:
    """Return the name in a line of a list, which may be quoted, have a suffix, or be followed by -1, 0 or 1."""
    stem = line.strip().strip('"').replace('\\', '/')
    shorter = stem.rsplit(maxsplit=1)[0].strip('"') if ' ' in stem else stem
    for candidate in (stem, shorter, posixpath.splitext(stem)[0]):
        if (base, candidate) in by_stem:
            return candidate
    return stem


def _read_image(files: Files, name: str, tree: 'Element', split: str, data: DetectionData) -> LabelledImage | None:
    """Return the image of an annotation file, without boxes. None if its path leaves the root, or several fit."""
    path = files.root / name
    listed = tree.findtext('filename', '').strip()
    straight = listed.replace('\\', '/')
    stem = posixpath.splitext(posixpath.basename(name))[0]
    if straight and join(posixpath.dirname(name), straight) is None:
        data.findings.append(Finding('path-outside', path, describe_outside(files, listed), 'filename'))
        return None
    part = None if split == ALL else split
    image = match_by_stem(files, name, part, listed=straight)
    if image is None and straight:
        # Some tools number the XML files and keep the name of the image inside.
        image = match_by_stem(files, name, part, stem=posixpath.splitext(straight)[0], listed=straight)
        if image is None and (several := images_of_stem(files, name, part, listed=straight)):
            data.findings.append(Finding('image-ambiguous', path, f'it may be for {" or ".join(several[:3])}'))
            return None
    elif image and straight and posixpath.splitext(posixpath.basename(straight))[0] != stem:
        problem = f'the file is for {stem!r} by its name, and for {listed!r} by its content'
        data.findings.append(Finding('name-differs', path, problem, 'filename'))
    folder = posixpath.dirname(name)
    twin = posixpath.join(posixpath.dirname(folder), 'JPEGImages')
    folder = twin if files.has_folder(twin) else folder
    image = image or posixpath.join(folder, posixpath.basename(straight) or f'{stem}.jpg')
    size = _size(tree)
    if size is None and tree.find('size') is not None:  # LabelImg writes 0 x 0 if it has not seen the image
        data.findings.append(Finding('size-invalid', path, 'width and height are not positive whole numbers', 'size'))
    return LabelledImage(image, path, size=size)


def _size(tree: 'Element') -> tuple[int, int] | None:
    """Return width and height of the image that an annotation file states, if they are usable."""
    sides = [tree.findtext(f'size/{side}', '').strip() for side in ('width', 'height')]
    is_size = all(side.isdecimal() and int(side) > 0 for side in sides)
    return (int(sides[0]), int(sides[1])) if is_size else None


def _read_boxes(path: Path, tree: 'Element', labels: dict[str, int], offset: int, data: DetectionData) -> Iterator[Box]:
    for number, obj in enumerate(tree.findall('object'), 1):
        entry, name = f'object {number}', _name(obj)
        if not name:
            data.findings.append(Finding('class-unlisted', path, 'it has no name', entry))
            continue
        try:
            xywh = _box(obj, offset, _size(tree))
        except ValueError as error:
            data.findings.append(Finding('box-invalid', path, str(error), entry))
            continue
        is_difficult = obj.findtext('difficult', '0').strip() in ('1', 'true', 'True')
        yield Box(xywh, labels[name], entry, is_crowd=is_difficult)


def _box(obj: 'Element', offset: int, image: tuple[int, int] | None) -> Xywh:
    """Return the box of an object, ``(x, y, width, height)``. The box around it if it is rotated.

    Raises:
        ValueError: The object has no box, or a coordinate is not a number.
    """
    box, rotated = obj.find('bndbox'), obj.find('robndbox')
    if box is not None:
        texts = {edge: box.findtext(edge, '').strip() for edge in EDGES}
        left, top, right, bottom = texts.values()
        try:
            xywh = box_of_edges(left, top, right, bottom, offset)
        except ValueError:
            hint = ': numbers need decimal points, no commas' if any(',' in text for text in texts.values()) else ''
            raise ValueError(f'{texts} is not a box of four numbers{hint}') from None
        angle = _cvat_angle(obj)
        return box_around_rotated(*xywh, angle, image) if angle else xywh
    if rotated is None:
        raise ValueError('it has no bndbox')
    texts = {key: rotated.findtext(key, '').strip() for key in ('cx', 'cy', 'w', 'h', 'angle')}
    try:
        cx, cy, w, h, angle = map(float, texts.values())
    except ValueError:
        raise ValueError(f'{texts} is not a rotated box of five numbers') from None
    return box_around_rotated(cx - w / 2 - offset, cy - h / 2 - offset, w, h, math.degrees(angle), image)


def _cvat_angle(obj: 'Element') -> float:
    """Return the angle in degrees by which CVAT has rotated a box after writing its edges (cvat-ai/cvat#5881)."""
    attributes = {item.findtext('name'): item.findtext('value') for item in obj.iterfind('attributes/attribute')}
    try:
        return rotation(float(attributes.get('rotation') or 0))
    except ValueError:  # an attribute of the user's own
        return 0.0


def _is_rotated(obj: 'Element') -> bool:
    return bool(_cvat_angle(obj)) or (obj.find('bndbox') is None and obj.find('robndbox') is not None)
