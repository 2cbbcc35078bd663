"""The files of a data set: a list made once, the split that a path names, and the file that an annotation means."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path

from mnv4_mm.data.documents import read_json
from mnv4_mm.data.findings import Finding
from mnv4_mm.data.form import ALL, TEST, TRAIN, VAL, DetectionData, LabelledImage, MaskData, MaskedImage
from mnv4_mm.errors import UserError
from mnv4_mm.images import IMAGE_SUFFIXES

MAX_FILES = 4_000_000
SAMPLE = 100  # names of an annotation file that are looked up to find the folder that they are relative to
MAX_STRIPPED = 4  # leading folders of a name that are left out to find the image
DRIVE = re.compile(r'[A-Za-z]:')
WORDS = re.compile(r'[a-z]+')
PREDICTIONS = 'predictions.json'  # of infer
LABELS = ('.json', '.xml', '.txt', '.yaml', '.yml')
SCORE = re.compile(rb'"score"\s*:')
BEGINNINGS = ((TRAIN, 'train'), (VAL, 'val'), (VAL, 'eval'), (TEST, 'test'))


class Files:
    """Files below a folder. Hidden ones, what macOS and Windows add, and output folders of ``infer`` are left out.

    Attributes:
        root: The folder.
        names: Paths relative to it, with ``/``, sorted.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        names: list[str] = []
        visited: set[str] = set()
        for folder, folders, files in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited:  # a link to a folder above it
                folders.clear()
                continue
            visited.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith('.') and name != '__MACOSX')
            prefix = Path(folder).relative_to(root).as_posix()
            prefix = '' if prefix == '.' else prefix + '/'
            names += [prefix + name for name in files if not name.startswith('.')]
            if len(names) > MAX_FILES:
                raise UserError(f'{root} has more than {MAX_FILES:,} files: name the folder of one data set')
        self.names = sorted(_without_outputs(root, names))

    @cached_property
    def known(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def images(self) -> list[str]:
        """Names with the suffix of an image."""
        return self.with_suffix(*IMAGE_SUFFIXES)

    @cached_property
    def image_folders(self) -> list[str]:
        """Folders with images, and the folders above them."""
        folders = dict.fromkeys(posixpath.dirname(name) for name in self.images)
        for folder in list(folders):
            while folder:
                folder = posixpath.dirname(folder)
                folders.setdefault(folder)
        return sorted(folders, key=lambda folder: (folder.count('/'), folder))

    @cached_property
    def images_by_stem(self) -> dict[str, list[str]]:
        """Images by file name without folder and suffix."""
        result: dict[str, list[str]] = {}
        for name in self.images:
            result.setdefault(posixpath.splitext(posixpath.basename(name))[0], []).append(name)
        return result

    @cached_property
    def images_by_base(self) -> dict[str, list[str]]:
        """Images by file name without folder."""
        result: dict[str, list[str]] = {}
        for name in self.images:
            result.setdefault(posixpath.basename(name), []).append(name)
        return result

    @cached_property
    def spellings(self) -> dict[str, list[str]]:
        """Names by their spelling without regard to upper and lower case and to how accents are composed."""
        result: dict[str, list[str]] = {}
        for name in self.names:
            result.setdefault(_fold(name), []).append(name)
        return result

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Return the names that end in one of the suffixes, in upper or lower case."""
        return [name for name in self.names if name.lower().endswith(suffixes)]

    def has_folder(self, folder: str) -> bool:
        return folder in self.folders

    @cached_property
    def folders(self) -> frozenset[str]:
        """Folders that contain files, at any depth."""
        folders = {''}
        for folder in {posixpath.dirname(name) for name in self.names}:
            while folder not in folders:
                folders.add(folder)
                folder = posixpath.dirname(folder)
        return frozenset(folders)


def _without_outputs(root: Path, names: list[str]) -> list[str]:
    """Leave out the output folders of ``infer``: they hold a copy of each image, with the predictions drawn."""
    outputs = []
    for name in names:
        folder, base = posixpath.split(name)
        if base == PREDICTIONS and folder and holds_predictions(root / name):
            # A folder with other files of labels is not one that infer has made.
            others = [other for other in names if other.startswith(folder + '/') and other.lower().endswith(LABELS)]
            if {posixpath.basename(other) for other in others} <= {PREDICTIONS, 'coco_results.json'}:
                outputs.append(folder + '/')
    return [name for name in names if not name.startswith(tuple(outputs))] if outputs else names


def holds_predictions(path: Path) -> bool:
    """Return True for COCO JSON with predictions, not ground truth: each annotation has a score.

    Also for the ``predictions.json`` of ``infer`` without any detection, and that of a segmenter.
    """
    try:
        with path.open('rb') as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            if path.name != PREDICTIONS and not SCORE.search(data):
                return False
        content = read_json(path)
    except (OSError, ValueError, UserError):  # ValueError: an empty file
        return False
    if not isinstance(content, dict):
        return False
    annotations = content.get('annotations')
    if not isinstance(annotations, list):
        return path.name == PREDICTIONS and content.keys() >= {'values', 'images'}
    is_scored = all(isinstance(entry, dict) and 'score' in entry for entry in annotations)
    return is_scored and (bool(annotations) or path.name == PREDICTIONS)


def _fold(name: str) -> str:
    return unicodedata.normalize('NFC', name).casefold()


def split_of(name: str) -> str | None:
    """Return the split that a path names, the file name first, then the folders from the innermost one outwards.

    ``annotations/instances_train2017.json`` is TRAIN, ``valid/_annotations.coco.json`` is VAL. None if it names none.
    """
    for part in reversed(posixpath.splitext(name)[0].split('/')):
        for word in WORDS.findall(part.lower()):
            for split, beginning in BEGINNINGS:
                if word.startswith(beginning):
                    return split
    return None


def complete_splits(splits: dict[str, list[LabelledImage]]) -> dict[str, list[LabelledImage]]:
    """Leave out empty splits; a single one that is not for training alone is the whole data set."""
    splits = {split: images for split, images in splits.items() if images}
    if len(splits) == 1 and TRAIN not in splits:
        return {ALL: next(iter(splits.values()))}
    return {split: splits[split] for split in (TRAIN, VAL, ALL, TEST) if split in splits}


def join(folder: str, name: str) -> str | None:
    """Join a folder and a name that is written in a file, both relative to the root, with ``/``.

    Returns:
        None if the path leaves the root: it is absolute, has a drive or a protocol, or too many ``..``.
    """
    if name.startswith('/') or DRIVE.match(name) or '://' in name:
        return None
    joined = posixpath.normpath(posixpath.join(folder, name))
    return None if joined == '..' or joined.startswith('../') else joined


@dataclass
class Located:
    """The images that the names in an annotation file mean.

    Attributes:
        names: Path relative to the root by name in the file; also of images that do not exist. Names that leave the
            root are missing.
        findings: Names that leave the root, and what was corrected.
        notes: What was decided.
    """

    names: dict[str, str]
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def locate(
    files: Files, source: str, names: dict[str, str], preferred: Sequence[str] = (), split: str | None = None
) -> Located:
    """Find the images that an annotation file lists.

    Names are relative to a folder that most formats do not define. It is the folder in which most of them exist, with
    as few leading folders of the names left out as possible. A folder of another split is not considered.

    Args:
        files: Files of the data set.
        source: Annotation file, relative to the root.
        names: Names as they are written -> entry for messages.
        preferred: Folders to prefer, in this order, relative to the root.
        split: Split that the annotation file is for.
    """
    located = Located({})
    path = files.root / source
    straight = {name: name.replace('\\', '/') for name in names}
    windows = [name for name, new in straight.items() if new != name]
    inside: list[str] = []
    base = posixpath.dirname(source)
    bases = [folder for folder in (*preferred, base, '') if files.has_folder(folder)]
    for name, new in straight.items():
        if not _is_encodable(name) or not new.strip('/. '):
            located.findings.append(Finding('entry-invalid', path, f'{name!r} is not a file name', names[name]))
        elif all(join(folder, new) is None for folder in bases):
            located.findings.append(
                Finding('path-outside', path, f'{name!r} leaves the folder{_hint(files, new)}', names[name])
            )
        else:
            inside.append(name)
    folder, stripped = _choose_folder(files, [straight[name] for name in inside], bases, split)
    if stripped:
        located.notes.append(f'{source}: images are looked up in {folder or "."}/ without their first folders')
    moved, respelled = [], []
    for name in inside:
        parts = straight[name].split('/')
        target = join(folder, '/'.join(parts[min(stripped, len(parts) - 1) :]))
        if target is None or target not in files.known:
            found = _find_respelled(files, target) if target else None
            if found:
                respelled.append(name)
            else:
                found = _find_below(files, parts, split)
                if found:
                    moved.append(name)
            target = found or target or next(t for f in bases if (t := join(f, straight[name])) is not None)
        located.names[name] = target
    used = set(located.names)
    if windows := [name for name in windows if name in used]:
        located.findings.append(Finding('path-separator', path, _count(windows, 'with backslashes'), names[windows[0]]))
    if respelled:
        located.findings.append(
            Finding('path-spelling', path, _count(respelled, 'in another spelling'), names[respelled[0]])
        )
    if moved:
        located.notes.append(f'{source}: {_count(moved, "found in other folders by their names")}')
    return located


def _is_encodable(name: str) -> bool:
    try:
        return b'\0' not in os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _count(names: list[str], what: str) -> str:
    return f'{amount(len(names), "image")} {what}, the first one {names[0]!r}'


def _choose_folder(files: Files, names: list[str], bases: Sequence[str], split: str | None) -> tuple[str, int]:
    """Return the folder in which most of the names exist, and how many leading folders they lose."""
    sample = names[:: max(1, len(names) // SAMPLE)]
    depth = max((name.count('/') for name in sample), default=0)
    folders = list(dict.fromkeys([*bases, *files.image_folders]))
    folders = [folder for folder in folders if split is None or split_of(folder) in (None, split)] or folders
    best, chosen = 0, (folders[0], 0)
    for stripped in range(min(depth, MAX_STRIPPED) + 1):
        for folder in folders:
            count = 0
            for name in sample:
                parts = name.split('/')
                count += join(folder, '/'.join(parts[min(stripped, len(parts) - 1) :])) in files.known
            if count > best:
                best, chosen = count, (folder, stripped)
        if best == len(sample):
            break
    return chosen


def _find_respelled(files: Files, name: str) -> str | None:
    found = files.spellings.get(_fold(name), [])
    return found[0] if len(found) == 1 else None


def _find_below(files: Files, parts: list[str], split: str | None) -> str | None:
    """Return the only image in the tree, of this split, whose path ends in the whole name."""
    end = '/' + '/'.join(parts)
    found = [name for name in files.images_by_base.get(parts[-1], []) if ('/' + name).endswith(end)]
    found = [name for name in found if split is None or split_of(posixpath.dirname(name)) in (None, split)]
    return found[0] if len(found) == 1 else None


def _hint(files: Files, name: str) -> str:
    found = files.images_by_base.get(posixpath.basename(name), [])
    return f'; {found[0]} has the same name: if it is meant, write that path' if found else ''


def match_by_stem(files: Files, name: str, split: str | None = None, *, stem: str | None = None) -> str | None:
    """Return the image with the name of an annotation file: beside it, in the folder most alike, or the only one.

    Args:
        files: Files of the data set.
        name: The annotation file, relative to the root.
        split: Split that it belongs to.
        stem: Name without folders and suffix; may begin with folders of its own.
    """
    folder, base = posixpath.split(posixpath.splitext(name)[0])
    stem = posixpath.basename(stem) if stem else base
    found = files.images_by_stem.get(stem, [])
    beside = [image for image in found if posixpath.dirname(image) == folder]
    if beside:
        return beside[0]
    if len(found) > 1:
        # The image whose folders have most in common with those of the annotation file.
        own = folder.split('/')
        common = [len(set(own) & set(posixpath.dirname(image).split('/'))) for image in found]
        found = [image for image, count in zip(found, common, strict=True) if count == max(common)]
    found = [image for image in found if split is None or split_of(posixpath.dirname(image)) in (None, split)]
    return found[0] if len(found) == 1 else None


def beginning(path: Path, count: int = 2**16) -> bytes:
    """Return the first bytes of a text file without byte order mark and blanks, of UTF-16 each second byte."""
    try:
        with path.open('rb') as file:
            data = file.read(count)
    except OSError:
        return b''
    if data[:2] in (b'\xff\xfe', b'\xfe\xff') or data[:4].count(0) == 2:
        data = data.replace(b'\0', b'')
    return data.lstrip(b'\xff\xfe\xef\xbb\xbf \t\r\n')


def amount(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 image``, ``2 images``."""
    return f'{count:,} {noun}{"" if count == 1 else "es" if noun.endswith("x") else "s"}'


def first(values: Iterable[str], count: int = 3) -> str:
    """Join the first values for a message."""
    values = list(values)
    return ', '.join(values[:count]) + (f' and {len(values) - count} more' if len(values) > count else '')


def split_by_folder(splits: dict[str, list[LabelledImage]], notes: list[str]) -> dict[str, list[LabelledImage]]:
    """Split by the folders of the images what is not split, if each of them is named after a split."""
    if set(splits) != {ALL}:
        return splits
    named: dict[str | None, list[LabelledImage]] = {}
    for image in splits[ALL]:
        named.setdefault(split_of(posixpath.dirname(image.name)), []).append(image)
    if None in named or not {TRAIN, VAL} <= named.keys():
        return splits
    notes.append('the split is that of the folders of the images')
    return {split: named[split] for split in (TRAIN, VAL, TEST) if split in named}


def separate(data: DetectionData | MaskData) -> None:
    """Find images that are in the training split and in another one too. Identical splits become one, ``ALL``."""
    splits: dict[str, list] = data.splits
    if TRAIN not in splits:
        return
    training = {image.name: image for image in splits[TRAIN]}
    if VAL in splits and training.keys() == {image.name for image in splits[VAL]}:
        data.notes.append('the same images are for training and validation: they are split anew')
        del splits[VAL]
        splits[ALL] = splits.pop(TRAIN)
        return
    for split in (VAL, TEST):
        for image in splits.get(split, []):
            if image.name in training:
                problem = f'{image.name!r} is for {split}, and for training in {_source(data, training[image.name])}'
                data.findings.append(Finding('image-in-two-splits', _source(data, image), problem))


def _source(data: DetectionData | MaskData, image: LabelledImage | MaskedImage) -> Path:
    return image.source if isinstance(image, LabelledImage) else data.root / image.mask
