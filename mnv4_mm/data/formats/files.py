"""Files of a data set: list them once, tell the split from a path, and find the image that an annotation refers to."""

import contextlib
import os
import posixpath
import re
import unicodedata
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn
from urllib.parse import unquote

from mnv4_mm.data.documents import read_json
from mnv4_mm.data.findings import Finding
from mnv4_mm.data.form import ALL, TEST, TRAIN, VAL, DetectionData, LabelledImage, MaskData, MaskedImage
from mnv4_mm.errors import UserError
from mnv4_mm.images import IMAGE_SUFFIXES, image_size

MAX_FILES = 4_000_000
SAMPLE = 100  # about so many names of an annotation file are looked up to find the folder that they are relative to
MAX_STRIPPED = 4  # most leading folders of a name that are left out to find the image
# Bytes that a file with a labelled object contains.
VOC_OBJECT, LABELME_OBJECT = b'<object>', b'"label"'
OTHER_FOLDERS = ('__MACOSX', 'lost+found')  # of macOS's archives and of file systems
DRIVE = re.compile(r'[A-Za-z]:')
URL = re.compile(r'(?!file:)[A-Za-z][A-Za-z0-9+.-]+://')
# Words of a name, also where only capitals separate them, as in trainA or ImagesTrain.
WORDS = re.compile(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+')
SPLIT_NAMES = {
    'train': TRAIN, 'training': TRAIN, 'val': VAL, 'valid': VAL, 'validation': VAL, 'eval': VAL, 'evaluation': VAL,
    'test': TEST, 'testing': TEST,
}  # fmt: skip
# A word that names a split, which some tools join with the next word: trainval, testset.
SPLIT_WORD = re.compile(rf'({"|".join(SPLIT_NAMES)})(val|sets?|data|images?|imgs?|labels?|annotations?)?')
PREDICTIONS = 'predictions.json'  # written by infer
LABELS = ('.json', '.xml', '.txt', '.yaml', '.yml')
SCORE = re.compile(rb'"score"\s*:')


class Files:
    """Files below a folder, without hidden files and folders, ``OTHER_FOLDERS`` and output folders of ``mnv4 infer``.

    Links to folders are followed. All paths are relative to the folder and have ``/`` as separator.

    Attributes:
        root: The folder.
        names: Paths of all files, sorted. Like a set, it tells quickly whether a path is among them.

    Raises:
        UserError: A folder cannot be listed, or there are more than ``MAX_FILES`` files.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        names: list[str] = []
        visited: set[str] = set()
        for folder, folders, files in os.walk(root, onerror=refuse_folder, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited:  # a link to a folder above it
                folders.clear()
                continue
            visited.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith('.') and name not in OTHER_FOLDERS)
            prefix = Path(folder).relative_to(root).as_posix()
            prefix = '' if prefix == '.' else prefix + '/'
            names += [prefix + name for name in files if not name.startswith('.')]
            if len(names) > MAX_FILES:
                raise UserError(f'{root} has more than {MAX_FILES:,} files: name the folder of one data set')
        self.names = dict.fromkeys(sorted(_without_outputs(root, names))).keys()

    @cached_property
    def images(self) -> list[str]:
        """Paths of the files with the suffix of an image format, sorted."""
        return self.with_suffix(*IMAGE_SUFFIXES)

    @cached_property
    def image_folders(self) -> list[str]:
        """Folders with images at any depth, the outermost first. The root is ``''``."""
        folders = dict.fromkeys(posixpath.dirname(name) for name in self.images)
        for folder in list(folders):
            while folder:
                folder = posixpath.dirname(folder)
                folders.setdefault(folder)
        return sorted(folders, key=lambda folder: (folder.count('/'), folder))

    @cached_property
    def images_by_stem(self) -> dict[str, list[str]]:
        """Paths of the images by file name without folder and suffix."""
        result: dict[str, list[str]] = {}
        for name in self.images:
            result.setdefault(posixpath.splitext(posixpath.basename(name))[0], []).append(name)
        return result

    @cached_property
    def images_by_base(self) -> dict[str, list[str]]:
        """Paths of the images by file name without folder."""
        result: dict[str, list[str]] = {}
        for name in self.images:
            result.setdefault(posixpath.basename(name), []).append(name)
        return result

    @cached_property
    def spellings(self) -> dict[str, list[str]]:
        """Paths of all files by their path after Unicode normalisation (NFC) and case folding."""
        result: dict[str, list[str]] = {}
        for name in self.names:
            result.setdefault(_fold(name), []).append(name)
        return result

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Return the paths that end in one of the suffixes, ignoring case.

        Args:
            suffixes: Suffixes in lower case, e.g. ``.json``.
        """
        return [name for name in self.names if name.lower().endswith(suffixes)]

    def has_folder(self, folder: str) -> bool:
        return folder in self.folders

    @cached_property
    def folders(self) -> frozenset[str]:
        """Folders that contain files at any depth. The root is ``''`` and always included."""
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
    """Return True for a COCO JSON file with predictions instead of ground truth, i.e. a score in each annotation.

    The result is also True for a ``predictions.json`` of ``mnv4 infer`` that has no detections or is of a segmentation
    model. It is False for a file that cannot be read.
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


def refuse_folder(error: OSError) -> NoReturn:
    """Raise an error for a folder that ``os.walk`` cannot list and would skip.

    Raises:
        UserError: Always.
    """
    raise UserError(
        f'{error.filename} cannot be listed: {error.strerror}. The data set may be incomplete: make the folder '
        'readable, or move it elsewhere'
    ) from error


def _fold(name: str) -> str:
    return unicodedata.normalize('NFC', name).casefold()


def split_of(name: str) -> str | None:
    """Return the split that a path names: ``TRAIN``, ``VAL`` or ``TEST``, or None if it names none.

    A split is named by a whole word of ``SPLIT_NAMES``. The file name is looked at first, then the folders from the
    innermost one outwards: ``annotations/instances_train2017.json`` is ``TRAIN``, ``valid/_annotations.coco.json`` is
    ``VAL``, and ``trainstation/a.xml`` is of no split.
    """
    for part in reversed(posixpath.splitext(name)[0].split('/')):
        for word in WORDS.findall(part):
            if match := SPLIT_WORD.fullmatch(word.lower()):
                return SPLIT_NAMES[match[1]]
    return None


def is_split(splits: Container[str | None]) -> bool:
    """Return whether splits are those of a data set that is split already: training, and validation or testing."""
    return TRAIN in splits and (VAL in splits or TEST in splits)


def folder_splits(names: Sequence[str], notes: list[str], noun: str = 'image') -> dict[str, str]:
    """Return the split of each file, if the names of their folders split the data set, e.g. ``images/train``.

    Args:
        names: Paths of the images, or of their annotation files, relative to the root.
        notes: Notes on the data set. If the folders split it, a note says so, and another names the folders whose files
            are in no split.
        noun: What the files are.

    Returns:
        Split by path, without the files that are in no split. Empty unless ``is_split``.
    """
    named = {name: split_of(posixpath.dirname(name)) for name in names}
    if not is_split(named.values()):
        return {}
    notes.append(f'the split is that of the folders of the {noun}s')
    others = [name for name, split in named.items() if split is None]
    if others:
        folders = first(dict.fromkeys(f'{posixpath.dirname(name) or "."}/' for name in others))
        notes.append(f'{amount(len(others), noun)} in folders that name no split, not used: {folders}')
    return {name: split for name, split in named.items() if split}


def complete_splits(splits: dict[str, list[LabelledImage]]) -> dict[str, list[LabelledImage]]:
    """Return the splits without empty ones. A single split other than ``TRAIN`` becomes ``ALL``."""
    splits = {split: images for split, images in splits.items() if images}
    if len(splits) == 1 and TRAIN not in splits:
        return {ALL: next(iter(splits.values()))}
    return {split: splits[split] for split in (TRAIN, VAL, ALL, TEST) if split in splits}


def join(folder: str, name: str) -> str | None:
    """Join a folder and a name that is written in a file, and normalise the result.

    Args:
        folder: Folder relative to the root, with ``/`` as separator.
        name: Path relative to the folder, with ``/`` as separator.

    Returns:
        The path relative to the root; ``.`` for the root itself. None if the path is outside the root, because the name
        is absolute, has a drive or a protocol, or has too many ``..``.
    """
    if name.startswith('/') or DRIVE.match(name) or '://' in name:
        return None
    joined = posixpath.normpath(posixpath.join(folder, name))
    return None if joined == '..' or joined.startswith('../') else joined


@dataclass
class Located:
    """Images that the names in an annotation file refer to.

    Attributes:
        names: Maps each name in the annotation file to the path of the image relative to the root. Images that do not
            exist are included. Names that are invalid or lead outside the root are not.
        findings: Findings on names that are invalid or lead outside the root, and on names that were corrected:
            backslashes and other spellings.
        notes: What was decided, one sentence each.
    """

    names: dict[str, str]
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def locate(
    files: Files,
    source: str,
    names: dict[str, str],
    preferred: Sequence[str] = (),
    split: str | None = None,
    sizes: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> Located:
    """Find the images that an annotation file lists.

    Names are relative to a folder that most formats do not define. The folder in which most of the names exist is used,
    with as few of the names' leading folders left out as possible. Folders of other splits are not considered. If
    several folders contain equally many of the names, the one whose images have the stated sizes is used. If sizes do
    not decide, the first usual folder is used: one of ``preferred``, the folder of the annotation file, or the root.

    A name that does not exist in this folder is looked up in another spelling (case, Unicode normalisation), and then
    in other folders, where exactly one image must have a path that ends in the name.

    Args:
        files: Files of the data set.
        source: Annotation file, relative to the root.
        names: Maps each name as written in the annotation file to its entry in the file, e.g. ``image 17``, for
            messages.
        preferred: Folders to prefer, in this order, relative to the root.
        split: Split that the annotation file is for. None considers all folders.
        sizes: Width and height in pixels that the annotation file states, by name. Names without a size may be missing.

    Returns:
        The images, with findings and notes.

    Raises:
        UserError: Several folders contain equally many of the names, their image sizes do not decide, and none of them
            is a usual folder.
    """
    located = Located({})
    path = files.root / source
    straight = {name: _decode(files, name.replace('\\', '/')) for name in names}
    windows = [name for name in names if '\\' in name]
    inside: list[str] = []
    base = posixpath.dirname(source)
    bases = [folder for folder in (*preferred, base, '') if files.has_folder(folder)]
    for name, new in straight.items():
        if not _is_encodable(name) or not new.strip('/. '):
            located.findings.append(Finding('entry-invalid', path, f'{name!r} is not a file name', names[name]))
        elif all(join(folder, new) is None for folder in bases):
            located.findings.append(Finding('path-outside', path, describe_outside(files, name), names[name]))
        else:
            inside.append(name)
    folders, stripped = _choose_folders(files, [straight[name] for name in inside], bases, split)
    stated = {straight[name]: size for name, size in sizes.items() if name in straight}
    folder = _choose_by_size(files, folders, stripped, stated)
    if len(folders) > 1:
        listed = ' and '.join(f'{other or "."}/' for other in folders[:3])
        if folder is None and folders[0] not in bases:
            raise UserError(
                f'{path} lists images that are in {listed}, with the same names: list them with their folder, or '
                'keep one of the folders'
            )
        reason = 'the sizes fit' if folder is not None else 'it is the usual place'
        folder = folders[0] if folder is None else folder
        located.notes.append(f'{source}: {listed} have images of the same names; {folder or "."}/ is used: {reason}')
    folder = folder or ''
    if stripped:
        located.notes.append(f'{source}: images are looked up in {folder or "."}/ without their first folders')
    moved, respelled = [], []
    for name in inside:
        parts = straight[name].split('/')
        target = _below(folder, straight[name], stripped)
        if target is None or target not in files.names:
            found = find_respelled(files, target) if target else None
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
    if encoded := [name for name in located.names if straight[name] != name.replace('\\', '/')]:
        located.notes.append(f'{source}: {_count(encoded, "with percent signs for characters, as in a URL")}')
    if moved:
        located.notes.append(f'{source}: {_count(moved, "found in other folders by their names")}')
    return located


def _decode(files: Files, name: str) -> str:
    """Decode percent-encoding, as in a URL, if there is an image with the decoded name and none with the name.

    Label Studio writes images of its local storage as ``/data/local-files/?d=`` and the encoded path.
    """
    if stored := name.partition('/data/local-files/?d=')[2]:
        return unquote(stored).replace('\\', '/')
    decoded = unquote(name)
    exists = (
        posixpath.basename(decoded) in files.images_by_base and posixpath.basename(name) not in files.images_by_base
    )
    return decoded if exists and _is_encodable(decoded) else name


def _is_encodable(name: str) -> bool:
    try:
        return b'\0' not in os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _count(names: list[str], what: str) -> str:
    return f'{amount(len(names), "image")} {what}, the first one {names[0]!r}'


def _choose_folders(files: Files, names: list[str], bases: Sequence[str], split: str | None) -> tuple[list[str], int]:
    """Return the folders in which most of the names exist, and how many leading folders of the names are left out.

    Usually this is one folder. Several are returned if they contain equally many of the names, some of them the same.
    """
    sample = _sample(names)
    depth = max((name.count('/') for name in sample), default=0)
    folders = list(dict.fromkeys([*bases, *files.image_folders]))
    folders = [folder for folder in folders if split is None or split_of(folder) in (None, split)] or folders
    best, chosen = 0, (folders[:1], 0)
    for stripped in range(min(depth, MAX_STRIPPED) + 1):
        found = {
            folder: {name for name in sample if _below(folder, name, stripped) in files.names} for folder in folders
        }
        most = max(folders, key=lambda folder: len(found[folder]))
        if len(found[most]) > best:
            best = len(found[most])
            rivals = [folder for folder in folders if len(found[folder]) == best and found[folder] & found[most]]
            chosen = rivals, stripped
        if best == len(sample):
            break
    return chosen


def _choose_by_size(
    files: Files, folders: list[str], stripped: int, sizes: Mapping[str, tuple[int, int]]
) -> str | None:
    """Return the folder in which most images have their stated size. None if there is a tie."""
    if len(folders) == 1:
        return folders[0]
    counts = dict.fromkeys(folders, 0)
    for name in _sample(list(sizes)):
        for folder in folders:
            with contextlib.suppress(UserError):  # no image there, or none that can be read
                counts[folder] += image_size(files.root / (_below(folder, name, stripped) or name)) == sizes[name]
    best = [folder for folder in folders if counts[folder] == max(counts.values())]
    return best[0] if len(best) == 1 else None


def _sample(names: list[str]) -> list[str]:
    return names[:: max(1, len(names) // SAMPLE)]


def _below(folder: str, name: str, stripped: int) -> str | None:
    """Join a folder and a name without its first ``stripped`` folders; the file name is always kept."""
    parts = name.split('/')
    return join(folder, '/'.join(parts[min(stripped, len(parts) - 1) :]))


def find_respelled(files: Files, name: str) -> str | None:
    """Find a file by its path, regardless of upper and lower case and of the Unicode normalisation of accents.

    Args:
        files: Files of the data set.
        name: Path relative to the root.

    Returns:
        The path as it is on disk; None if no file matches, or several do.
    """
    found = files.spellings.get(_fold(name), [])
    return found[0] if len(found) == 1 else None


def find_similar(files: Files, name: str) -> str | None:
    """Return the shortest path of a file or folder that ends in the given path in any spelling. None if there is none.

    Args:
        files: Files of the data set.
        name: Path relative to any folder of the data set.
    """
    end = '/' + _fold(name.strip('/'))
    found = [path for path in (*files.folders, *files.names) if ('/' + _fold(path)).endswith(end)]
    return min(found, key=lambda path: (len(path), path), default=None)


def _find_below(files: Files, parts: list[str], split: str | None) -> str | None:
    """Return the only image of this split whose path ends in all given parts. None if there is none or several."""
    end = '/' + '/'.join(parts)
    found = [name for name in files.images_by_base.get(parts[-1], []) if ('/' + name).endswith(end)]
    found = [name for name in found if split is None or split_of(posixpath.dirname(name)) in (None, split)]
    return found[0] if len(found) == 1 else None


def describe_outside(files: Files, name: str) -> str:
    """Return the problem of a name in an annotation file that is outside the root, with the image that may be meant."""
    straight = name.replace('\\', '/')
    problem = f'{name!r} leaves the folder'
    if URL.match(straight):
        # What follows may be a key that gives access.
        straight = re.split('[?#]', straight)[0]
        problem = f'{straight!r} is a URL: download the images into the folder'
    found = files.images_by_base.get(posixpath.basename(unquote(straight)), [])
    return f'{problem}; {found[0]} has the same name: if it is meant, write that path' if found else problem


def match_by_stem(
    files: Files, name: str, split: str | None = None, *, stem: str | None = None, listed: str = ''
) -> str | None:
    """Return the image that has the same stem (file name without folder and suffix) as an annotation file.

    An image in the folder of the annotation file is preferred, whatever its split. Otherwise the image whose path has
    the most folder names in common with that of the annotation file is taken.

    Args:
        files: Files of the data set.
        name: The annotation file, relative to the root.
        split: Split that the annotation file belongs to. None considers the images of all splits.
        stem: Stem to look for instead of the annotation file's. Leading folders are ignored.
        listed: Name of the image in the annotation file. If several images are left, the one with this file name is
            taken.

    Returns:
        Path of the image relative to the root. None if there is no such image, or if several are left.
    """
    found = images_of_stem(files, name, split, stem=stem, listed=listed)
    return found[0] if len(found) == 1 else None


def images_of_stem(
    files: Files, name: str, split: str | None = None, *, stem: str | None = None, listed: str = ''
) -> list[str]:
    """Return the images that fit an annotation file equally well. ``match_by_stem`` describes the arguments.

    Returns:
        Paths relative to the root. More than one if nothing decides between the images; an empty list if there is no
        such image.
    """
    folder, base = posixpath.split(posixpath.splitext(name)[0])
    stem = posixpath.basename(stem) if stem else base
    found = files.images_by_stem.get(stem, [])
    beside = [image for image in found if posixpath.dirname(image) == folder]
    if beside:
        found = beside
    else:
        if len(found) > 1:
            # The image whose folders have most in common with those of the annotation file.
            own = folder.split('/')
            common = [len(set(own) & set(posixpath.dirname(image).split('/'))) for image in found]
            found = [image for image, count in zip(found, common, strict=True) if count == max(common)]
        found = [image for image in found if split is None or split_of(posixpath.dirname(image)) in (None, split)]
    same = [image for image in found if posixpath.basename(image) == posixpath.basename(listed)]
    return same or found


def note_unlabelled(files: Files, images: Iterable[str], data: DetectionData, marks: Mapping[str, bytes]) -> None:
    """Add a note on images without an annotation file, and findings for those with labels in another format.

    Images of annotation files that have a finding, e.g. because they cannot be read, are not mentioned again.

    Args:
        files: Files of the data set.
        images: Images without an annotation file that was read, relative to the root.
        data: The data set, to which note and findings are added.
        marks: See ``other_labels``.
    """
    sources = {finding.file.relative_to(files.root).as_posix() for finding in data.findings}
    named = {image for source in sources for image in images_of_stem(files, source)}
    if bare := [name for name in images if name not in named]:
        data.notes.append(f'{amount(len(bare), "image")} without an annotation file, not used: {first(bare)}')
        data.findings += other_labels(files, bare, marks)


def note_unlisted(files: Files, listed: Iterable[str], data: DetectionData) -> None:
    """Add a note on images that an annotation file does not list, in the folders of those that it lists.

    Other folders may have the masks of the images, or another data set.

    Args:
        files: Files of the data set.
        listed: Images that annotation files list, relative to the root.
        data: The data set, to which the note is added.
    """
    listed = set(listed)
    folders = {posixpath.dirname(name) for name in listed if name in files.names}
    rest = [name for name in files.images if posixpath.dirname(name) in folders and name not in listed]
    if rest:
        data.notes.append(f'{amount(len(rest), "image")} beside the listed ones, not used: {first(rest)}')


def other_labels(files: Files, images: Iterable[str], marks: Mapping[str, bytes]) -> list[Finding]:
    """Return a finding for each image without labels that has a label file in another format.

    Args:
        files: Files of the data set.
        images: Images without labels in the format that is read, relative to the root.
        marks: Maps the suffix of another format, in lower case, to bytes that each file with a labelled object
            contains.
    """
    labels: dict[str, list[str]] = {}
    for name in files.with_suffix(*marks):
        labels.setdefault(posixpath.splitext(posixpath.basename(name))[0], []).append(name)
    findings = []
    for image in images:
        for name in labels.get(posixpath.splitext(posixpath.basename(image))[0], []):
            mark = marks[posixpath.splitext(name)[1].lower()]
            if mark in beginning(files.root / name, 2**20):
                findings.append(Finding('annotation-format', files.root / name, f'it has the labels of {image}'))
                break
    return findings


def beginning(path: Path, count: int = 2**16) -> bytes:
    """Return the first bytes of a text file, without byte order mark, leading whitespace and the zero bytes of UTF-16.

    Args:
        path: The file.
        count: Number of bytes to read. Fewer are returned if any are removed or the file is shorter.

    Returns:
        The bytes. Empty if the file cannot be read.
    """
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
    """Join the first values for a message and count the others: ``a, b, c and 2 more``.

    Args:
        values: All values. If there are none, the result is empty.
        count: Largest number of values to list.
    """
    values = list(values)
    return ', '.join(values[:count]) + (f' and {len(values) - count} more' if len(values) > count else '')


def split_by_folder(splits: dict[str, list[LabelledImage]], notes: list[str]) -> dict[str, list[LabelledImage]]:
    """Split the images of ``ALL`` by the names of their folders, as ``folder_splits`` does.

    Args:
        splits: Images by split.
        notes: Notes on the data set, to which those of ``folder_splits`` are added, or one that says that the folders
            name splits in vain.

    Returns:
        The new splits. ``splits`` itself if it has a split other than ``ALL``, or if the folders do not split the data.
    """
    if set(splits) != {ALL}:
        return splits
    names = [image.name for image in splits[ALL]]
    named = folder_splits(names, notes)
    if not named:
        if len({split_of(posixpath.dirname(name)) for name in names}) > 1:
            notes.append(
                'the folders of some images name a split, but not both training and validation: all are split anew'
            )
        return splits
    result: dict[str, list[LabelledImage]] = {split: [] for split in (TRAIN, VAL, TEST)}
    for image in splits[ALL]:
        if image.name in named:
            result[named[image.name]].append(image)
    return complete_splits(result)


def distinct_splits(images: Mapping[str, Iterable[str]], notes: list[str]) -> dict[str, str]:
    """Join splits with the same images, before anything is counted twice.

    If exactly the same images are in ``TRAIN`` and ``VAL``, ``ALL`` replaces both. If they are in ``VAL`` and ``TEST``,
    ``TEST`` is left out.

    Args:
        images: Names of the images by split.
        notes: Notes on the data set. One is added for splits that are joined.

    Returns:
        New splits, each with the split of ``images`` whose images it has.
    """
    groups = {split: frozenset(names) for split, names in images.items()}
    result = {split: split for split in groups}
    if groups.get(VAL) and groups[VAL] == groups.get(TEST):
        notes.append('the same images are for validation and testing: they are used for validation')
        del result[TEST]
    if groups.get(VAL) and groups[VAL] == groups.get(TRAIN):
        notes.append('the same images are for training and validation: they are split anew')
        del result[TRAIN], result[VAL]
        result = {ALL: TRAIN, **result}
    return result


def separate(data: DetectionData | MaskData) -> None:
    """Add a finding for each image that is in ``TRAIN`` and in another split too."""
    splits: dict[str, list] = data.splits
    training = {image.name: image for image in splits.get(TRAIN, [])}
    for split in (VAL, TEST):
        for image in splits.get(split, []):
            if image.name in training:
                problem = f'{image.name!r} is for {split}, and for training in {_source(data, training[image.name])}'
                data.findings.append(Finding('image-in-two-splits', _source(data, image), problem))


def _source(data: DetectionData | MaskData, image: LabelledImage | MaskedImage) -> Path:
    return image.source if isinstance(image, LabelledImage) else data.root / image.mask
