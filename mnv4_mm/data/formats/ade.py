"""Recognise and check a segmentation data set in ADE20K's layout before anything is trained on it.

Imports neither torch nor OpenMMLab, so that the command line can report a mistake at once.
"""

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
    'images/training with images, annotations/training with a PNG mask of the same name for each (0 is unlabelled, '
    '1, 2, ... are the classes), the same in validation, and classes.txt with one class name per line'
)
IGNORE_INDEX = 255  # mmseg's default
MIN_PAIRS_FOR_PROGRESS = 500  # fewer are checked in about a second


class MaskSplit(NamedTuple):
    """Training or validation split of a segmentation data set: images and masks that differ in suffix only.

    Attributes:
        images: Folder of the images.
        masks: Folder of the masks.
        image_suffix: End of the images' file names.
        mask_suffix: End of the masks' file names.
        names_file: Text file with the names to use, one per line, without suffix. None uses the whole folder.
    """

    images: Path
    masks: Path
    image_suffix: str = '.jpg'
    mask_suffix: str = '.png'
    names_file: Path | None = None


class AdeLayout(NamedTuple):
    """A data set in ADE20K's layout.

    Attributes:
        root: Its folder.
        train: Training split.
        val: Validation split.
        classes: Class names; the first one belongs to mask value 1.
    """

    root: Path
    train: MaskSplit
    val: MaskSplit
    classes: tuple[str, ...]


def find_ade(root: str | Path, *, classes: object = None, allow_dropped: bool = False) -> AdeLayout:
    """Recognise a data set in ADE20K's layout.

    Class names are read from ``classes.txt``. A folder with ADE20K's own ``objectInfo150.txt`` instead has ADE20K's
    classes. Pairs of images and masks are checked by ``check_pairs``, when they are used.

    Raises:
        UserError: a file or folder is missing or ambiguous.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f'no folder {root}: --data takes a folder with {LAYOUT}')
    train, val = _find_split(root, 'training', 'train'), _find_split(root, 'validation', 'val')
    return AdeLayout(root, train, val, _find_classes(root))


def _find_split(root: Path, *names: str) -> MaskSplit:
    for name in names:
        images, masks = root / 'images' / name, root / 'annotations' / name
        if images.is_dir() and masks.is_dir():
            break
    else:
        raise UserError(f'no {root}/images/{names[0]} with {root}/annotations/{names[0]}: the layout is {LAYOUT}')
    suffixes = sorted({path.suffix for path in images.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES})
    if not suffixes:
        raise UserError(f'no images in {images}: expected files with one of the suffixes {", ".join(IMAGE_SUFFIXES)}')
    if len(suffixes) > 1:
        raise UserError(
            f'{images} has images with {len(suffixes)} suffixes ({", ".join(suffixes)}): all images of a split must '
            'have the same one, in upper and lower case too'
        )
    return MaskSplit(images, masks, suffixes[0])


def _find_classes(root: Path) -> tuple[str, ...]:
    path = root / 'classes.txt'
    if not path.is_file():
        if (root / 'objectInfo150.txt').is_file():
            return ADE20K_CLASSES
        raise UserError(f'no {path}: it lists the class names, one per line, the first one for mask value 1')
    try:
        names = [line.strip() for line in path.read_text(encoding='utf-8-sig').splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not UTF-8 text: {error}') from error
    while names and not names[-1]:
        names.pop()
    if len(names) < 2 or '' in names or len(set(names)) < len(names):
        raise UserError(
            f'{path} must list at least 2 classes, one name per line, without empty lines or duplicates; got {names}'
        )
    if len(names) >= IGNORE_INDEX:
        raise UserError(f'{path} lists {len(names)} classes; 8-bit masks can hold {IGNORE_INDEX - 1}')
    return tuple(names)


def check_pairs(split: MaskSplit, num_classes: int, reduce_zero_label: bool, hint: str = '') -> None:
    """Check that every image has a mask of its size with valid class values, and every mask an image.

    mmseg itself fails at the first missing mask in the middle of training, and accepts any value as a class.

    Args:
        split: Images and masks.
        num_classes: Number of classes.
        reduce_zero_label: If True, 0 is unlabelled and the classes are 1 to ``num_classes``. If False, the classes are
            0 to ``num_classes - 1`` and 255 is unlabelled.
        hint: Advice for a user who does not have the data.

    Raises:
        UserError: names the first mistakes with their files.
    """
    check_data((split.images, split.masks, *([split.names_file] if split.names_file else [])), hint)
    images = _list_names(split.images, split.image_suffix)
    masks = _list_names(split.masks, split.mask_suffix)
    if split.names_file:
        # The list selects from the folders: files that it does not name are no mistake.
        listed = {line.strip() for line in split.names_file.read_text().splitlines() if line.strip()}
        masks &= listed
        missing = [f'no image {split.images / (n + split.image_suffix)}' for n in sorted(listed - images)]
        images &= listed
    else:
        missing = [f'no image for the mask {split.masks / (n + split.mask_suffix)}' for n in sorted(masks - images)]
    missing += [f'no mask for the image {split.images / (n + split.image_suffix)}' for n in sorted(images - masks)]
    if not images and not missing:
        raise UserError(f'no images *{split.image_suffix} in {split.images}')
    allowed = np.zeros(256, bool)
    allowed[: num_classes + reduce_zero_label] = True
    allowed[IGNORE_INDEX] |= not reduce_zero_label

    def check(name: str) -> str | None:
        return _find_mistake(
            split.images / (name + split.image_suffix), split.masks / (name + split.mask_suffix), allowed
        )

    pairs = sorted(images & masks)
    with ThreadPoolExecutor() as pool:
        mistakes = itertools.chain(missing, filter(None, _show_progress(pool.map(check, pairs), len(pairs))))
        first = list(itertools.islice(mistakes, 3))
        more = sum(1 for _ in mistakes) if first else 0
    if first:
        raise UserError(f'{"; ".join(first)}{f"; and {more} more" if more else ""}')


def _list_names(folder: Path, suffix: str) -> set[str]:
    """List file names without suffix, relative to the folder, as mmseg does: hidden files are left out."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob(f'*{suffix}'))
    return {path[: -len(suffix)] for path in paths if not path.split('/')[-1].startswith('.')}


def _show_progress(results: Iterable[str | None], count: int) -> Iterator[str | None]:
    return iter(track(results, 'checking masks', total=count, disable=count < MIN_PAIRS_FOR_PROGRESS))


def _find_mistake(image: Path, mask: Path, allowed: np.ndarray) -> str | None:
    """Describe what is wrong with a pair; None if it is valid.

    The mask is read by PIL, as in mmseg: the values of a palette image are its indices.
    """
    try:
        width, height = image_size(image)
    except UserError as error:
        return str(error)
    try:
        with Image.open(mask) as file:
            if file.mode not in ('L', 'P'):
                return f'{mask} has {file.mode} pixels: masks are 8-bit PNG files of one channel, a class id per pixel'
            values = np.asarray(file)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # PIL raises each of them for broken PNG files
        return f'{mask} is not a readable mask: {error}'
    if values.shape != (height, width):
        return f'{mask} is {values.shape[1]}x{values.shape[0]}, its image {image} {width}x{height}'
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    wrong = [int(value) for value in present if not allowed[value]]
    if wrong:
        return f'{mask} has the value {", ".join(map(str, wrong[:5]))}: {_describe_values(allowed)}'
    return None


def _describe_values(allowed: np.ndarray) -> str:
    count = int(allowed[:IGNORE_INDEX].sum())
    if allowed[IGNORE_INDEX]:
        return f'0 to {count - 1} are the classes, {IGNORE_INDEX} is unlabelled'
    return f'0 is unlabelled, 1 to {count - 1} are the classes'
