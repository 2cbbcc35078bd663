"""A user's segmentation data in the one form that is trained on, and as a cleaned copy.

Masks have 8 bits; 0 is unlabelled and 1, 2, ... are the classes, as in ADE20K. Masks that are so already are linked,
others are converted into the user's cache. The images stay where they are, and no file of the user is changed.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from mnv4_mm.data.cache import cache_folder, folder_state, write_whole
from mnv4_mm.data.check_masks import CheckedMasks, check_masks, label_table
from mnv4_mm.data.checked import CheckedData
from mnv4_mm.data.classes import class_order
from mnv4_mm.data.form import TRAIN, VAL, MaskData, MaskedImage
from mnv4_mm.data.formats.masks import require
from mnv4_mm.data.mask_split import MaskSplit
from mnv4_mm.data.mask_values import MaskValues, decode_masks, read_values
from mnv4_mm.errors import UserError
from mnv4_mm.version import __version__

FORMAT = 1
MIN_MASKS_FOR_PROGRESS = 500
MAX_VALUE = 2**16
FOLDERS = {TRAIN: 'training', VAL: 'validation'}  # of a cleaned copy


class MaskLayout(NamedTuple):
    """A segmentation data set, checked and prepared.

    Attributes:
        root: Its folder.
        train: Training split.
        val: Validation split.
        classes: Class names; the first one belongs to the value 1 of the prepared masks.
        checked: Result of the check.
    """

    root: Path
    train: MaskSplit
    val: MaskSplit
    classes: tuple[str, ...]
    checked: CheckedData


def prepare_masks(root: str | Path, *, classes: Sequence[str] | None = None, allow_dropped: bool = False) -> MaskLayout:
    """Read, check and prepare a segmentation data set. Nothing is done again while its files do not change.

    Args:
        root: Its folder.
        classes: Order of the classes, that of a checkpoint; the data set's own if None.
        allow_dropped: Accept that more than 1 % of the images are left out.

    Raises:
        UserError: There is no such data set, it cannot be trained on, or it has other classes.
    """
    layout = examine_masks(root, classes=classes)
    layout.checked.require_usable(allow_dropped)
    return layout


def examine_masks(
    root: str | Path, *, classes: Sequence[str] | None = None, data: MaskData | None = None
) -> MaskLayout:
    """Do what ``prepare_masks`` does, but return a data set that cannot be trained on, too.

    The files of its splits may then be missing.

    Args:
        root: Its folder.
        classes: See ``prepare_masks``.
        data: The data set, if it has been read already.

    Raises:
        UserError: There is no such data set, or it has other classes.
    """
    root = Path(root)
    if not root.is_dir():
        require(root)
    if classes is not None:
        own_order = examine_masks(root, data=data)
        if tuple(classes) == own_order.classes:
            return own_order
    state = folder_state(root)
    folder = cache_folder(root) / f'masks-{_key(root, state, classes)}'
    layout = _read_layout(root, folder)
    if layout is None:
        data = data or require(root)
        result = check_masks(data)
        if result.checked.refusals(allow_dropped=True):
            nothing = MaskSplit(root, folder / 'masks', names_file=folder / 'none.txt')
            return MaskLayout(root, nothing, nothing, data.classes, result.checked)
        order = class_order(root, data.classes, classes) if classes is not None else range(len(data.classes))
        _write_prepared(folder, data, result, list(order), state)
        layout = _read_layout(root, folder)
        if layout is None:
            raise UserError(f'{folder}, which holds the prepared masks, cannot be read: remove it')
    return layout


def is_unchanged(split: MaskSplit) -> bool:
    """True for a prepared split whose data set has not changed since it was checked."""
    content = _read_json(split.names_file.parent / 'prepared.json') if split.names_file else None
    return content is not None and folder_state(Path(content['root'])) == content['state']


def original_folders(split: MaskSplit) -> list[Path]:
    """Return the folders of the user's own images and masks: what must not be written to."""
    content = _read_json(split.names_file.parent / 'prepared.json') if split.names_file else None
    return [split.images, split.masks, *map(Path, content['folders'] if content else ())]


def write_fixed(root: str | Path, out: str | Path, *, allow_dropped: bool = False) -> Path:
    """Write a cleaned copy of a segmentation data set in ADE20K's layout.

    ``images/{training,validation}``, ``annotations/{training,validation}`` and ``classes.txt``. Images are copied byte
    for byte, masks are written with the canonical values. What cannot be used is left out. The files are in folders of
    the same names as in the original below these.

    Args:
        root: Folder of the data set.
        out: Folder to make; it must be empty or not exist, and not be in ``root``.
        allow_dropped: Accept that more than 1 % of the images are left out.

    Returns:
        ``out``.

    Raises:
        UserError: The data cannot be used, or ``out`` not be written.
    """
    root, out = Path(root), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f'{out} exists and is not an empty folder: name a new one')
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(f'{out} is in the data folder {root}, which is not changed: name a folder outside of it')
    data = require(root)
    result = check_masks(data)
    result.checked.require_usable(allow_dropped)
    labels = _lookup(data, range(len(data.classes)))
    folder = _temporary(out)
    try:
        for split, pairs in result.splits.items():
            base = _common([pair.name for pair in pairs])
            taken: dict[str, str] = {}

            def copy(pair: MaskedImage, split: str = split, base: str = base, taken: dict[str, str] = taken) -> None:
                name = taken[pair.name]
                image = folder / 'images' / FOLDERS[split] / f'{name}{Path(pair.name).suffix}'
                image.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(data.root / pair.name, image)
                _convert(data, pair.mask, labels, folder / 'annotations' / FOLDERS[split] / f'{name}.png')

            for pair in pairs:
                stem = os.path.splitext(pair.name)[0][len(base) :]
                # a.jpg and a.png are different images: the second keeps its suffix in its name.
                name = stem if stem not in taken.values() else pair.name[len(base) :].replace('.', '_')
                taken[pair.name] = name
            _for_each(copy, pairs, 'copying')
        (folder / 'classes.txt').write_text(''.join(f'{name}\n' for name in data.classes), encoding='utf-8')
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except OSError as error:
        raise UserError(f'{out} cannot be written: {error.strerror or error}') from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


def _key(root: Path, state: str, classes: Sequence[str] | None) -> str:
    from hashlib import sha256

    content = [FORMAT, __version__, state, list(classes) if classes is not None else None]
    return sha256(json.dumps(content).encode()).hexdigest()[:16]


def _read_json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _read_layout(root: Path, folder: Path) -> MaskLayout | None:
    """Return what was prepared in a folder. None if it is missing or damaged."""
    content = _read_json(folder / 'prepared.json')
    if content is None:
        return None
    splits = {
        name: MaskSplit(
            images=root / content['bases'][name],
            masks=folder / 'masks' / content['bases'][name],
            image_suffix='',
            names_file=folder / f'{name}.txt',
        )
        for name in (TRAIN, VAL)
    }
    checked = CheckedData.from_json(json.dumps(content['checked']), root, folder)
    return MaskLayout(root, splits[TRAIN], splits[VAL], tuple(content['classes']), checked)


def _write_prepared(folder: Path, data: MaskData, result: CheckedMasks, order: Sequence[int], state: str) -> None:
    """Write lists of names, masks and the result of the check; the folder is there as a whole or not at all."""
    labels = _lookup(data, order)
    classes = [data.classes[label] for label in order]
    masks = decode_masks(data.root, [pair.mask for pairs in result.splits.values() for pair in pairs])
    content = dict(
        root=os.path.abspath(data.root),
        state=state,
        classes=classes,
        bases={split: _common([pair.name for pair in pairs]) for split, pairs in result.splits.items()},
        folders=sorted(
            {
                os.path.dirname(os.path.abspath(data.root / name))
                for pairs in result.splits.values()
                for pair in pairs
                for name in (pair.name, pair.mask)
            }
        ),
        checked=json.loads(result.checked.to_json()),
    )
    temporary = _temporary(folder)
    try:
        for split, pairs in result.splits.items():
            base = content['bases'][split]
            names = [pair.name[len(base) :] for pair in pairs]
            (temporary / f'{split}.txt').write_text(''.join(f'{name}\n' for name in names), encoding='utf-8')

            def place(pair: MaskedImage) -> None:
                target = temporary / 'masks' / f'{pair.name}.png'
                if _is_canonical(data, masks[pair.mask], labels) and _link(data.root / pair.mask, target):
                    return
                _convert(data, pair.mask, labels, target)

            _for_each(place, pairs, 'preparing masks')
        write_whole(temporary / 'prepared.json', json.dumps(content))
        if folder.exists():  # damaged, or another process was faster
            shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as error:
        if _read_json(folder / 'prepared.json') is None:
            raise UserError(
                f'{folder} cannot be written: {error.strerror or error}; XDG_CACHE_HOME names another folder'
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(folder: Path) -> Path:
    """Make a folder beside the one that it is to become."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent))
    except OSError as error:
        raise UserError(f'{folder} cannot be written: {error.strerror or error}') from error


def _common(names: Sequence[str]) -> str:
    """Return the folder that all names are in, with a ``/`` at its end; empty if there is none."""
    common = os.path.commonpath([os.path.dirname(name) for name in names]) if names else ''
    return f'{common}/' if common else ''


def _lookup(data: MaskData, order: Iterable[int]) -> dict[int, int]:
    """Return the canonical value of each value, or packed colour, when labels are in another order."""
    rank = {label: i for i, label in enumerate(order, 1)}
    return {value: 0 if label is None else rank[label] for value, label in label_table(data).items()}


def _is_canonical(data: MaskData, mask: MaskValues, labels: dict[int, int]) -> bool:
    return mask.is_plain and not data.colours and all(labels[value] == value for value in mask.counts)


def _link(source: Path, target: Path) -> bool:
    """Link to a file; False where the system makes no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(os.path.abspath(source))
    except (OSError, NotImplementedError):
        return False
    return True


def _convert(data: MaskData, name: str, labels: dict[int, int], target: Path) -> None:
    """Write a mask with canonical values."""
    mask = read_values(data.root / name)
    values = mask.as_colours() if data.colours else mask.values
    if data.colours or int(values.max()) >= MAX_VALUE:
        keys, inverse = np.unique(values, return_inverse=True)
        canonical = np.array([labels[int(key)] for key in keys], np.uint8)[inverse.reshape(values.shape)]
    else:
        table = np.zeros(MAX_VALUE, np.uint8)
        table[list(labels)] = list(labels.values())
        canonical = table[values]
    target.parent.mkdir(parents=True, exist_ok=True)
    done, png = cv2.imencode('.png', canonical)
    if not done:
        raise UserError(f'{target} cannot be written: OpenCV cannot encode {canonical.shape}')
    target.write_bytes(png.tobytes())


def _for_each(function: Callable[[MaskedImage], None], pairs: Sequence[MaskedImage], title: str) -> None:
    def steps() -> Iterator[None]:
        with ThreadPoolExecutor() as pool:
            yield from pool.map(function, pairs)

    hidden = len(pairs) < MIN_MASKS_FOR_PROGRESS
    for _ in track(steps(), title, total=len(pairs), console=Console(stderr=True), disable=hidden):
        pass
