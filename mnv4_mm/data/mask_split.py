"""Splits of a segmentation data set as a config names them, and a light check of their images and masks.

The light check is for data that has not been checked and prepared by ``data/prepare_masks.py``.

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

from mnv4_mm.errors import UserError
from mnv4_mm.images import image_size
from mnv4_mm.paths import check_data

IGNORE_INDEX = 255  # mmseg's default
MIN_PAIRS_FOR_PROGRESS = 500  # fewer are checked in about a second


class MaskSplit(NamedTuple):
    """Training or validation split of a segmentation data set.

    Image and mask are ``<images>/<name><image_suffix>`` and ``<masks>/<name><mask_suffix>``.

    Attributes:
        images: Folder of the images.
        masks: Folder of the masks.
        image_suffix: End of the images' file names; empty if the names in ``names_file`` include their suffixes.
        mask_suffix: End of the masks' file names.
        names_file: Text file with the names to use, one per line, without ``image_suffix``. None uses all files.
    """

    images: Path
    masks: Path
    image_suffix: str = '.jpg'
    mask_suffix: str = '.png'
    names_file: Path | None = None

    def image_files(self) -> list[Path]:
        """Return the paths of the images: those in ``names_file``, in its order, or all in the folder, sorted.

        Raises:
            UserError: ``names_file`` cannot be read.
        """
        if self.names_file:
            return [self.images / f'{name}{self.image_suffix}' for name in read_names(self.names_file)]
        return sorted(
            self.images / f'{name}{self.image_suffix}' for name in _list_names(self.images, self.image_suffix)
        )


def read_names(path: Path) -> list[str]:
    """Read a list of names, one per line, as mmseg does.

    Raises:
        UserError: The file cannot be read, e.g. because the cache has been deleted.
    """
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'the list of names {path} cannot be read: {getattr(error, "strerror", error)}') from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def check_pairs(split: MaskSplit, num_classes: int, reduce_zero_label: bool, hint: str = '') -> None:
    """Check the pairs of image and mask of a split: both exist, have the same size, and the mask has valid values only.

    With ``names_file`` only the pairs that it lists are checked. mmseg checks nothing when it loads the data: it stops
    in the middle of training at the first missing mask.

    Args:
        split: Images and masks.
        num_classes: Number of classes.
        reduce_zero_label: If True, 0 is unlabelled and the classes are 1 to ``num_classes``. If False, the classes are
            0 to ``num_classes - 1`` and 255 is unlabelled.
        hint: Advice in the error message for a user who does not have the data.

    Raises:
        UserError: Images or masks are missing or invalid; the message describes the first three mistakes.
    """
    check_data((split.images, split.masks, *([split.names_file] if split.names_file else [])), hint)
    if split.names_file:
        # The list selects from the folders: files that it does not name are no mistake.
        images = masks = set(read_names(split.names_file))
        images = {name for name in images if (split.images / f'{name}{split.image_suffix}').is_file()}
        missing = [f'no image {split.images / (n + split.image_suffix)}' for n in sorted(masks - images)]
        masks = {name for name in masks if (split.masks / f'{name}{split.mask_suffix}').is_file()}
    else:
        images = _list_names(split.images, split.image_suffix)
        masks = _list_names(split.masks, split.mask_suffix)
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
    return {path.removesuffix(suffix) for path in paths if not path.split('/')[-1].startswith('.')}


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
                return f'{mask} has {file.mode} pixels: masks are 8-bit PNG files of one channel with class ids'
            values = np.asarray(file)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # PIL raises each of them for broken PNG files
        return f'{mask} is not a readable mask: {error}'
    if values.shape != (height, width):
        return f'{mask} is {values.shape[1]}x{values.shape[0]}, but its image {image} is {width}x{height}'
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    wrong = [int(value) for value in present if not allowed[value]]
    if wrong:
        noun, more = 'value' if len(wrong) == 1 else 'values', f' and {len(wrong) - 5} more' if wrong[5:] else ''
        return f'{mask} has the {noun} {", ".join(map(str, wrong[:5]))}{more}: {_describe_values(allowed)}'
    return None


def _describe_values(allowed: np.ndarray) -> str:
    count = int(allowed[:IGNORE_INDEX].sum())
    if allowed[IGNORE_INDEX]:
        return f'0 to {count - 1} are the classes, and {IGNORE_INDEX} is unlabelled'
    return f'0 is unlabelled, and 1 to {count - 1} are the classes'
