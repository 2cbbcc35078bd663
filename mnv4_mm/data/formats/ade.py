"""Recognising and checking a segmentation data set in ADE20K's layout, before anything is trained on it."""

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.progress import track

from mnv4_mm.data.formats.ade20k_classes import ADE20K_CLASSES
from mnv4_mm.errors import UserError
from mnv4_mm.images import IMAGE_SUFFIXES, image_size
from mnv4_mm.paths import check_data

LAYOUT = (
    'images/training with pictures, annotations/training with a PNG mask of the same name for each (0 unlabelled, '
    '1, 2, ... the classes), the same in validation, and classes.txt with a class name a line'
)
IGNORED = 255  # mmseg's ignore_index
QUIET = 500  # pairs that are checked in about a second, without a progress bar


class MaskSplit(NamedTuple):
    """Pictures and their masks: two folders with the same names but for the suffix.

    Attributes:
        pictures: Folder of the pictures.
        masks: Folder of the masks.
        suffix: Ending of the pictures' names.
        mask_suffix: Ending of the masks' names.
        listed: Text file with the names to use, a line each, without suffix; all of the folder if None.
    """

    pictures: Path
    masks: Path
    suffix: str = '.jpg'
    mask_suffix: str = '.png'
    listed: Path | None = None


class AdeLayout(NamedTuple):
    """A data set in ADE20K's layout.

    Attributes:
        root: Its folder.
        train: Training split.
        val: Validation split.
        classes: Class names, the first being mask value 1.
    """

    root: Path
    train: MaskSplit
    val: MaskSplit
    classes: tuple[str, ...]


def find_ade(root: str | Path) -> AdeLayout:
    """Recognises a data set in ADE20K's layout; its pairs are checked when they are used, by ``check_pairs``.

    The class names stand in ``classes.txt``. A folder with ADE20K's own ``objectInfo150.txt`` instead has its classes.

    Raises:
        UserError: something is missing or ambiguous.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f'no folder {root}: --data takes a folder with {LAYOUT}')
    train, val = _find_split(root, 'training', 'train'), _find_split(root, 'validation', 'val')
    return AdeLayout(root, train, val, _find_classes(root))


def _find_split(root: Path, *names: str) -> MaskSplit:
    for name in names:
        pictures, masks = root / 'images' / name, root / 'annotations' / name
        if pictures.is_dir() and masks.is_dir():
            break
    else:
        raise UserError(f'no {root}/images/{names[0]} with {root}/annotations/{names[0]}: the layout is {LAYOUT}')
    suffixes = sorted({path.suffix for path in pictures.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES})
    if len(suffixes) != 1:
        raise UserError(
            f'{pictures} has pictures of {len(suffixes)} kinds ({", ".join(suffixes)}): one of '
            f'{", ".join(IMAGE_SUFFIXES)} is expected, spelled alike'
        )
    return MaskSplit(pictures, masks, suffixes[0])


def _find_classes(root: Path) -> tuple[str, ...]:
    path = root / 'classes.txt'
    if not path.is_file():
        if (root / 'objectInfo150.txt').is_file():
            return ADE20K_CLASSES
        raise UserError(f'no {path}: it names the classes, one a line, the first for mask value 1')
    try:
        names = [line.strip() for line in path.read_text(encoding='utf-8-sig').splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not UTF-8 text: {error}') from error
    while names and not names[-1]:
        names.pop()
    if len(names) < 2 or '' in names or len(set(names)) < len(names):
        raise UserError(
            f'{path} must name at least 2 classes, one a line, without empty lines and repeats; got {names}'
        )
    if len(names) >= IGNORED:
        raise UserError(f'{path} names {len(names)} classes; masks of 8 bits can hold {IGNORED - 1}')
    return tuple(names)


def check_pairs(split: MaskSplit, num_classes: int, reduce_zero_label: bool, hint: str = '') -> None:
    """Checks that each picture has a mask of its size with values that are classes, and each mask a picture.

    mmseg itself fails at the first missing mask in the midst of training, and takes any value for a class.

    Args:
        split: What is to be used.
        num_classes: Number of classes.
        reduce_zero_label: 0 is unlabelled and the classes are 1 to ``num_classes``; else they are 0 to ``num_classes``
            - 1, and 255 is unlabelled.
        hint: What a user can do who has no such data.

    Raises:
        UserError: names the file and the first mistakes.
    """
    check_data((split.pictures, split.masks, *([split.listed] if split.listed else [])), hint)
    names = _names(split.pictures, split.suffix)
    masks = _names(split.masks, split.mask_suffix)
    if split.listed:
        # A list picks from the folders: what it leaves out is no mistake.
        wanted = {line.strip() for line in split.listed.read_text().splitlines() if line.strip()}
        masks &= wanted
        missing = [f'no picture {split.pictures / (n + split.suffix)}' for n in sorted(wanted - names)]
        names = wanted & names
    else:
        missing = [f'no picture for the mask {split.masks / (n + split.mask_suffix)}' for n in sorted(masks - names)]
    missing += [f'no mask for the picture {split.pictures / (n + split.suffix)}' for n in sorted(names - masks)]
    if not names and not missing:
        raise UserError(f'no pictures *{split.suffix} in {split.pictures}')
    allowed = np.zeros(256, bool)
    allowed[: num_classes + reduce_zero_label] = True
    allowed[IGNORED] |= not reduce_zero_label

    def mistake(name: str) -> str | None:
        return _mistake(split.pictures / (name + split.suffix), split.masks / (name + split.mask_suffix), allowed)

    with ThreadPoolExecutor() as pool:
        mistakes = itertools.chain(missing, filter(None, _progress(pool.map(mistake, sorted(names & masks)), names)))
        first = list(itertools.islice(mistakes, 3))
        more = sum(1 for _ in mistakes) if first else 0
    if first:
        raise UserError(f'{"; ".join(first)}{f"; and {more} more" if more else ""}')


def _names(folder: Path, suffix: str) -> set[str]:
    """Names without suffix, relative to the folder, as mmseg finds them: hidden files are left out."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob(f'*{suffix}'))
    return {path[: -len(suffix)] for path in paths if not path.split('/')[-1].startswith('.')}


def _progress(results: Iterable[str | None], names: set[str]) -> Iterator[str | None]:
    return iter(track(results, 'checking masks', total=len(names), disable=len(names) < QUIET))


def _mistake(picture: Path, mask: Path, allowed: np.ndarray) -> str | None:
    """What is wrong with a pair, or None. PIL reads the mask, as in mmseg: values of a palette stay what they are."""
    try:
        width, height = image_size(picture)
    except UserError as error:
        return str(error)
    try:
        with Image.open(mask) as file:
            if file.mode not in ('L', 'P'):
                return (
                    f'{mask} has {file.mode} pixels: masks are PNG files of 8 bits and one channel, a class id a pixel'
                )
            values = np.asarray(file)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # PIL raises all of them for broken PNG files
        return f'{mask} is not a readable mask: {error}'
    if values.shape != (height, width):
        return f'{mask} is {values.shape[1]}x{values.shape[0]}, its picture {picture} {width}x{height}'
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    wrong = [int(value) for value in present if not allowed[value]]
    if wrong:
        return f'{mask} has the value {", ".join(map(str, wrong[:5]))}: {_meaning(allowed)}'
    return None


def _meaning(allowed: np.ndarray) -> str:
    count = int(allowed[:IGNORED].sum())
    if allowed[IGNORED]:
        return f'0 to {count - 1} are the classes, {IGNORED} is unlabelled'
    return f'0 is unlabelled, 1 to {count - 1} are the classes'
