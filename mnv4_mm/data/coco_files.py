"""Check the COCO annotation files that a config names directly; images are not decoded.

Imports neither torch nor OpenMMLab, so that the command line can report a mistake at once.
"""

import functools
import itertools
import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mnv4_mm.data.checked import CheckedData
from mnv4_mm.data.documents import read_json
from mnv4_mm.errors import UserError
from mnv4_mm.images import image_size
from mnv4_mm.paths import check_data

# Checking every box and every image header of a larger file takes longer than a user wants to wait, so only its
# categories are read. COCO's own training annotations have 448 MB.
FULL_CHECK_BYTES = 64 * 2**20
CATEGORIES_BYTES = 2**20  # more than any list of categories

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
    """Check the JSON of a split, its ids and boxes, and that every image exists and has the size given in the JSON.

    If the annotation file is larger than ``FULL_CHECK_BYTES``, only its categories are checked. The result for a valid
    split is cached in memory until a file changes, because a command and the function that it calls both check.

    Returns:
        The categories, ``dict(id=..., name=...)`` each, in the order of the file.

    Raises:
        UserError: The split has mistakes; the message names the file and the first three mistakes.
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
    if not is_large:
        mistakes = _find_mistakes(content, split.images)
        first = list(itertools.islice(mistakes, 3))
        if first:
            more = sum(1 for _ in mistakes)
            raise UserError(f'{split.annotations}: {"; ".join(first)}{f"; and {more} more" if more else ""}')
    return tuple((category['id'], category['name']) for category in content['categories'])


def _read_categories(path: Path) -> list[dict[str, Any]] | None:
    """Read the categories of a large file without parsing the rest.

    Returns:
        The categories. None if the file must be parsed in full: it has no valid list ``categories``, or the key occurs
        several times.
    """
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        starts = [match.end() - 1 for match in re.finditer(rb'"categories"\s*:\s*\[', content)]
        if len(starts) != 1:
            return None
        text = content[starts[0] : starts[0] + CATEGORIES_BYTES].decode(errors='ignore')
    try:
        categories, _ = json.JSONDecoder().raw_decode(text)
        _check_fields(path, 'categories', categories)
    except (ValueError, UserError):
        return None  # parsing the whole file reports the mistake
    return categories


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


def _find_mistakes(content: dict[str, Any], images: Path) -> Iterator[str]:
    sizes = {}
    if not content['images']:
        yield 'it lists no images'
    for image in content['images']:
        size = (image['width'], image['height'])
        if image['id'] in sizes:
            yield f'image id {image["id"]} occurs twice'
        sizes[image['id']] = size
        path = images / image['file_name']
        try:
            width, height = image_size(path)
        except UserError as error:
            yield str(error)
        else:
            if (width, height) != size:
                yield f'{path} is {width}x{height}, not {size[0]}x{size[1]}'
    category_ids = {category['id'] for category in content['categories']}
    annotation_ids = set()
    for annotation in content['annotations']:
        if annotation['id'] in annotation_ids:
            yield f'annotation id {annotation["id"]} occurs twice'
        annotation_ids.add(annotation['id'])
        name = f'annotation {annotation["id"]}'
        box = annotation['bbox']
        if annotation['image_id'] not in sizes:
            yield f'{name} belongs to image {annotation["image_id"]}, which is not listed'
        elif annotation['category_id'] not in category_ids:
            yield f'{name} has category {annotation["category_id"]}, which is not listed'
        elif not (len(box) == 4 and all(isinstance(v, NUMBER) for v in box)):
            yield f'{name} has the box {box}, expected [x, y, width, height]'
        elif box[2] < 0 or box[3] < 0:
            yield f'{name} has a box of negative size, {box}; boxes are [x, y, width, height]'
        else:
            width, height = sizes[annotation['image_id']]
            # COCO's own boxes extend up to a pixel beyond the edge.
            if box[0] < -1 or box[1] < -1 or box[0] + box[2] > width + 1 or box[1] + box[3] > height + 1:
                yield f'{name} has the box {box} outside its {width}x{height} image; boxes are [x, y, width, height]'


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
