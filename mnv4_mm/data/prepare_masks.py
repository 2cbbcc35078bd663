"""Prepare a user's segmentation data in the canonical form for training, and write cleaned copies.

Canonical masks have 8 bits; 0 is unlabelled and 1, 2, ... are the classes, as in ADE20K. Masks in this form are linked
where the system allows links; others are converted into the user's cache. The images stay where they are, and no file
of the user is changed.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from mnv4_mm.data.cache import folder_state
from mnv4_mm.data.check_masks import CheckedMasks, check_masks, label_table
from mnv4_mm.data.checked import CheckedData
from mnv4_mm.data.classes import class_order
from mnv4_mm.data.form import ALL, TRAIN, VAL, MaskData, MaskedImage
from mnv4_mm.data.formats.masks import read, require
from mnv4_mm.data.formats.recognise import check_folder, refuse_other_task
from mnv4_mm.data.mask_split import MaskSplit, read_names
from mnv4_mm.data.mask_values import MaskValues, decode_masks, read_values
from mnv4_mm.data.prepare import check_fixed_folder, prepared_folder, read_checked, read_split, record_split
from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole

MIN_MASKS_FOR_PROGRESS = 500
MAX_VALUE = 2**16
INDEX = 'masks.json'  # file in a prepared folder that describes it
ItemT = TypeVar('ItemT')


class MaskLayout(NamedTuple):
    """A segmentation data set, checked and prepared.

    Attributes:
        root: Folder of the data set.
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


def prepare_masks(
    root: str | Path,
    *,
    classes: Sequence[str] | None = None,
    allow_dropped: bool = False,
    previous: Mapping[str, str] | None = None,
) -> MaskLayout:
    """Read, check and prepare a segmentation data set. The result is reused until a file of the data set changes.

    Args:
        root: Folder of the data set.
        classes: Class names in the order of a checkpoint. None keeps the order of the data set.
        allow_dropped: Accept that more than 1 % of the images or masks are left out.
        previous: Split of an earlier run, image name -> ``train`` or ``val``, which is kept if the data set has no
            split of its own. See ``split_images``.

    Raises:
        UserError: There is no such data set, it cannot be trained on, or it has other classes than ``classes``; or the
            cache cannot be written.
    """
    layout = examine_masks(root, classes=classes, previous=previous)
    layout.checked.require_usable(allow_dropped)
    return layout


def _read(root: Path) -> MaskData:
    if read(root) is None:
        refuse_other_task(root, 'segmentation')
    return require(root)


def examine_masks(
    root: str | Path,
    *,
    classes: Sequence[str] | None = None,
    data: MaskData | None = None,
    previous: Mapping[str, str] | None = None,
) -> MaskLayout:
    """Do the same as ``prepare_masks``, but also return a data set that cannot be trained on.

    The files of its splits may then be missing.

    Args:
        root: Folder of the data set.
        classes: See ``prepare_masks``.
        data: The data set, if it has been read already. None reads it.
        previous: See ``prepare_masks``.

    Raises:
        UserError: There is no such data set, its masks cannot be understood, or it has other classes than ``classes``;
            or the cache cannot be written.
    """
    root = Path(root)
    check_folder(root)
    layout = _examine(root, None, data, previous)
    if classes is None or tuple(classes) == layout.classes:
        return layout
    class_order(root, layout.classes, classes)
    return _examine(root, tuple(classes), data, previous)


def _examine(
    root: Path, classes: tuple[str, ...] | None, data: MaskData | None, previous: Mapping[str, str] | None
) -> MaskLayout:
    with prepared_folder(root, 'segmentation', classes, previous) as (folder, split_file):
        layout = _read_layout(root, folder)
        if layout is None:
            data = data or _read(root)
            result = check_masks(data, {**read_split(split_file), **(previous or {})})
            if ALL in data.splits:
                result.checked = record_split(result.checked, split_file, result.splits)
            order = class_order(root, data.classes, classes) if classes else range(len(data.classes))
            _write_prepared(folder, data, result, list(order))
            layout = _read_layout(root, folder)
        if layout is None:
            raise UserError(f'{folder}, which holds the prepared masks, cannot be read: remove it')
    return layout


def is_unchanged(split: MaskSplit) -> bool:
    """Return True for a prepared split whose data set has not changed since it was checked."""
    content = _read_index(split.names_file.parent) if split.names_file else None
    return content is not None and folder_state(Path(content['root'])) == content['state']


def original_folders(split: MaskSplit) -> list[Path]:
    """Return the folders of a split's images and masks, which must not be written to.

    For a prepared split, the folders of the user's original images and masks are included.
    """
    content = _read_index(split.names_file.parent) if split.names_file else None
    return [split.images, split.masks, *map(Path, content['folders'] if content else ())]


def write_fixed(root: str | Path, out: str | Path, *, allow_dropped: bool = False) -> Path:
    """Write a cleaned copy of a segmentation data set in ADE20K's layout.

    The copy has ``images/{training,validation}``, ``annotations/{training,validation}`` and ``classes.txt``. Images are
    copied byte for byte; masks have the canonical values. Images that are not used are left out. Files keep their names
    and their folders below the common folder of the split. If the names of images differ only in their suffixes, e.g.
    ``a.jpg`` and ``a.png``, the suffix is added to the stem: ``a_jpg.jpg`` and ``a_png.png``.

    Args:
        root: Folder of the data set.
        out: Folder to make; it must be empty or not exist, and not be in ``root``.
        allow_dropped: Accept that more than 1 % of the images or masks are left out.

    Returns:
        ``out``.

    Raises:
        UserError: The data cannot be used, or ``out`` has files, is inside of ``root`` or cannot be written.
    """
    out = check_fixed_folder(Path(root), out)
    layout = prepare_masks(root, allow_dropped=allow_dropped)
    try:
        for split, name in ((layout.train, 'training'), (layout.val, 'validation')):
            assert split.names_file is not None
            names = read_names(split.names_file)
            stems = Counter(os.path.splitext(image)[0] for image in names)

            def copy(image: str, split: MaskSplit = split, name: str = name, stems: Counter[str] = stems) -> None:
                stem, suffix = os.path.splitext(image)
                if stems[stem] > 1:  # a.jpg and a.png are different images
                    stem = f'{stem}_{suffix[1:]}'
                target = out / 'images' / name / f'{stem}{suffix}'
                mask = out / 'annotations' / name / f'{stem}.png'
                for path, source in ((target, split.images / image), (mask, split.masks / f'{image}.png')):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, path)

            _for_each(copy, names, 'copying')
        write_whole(out / 'classes.txt', ''.join(f'{name}\n' for name in layout.classes))
    except OSError as error:
        raise UserError(f'the copy for --fix {out} cannot be made: {error}') from error
    return out


def _read_index(folder: Path) -> dict | None:
    """Return the description of a prepared data set; None if it is missing or damaged."""
    try:
        content = json.loads((folder / INDEX).read_bytes())
        return content if all(key in content for key in ('root', 'state', 'classes', 'bases', 'folders')) else None
    except (OSError, ValueError, TypeError):
        return None


def _read_layout(root: Path, folder: Path) -> MaskLayout | None:
    """Return the data set that was prepared in a folder. None if its description or result is missing or damaged."""
    content = _read_index(folder)
    if content is None:
        return None
    checked = read_checked(folder, root)
    if checked is None:
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
    return MaskLayout(root, splits[TRAIN], splits[VAL], tuple(content['classes']), checked)


def _write_prepared(folder: Path, data: MaskData, result: CheckedMasks, order: Sequence[int]) -> None:
    """Write the masks, the lists of names and the result of the check. The folder appears only when it is complete.

    If the data cannot be trained on, there are no masks and lists.

    Raises:
        UserError: The folder cannot be written.
    """
    labels = _lookup(data, order)
    splits = {} if result.checked.refusals(allow_dropped=True) else result.splits
    masks = decode_masks(data.root, [pair.mask for pairs in splits.values() for pair in pairs])
    paths = {data.root / name for pairs in splits.values() for pair in pairs for name in (pair.name, pair.mask)}
    bases = {split: _common([pair.name for pair in splits.get(split, [])]) for split in (TRAIN, VAL)}
    content = dict(
        root=os.path.abspath(data.root),
        state=folder_state(data.root),
        classes=[data.classes[label] for label in order],
        bases=bases,
        folders=sorted({os.path.dirname(os.path.abspath(path)) for path in paths}),
    )
    try:
        temporary = Path(mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent))
    except OSError as error:
        raise _not_written(folder, error) from error

    def place(pair: MaskedImage) -> None:
        target = temporary / 'masks' / f'{pair.name}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        if _is_canonical(data, masks[pair.mask], labels) and _link(data.root / pair.mask, target):
            return
        _convert(data, pair.mask, labels, target)

    try:
        for split, pairs in splits.items():
            names = [pair.name[len(bases[split]) :] for pair in pairs]
            (temporary / f'{split}.txt').write_text(''.join(f'{name}\n' for name in names), encoding='utf-8')
            _for_each(place, pairs, 'preparing masks')
        (temporary / INDEX).write_text(json.dumps(content))
        (temporary / 'checked.json').write_text(result.checked.to_json())
        shutil.rmtree(folder, ignore_errors=True)  # left damaged or incomplete
        temporary.rename(folder)
    except OSError as error:
        raise _not_written(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _not_written(folder: Path, error: OSError) -> UserError:
    return UserError(
        f'{folder} cannot be written: {error.strerror or error}; prepared masks are kept there: set MNV4_CACHE to use '
        'another folder'
    )


def _common(names: Sequence[str]) -> str:
    """Return the folder that all names are in, with a ``/`` at its end; empty if there is none."""
    common = os.path.commonpath([os.path.dirname(name) for name in names]) if names else ''
    return f'{common}/' if common else ''


def _lookup(data: MaskData, order: Iterable[int]) -> dict[int, int]:
    """Return the canonical value of each mask value, or packed colour, for labels in the given order."""
    rank = {label: i for i, label in enumerate(order, 1)}
    return {value: 0 if label is None else rank[label] for value, label in label_table(data).items()}


def _is_canonical(data: MaskData, mask: MaskValues, labels: dict[int, int]) -> bool:
    return mask.is_plain and not data.colours and all(labels[value] == value for value in mask.counts)


def _link(source: Path, target: Path) -> bool:
    """Make ``target`` a link to ``source``; return False if the system does not allow links."""
    try:
        target.symlink_to(os.path.abspath(source))
    except (OSError, NotImplementedError):
        return False
    return True


def _convert(data: MaskData, name: str, labels: dict[int, int], target: Path) -> None:
    """Write a mask with canonical values."""
    mask = read_values(data.root / name)
    values = mask.as_colours() if data.colours else mask.values
    if data.colours or not all(0 <= value < MAX_VALUE for value in labels):
        keys, inverse = np.unique(values, return_inverse=True)
        canonical = np.array([labels[int(key)] for key in keys], np.uint8)[inverse.reshape(values.shape)]
    else:
        table = np.zeros(MAX_VALUE, np.uint8)
        table[list(labels)] = list(labels.values())
        canonical = table[values]
    done, png = cv2.imencode('.png', canonical)
    if not done:
        raise UserError(f'{target} cannot be written: OpenCV cannot encode {canonical.shape}')
    target.write_bytes(png.tobytes())


def _for_each(function: Callable[[ItemT], None], items: Sequence[ItemT], title: str) -> None:
    def steps() -> Iterator[None]:
        with ThreadPoolExecutor() as pool:
            yield from pool.map(function, items)

    done: Iterable[None] = steps()
    if len(items) >= MIN_MASKS_FOR_PROGRESS:
        done = track(done, title, total=len(items), console=Console(stderr=True))
    for _ in done:
        pass
