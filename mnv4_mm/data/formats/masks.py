"""Read a segmentation data set: images and masks in any of the layouts and conventions of docs/own_masks.md."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mnv4_mm.data.form import ALL, TEST, TRAIN, VAL, MaskData, MaskedImage
from mnv4_mm.data.formats.files import distinct_splits, first, separate
from mnv4_mm.data.formats.mask_classes import SETTINGS, find_classes, read_settings
from mnv4_mm.data.formats.mask_pairs import Pairs, find_lone_masks, find_pairs
from mnv4_mm.data.formats.mask_rules import MaskSource, decide
from mnv4_mm.data.mask_values import MaskValues, decode_masks, unpack
from mnv4_mm.errors import UserError

LAYOUT = (
    'images/ with images, masks/ (or annotations/, labels/, SegmentationClass/) with a PNG mask for each, both with '
    'or without subfolders train/ and val/, and classes.txt with one class name per line'
)


def read(root: Path) -> MaskData | None:
    """Read a segmentation data set.

    All masks are decoded, since their values tell which convention they follow. The values are cached, so that
    unchanged masks are not decoded again.

    Args:
        root: Folder of the data set.

    Returns:
        The data set. None if there are no masks.

    Raises:
        UserError: The masks have no images beside them, the mask values are ambiguous or cannot be classes, those of
            training and validation differ, a file with class names or settings is invalid, a folder cannot be listed,
            or the cache cannot be written.
    """
    pairs = find_pairs(root)
    if pairs is None:
        folder = find_lone_masks(root)
        if folder is not None:
            raise UserError(
                f'{folder} has masks but no images beside it: put the images into {folder.parent / "images"} '
                '(CVAT: export with "Save images")'
            )
        return None
    notes = list(pairs.notes)
    splits = _choose_splits(pairs.splits, notes)
    same = distinct_splits({split: [image.name for image in images] for split, images in splits.items()}, notes)
    splits = {split: splits[old] for split, old in same.items()}
    masks = decode_masks(root, [image.mask for images in splits.values() for image in images])
    folders = _class_folders(root, pairs, splits)
    names, settings = find_classes(folders), read_settings(folders)
    source = MaskSource(
        stems=tuple(Path(image.name).stem for images in splits.values() for image in images),
        ending=pairs.ending,
        is_ade=_is_ade(root, splits),
        is_voc=any('segmentationclass' in image.mask.lower() for images in splits.values() for image in images),
    )
    convention = decide(source, names, settings, masks)
    if names is None and settings.classes is None and convention.format == 'masks':  # not a public data set's
        _check_values(splits, masks)
    if names is not None and names.source is not None:
        notes.append(f'class names are those of {names.source.relative_to(root)}')
    data = MaskData(
        root=root,
        format=convention.format,
        classes=convention.classes,
        splits=splits,
        values=convention.values,
        colours={unpack(colour): label for colour, label in convention.colours.items()},
        ignored={unpack(value) for value in convention.ignored} if convention.colours else convention.ignored,
        findings=pairs.findings,
        notes=notes + convention.notes,
    )
    separate(data)
    return data


def require(root: str | Path) -> MaskData:
    """Read a segmentation data set like ``read``, but raise an error if there are no masks.

    Raises:
        UserError: The folder has no masks beside images, or ``read`` fails.
    """
    root = Path(root)
    data = read(root)
    if data is None:
        raise UserError(f'{root} has no masks beside images: --data takes a folder with {LAYOUT}')
    return data


def _choose_splits(splits: dict[str, list[MaskedImage]], notes: list[str]) -> dict[str, list[MaskedImage]]:
    """Return the splits reduced to ``TRAIN`` and ``VAL``, or to ``ALL``; add to the notes."""
    splits = {name: images for name, images in splits.items() if images}
    if TRAIN in splits and VAL not in splits and TEST in splits:
        splits[VAL] = splits.pop(TEST)
        notes.append('there are no validation images: the test images are used')
    if TRAIN in splits and VAL in splits:
        kept = {TRAIN: splits.pop(TRAIN), VAL: splits.pop(VAL)}
        notes += [
            f'the {len(images)} {f"{name} images" if name == TEST else "images of no split"} are not used'
            for name, images in splits.items()
        ]
        return kept
    if set(splits) - {ALL}:
        notes.append(f'the images of {" and ".join(sorted(splits))} are split into training and validation images')
    images = [image for part in splits.values() for image in part]
    return {ALL: sorted(images, key=lambda image: image.name)}


def _check_values(splits: dict[str, list[MaskedImage]], masks: Mapping[str, MaskValues]) -> None:
    """Check that validation masks have the values of training masks, if these are the only names of the classes.

    Raises:
        UserError: Most of the pixels of the validation masks that are not 0 have values that no training mask has, as
            after saving 0, 1 and 2 in one split and 0, 127 and 254 in the other.
    """
    counts: dict[str, Counter[int]] = {split: Counter() for split in (TRAIN, VAL)}
    for split in counts:
        for image in splits.get(split, []):
            if not masks[image.mask].is_jpeg:  # its values are not those of the classes
                counts[split].update(masks[image.mask].counts)
    training, validation = (counts[split] for split in (TRAIN, VAL))
    others = sorted(value for value in validation.keys() - training.keys() if value)
    pixels, total = sum(validation[value] for value in others), sum(validation.values()) - validation[0]
    if training and 2 * pixels > total:
        raise UserError(
            f'{pixels} of the {total} validation pixels that are not 0 have values that no training mask has '
            f'({first(map(str, others), 5)}; training masks have {first(map(str, sorted(training)), 5)}): save all '
            'masks alike, or write a name for each value if all are classes, '
            f'`classes: {{{min(training)}: name, ..., {others[-1]}: name}}` in {SETTINGS}'
        )


def _is_ade(root: Path, splits: dict[str, list[MaskedImage]]) -> bool:
    """Return True if training images and masks are in ``images/<split>`` and ``annotations/<split>``."""
    first = next(iter(splits.get(TRAIN, [])), None)
    if first is None:
        return False
    image, mask = (Path(part.lower()).parts[-3:-1] for part in (first.name, first.mask))
    return image[:1] == ('images',) and mask[:1] == ('annotations',) and image[1:] == mask[1:]


def _class_folders(root: Path, pairs: Pairs, splits: dict[str, list[MaskedImage]]) -> list[Path]:
    """Return the folders in which class names may be: the root, and all folders above a mask."""
    folders = [root, pairs.folder]
    for images in splits.values():
        for image in images[:1]:
            folders += [root / parent for parent in reversed(Path(image.mask).parents)]
    return list(dict.fromkeys(folders))
