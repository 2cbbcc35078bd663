"""Check the COCO annotation files that a config names, by the rules of ``data/check.py`` for a data set of ``--data``.

mmdet reads these files itself, so that nothing can be corrected or left out: what ``--data`` leaves out is refused.
A few boxes without a pixel of width or height, and a few repeated ones, are accepted: public data sets have them.

Imports neither torch nor OpenMMLab, so that the command line can report a mistake at once.
"""

import functools
import json
import mmap
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mnv4_mm.data.check import check_as_it_is
from mnv4_mm.data.checked import CheckedData, Count, describe
from mnv4_mm.data.documents import read_json
from mnv4_mm.data.findings import CORRECT, KINDS, Finding, Rule
from mnv4_mm.data.form import ALL, DetectionData, LabelledImage
from mnv4_mm.data.formats.classes import check_names
from mnv4_mm.data.formats.coco_json import NAME, AnnotationFile, Category, read_boxes
from mnv4_mm.data.formats.geometry import rotation
from mnv4_mm.data.polygons import check_polygons
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_data

# Checking every box and every image of a larger file takes longer than a user wants to wait, so only its
# categories are read. COCO's own training annotations have 448 MB.
FULL_CHECK_BYTES = 64 * 2**20
CATEGORIES_BYTES = 2**20  # more than any list of categories
IMAGES_BYTES = 2**27  # COCO has 30 MB of images

# Accepted in at most ``MAX_DROPPED`` of the boxes. mmdet does not train on the first two kinds, but an evaluation
# counts each of these boxes as an object that was not found.
ACCEPTED_IF_FEW = ('box-empty', 'box-sub-pixel', 'box-twice')

# Keys that mmdet reads of each entry, and the types that it accepts.
NUMBER = (int, float)
FIELDS: dict[str, dict[str, Any]] = {
    'images': dict(id=int, file_name=str, width=int, height=int),
    'annotations': dict(id=int, image_id=int, category_id=int, bbox=list, area=NUMBER),
    'categories': dict(id=int, name=str),
}


class Split(NamedTuple):
    """Training or validation split of a detection data set.

    Attributes:
        annotations: COCO annotation file.
        images: Folder that the ``file_name`` entries are relative to.
    """

    annotations: Path
    images: Path


class CocoLayout(NamedTuple):
    """A data set as files in COCO's format.

    Attributes:
        root: Folder of the data set.
        train: Training split.
        val: Validation split.
        classes: Category names in the order of the files, which is also mmdet's order of labels.
        checked: Result of the check.
    """

    root: Path
    train: Split
    val: Split
    classes: tuple[str, ...]
    checked: CheckedData


def check_split(split: Split) -> list[dict[str, Any]]:
    """Check the categories, images and boxes of a split by the rules for the data of ``--data``.

    If the annotation file is larger than ``FULL_CHECK_BYTES``, only its categories are checked. The result for a valid
    split is cached in memory until a file changes, because a command and the function that it calls both check.

    Returns:
        The categories, ``dict(id=..., name=...)`` each, in the order of the file.

    Raises:
        UserError: The split has mistakes, which the message names, or the cache cannot be written.
        FileNotFoundError: The annotation file does not exist. ``require_split`` raises a UserError instead.
    """
    return [dict(id=number, name=name) for number, name in _checked_categories(split, _file_state(split))]


def _file_state(split: Split) -> int:
    """Return a hash of the names, sizes and modification times of the files that ``check_split`` reads."""
    files = [split.annotations]
    if not _is_large(split):
        files += split.images.rglob('*')
    states = ((path, path.lstat()) for path in files)
    return hash(tuple((path, state.st_size, state.st_mtime_ns) for path, state in states))


def _is_large(split: Split) -> bool:
    return split.annotations.stat().st_size > FULL_CHECK_BYTES


@functools.lru_cache(maxsize=8)
def _checked_categories(split: Split, state: int) -> tuple[tuple[int, str], ...]:
    """Check a split and return ids and names of its categories. ``state`` is part of the cache key: see _file_state."""
    is_large = _is_large(split)
    categories = _read_categories(split.annotations) if is_large else None
    content = dict(categories=categories) if categories else read_annotations(split.annotations)
    if not content['categories']:
        raise UserError(f'{split.annotations} lists no categories')
    findings = _check_categories(split, content['categories'])
    if not is_large:
        findings += _check_content(split, content)
        findings += [
            replace(finding, file=Path(split.annotations.name)) for finding in check_polygons(split.annotations)
        ]
    few = [finding for finding in findings if finding.kind in ACCEPTED_IF_FEW]
    are_few = not few or not Count(len(content['annotations']), len(few)).is_too_many
    mistakes: dict[str, list[Finding]] = {}
    for finding in findings:
        if _is_mistake(finding) or (finding.kind in ACCEPTED_IF_FEW and not are_few):
            mistakes.setdefault(finding.kind, []).append(finding)
    if mistakes:
        texts = [
            describe(same, split.images, None if KINDS[kind].rule is Rule.FATAL else CORRECT)
            for kind, same in mistakes.items()
        ]
        raise UserError(f'{split.annotations}, with the images in {split.images}: {"; ".join(texts)}')
    return tuple((category['id'], category['name']) for category in content['categories'])


def _is_mistake(finding: Finding) -> bool:
    return finding.rule is not Rule.HARMLESS and finding.kind not in ACCEPTED_IF_FEW


def _check_categories(split: Split, categories: Sequence[Mapping[str, Any]]) -> list[Finding]:
    path = Path(split.annotations.name)
    findings = check_names([category['name'] for category in categories], path)
    names: dict[int, str] = {}
    for category in categories:
        number, name = category['id'], category['name']
        if number in names:
            problem = f'the categories {names[number]!r} and {name!r} have the same id'
            findings.append(Finding('category-id-twice', path, problem, f'category {number}'))
        names.setdefault(number, name)
    return findings


def _check_content(split: Split, content: dict[str, list]) -> list[Finding]:
    """Check images and boxes.

    Raises:
        UserError: There are no images.
    """
    if not content['images']:
        raise UserError(f'{split.annotations} lists no images')
    path = Path(split.annotations.name)
    # A file_name may lead out of the folder of the images.
    files = [os.path.abspath(split.images / image['file_name']) for image in content['images']]
    root = Path(os.path.commonpath([os.path.abspath(split.images), *files]))
    data = DetectionData(root, NAME, tuple(category['name'] for category in content['categories']), {})
    images: dict[int | str, LabelledImage] = {}
    names: dict[str, str] = {}
    for image, file in zip(content['images'], files, strict=True):
        number, name = image['id'], os.path.relpath(file, root).replace(os.sep, '/')
        if number in images:
            problem = f'{name!r} and {images[number].name!r} have the same id'
            data.findings.append(Finding('image-id-twice', path, problem, f'image {number}'))
        elif name in names:
            problem = f'{image["file_name"]!r} and {names[name]!r} are the same file'
            data.findings.append(Finding('image-twice', path, problem, f'image {number}'))
        else:
            images[number] = LabelledImage(name, path, [], (image['width'], image['height']), number)
            names[name] = image['file_name']
    categories = [Category(category['id'], category['name'], '') for category in content['categories']]
    labels = {category.id: label for label, category in enumerate(categories)}
    rejected = {image['id'] for image in content['images']} - set(images)
    read_boxes(AnnotationFile(path.name, path, content, categories, Counter()), images, rejected, labels, data)
    data.splits = {ALL: list(images.values())}
    kept, findings = check_as_it_is(data)
    boxes = [box for image in kept for box in image.boxes]
    # Without boxes, training stops before its first step, and a validation says that it measures nothing.
    if boxes and all(box.is_crowd for box in boxes) and not any(map(_is_mistake, findings)):
        findings.append(Finding('crowd-all', path, f'all {len(boxes)} boxes are crowds'))
    return findings + _not_corrected(content['annotations'], path)


def _not_corrected(annotations: Sequence[Mapping[str, Any]], path: Path) -> list[Finding]:
    """Return findings for boxes that ``--data`` would correct and mmdet would use unchanged."""
    found = []
    for annotation in annotations:
        attributes, entry = annotation.get('attributes'), f'annotation {annotation["id"]}'
        turned = rotation(attributes.get('rotation')) if isinstance(attributes, Mapping) else 0.0
        if turned and not annotation.get('segmentation'):
            found.append(Finding('box-invalid', path, f'the box is rotated by {turned:g} degrees', entry))
        elif annotation.get('ignore') in (1, True) and not annotation.get('iscrowd'):
            found.append(Finding('box-invalid', path, 'it has ignore, and not iscrowd', entry))
    return found


def _read_categories(path: Path) -> list[dict[str, Any]] | None:
    """Read the categories of a large file without parsing the rest.

    Returns:
        The categories. None if the file must be parsed in full: it has no valid list ``categories``, or the key occurs
        several times.
    """
    categories = _read_list(path, 'categories', CATEGORIES_BYTES)
    try:
        _check_fields(path, 'categories', categories or [])
    except UserError:
        return None  # parsing the whole file reports the mistake
    return categories


def listed_images(path: Path) -> list[str]:
    """Return the file names of the images that an annotation file lists.

    Of a large file, only the list of images is parsed, and nothing else is checked.

    Raises:
        UserError: The file cannot be read, is not JSON, or has no list of images with file names.
    """
    images = _read_list(path, 'images', IMAGES_BYTES) if path.stat().st_size > FULL_CHECK_BYTES else None
    if images is None:
        content = read_json(path)
        images = content.get('images') if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise UserError(f'{path} is not a COCO annotation file: it has no list images')
    for i, image in enumerate(images):
        if not isinstance(image, dict) or not isinstance(image.get('file_name'), str):
            raise UserError(f'{path}: entry {i} of images has no file_name, or one that is not a string')
    return [image['file_name'] for image in images]


def _read_list(path: Path, key: str, limit: int) -> list[Any] | None:
    """Read a list of a large file without parsing the rest.

    Args:
        path: The annotation file.
        key: Key of the list.
        limit: Largest number of bytes of the list.

    Returns:
        The list. None if the file must be parsed in full: there is no such list, it is longer, or the key occurs
        several times.
    """
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        starts = [match.end() - 1 for match in re.finditer(rb'"%s"\s*:\s*\[' % key.encode(), content)]
        if len(starts) != 1:
            return None
        text = content[starts[0] : starts[0] + limit].decode(errors='ignore')
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except ValueError:
        return None


def read_annotations(path: Path) -> dict[str, Any]:
    """Read a COCO annotation file and check that its entries have the keys that mmdet needs, with the right types.

    Returns:
        The parsed JSON, with the lists ``images``, ``annotations`` and ``categories``.

    Raises:
        UserError: The file cannot be read, is not JSON, or is not in COCO's format.
    """
    content = read_json(path)
    keys = ('images', 'annotations', 'categories')
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise UserError(f'{path} is not a COCO annotation file: it needs the lists {", ".join(keys)}')
    for key in FIELDS:
        _check_fields(path, key, content[key])
    return content


def _check_fields(path: Path, key: str, entries: list) -> None:
    for i, entry in enumerate(entries):
        for field, types in FIELDS[key].items():
            if not isinstance(entry, dict) or field not in entry:
                raise UserError(f'{path}: entry {i} of {key} has no {field}')
            if not isinstance(entry[field], types):
                raise UserError(f'{path}: entry {i} of {key} has {field}={entry[field]!r}, of the wrong type')


def require_split(split: Split, hint: str) -> None:
    """Check that the files of a split exist. Also check their content, unless the annotation file is large.

    The content of an annotation file larger than ``FULL_CHECK_BYTES`` is not checked at all.

    Args:
        split: Split that a config names.
        hint: Advice in the error message for a user who does not have the data.

    Raises:
        UserError: A file or folder is missing or has mistakes.
    """
    check_data(split, hint)
    if split.annotations.stat().st_size <= FULL_CHECK_BYTES:
        check_split(split)
