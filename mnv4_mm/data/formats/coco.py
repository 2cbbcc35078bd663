"""Recognising and checking a detection data set in COCO's layout, before anything is trained on it."""

import itertools
import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mnv4_mm.errors import UserError
from mnv4_mm.images import image_size
from mnv4_mm.paths import check_data

# Above this a check of every box and every file's header takes longer than a user wants to wait; the file is then only
# looked for. COCO's own train annotations have 448 MB.
FULL_CHECK_BYTES = 64 * 2**20
CATEGORIES_BYTES = 2**20  # more than any list of categories
LAYOUT = 'annotations/instances_train*.json with pictures in train*/, and annotations/instances_val*.json with val*/'


# What mmdet reads of each entry, and the types it can do with.
NUMBER = (int, float)
FIELDS: dict[str, dict[str, Any]] = {
    'images': dict(id=int, file_name=str, width=int, height=int),
    'annotations': dict(id=int, image_id=int, category_id=int, bbox=list, area=NUMBER),
    'categories': dict(id=int, name=str),
}


class Split(NamedTuple):
    """One annotation file and the folder its ``file_name`` entries are relative to."""

    annotations: Path
    pictures: Path


class CocoLayout(NamedTuple):
    """A data set in COCO's layout.

    Attributes:
        root: Its folder.
        train: Training split.
        val: Validation split.
        classes: Category names in the order of the file, which is mmdet's order of labels.
    """

    root: Path
    train: Split
    val: Split
    classes: tuple[str, ...]


def find_coco(root: str | Path) -> CocoLayout:
    """Recognises a data set in COCO's layout and checks it.

    Raises:
        UserError: something is missing, or ``check_split`` finds a mistake.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f'no folder {root}: --data takes a folder with {LAYOUT}')
    train, val = _find_split(root, 'train'), _find_split(root, 'val')
    categories = check_split(train)
    if check_split(val) != categories:
        raise UserError(
            f'{train.annotations} and {val.annotations} do not list the same categories in the same order; they must'
        )
    return CocoLayout(root, train, val, tuple(category['name'] for category in categories))


def _find_split(root: Path, name: str) -> Split:
    found = sorted((root / 'annotations').glob(f'instances_{name}*.json'))
    if len(found) != 1:
        raise UserError(
            f'{len(found)} files {root}/annotations/instances_{name}*.json, expected one: the layout is {LAYOUT}'
        )
    split = found[0].stem.removeprefix('instances_')
    folders = [root / split, root / 'images' / split, root / name, root / 'images' / name, root / 'images']
    for folder in folders:
        if folder.is_dir():
            return Split(found[0], folder)
    raise UserError(f'no pictures for {found[0]}: looked for {", ".join(map(str, folders))}')


def check_split(split: Split) -> list[dict[str, Any]]:
    """Checks one split: the JSON, its ids and boxes, and that every picture is there with the size it is said to have.

    Of a file above ``FULL_CHECK_BYTES`` only the categories are read.

    Returns:
        Its categories, ``id`` and ``name``, in the order of the file.

    Raises:
        UserError: names the file and the first mistakes.
    """
    large = split.annotations.stat().st_size > FULL_CHECK_BYTES
    categories = _categories(split.annotations) if large else None
    content = dict(categories=categories) if categories else read_annotations(split.annotations)
    if not content['categories']:
        raise UserError(f'{split.annotations} lists no categories')
    if not large:
        mistakes = _mistakes(content, split.pictures)
        first = list(itertools.islice(mistakes, 3))
        if first:
            more = sum(1 for _ in mistakes)
            raise UserError(f'{split.annotations}: {"; ".join(first)}{f"; and {more} more" if more else ""}')
    return [dict(id=category['id'], name=category['name']) for category in content['categories']]


def _categories(path: Path) -> list[dict[str, Any]] | None:
    """The categories of a large file without parsing the rest; None unless there is one list that can be theirs."""
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = [match.end() - 1 for match in re.finditer(rb'"categories"\s*:\s*\[', content)]
        if len(found) != 1:
            return None
        text = content[found[0] : found[0] + CATEGORIES_BYTES].decode(errors='ignore')
    try:
        categories, _ = json.JSONDecoder().raw_decode(text)
        _check_fields(path, 'categories', categories)
    except (ValueError, UserError):
        return None  # reading all of it says what is wrong
    return categories


def read_annotations(path: Path) -> dict[str, Any]:
    """Reads a COCO annotation file.

    Raises:
        UserError: it is no JSON, or not COCO's.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f'{path} is not JSON: {error}') from error
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from error
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


def _mistakes(content: dict[str, Any], pictures: Path) -> Iterator[str]:
    sizes = {}
    if not content['images']:
        yield 'it lists no images'
    for image in content['images']:
        size = (image['width'], image['height'])
        if image['id'] in sizes:
            yield f'image id {image["id"]} occurs twice'
        sizes[image['id']] = size
        path = pictures / image['file_name']
        try:
            width, height = image_size(path)
        except UserError as error:
            yield str(error)
        else:
            if (width, height) != size:
                yield f'{path} is {width}x{height}, not {size[0]}x{size[1]}'
    known = {category['id'] for category in content['categories']}
    seen = set()
    for annotation in content['annotations']:
        if annotation['id'] in seen:
            yield f'annotation id {annotation["id"]} occurs twice'
        seen.add(annotation['id'])
        name = f'annotation {annotation["id"]}'
        box = annotation['bbox']
        if annotation['image_id'] not in sizes:
            yield f'{name} is of image {annotation["image_id"]}, which is not listed'
        elif annotation['category_id'] not in known:
            yield f'{name} is of category {annotation["category_id"]}, which is not listed'
        elif not (len(box) == 4 and all(isinstance(v, NUMBER) for v in box)):
            yield f'{name} has the box {box}, expected [x, y, width, height]'
        elif box[2] < 0 or box[3] < 0:
            yield f'{name} has a box of negative size, {box}; boxes are [x, y, width, height]'
        else:
            width, height = sizes[annotation['image_id']]
            # COCO's own boxes reach up to a pixel over the edge.
            if box[0] < -1 or box[1] < -1 or box[0] + box[2] > width + 1 or box[1] + box[3] > height + 1:
                yield f'{name} has the box {box} outside its {width}x{height} picture; boxes are [x, y, width, height]'


def require_split(split: Split, hint: str) -> None:
    """Checks that a split a config names is there; fully where that is quick.

    Args:
        split: What the config names.
        hint: What a user can do who has no such data.

    Raises:
        UserError: something is missing or wrong.
    """
    check_data(split, hint)
    if split.annotations.stat().st_size <= FULL_CHECK_BYTES:
        check_split(split)
