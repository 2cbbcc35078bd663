"""Recognise, check and prepare a detection data set: cleaned COCO files for each split, in the user's cache.

The originals are never changed. Files are made again when any file of the data set changes.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mnv4_mm.data.cache import cache_folder, folder_state, write_cached
from mnv4_mm.data.check import check_detection
from mnv4_mm.data.checked import CheckedData
from mnv4_mm.data.classes import class_order
from mnv4_mm.data.coco_files import CocoLayout, Split
from mnv4_mm.data.documents import collector_paused
from mnv4_mm.data.form import ALL, TRAIN, VAL, DetectionData, LabelledImage
from mnv4_mm.data.formats.recognise import check_folder, recognise
from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.version import __version__

FORMAT = 3  # of prepared data: raised with every change of the rules
SPLITS = (TRAIN, VAL)
UNUSED_DAYS = 30  # after which prepared files are removed: longer than a training takes
WAIT = 1  # seconds to wait for another process before a message says so


def prepare_detection(
    root: str | Path,
    *,
    classes: Sequence[str] | None = None,
    allow_dropped: bool = False,
    previous: Mapping[str, str] | None = None,
) -> CocoLayout:
    """Recognise, check and prepare a detection data set.

    A second call on unchanged data reads the result of the first one.

    Args:
        root: Folder of the data set.
        classes: Class names in the order of a checkpoint. None keeps the order of the data set.
        allow_dropped: Accept that more than 1 % of the images or boxes are left out.
        previous: Split of an earlier run, image name -> ``train`` or ``val``, which is kept if the data set has no
            split of its own. See ``split_images``.

    Returns:
        The data set. Its annotation files are in the user's cache; their file names are relative to ``root``. Images
            and categories keep the ids of the data set, if it has usable ones.

    Raises:
        UserError: The data set is not recognised, has other classes than ``classes``, or cannot be trained on; or the
            cache cannot be written.
    """
    layout = examine_detection(root, classes=classes, previous=previous)
    assert layout.checked is not None
    layout.checked.require_usable(allow_dropped)
    return layout


def examine_detection(
    root: str | Path,
    *,
    classes: Sequence[str] | None = None,
    data: DetectionData | None = None,
    previous: Mapping[str, str] | None = None,
) -> CocoLayout:
    """Do the same as ``prepare_detection``, but also return a data set that cannot be trained on.

    The files of its splits may then be missing.

    Args:
        root: Folder of the data set.
        classes: See ``prepare_detection``.
        data: The data set, if it has been read already. None reads it.
        previous: See ``prepare_detection``.

    Raises:
        UserError: The data set is not recognised or has other classes than ``classes``, or the cache cannot be written.
    """
    check_folder(Path(root))
    layout = _examine(Path(root), None, data, previous)
    if classes is None or tuple(classes) == layout.classes:
        return layout
    class_order(layout.root, layout.classes, classes)
    return _examine(layout.root, classes, None, previous)


def _examine(
    root: Path, classes: Sequence[str] | None, data: DetectionData | None, previous: Mapping[str, str] | None
) -> CocoLayout:
    with prepared_folder(root, 'detection', classes, previous) as (folder, split_file), collector_paused():
        checked = read_checked(folder, root)
        is_whole = all((folder / f'instances_{name}.json').is_file() for name in SPLITS)
        if checked is None or not (is_whole or checked.refusals(allow_dropped=True)):
            read = data or recognise(root, 'detection')
            assert isinstance(read, DetectionData)
            checked = prepare_read(read, folder, classes, split_file, previous)
    train, val = (Split(folder / f'instances_{name}.json', root) for name in SPLITS)
    return CocoLayout(root, train, val, checked.classes, checked)


def prepare_read(
    data: DetectionData,
    folder: Path,
    classes: Sequence[str] | None,
    split_file: Path,
    previous: Mapping[str, str] | None = None,
) -> CheckedData:
    """Check a data set as read, and write the files of its splits to a folder.

    Args:
        data: The data set.
        folder: Folder to write to.
        classes: See ``prepare_detection``.
        split_file: JSON file of the split. If the data set is not completely split, images that the file lists keep
            their split, and the new split is written to the file.
        previous: See ``prepare_detection``.

    Returns:
        The result of the check. If the data cannot be trained on, the files of its splits are not written.

    Raises:
        UserError: The data set has other classes than ``classes``, or a file cannot be written.
    """
    if classes:
        data = reorder(data, classes)
    result = check_detection(data, {**read_split(split_file), **(previous or {})})
    checked = replace(result.checked, folder=folder)
    if ALL in data.splits or set(data.splits) == {TRAIN}:
        checked = record_split(checked, split_file, result.splits)
    if not checked.refusals(allow_dropped=True):
        ids = _image_ids(result.splits)
        for name in SPLITS:
            write_cached(folder / f'instances_{name}.json', json.dumps(to_coco(data, result.splits[name], ids)))
    write_cached(folder / 'checked.json', checked.to_json())  # last: it marks the folder as complete
    return checked


@contextmanager
def prepared_folder(
    root: Path, task: str, classes: Sequence[str] | None = None, previous: Mapping[str, str] | None = None
) -> Iterator[tuple[Path, Path]]:
    """Lock the cache of a data set, and yield the paths of its prepared folder and of its split file.

    The folder is that of the data set's present state: another one is yielded after any file has changed. Only one
    process at a time may use the cache; others wait. A run whose split (``previous``) differs from the split in the
    cache gets a folder and a split file of its own: the cache may have been deleted since the run began, and the data
    split anew.

    Args:
        root: Folder of the data set.
        task: ``detection`` or ``segmentation``.
        classes: Class names in the order of a checkpoint. None keeps the order of the data set.
        previous: Split of an earlier run, image name -> ``train`` or ``val``.

    Yields:
        Folder for the prepared files, and JSON file of the split. Neither need exist.

    Raises:
        UserError: The cache cannot be written.
    """
    from filelock import FileLock, Timeout

    cache = cache_folder(root)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / 'lock')
        try:
            lock.acquire(timeout=WAIT)
        except Timeout:
            print(f'another process checks {root}: waiting for it', file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise UserError(
            f'{cache} cannot be written: {error.strerror or error}; checked data is kept there: set MNV4_CACHE to use '
            'another folder'
        ) from error
    try:
        split_file = cache / f'split-{task}.json'
        key: list[Any] = [FORMAT, __version__, task, folder_state(root), list(classes or [])]
        kept = read_split(split_file)
        if any(kept.get(name, split) != split for name, split in (previous or {}).items()):
            digest = _digest(sorted((previous or {}).items()))
            split_file = cache / f'split-{task}-{digest}.json'
            key.append(digest)
        folder = cache / f'{task}-{_digest(key)}'
        yield folder, split_file
        _remove_unused(folder)
    finally:
        lock.release()


def _remove_unused(folder: Path) -> None:
    """Remove prepared files that have not been used for a month, mostly of earlier states of the data set.

    Args:
        folder: Folder that is used now; it is marked as such.
    """
    mark = 'checked.json'
    if (folder / mark).is_file():
        os.utime(folder / mark)
    task = folder.name.partition('-')[0]
    for other in folder.parent.glob(f'{task}-*/{mark}'):
        if time.time() - other.stat().st_mtime > UNUSED_DAYS * 24 * 3600:
            shutil.rmtree(other.parent, ignore_errors=True)


def is_checked(root: Path) -> bool:
    """Return True if a folder has been checked as a detection data set in its present state.

    Raises:
        UserError: The cache cannot be written.
    """
    with prepared_folder(root, 'detection') as (folder, _):
        return (folder / 'checked.json').is_file()


def read_checked(folder: Path, root: Path) -> CheckedData | None:
    """Read the result of an earlier check; None if it is missing or damaged, or its split file is missing."""
    try:
        checked = CheckedData.from_json((folder / 'checked.json').read_bytes(), root, folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return None if checked.split_file and not checked.split_file.is_file() else checked


def is_prepared(path: Path) -> bool:
    """Return True if the file lies in a folder of prepared data, beside a ``checked.json``."""
    return (path.parent / 'checked.json').is_file()


def read_split(path: Path) -> dict[str, str]:
    """Read the split of an earlier check, image name -> ``train`` or ``val``; an empty dict if it cannot be read."""
    try:
        return parse_split(path.read_bytes())
    except OSError:
        return {}


def parse_split(text: str | bytes) -> dict[str, str]:
    """Parse the content of a file that ``write_split`` has written.

    Returns:
        Image name -> ``train`` or ``val``. The dict is empty if the content is invalid.
    """
    try:
        content = json.loads(text)
        return {name: split for split in SPLITS for name in content[split]}
    except (ValueError, KeyError, TypeError):
        return {}


def write_split(path: Path, splits: Mapping[str, Sequence[Any]]) -> Path:
    """Add the names of the images of each split to a JSON file, and return its path.

    Names in the file that are no longer in the data stay, because the images may be added again.

    Args:
        path: The file. It need not exist.
        splits: Images of ``train`` and ``val``, with an attribute ``name``. Other splits are ignored.

    Raises:
        UserError: The file cannot be written.
    """
    sides = {**read_split(path), **{image.name: name for name in SPLITS for image in splits.get(name, ())}}
    write_cached(path, format_split(sides, indent=1))
    return path


def record_split(checked: CheckedData, path: Path, splits: Mapping[str, Sequence[Any]]) -> CheckedData:
    """Write a new split by ``write_split``, unless no image is left, and return the result with its file and a note."""
    if not any(splits.get(name) for name in SPLITS):
        return checked
    return replace(checked, split_file=write_split(path, splits)).with_notes([f'the split is written to {path}'])


def format_split(sides: Mapping[str, str], indent: int | None = None) -> str:
    """Format a split as JSON with a list of image names for each of ``train`` and ``val``.

    Args:
        sides: Image name -> ``train`` or ``val``.
        indent: See ``json.dumps``.
    """
    names = {split: [name for name, side in sides.items() if side == split] for split in SPLITS}
    return json.dumps(names, indent=indent)


def _digest(key: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


def reorder(data: DetectionData, classes: Sequence[str]) -> DetectionData:
    """Return a copy of a data set with its classes, and the labels of its boxes, in another order.

    Args:
        data: The data set.
        classes: Its class names in the new order.

    Raises:
        UserError: The data set has other classes than ``classes``.
    """
    order = class_order(data.root, data.classes, classes)
    labels = {old: new for new, old in enumerate(order)}
    ids = data.category_ids or tuple(range(1, len(order) + 1))
    splits = {
        name: [replace(image, boxes=[replace(box, label=labels[box.label]) for box in image.boxes]) for image in images]
        for name, images in data.splits.items()
    }
    return replace(data, classes=tuple(classes), category_ids=tuple(ids[old] for old in order), splits=splits)


def _image_ids(splits: Mapping[str, Sequence[LabelledImage]]) -> dict[str, int]:
    """Number the images of a format without ids by the order of their names."""
    names = {image.name for images in splits.values() for image in images}
    return {name: number for number, name in enumerate(sorted(names), 1)}


def to_coco(data: DetectionData, images: Sequence[LabelledImage], ids: Mapping[str, int]) -> dict[str, Any]:
    """Return checked images as the content of a COCO annotation file.

    Annotations are numbered from 1: the evaluation of pycocotools takes an id 0 for a missing match
    (cocodataset/cocoapi#507).

    Args:
        data: The data set, for its categories.
        images: Checked images of a split.
        ids: Id by image name, for images without ``image_id``.
    """
    category_ids = data.category_ids or range(1, len(data.classes) + 1)
    numbers = [image.image_id if image.image_id is not None else ids[image.name] for image in images]
    annotations = [
        dict(
            image_id=number,
            category_id=category_ids[box.label],
            bbox=list(box.xywh),
            area=box.area,
            iscrowd=int(box.is_crowd),
        )
        for number, image in zip(numbers, images, strict=True)
        for box in image.boxes
    ]
    return dict(
        images=[
            dict(id=number, file_name=image.name, width=image.size[0], height=image.size[1])
            for number, image in zip(numbers, images, strict=True)
            if image.size
        ],
        annotations=[dict(id=number, **annotation) for number, annotation in enumerate(annotations, 1)],
        categories=[dict(id=number, name=name) for number, name in zip(category_ids, data.classes, strict=True)],
    )


def write_fixed(layout: CocoLayout, out: str | Path) -> Path:
    """Write a cleaned copy of a prepared data set: annotations/instances_{train,val}.json and images/.

    Args:
        layout: The data set, as ``prepare_detection`` returns it.
        out: Folder to make; it may exist if it is empty.

    Returns:
        ``out``.

    Raises:
        UserError: The folder has files already, is inside of the data set, or cannot be written; or a file to copy
            cannot be read.
    """
    out = check_fixed_folder(layout.root, out)
    try:
        for split in (layout.train, layout.val):
            content = json.loads(split.annotations.read_bytes())
            for image in content['images']:
                target = out / 'images' / image['file_name']
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(layout.root / image['file_name'], target)
            write_whole(out / 'annotations' / split.annotations.name, json.dumps(content))
    except OSError as error:
        raise UserError(f'the copy for --fix {out} cannot be made: {error}') from error
    return out


def check_fixed_folder(root: Path, out: str | Path) -> Path:
    """Check that a cleaned copy can be written to a folder, and return its path.

    Raises:
        UserError: The folder has files already, or is the folder of the data set or inside of it.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f'--fix {out} exists and is not an empty folder: name a new one')
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(f'--fix {out} is inside of {root}, which is never changed: name a folder elsewhere')
    return out
