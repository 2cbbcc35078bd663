"""Read COCO JSON in the layouts of COCO, Roboflow, Label Studio and CVAT, and in similar ones.

Entries without a usable id, name or box become findings instead of exceptions such as a KeyError. A finding names the
entry, which may be one of a hundred thousand.
"""

import math
import posixpath
import re
from collections import Counter
from collections.abc import Container, Sequence
from contextlib import suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

from mnv4_mm.data.documents import read_json
from mnv4_mm.data.findings import Finding
from mnv4_mm.data.form import ALL, TEST, TRAIN, VAL, Box, DetectionData, LabelledImage
from mnv4_mm.data.formats.classes import check_names, composed, join_unlisted, note_composed
from mnv4_mm.data.formats.files import (
    Files,
    amount,
    beginning,
    complete_splits,
    distinct_splits,
    first,
    holds_predictions,
    locate,
    note_unlisted,
    split_by_folder,
    split_of,
)
from mnv4_mm.data.formats.geometry import box_around_polygons, box_around_rotated, is_number, rotation
from mnv4_mm.errors import UserError

NAME = 'COCO JSON'
LISTS = ('images', 'annotations', 'categories')
KEYS = [f'"{key}"'.encode() for key in LISTS]
# Words in the names of COCO's annotation files that have no boxes.
WITHOUT_BOXES = ('captions', 'keypoints', 'panoptic', 'stuff', 'image_info', 'deleted')
FOLDERS = {
    TRAIN: ('train', 'training'),
    VAL: ('val', 'valid', 'validation'),
    TEST: ('test', 'testing'),
    ALL: (),
}
RUN_LENGTHS = re.compile(r'[0-o]*[0-O]')
MAX_RUN_SIDE = 2**20
MAX_DIGITS = 20
MAX_ID = 2**63  # numpy and PyTorch hold ids as 64-bit integers
Id = int | str


class Category(NamedTuple):
    """A category of an annotation file.

    Attributes:
        id: Its ``id``, a whole number or text.
        name: Its ``name``, in Unicode normalisation form NFC.
        parent: Its ``supercategory``. Empty if it has none.
    """

    id: Id
    name: str
    parent: str


class AnnotationFile(NamedTuple):
    """An annotation file of a split.

    Attributes:
        name: Path of the file relative to the root of the data set.
        path: Path of the file, including the root.
        content: Parsed JSON, with the lists ``images``, ``annotations`` and ``categories``.
        categories: Valid categories in the order of the file.
        used: Number of annotations of each category id.
    """

    name: str
    path: Path
    content: dict[str, list]
    categories: list[Category]
    used: Counter


def find(files: Files) -> list[str]:
    """Return the COCO annotation files of a data set, sorted.

    LabelMe's files, JSON files named after an image, and predictions (see ``holds_predictions``) are left out.

    Returns:
        Paths relative to the root. An empty list if no file is complete, i.e. has ``images``, ``annotations`` and
        ``categories``. Files named ``instances*`` or ``*.coco.json`` and files in UTF-16 count as complete. If at least
        one file is complete, files with only some of the three keys are included.
    """
    found = _find_all(files)
    return found if any(_is_whole(files.root / name) for name in found) else []


def find_incomplete(files: Files) -> list[str]:
    """Return possible COCO annotation files that lack ``images``, ``annotations`` or ``categories``.

    Label Studio adds a JSON file with only ``categories`` to its YOLO export, and many tools add one with only
    ``images`` to exports in other formats.

    Returns:
        Paths relative to the root. An empty list if any file is complete.
    """
    found = _find_all(files)
    return [] if any(_is_whole(files.root / name) for name in found) else found


def find_by_image(files: Files) -> list[str]:
    """Return the complete COCO files that are named as an image each, sorted. ``find`` leaves them out."""
    return [name for name in files.with_suffix('.json') if _has_image(files, name) and _is_whole(files.root / name)]


def _has_image(files: Files, name: str) -> bool:
    return posixpath.splitext(posixpath.basename(name))[0] in files.images_by_stem


def _is_whole(path: Path) -> bool:
    if path.name.startswith('instances') or path.name.endswith('.coco.json'):
        return True
    with suppress(OSError, ValueError), path.open('rb') as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        is_wide = data[:2] in (b'\xff\xfe', b'\xfe\xff') or data[:4].count(0) == 2  # UTF-16
        return is_wide or all(data.find(key) >= 0 for key in KEYS)
    return False


def _find_all(files: Files) -> list[str]:
    found = []
    for name in files.with_suffix('.json'):
        if _has_image(files, name):  # LabelMe
            continue
        base = posixpath.basename(name)
        path = files.root / name
        start = beginning(path)
        is_coco = start.startswith(b'{') and any(key in start for key in KEYS) and b'"imagePath"' not in start
        if (is_coco or base.startswith('instances') or base.endswith('.coco.json')) and not holds_predictions(path):
            found.append(name)
    return found


def read(root: Path, files: Files | None = None) -> DetectionData | None:
    """Read a data set with COCO JSON files.

    The name or folder of a file tells its split. Images are looked up in the folder in which most of the ``file_name``
    entries exist. The categories of several files are matched by name.

    Args:
        root: Folder of the data set.
        files: Files of ``root``, if they have been listed already. If None, they are listed first.

    Returns:
        The data set. None if there is no COCO JSON file.

    Raises:
        UserError: A file is not JSON or not in COCO's format, or it is unclear which file belongs to a split or in
            which folder the images are.
    """
    files = files or Files(root)
    names = find(files) or find_incomplete(files)
    if not names:
        return None
    data = DetectionData(root, NAME, (), {})
    sources = {split: _open(files, name, data) for split, name in _choose(names, data).items()}
    images = {split: _read_images(files, split, source, data) for split, source in sources.items()}
    note_unlisted(files, (image.name for group in images.values() for image in group.values()), data)
    used = distinct_splits({split: [i.name for i in group.values()] for split, group in images.items()}, data.notes)
    if copies := [source for split, source in sources.items() if split not in used.values()]:
        data.notes.append(f'not used: {first(source.name for source in copies)}')
        paths = {source.path for source in copies}
        data.findings = [finding for finding in data.findings if finding.file not in paths]
    sources = {split: sources[old] for split, old in used.items()}
    labels = _join_categories(sources, data)
    splits = {}
    for split, source in sources.items():
        group = images[used[split]]
        # If an image is a finding already, its annotations do not become further findings.
        rejected = {_id(entry, 'id') for entry in source.content['images']} - set(group)
        read_boxes(source, group, rejected, labels[split], data)
        splits[split] = sorted(group.values(), key=lambda image: image.name)
    data.splits = split_by_folder(complete_splits(splits), data.notes)
    return data


def _choose(names: list[str], data: DetectionData) -> dict[str, str]:
    """Return the annotation file of each split."""
    kept = [name for name in names if posixpath.basename(name).startswith('instances')] or [
        name for name in names if not any(word in posixpath.basename(name) for word in WITHOUT_BOXES)
    ]
    kept = kept or names
    groups: dict[str, list[str]] = {}
    for name in kept:
        groups.setdefault(split_of(name) or ALL, []).append(name)
    for split, group in groups.items():
        if len(group) > 1:
            raise UserError(
                f'{data.root} has {len(group)} COCO JSON files {"" if split == ALL else f"for the split {split} "}'
                f'({first(group)}): join them into one if each has a part of the images, put the name of its split '
                '(train, val, test) into each, or leave one in the folder'
            )
    chosen = {split: group[0] for split, group in groups.items()}
    if ALL in chosen and TRAIN in chosen:
        kept.remove(chosen.pop(ALL))
    if ALL in chosen and VAL in chosen:
        chosen[TRAIN] = chosen.pop(ALL)
        data.notes.append(f'{chosen[TRAIN]} names no split and is taken for training')
    others = [name for name in names if name not in kept]
    if others:
        data.notes.append(f'not used: {first(others)}')
    return {split: chosen[split] for split in (TRAIN, VAL, TEST, ALL) if split in chosen}


def _open(files: Files, name: str, data: DetectionData) -> AnnotationFile:
    path = files.root / name
    content = read_json(path)
    missing = [key for key in LISTS if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise UserError(
            f'{path} is not a COCO annotation file: it needs the lists {", ".join(LISTS)}, and has no {first(missing)}'
        )
    if any(isinstance(entry, dict) and 'segments_info' in entry for entry in content['annotations'][:1]):
        raise UserError(
            f'{path} has panoptic annotations (segments_info), which are not read: use the instances of the data set, '
            'with a bbox for each annotation, or its semantic masks'
        )
    categories = []
    for i, entry in enumerate(content['categories']):
        number = _id(entry, 'id')
        category = entry.get('name') if isinstance(entry, dict) else None
        if is_number(category):
            category = str(category)
        if number is None or not isinstance(category, str):
            problem = f'{_show(entry)} needs an id (a whole number or text) and a name (text)'
            data.findings.append(Finding('entry-invalid', path, problem, f'entry {i} of categories'))
            continue
        parent = entry.get('supercategory')
        note_composed([category], data.notes)
        parent = composed(parent) if isinstance(parent, str) else ''
        categories.append(Category(number, composed(category), parent))
    used = Counter(_id(entry, 'category_id') for entry in content['annotations'])
    return AnnotationFile(name, path, content, categories, used)


def _join_categories(sources: dict[str, AnnotationFile], data: DetectionData) -> dict[str, dict[Id, int]]:
    """Set classes and category ids of the data set.

    Returns:
        For each split, the label of each category id.
    """
    surplus = _surplus(list(sources.values()), data)
    kept = {
        split: [category for category in source.categories if (category.id, category.name) not in surplus]
        for split, source in sources.items()
    }
    main = next(iter(sources))  # training, or all
    classes: list[str] = []
    ids: list[Id] = []
    for split, categories in kept.items():
        path = sources[split].path
        seen: dict[Id, str] = {}
        for category in categories:
            if category.id in seen:
                problem = f'the categories {seen[category.id]!r} and {category.name!r} have the same id'
                data.findings.append(Finding('category-id-twice', path, problem, f'category {category.id}'))
            seen[category.id] = category.name
        data.findings += check_names([category.name for category in categories], path)
        if split == main:
            classes, ids = [c.name for c in categories], [c.id for c in categories]
            continue
        for category in categories:
            if category.name in classes:
                continue
            count = sources[split].used[category.id]
            if count and split == VAL:
                problem = (
                    f'{category.name!r} has {amount(count, "box")} here and is not a category of {sources[main].name}'
                )
                data.findings.append(Finding('class-unknown', path, problem, f'category {category.id}'))
            else:
                data.notes.append(f'{category.name!r} is a category of {sources[split].name} only')
            classes.append(category.name)
            ids.append(category.id)
        pairs = [(c.id, c.name) for c in categories]
        if pairs != [(c.id, c.name) for c in kept[main]]:
            data.notes.append(
                f'the categories of {sources[split].name} and {sources[main].name} differ in ids, order or number: '
                'they are matched by name'
            )
    data.classes = tuple(classes)
    usable = [i for i in ids if isinstance(i, int) and abs(i) < MAX_ID]
    if len(set(usable)) == len(ids):
        data.category_ids = tuple(usable)
    else:
        data.category_ids = tuple(range(1, len(ids) + 1))
        reason = 'not all of their ids are 64-bit integers'
        if len(usable) == len(ids):
            reason = 'several of them have the same id'
        data.notes.append(f'categories are numbered anew, 1, 2, ..., since {reason}')
    positions = {name: label for label, name in reversed(list(enumerate(classes)))}
    return {split: {c.id: positions[c.name] for c in categories} for split, categories in kept.items()}


def _surplus(sources: Sequence[AnnotationFile], data: DetectionData) -> set[tuple[Id, str]]:
    """Return ids and names of the categories to leave out.

    These are root categories without boxes, and categories without boxes that have the name of their parent and of
    another category with boxes. Roboflow writes the name of the project as a root category of all others, without
    boxes (open-mmlab/mmdetection#11391, roboflow/rf-detr#1303).
    """
    used = {(c.id, c.name) for source in sources for c in source.categories if source.used[c.id]}
    surplus = set()
    for source in sources:
        parents = {category.parent for category in source.categories}
        for category in source.categories:
            key = (category.id, category.name)
            is_root = category.parent in ('', 'none') and category.name in parents
            is_twin = any(
                other.id != category.id and other.name == category.name and (other.id, other.name) in used
                for other in source.categories
            )
            if key not in used and key not in surplus and (is_root or (is_twin and category.parent == category.name)):
                surplus.add(key)
                data.notes.append(
                    f'the {"root " if is_root else ""}category {category.name!r} (id {category.id}) has no boxes and '
                    'is left out'
                )
    return surplus


def _read_images(files: Files, split: str, source: AnnotationFile, data: DetectionData) -> dict[Id, LabelledImage]:
    """Return the images of an annotation file by their id in it, without boxes."""
    path = source.path
    entries: dict[str, dict[str, Any]] = {}
    where: dict[str, str] = {}
    for i, entry in enumerate(source.content['images']):
        number = _id(entry, 'id')
        name = entry.get('file_name') if isinstance(entry, dict) else None
        position = f'entry {i} of images' if number is None else f'image {number}'
        if number is None or not isinstance(name, str):
            problem = f'{_show(entry)} needs an id (a whole number or text) and a file_name (text)'
            data.findings.append(Finding('entry-invalid', path, problem, position))
        elif name in entries:
            problem = f'{name!r} is listed as image {entries[name]["id"]} too'
            data.findings.append(Finding('image-twice', path, problem, position))
        else:
            entries[name], where[name] = entry, position
    stated = {name: (entry.get('width'), entry.get('height')) for name, entry in entries.items()}
    sizes = {name: (w, h) for name, (width, height) in stated.items() if (w := _side(width)) and (h := _side(height))}
    preferred = _preferred(source.name, split)
    located = locate(files, source.name, where, preferred, None if split == ALL else split, sizes)
    data.findings += located.findings
    data.notes += located.notes
    images: dict[Id, LabelledImage] = {}
    targets: dict[str, str] = {}
    invalid_sizes = []
    for name, target in located.names.items():
        entry, number = entries[name], _id(entries[name], 'id')
        assert number is not None
        if number in images:
            problem = f'{name!r} and {images[number].name!r} have the same id'
            data.findings.append(Finding('image-id-twice', path, problem, where[name]))
            continue
        if target in targets:
            problem = f'{name!r} and {targets[target]!r} are the same file'
            data.findings.append(Finding('image-twice', path, problem, where[name]))
            continue
        targets[target] = name
        size = entry.get('width'), entry.get('height')
        whole = [side for side in map(_side, size) if side]
        if len(whole) < 2 and size != (None, None):
            invalid_sizes.append(where[name])
        images[number] = LabelledImage(target, path, size=(whole[0], whole[1]) if len(whole) == 2 else None)
        images[number].image_id = number if isinstance(number, int) else None
    if invalid_sizes:
        problem = f'{amount(len(invalid_sizes), "image")} without whole numbers as width and height'
        data.findings.append(Finding('size-invalid', path, problem, invalid_sizes[0]))
    if not all(isinstance(number, int) and abs(number) < MAX_ID for number in images):
        text = next(number for number in images if not isinstance(number, int) or abs(number) >= MAX_ID)
        data.notes.append(
            f'{source.name}: images are numbered anew by name, since not all ids are 64-bit integers (first: {text!r})'
        )
        for image in images.values():
            image.image_id = None
    return images


def _preferred(name: str, split: str) -> list[str]:
    """Return the folders in which the images of an annotation file are looked up first."""
    folder = posixpath.dirname(name)
    stem = posixpath.splitext(posixpath.basename(name))[0].removeprefix('instances_')
    above = posixpath.dirname(folder)
    ends = [stem, f'images/{stem}', *(p + n for n in FOLDERS[split] for p in ('', 'images/')), 'images']
    return [posixpath.join(base, end) for base in dict.fromkeys((above, folder)) for end in ends]


def read_boxes(
    source: AnnotationFile,
    images: dict[Id, LabelledImage],
    rejected: set[Id | None],
    labels: dict[Id, int],
    data: DetectionData,
) -> None:
    path = source.path
    before = len(data.findings)
    positions: dict[Id, int] = {}
    areas: list[tuple[str, Any]] = []
    outlines: list[str] = []
    crowds: list[str] = []
    rotated: list[str] = []
    has_texts = False
    for i, entry in enumerate(source.content['annotations']):
        number = _id(entry, 'id')
        position = f'entry {i} of annotations' if number is None else f'annotation {number}'
        if not isinstance(entry, dict):
            data.findings.append(Finding('entry-invalid', path, f'{_show(entry)} is not an object', position))
            continue
        if number is not None and number in positions:
            problem = f'its id is that of entry {positions[number]} of annotations too (this one is entry {i})'
            data.findings.append(Finding('annotation-id-twice', path, problem, position))
            continue
        if number is not None:
            positions[number] = i
        elif entry.get('id') is not None:
            problem = f'the id {_show(entry["id"])} is neither a whole number nor text'
            data.findings.append(Finding('entry-invalid', path, problem, position))
            continue
        image_id, category_id = _id(entry, 'image_id'), _id(entry, 'category_id')
        image = images.get(image_id) if image_id is not None else None
        if image is None:
            if image_id is None or image_id not in rejected:
                problem = (
                    f'image_id {_show(entry.get("image_id"))} is not listed in images{_other_type(image_id, images)}'
                )
                data.findings.append(Finding('image-unlisted', path, problem, position))
            continue
        if category_id is None or category_id not in labels:
            problem = f'category_id {_show(entry.get("category_id"))} is not listed in categories'
            problem += _other_type(category_id, labels)
            data.findings.append(Finding('class-unlisted', path, problem, position))
            continue
        numbers = entry.get('bbox')
        if numbers in (None, []) and (outline := _outline(entry.get('segmentation'))):
            numbers = outline
            outlines.append(position)
        if not (isinstance(numbers, list) and len(numbers) == 4 and all(map(is_number, numbers))):
            problem = f'the box {_show(numbers)} is not [x, y, width, height]'
            if numbers in (None, []):
                problem = 'it has no bbox, and no segmentation that a box can be drawn around'
            data.findings.append(Finding('box-invalid', path, problem, position))
            continue
        area = entry.get('area')
        if not is_number(area):
            areas.append((position, area))
            area = None
        crowd = entry.get('iscrowd', 0)
        if crowd not in (0, 1, None):
            problem = f'iscrowd is {_show(crowd)}, not 0 or 1'
            data.findings.append(Finding('box-invalid', path, problem, position))
            continue
        if entry.get('ignore') in (1, True):
            crowds.append(position)
            crowd = 1
        is_id = isinstance(number, int) and abs(number) < MAX_ID
        if number is not None and not is_id:
            has_texts = True
        x, y, width, height = map(_float, numbers)
        attributes = entry.get('attributes')
        # CVAT writes the box as it was before its rotation, and no outline (cvat-ai/cvat#4745, cvat-ai/cvat#6785).
        if (
            isinstance(attributes, dict)
            and not entry.get('segmentation')
            and (angle := rotation(attributes.get('rotation')))
        ):
            x, y, width, height = box_around_rotated(x, y, width, height, angle, image.size)
            rotated.append(position)
        image.boxes.append(
            Box(
                (x, y, width, height),
                labels[category_id],
                position,
                area=None if area is None else _float(area),
                is_crowd=bool(crowd),
                annotation_id=number if isinstance(number, int) and is_id else None,
            )
        )
    used = {number for number in source.used if isinstance(number, int)}
    listed = [number for number in labels if isinstance(number, int)]
    data.findings[before:] = join_unlisted(data.findings[before:], used, listed, path)
    unusable = [position for position, area in areas if area is not None]
    count = len(source.content['annotations'])
    if areas:
        problem = f'{len(areas)} of {count} annotations have no area'
        problem += f', or one that is not a number ({len(unusable)} of them)' if unusable else ''
        data.findings.append(Finding('area-missing', path, problem, areas[0][0]))
    if outlines:
        data.notes.append(
            f'{source.name}: {amount(len(outlines), "annotation")} without bbox: the box around the outline is used '
            f'(first: {outlines[0]})'
        )
    if rotated:
        data.notes.append(
            f"{source.name}: {amount(len(rotated), 'box')} turned by CVAT's attribute rotation: the box around each is "
            f'used (first: {rotated[0]})'
        )
    if crowds:
        data.notes.append(
            f'{source.name}: {amount(len(crowds), "annotation")} with ignore=1, a crowd: not trained on, and no '
            f'mistake if they are missed (first: {crowds[0]})'
        )
    if has_texts:
        data.notes.append(f'{source.name}: annotations are numbered anew, since not all ids are 64-bit integers')


def _id(entry: Any, key: str) -> Id | None:
    """Return an id, as an integer if it is a whole number. None if it is missing or of another type."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is int:  # a shortcut: almost all ids are integers
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _other_type(number: Id | None, listed: Container[Id]) -> str:
    """Return for a message that an id is listed, but as text instead of a number or the reverse. Usually empty."""
    if isinstance(number, int):
        return ': it is a number, and there it is text' if str(number) in listed else ''
    if number is None or not (number.isascii() and number.isdecimal() and len(number) < MAX_DIGITS):
        return ''
    return ': it is text, and there it is a number' if int(number) in listed else ''


def _side(value: Any) -> int | None:
    """Return the width or height of an image if it is a positive whole number."""
    return int(value) if is_number(value) and 0 < value < math.inf and value == int(value) else None


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer with hundreds of digits
        return math.inf


def _outline(segmentation: Any) -> list[float] | None:
    """Return the box around polygons or a run-length encoded mask, ``[x, y, width, height]``; None if invalid."""
    if isinstance(segmentation, dict):
        return _box_of_run_lengths(segmentation.get('size'), segmentation.get('counts'))
    return box_around_polygons(segmentation)


def _box_of_run_lengths(size: Any, counts: Any) -> list[float] | None:
    """Return the box around a run-length encoded mask; None if it is empty or damaged, or without pycocotools."""
    if not (isinstance(size, list) and len(size) == 2 and all(map(_side, size)) and max(size) < MAX_RUN_SIDE):
        return None
    height, width = (int(side) for side in size)
    is_list = isinstance(counts, list) and all(isinstance(n, int) and n >= 0 for n in counts)
    if is_list and sum(counts) != height * width:
        return None
    # Each character has 6 bits, one of which says that the number continues in the next character. If it is set in the
    # last character, pycocotools reads beyond the end of the text.
    is_text = isinstance(counts, str) and RUN_LENGTHS.fullmatch(counts)
    if not (is_list or is_text):
        return None
    try:
        from pycocotools import mask
    except ImportError:
        return None
    encoded = dict(size=[height, width], counts=counts)
    box = mask.toBbox(mask.frPyObjects(encoded, height, width) if is_list else encoded)
    return [float(value) for value in box] if box[2] > 0 and box[3] > 0 else None


def _show(value: Any) -> str:
    """Return a value as Python writes it, shortened."""
    text = repr(value) if not isinstance(value, dict) else str({key: value[key] for key in list(value)[:4]})
    return text if len(text) <= 80 else f'{text[:77]}...'
