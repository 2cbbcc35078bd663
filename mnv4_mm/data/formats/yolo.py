"""Read YOLO: a txt file per image with boxes in normalised coordinates, and optionally a description of the data set.

The description is a yaml file or darknet's ``.data`` file. The layouts are those of Ultralytics, Roboflow, CVAT, Label
Studio and darknet.
"""

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from mnv4_mm.data.checked import MAX_DROPPED
from mnv4_mm.data.decode_once import reason
from mnv4_mm.data.documents import read_text, read_yaml
from mnv4_mm.data.findings import Finding
from mnv4_mm.data.form import ALL, TEST, TRAIN, VAL, DetectionData, LabelledImage
from mnv4_mm.data.formats.classes import check_names, composed, join_unlisted, note_composed
from mnv4_mm.data.formats.files import (
    DRIVE,
    LABELME_OBJECT,
    VOC_OBJECT,
    Files,
    amount,
    beginning,
    complete_splits,
    distinct_splits,
    find_respelled,
    find_similar,
    first,
    folder_splits,
    is_split,
    join,
    locate,
    other_labels,
    split_by_folder,
    split_of,
)
from mnv4_mm.data.formats.yolo_rows import RowReader, class_number, problem_of
from mnv4_mm.errors import UserError
from mnv4_mm.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, image_size, unread_format
from mnv4_mm.processors import cores

NAME = 'YOLO'
SPLITS = {TRAIN: ('train',), VAL: ('val', 'valid', 'validation'), TEST: ('test',)}
# Files with class names, in the order of preference.
NAME_FILES = ('obj.names', 'classes.txt', 'labels.txt', 'names.txt', 'predefined_classes.txt')
# Text files that are not the labels of an image.
OTHER_TEXTS = (*NAME_FILES, 'train.txt', 'val.txt', 'valid.txt', 'test.txt', 'readme.txt', 'requirements.txt')
IMAGE_FOLDERS = ('images', 'image', 'imgs', 'img', 'jpegimages')  # in upper or lower case
LABEL_FOLDERS = ('labels', 'Labels', 'LABELS', 'label', 'Label', 'annotations')
MAIN = ('data.yaml', 'data.yml')
MIN_LABELS = 10  # fewest labels in which it is unusual that the first class alone does not occur
MAX_CLASSES = 10_000  # if the classes have no names, but only numbers


class Description(NamedTuple):
    """The yaml or ``.data`` file that describes a data set.

    Attributes:
        name: Path of the file relative to the root. Empty if there is no such file.
        content: The parsed file. Empty if there is no such file.
        names: Class names by class number. None if there is no such file.
    """

    name: str = ''
    content: Mapping[str, Any] = {}
    names: dict[int, str] | None = None


def find(files: Files) -> list[str]:
    """Return the files that show that a folder is a YOLO data set.

    Returns:
        Paths relative to the root: the yaml and ``.data`` files that describe the data set or, without any, the first
        label file of an image. An empty list if the folder is not a YOLO data set. A yaml file that names classes only
        does not make it one if no image has a label file.

    Raises:
        UserError: A ``data.yaml`` or ``.data`` file is not valid.
    """
    found = dict(_descriptions(files))
    has_images = any(key in content for content in found.values() for words in SPLITS.values() for key in words)
    # Names alone may be those of masks.
    if has_images or (found and any(_label_of(files, image) for image in files.images)):
        return list(found)
    if not files.with_suffix('.txt'):
        return []
    for image in files.images:
        label = _label_of(files, image)
        if label and _has_labels(files.root / label):
            return [label]
    return []


def read(root: Path, files: Files | None = None) -> DetectionData | None:
    """Read a data set in YOLO's format.

    - The yaml file names the classes and, for each split, a folder of images, a list of images, or several of them.
      Paths are relative to its ``path`` or to the file itself. Without such a file, folders determine the splits and
      a file of ``NAME_FILES`` names the classes, e.g. ``classes.txt``. Without such a list, classes are named by
      their numbers. darknet's ``.data`` file, which names a file of class names, is read in the same way.
    - The labels of ``images/a.jpg`` are in ``labels/a.txt`` or ``labels/a.jpg.txt``, or beside the image. An image
      without a label file has no objects, unless more than ``MAX_DROPPED`` of the label files have no image: these may
      be its labels, so it is left out.
    - Normalised coordinates are converted to pixels by the size of the image file. Since a normalised coordinate is
      rounded, it stands for an interval in pixels. The number with the fewest decimals in this interval is used:
      0.051563 of 640 pixels is 33, not 33.00032. If the sides of an image have at most 3,000 pixels, a box that was
      converted from pixels with up to two decimals is therefore the same in all formats.
    - Polygons and rotated boxes become the boxes around them. Of a pose, only its box is used.

    Args:
        root: Folder of the data set.
        files: Files of ``root``, if they have been listed already. If None, they are listed first.

    Returns:
        The data set. None if the folder is not a YOLO data set (see ``find``).

    Raises:
        UserError: The yaml or ``.data`` file is not valid or names no images, several such files describe the data set,
            or the classes have no names and a class number is ``MAX_CLASSES`` or larger.
    """
    files = files or Files(root)
    if not find(files):
        return None
    data = DetectionData(root, NAME, (), {}, has_centres=True)
    description = _describe(files, data)
    splits = _images(files, description, data)
    splits = {split: splits[old] for split, old in distinct_splits(splits, data.notes).items()}
    images = [name for names in splits.values() for name in names]
    labels = {name: label for name in images if (label := _label_of(files, name))}
    _note_respelled(files, labels, data)
    splits = _leave_out_shared(files, splits, labels, data)
    splits = _leave_out_missing(files, splits, labels, data)
    rows: dict[str, list[list[str]]] = {}
    for name, label in labels.items():
        try:
            rows[name] = _rows(root / label)
        except UserError as error:
            problem = str(error).removeprefix(f'{root / label} ')
            data.findings.append(Finding('annotation-unreadable', root / label, problem))
    if description.names is None:
        names = _names(files, rows, data)
    else:
        names = description.names
        _compare_lists(files, description, names, data)
    numbers = sorted(names)
    data.classes = tuple(composed(names[number]) for number in numbers)
    note_composed(names.values(), data.notes)
    data.category_ids = tuple(range(1, len(numbers) + 1))
    data.findings += check_names(data.classes, root / description.name)
    order = {number: label for label, number in enumerate(numbers)}
    sizes = _sizes(files, [name for name, group in rows.items() if group])
    reader = RowReader(order, _pose_columns(description, root), data)
    before = len(data.findings)
    for split, group in splits.items():
        data.splits[split] = []
        for name in group:
            if name in labels and name not in rows:
                continue
            image = LabelledImage(name, root / labels.get(name, description.name or name))
            if name in sizes:
                image.boxes = list(reader.read(root / labels[name], rows[name], sizes[name]))
            data.splits[split].append(image)
    used = {number for group in rows.values() for row in group if row and (number := class_number(row[0])) is not None}
    data.findings[before:] = join_unlisted(data.findings[before:], used, order.keys(), root / description.name)
    if order.keys() - used == {0} and used <= order.keys() and sum(map(len, rows.values())) >= MIN_LABELS:
        data.notes.append(
            f'no label has the class 0, {names[0]!r}, and all other classes have some: are the labels counted from 1? '
            'YOLO counts from 0'
        )
    reader.add_notes()
    data.splits = split_by_folder(complete_splits(data.splits), data.notes)
    return data


def unread_labels(files: Files) -> str | None:
    """Explain why no label file could be read, for the error message.

    Returns:
        The problem of the first text file that belongs to an image and is not blank: that of its first line, or why the
        file cannot be read. None if there is no such file.
    """
    for image in files.images:
        label = _label_of(files, image)
        try:
            rows = _rows(files.root / label) if label else []
        except UserError as error:
            return str(error)
        for number, row in enumerate(rows, 1):
            if row:
                return f'{label}, line {number}: {problem_of(row)}'
    return None


def _note_respelled(files: Files, labels: dict[str, str], data: DetectionData) -> None:
    """Add a finding if the names of images and of their label files differ in spelling."""
    respelled = [name for name, label in labels.items() if _stem(label) not in (_stem(name), posixpath.basename(name))]
    if respelled:
        problem = f'{amount(len(respelled), "image")} with a label file in another spelling, first {respelled[0]!r}'
        data.findings.append(Finding('path-spelling', files.root / labels[respelled[0]], problem))


def _leave_out_shared(
    files: Files, splits: dict[str, list[str]], labels: dict[str, str], data: DetectionData
) -> dict[str, list[str]]:
    """Return the splits without images that share a label file, e.g. ``a.jpg`` and ``a.png``, and add findings."""
    sharing: dict[str, set[str]] = {}
    for name, label in labels.items():
        sharing.setdefault(label, set()).add(name)
    for name, label in labels.items():
        if len(sharing[label]) > 1:
            problem = f'{", ".join(sorted(sharing[label] - {name}))} has the same file, {label}'
            data.findings.append(Finding('annotation-shared', files.root / name, problem))
    return {
        split: [name for name in names if name not in labels or len(sharing[labels[name]]) == 1]
        for split, names in splits.items()
    }


def _descriptions(files: Files) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the yaml and ``.data`` files that describe a data set."""
    for name in files.with_suffix('.yaml', '.yml'):
        # Other names deep inside are files of a tool, as those in a clone of ultralytics or YOLOv5.
        if name.count('/') > 1 and posixpath.basename(name) not in MAIN:
            continue
        try:
            content = read_yaml(files.root / name)
        except UserError:
            if posixpath.basename(name) in MAIN:
                raise
            continue
        if not isinstance(content, Mapping):
            continue
        # supervision writes a data.yaml with names only.
        has_images, is_main = any(key in content for key in ('train', 'val')), posixpath.basename(name) in MAIN
        if 'names' in content and (has_images or is_main):
            yield name, content
        elif has_images and is_main:
            raise UserError(f'{files.root / name} has no names: it should list the names of the classes')
    for name in files.with_suffix('.data'):
        # The suffix is common, also of files that are not text.
        if name.count('/') > 1 or b'names' not in beginning(files.root / name):
            continue
        lines = [line.partition('=') for line in read_text(files.root / name).splitlines() if '=' in line]
        content = {key.strip(): value.strip() for key, _, value in lines}
        if 'names' in content and ('train' in content or 'valid' in content):
            yield name, content


def _describe(files: Files, data: DetectionData) -> Description:
    found = dict(_descriptions(files))
    preferred = [name for name in found if posixpath.basename(name) in MAIN]
    names = preferred if len(preferred) == 1 else list(found)
    if not names:
        return Description()
    if len(names) > 1:
        raise UserError(
            f'{files.root} has {len(names)} files that describe it ({first(names)}): leave one in the folder'
        )
    if len(found) > 1:
        data.notes.append(
            f'{names[0]} describes the data; not used: {first([name for name in found if name != names[0]])}'
        )
    name, content = names[0], found[names[0]]
    path = files.root / name
    if name.endswith('.data'):
        target = _inside(files, posixpath.dirname(name), content['names'])
        if target is None:
            raise UserError(f'{path}: names = {content["names"]}, a file that is not in {files.root}')
        return Description(name, content, _listed_names(files.root / target))
    return Description(name, content, _names_of(content, path, data))


def _names_of(content: Mapping[str, Any], path: Path, data: DetectionData) -> dict[int, str]:
    names = content['names']
    if isinstance(names, str) and names.strip().startswith('['):
        names = [name.strip(' \'"') for name in names.strip(' []').split(',')]
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        result = dict(enumerate(names))
    elif isinstance(names, Mapping) and names and all(isinstance(name, str) for name in names.values()):
        if not all(isinstance(key, str) and key.isdecimal() for key in names):
            wrong = next(key for key in names if not (isinstance(key, str) and key.isdecimal()))
            raise UserError(f'{path}: names has the key {wrong!r}; keys are the numbers of the classes, 0, 1, ...')
        result = {int(key): name for key, name in names.items()}
        if len(result) < len(names):
            raise UserError(f'{path}: names has a number twice')
    else:
        raise UserError(
            f'{path}: names should be a list of class names or a mapping of numbers to them, got {names!r:.80}'
        )
    count = content.get('nc', '')
    if isinstance(count, str) and count.strip().isdecimal() and int(count) != len(result):
        problem = f'nc is {count}, and names has {len(result)} classes'
        data.findings.append(Finding('class-count', path, problem, 'nc'))
    return result


def _listed_names(path: Path) -> dict[int, str]:
    lines = [line.strip() for line in read_text(path).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return dict(enumerate(lines))


def _list_files(files: Files) -> list[str]:
    """Return the files with the names of ``NAME_FILES``, the preferred one first."""
    return [name for base in NAME_FILES for name in files.names if posixpath.basename(name).lower() == base]


def _find_difference(source: Path, here: dict[int, str], other: str, there: dict[int, str]) -> Finding:
    """Return a finding on the first class number that has another name in another list of classes."""
    label = next(n for n in sorted({*here, *there}) if here.get(n) != there.get(n))
    shown = [repr(names[label]) if label in names else 'not listed' for names in (here, there)]
    return Finding('class-count', source, f'class {label} is {shown[0]}, but in {other} it is {shown[1]}')


def _compare_lists(files: Files, description: Description, names: dict[int, str], data: DetectionData) -> None:
    """Add a finding if a list of classes has the names of the description in another order.

    Labelling tools write such a list, whose order is that of the label files. A list with other names is a leftover.
    """
    ordered = [names[number] for number in sorted(names)]
    for name in _list_files(files):
        try:
            listed = _listed_names(files.root / name)
        except UserError:  # not text, and not needed
            continue
        if list(listed.values()) != ordered and sorted(listed.values()) == sorted(ordered):
            data.findings.append(_find_difference(files.root / description.name, names, name, listed))
            return


def _names(files: Files, rows: dict[str, list[list[str]]], data: DetectionData) -> dict[int, str]:
    """Return the class names of a data set without a description."""
    lists = {name: _listed_names(files.root / name) for name in _list_files(files)}
    if lists:
        chosen = next(iter(lists))
        if others := [name for name in lists if lists[name] != lists[chosen]]:
            data.findings.append(_find_difference(files.root / chosen, lists[chosen], others[0], lists[others[0]]))
        data.notes.append(f'class names are those of {chosen}')
        return lists[chosen]
    numbers = {
        number for group in rows.values() for row in group if row and (number := class_number(row[0])) is not None
    }
    count = max(numbers, default=-1) + 1
    if count > MAX_CLASSES:
        raise UserError(
            f'{files.root} has no file with class names, and labels with the class {count - 1}: add data.yaml'
        )
    data.notes.append(
        'no file names the classes (data.yaml with names, or classes.txt): they are named by their numbers'
    )
    return {number: str(number) for number in range(count)}


def _images(files: Files, description: Description, data: DetectionData) -> dict[str, list[str]]:
    """Return the names of the images of each split, sorted."""
    if all(description.content.get(key) in (None, '') for words in SPLITS.values() for key in words):
        return _images_by_folder(files, data)
    content, path = description.content, files.root / description.name
    folder = posixpath.dirname(description.name)
    start = content.get('path') or ''
    base = join(folder, start.replace('\\', '/')) if isinstance(start, str) else None
    if base is None or not files.has_folder('' if base == '.' else base):
        base = folder
        if start not in ('', '.'):
            data.notes.append(
                f'{description.name}: path {start!r} is not below {files.root} and not used; folders are relative to '
                'the file'
            )
    result: dict[str, list[str]] = {}
    problems: list[str] = []
    for split, keys in SPLITS.items():
        values = [content[key] for key in keys if content.get(key) not in (None, '')]
        listed = [item for value in values for item in (value if isinstance(value, list) else [value])]
        names: dict[str, None] = {}
        for item in listed:
            if not isinstance(item, str):
                raise UserError(f'{path}: {keys[0]} should be a path or a list of paths, got {item!r:.80}')
            target = _resolve(files, folder, base, item, start if isinstance(start, str) else '')
            found = [] if target is None else list(_expand(files, target, split, data))
            names.update(dict.fromkeys(found))
            if not found:
                kind, problem = _describe_missing(files, base, folder, item, target)
                if split == TEST:
                    data.notes.append(f'{description.name}: test {problem} and is not used')
                else:
                    problems.append(f'{keys[0]} {problem}')
                    if target not in files.names:  # what is wrong in a list is a finding already
                        data.findings.append(Finding(kind, path, problem, keys[0]))
            if target is None:
                continue
            straight = item.replace('\\', '/')
            if target not in (posixpath.normpath(posixpath.join(f, straight)) for f in (base, folder)):
                data.notes.append(f'{description.name}: {keys[0]} {item!r} is read as {target!r}')
        if names:
            result[split] = sorted(names)
    if not result:
        raise UserError(f'{path} names no images: {"; ".join(problems) or "name folders or lists as train and val"}')
    return result


def _describe_missing(files: Files, base: str, folder: str, item: str, target: str | None) -> tuple[str, str]:
    """Return the kind and problem of an entry of the yaml file that has no images, with a suggestion.

    Args:
        files: Files of the data set.
        base: Folder that entries are relative to.
        folder: Folder of the yaml file, which they may be relative to, too.
        item: The entry.
        target: The folder or list that it means; None if there is none.
    """
    straight = item.strip().replace('\\', '/')
    if target is not None:
        inside = f'{target}/' if target else ''
        unread = [name for name in files.with_suffix(*UNREAD_SUFFIXES) if name.startswith(inside)]
        hint = f' of a format that is read: convert {first(unread)} to JPEG' if unread else ''
        bare = [name for name in files.names if name.startswith(inside) and '.' not in posixpath.basename(name)]
        if bare and not unread:
            hint = f', but {amount(len(bare), "file")} without a suffix such as .jpg: add it ({first(bare)})'
        return 'split-missing', f'{item!r} has no images{hint}'
    if join(base, straight) is None and join(folder, straight) is None:
        kind, problem = 'path-outside', f'{item!r} leaves the folder'
    else:
        kind, problem = 'split-missing', f'{item!r} does not exist, or is empty'
    similar = find_similar(files, re.sub(r'^(\.{0,2}/)+', '', straight))
    if similar:
        problem += f'; {posixpath.relpath(similar, base or ".")} exists: write that path if it is meant'
    return kind, problem


def _resolve(files: Files, folder: str, base: str, item: str, start: str) -> str | None:
    """Return the folder or list that an entry of the yaml file means, relative to the root. None if there is none.

    Roboflow writes ``../train/images`` for a folder beside the file, which Ultralytics reads as if ``../`` were not
    there. An absolute path belongs to the machine on which the file was made. It is looked up by its last parts, at
    least two.
    """
    name = item.strip().replace('\\', '/')
    candidates = [join(base, name), join(folder, name)]
    straight = re.sub(r'^(\.\./)+', '', name)
    if straight != name:
        candidates += [join(base, straight), join(folder, straight)]
    if name.startswith('/') or DRIVE.match(name):
        begin = start.replace('\\', '/').rstrip('/') + '/'
        if len(begin) > 1 and name.startswith(begin):
            candidates.append(join(folder, name[len(begin) :]))
        parts = [part for part in name.split('/') if part not in ('', '.', '..')]
        candidates += [join(folder, '/'.join(parts[i:])) for i in range(1, len(parts) - 1)]
    for candidate in candidates:
        if candidate is None:
            continue
        candidate = '' if candidate == '.' else candidate
        if files.has_folder(candidate) or candidate in files.names:
            return candidate
    # darknet names files relative to the folder that it is started in.
    parts = name.split('/')
    for i in range(1, len(parts)):
        candidate = posixpath.join(folder, '/'.join(parts[i:]))
        if join(base, name) is not None and (candidate in files.names):
            return candidate
    return None


def _inside(files: Files, folder: str, name: str) -> str | None:
    return _resolve(files, folder, folder, name, '')


def _expand(files: Files, target: str, split: str, data: DetectionData) -> Iterator[str]:
    """Yield the images of a folder or of a list, or the image itself."""
    if target not in files.names:
        prefix = target + '/' if target else ''
        yield from (name for name in files.images if name.startswith(prefix))
        return
    if target.lower().endswith(IMAGE_SUFFIXES):
        yield target
        return
    entries: dict[str, str] = {}
    for number, line in enumerate(read_text(files.root / target).splitlines(), 1):
        name = line.strip()
        if not name:
            continue
        if name in entries:
            data.findings.append(Finding('listed-twice', files.root / target, f'{name!r}', f'line {number}'))
        entries.setdefault(name, f'line {number}')
    folder = posixpath.dirname(target)
    absolute = [name for name in entries if name.startswith('/') or DRIVE.match(name)]
    found = {name: image for name in absolute if (image := _inside(files, folder, name)) in files.names}
    if found:
        name, image = next(iter(found.items()))
        data.notes.append(
            f'{target}: {amount(len(found), "absolute path")} looked up by the last parts: {name!r} is {image}'
        )
        yield from found.values()
    entries = {name: entry for name, entry in entries.items() if name not in found}
    located = locate(files, target, entries, split=split)
    data.findings += located.findings
    data.notes += located.notes
    yield from located.names.values()


def _images_by_folder(files: Files, data: DetectionData) -> dict[str, list[str]]:
    """Return the images by split, by folders, if no description names them. Folders without any labels are left out."""
    images = [name for name in files.images if 'labels' not in name.split('/')[:-1]]
    labelled = [name for name in images if _label_of(files, name)]
    # Images without objects may have no label file, but are in a folder of images that have one.
    folders = {posixpath.dirname(name) for name in labelled}
    images = [name for name in images if posixpath.dirname(name) in folders]
    lists = {
        split: [
            name
            for name in files.with_suffix('.txt')
            if _stem(name).lower() in words and 'labels' not in name.split('/')
        ]
        for split, words in SPLITS.items()
    }
    chosen = {split: names[0] for split, names in lists.items() if len(names) == 1}
    if is_split(chosen):
        return {split: sorted(set(_expand(files, name, split, data))) for split, name in chosen.items()}
    splits: dict[str, list[str]] = {}
    for name, split in folder_splits(images, data.notes).items():
        splits.setdefault(split, []).append(name)
    return splits or {ALL: images}


def _stem(name: str) -> str:
    return posixpath.splitext(posixpath.basename(name))[0]


def _label_of(files: Files, image: str) -> str | None:
    """Return the label file of an image, relative to the root. None if there is none.

    Some tools name it ``a.jpg.txt`` instead of ``a.txt``.
    """
    candidates = [*_label_names(posixpath.splitext(image)[0]), *_label_names(image)]
    found = next((name for name in candidates if name in files.names), None)
    return found or next((name for label in candidates if (name := find_respelled(files, label))), None)


def _label_names(stem: str) -> Iterator[str]:
    """Yield the names that the label file of an image may have, given its path, usually without suffix."""
    parts = stem.split('/')
    for i in range(len(parts) - 2, -1, -1):
        if parts[i].lower() not in IMAGE_FOLDERS:
            continue
        for folder in LABEL_FOLDERS:
            yield '/'.join([*parts[:i], folder, *parts[i + 1 :]]) + '.txt'
    if posixpath.basename(stem).lower() + '.txt' not in OTHER_TEXTS:
        yield stem + '.txt'


def _has_labels(path: Path) -> bool:
    """Return whether the first line of a text file that is not blank is a row of numbers."""
    try:
        first = next((row for row in _rows(path) if row), [])
    except UserError:
        return False
    try:
        return len([float(value) for value in first]) >= 5
    except ValueError:
        return False


def _rows(path: Path) -> list[list[str]]:
    return [line.split() for line in read_text(path).splitlines()]


def _sizes(files: Files, names: list[str]) -> dict[str, tuple[int, int]]:
    """Return width and height of images, without unreadable ones, which the check reports."""

    def read(name: str) -> tuple[int, int] | None:
        try:
            return image_size(files.root / name)
        except UserError:
            return None

    with ThreadPoolExecutor(cores()) as pool:
        return {name: size for name, size in zip(names, pool.map(read, names), strict=True) if size}


def _pose_columns(description: Description, root: Path) -> int | None:
    """Return the number of values in a label row with keypoints. None if the data set has no keypoints."""
    shape = description.content.get('kpt_shape')
    if shape is None:
        return None
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(v, str) and v.isdecimal() for v in shape)):
        raise UserError(f'{root / description.name}: kpt_shape should be [points, 2 or 3], got {shape!r:.80}')
    return 5 + int(shape[0]) * int(shape[1])


def _leave_out_missing(
    files: Files, splits: dict[str, list[str]], labels: dict[str, str], data: DetectionData
) -> dict[str, list[str]]:
    """Return the splits without images whose labels may be lost. Notes and findings name what is missing.

    A few label files without an image are what removed images leave behind. If there are many, files were probably
    renamed, and an image without a label file is then not taken for an image without objects.
    """
    images = [name for names in splits.values() for name in names]
    used = set(labels.values())
    folders = {posixpath.dirname(label) for label in used}
    if not folders:  # no image has a label file
        folders = {folder for image in images for folder in _folders_of_labels(image)}
    elsewhere, strays = _find_elsewhere(files, splits, labels, folders, data)
    orphans = _find_orphans(files, images, used.union(elsewhere.values()), folders, data) + strays
    for name, label in elsewhere.items():
        expected = next(_label_names(posixpath.splitext(name)[0]))
        problem = f'it has no label file {expected}, but {label} has its name: move that file if it is of the image'
        data.findings.append(Finding('annotation-missing', files.root / name, problem))
    splits = {split: [name for name in names if name not in elsewhere] for split, names in splits.items()}
    images = [name for name in images if name not in elsewhere]
    bare = [name for name in images if name not in labels]
    if bare:
        data.findings += other_labels(files, bare, {'.xml': VOC_OBJECT, '.json': LABELME_OBJECT})
    if bare and len(orphans) > MAX_DROPPED * len({*orphans, *labels.values()}):
        problem = f'it has no label file, and {amount(len(orphans), "label file")} no image, first {orphans[0]}'
        data.findings += [Finding('annotation-missing', files.root / name, problem) for name in bare]
        return {split: [name for name in names if name in labels] for split, names in splits.items()}
    if bare:
        data.notes.append(
            f'{len(bare)} of {amount(len(images), "image")} without a label file, taken as images without objects: '
            f'{first(bare)}'
        )
    return splits


def _find_orphans(files: Files, images: list[str], used: set[str], folders: set[str], data: DetectionData) -> list[str]:
    """Return the label files in some folders that belong to no image, and add findings for them.

    Args:
        files: Files of the data set.
        images: Images of all splits.
        used: Their label files.
        folders: Folders to look in.
        data: The data set. A note is added on images that have labels and are in no split.
    """
    spare = [
        name
        for name in files.with_suffix('.txt')
        if posixpath.dirname(name) in folders and posixpath.basename(name).lower() not in OTHER_TEXTS
    ]
    spare = [name for name in spare if name not in used and _has_labels(files.root / name)]
    listed = set(images)
    others = files.with_suffix(*IMAGE_SUFFIXES, *UNREAD_SUFFIXES) if spare else []
    owners = {label: image for image in others if image not in listed and (label := _label_of(files, image))}
    orphans, unlisted = [], []
    for name in spare:
        owner = owners.get(name)
        if owner is None:
            orphans.append(name)
            problem = 'there is no image of its name'
            data.findings.append(Finding('annotation-without-image', files.root / name, problem))
        elif owner.lower().endswith(UNREAD_SUFFIXES):
            path = files.root / owner
            data.findings.append(Finding('unreadable-image', path, reason(unread_format(path), str(path))))
        else:
            unlisted.append(owner)
    if unlisted and not any(finding.kind == 'path-outside' for finding in data.findings):
        data.notes.append(f'{amount(len(unlisted), "image")} with labels in no split, not used: {first(unlisted)}')
    return orphans


def _folders_of_labels(image: str) -> Iterator[str]:
    """Yield the folders in which the label file of an image is looked up."""
    yield from map(posixpath.dirname, _label_names(posixpath.join(posixpath.dirname(image), 'a')))


class _Spare(NamedTuple):
    """A text file in a folder of labels, or below images without a label file, that is not the label file of any image.

    Attributes:
        label: Its path.
        images: Images without a label file that have its name.
        is_stray: True if it may be of an image without a label file: of one of several in ``images``, or of one that
            has been renamed.
    """

    label: str
    images: list[str]
    is_stray: bool


def _find_elsewhere(
    files: Files, splits: dict[str, list[str]], labels: dict[str, str], near: set[str], data: DetectionData
) -> tuple[dict[str, str], list[str]]:
    """Look for the labels of images without a label file in other folders than their own.

    Args:
        files: Files of the data set.
        splits: Images of all splits.
        labels: The label file of each image that has one.
        near: Folders of these label files.
        data: The data set. A note is added on label files that are not used.

    Returns:
        For each image without a label file that is the only one of its split with the name of a label file, this label
        file. And the label files outside ``near`` without an image of their name.
    """
    spare = list(_spare_labels(files, splits, labels, near))
    if spare:
        listed = {name for names in splits.values() for name in names}
        unlisted = [name for name in files.with_suffix(*IMAGE_SUFFIXES, *UNREAD_SUFFIXES) if name not in listed]
        owned = {_label_of(files, image) for image in unlisted}
        spare = [file for file in spare if file.label not in owned and _has_labels(files.root / file.label)]
    elsewhere: dict[str, str] = {}
    for file in spare:
        if len(file.images) == 1:
            elsewhere.setdefault(file.images[0], file.label)
    others = [file for file in spare if len(file.images) != 1]
    if others:
        data.notes.append(
            f'{amount(len(others), "label file")} in other folders than those of the images, not used: '
            f'{first(file.label for file in others)}'
        )
    return elsewhere, [file.label for file in others if file.is_stray]


def _spare_labels(
    files: Files, splits: dict[str, list[str]], labels: dict[str, str], near: set[str]
) -> Iterator[_Spare]:
    """Yield the text files that may be lost label files. ``_find_elsewhere`` describes the arguments.

    Those in ``near`` count if they have the name of a single image, because ``_find_orphans`` sees the others there.
    Those below images, where texts may be anything, count if they have the name of an image.
    """
    bare = {split: [name for name in names if name not in labels] for split, names in splits.items()}
    by_stem, bare_by_stem = ({s: _by_stem(names) for s, names in group.items()} for group in (splits, bare))
    beside = {posixpath.dirname(name) for names in bare.values() for name in names}
    looked_up = {folder for names in bare.values() for name in names for folder in _folders_of_labels(name)}
    roots = {root for folder in looked_up | near if (root := _root_of_labels(folder))}
    used = set(labels.values())
    for label in files.with_suffix('.txt'):
        folder, base = posixpath.split(label)
        is_below = _is_in(folder, roots)
        if label in used or base.lower() in OTHER_TEXTS or not (is_below or _is_in(folder, beside)):
            continue
        named = split_of(folder)
        possible = [split for split, names in bare.items() if names and (split == ALL or named in (None, split))]
        images = _images_named(label, [bare_by_stem[split] for split in possible])
        if len(images) == 1 or (folder not in near and (images or is_below)):
            is_known = bool(_images_named(label, [by_stem[split] for split in possible]))
            yield _Spare(label, images, is_stray=bool(possible) and (bool(images) or not is_known))


def _images_named(label: str, groups: Iterable[dict[str, list[str]]]) -> list[str]:
    """Return the images with the name of a label file, ``a.txt`` or ``a.jpg.txt``.

    Args:
        label: The label file.
        groups: Images by stem.
    """
    for stem in (_stem(label), _stem(_stem(label))):
        if found := [image for group in groups for image in group.get(stem, ())]:
            return found
    return []


def _root_of_labels(folder: str) -> str | None:
    """Return the path up to a folder of labels: ``a/labels`` of ``a/labels/train``. None if there is none."""
    parts = folder.split('/')
    last = next((i for i in range(len(parts) - 1, -1, -1) if parts[i] in LABEL_FOLDERS), None)
    return None if last is None else '/'.join(parts[: last + 1])


def _is_in(folder: str, roots: set[str]) -> bool:
    """Return whether a folder is one of others, or in one of them at any depth."""
    parts = folder.split('/')
    return any('/'.join(parts[:i]) in roots for i in range(len(parts) + 1))


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    result: dict[str, list[str]] = {}
    for name in names:
        result.setdefault(_stem(name), []).append(name)
    return result
