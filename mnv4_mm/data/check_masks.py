"""Check the images and masks of a segmentation data set, and leave out what cannot be used.

The rule of each kind of finding is in ``findings.KINDS``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnv4_mm.data.checked import CheckedData, Count, SplitStatistics, count_by_split, count_sizes, split_of_finding
from mnv4_mm.data.decode import Decoded, decode_images, note_turned
from mnv4_mm.data.findings import Finding, dark_image
from mnv4_mm.data.form import ALL, TRAIN, VAL, MaskData, MaskedImage
from mnv4_mm.data.mask_values import MaskValues, decode_masks, pack, unpack
from mnv4_mm.data.split import divide, find_near_duplicates
from mnv4_mm.images import DARK, exif_orientation

MAX_LISTED = 5
# Kinds of findings whose image is not among the pairs.
WITHOUT_PAIR = ('mask-missing', 'mask-shared', 'missing-image')


@dataclass
class CheckedMasks:
    """Pairs of image and mask that passed the check, and its result.

    Attributes:
        splits: Pairs of ``train`` and ``val``. Pairs that are left out are not included.
        checked: Result of the check.
    """

    splits: dict[str, list[MaskedImage]]
    checked: CheckedData


def check_masks(data: MaskData, previous: Mapping[str, str] | None = None) -> CheckedMasks:
    """Check a segmentation data set, and split it into training and validation images if it has no such split.

    Args:
        data: The data set as read; not changed.
        previous: Earlier split, image name -> ``train`` or ``val``, if the data set has no split of its own. See
            ``split_images``.

    Returns:
        The pairs that are not left out, and the result of the check. If the data cannot be trained on, there is no
        error: ``checked.refusals()`` gives the reasons.

    Raises:
        UserError: The cache cannot be written.
    """
    pairs = [pair for part in data.splits.values() for pair in part]
    decoded = decode_images(data.root, [pair.name for pair in pairs])
    masks = decode_masks(data.root, [pair.mask for pair in pairs])
    labels = label_table(data)
    findings = list(data.findings)
    splits: dict[str, list[MaskedImage]] = {}
    dropped: list[tuple[str | None, str]] = []
    for name, part in data.splits.items():
        splits[name] = []
        for pair in part:
            finding = check_pair(data, pair, decoded[pair.name], masks[pair.mask], labels)
            if finding is None:
                splits[name].append(pair)
                if decoded[pair.name].brightest <= DARK:
                    findings.append(dark_image(data.root / pair.name, decoded[pair.name].brightest))
            else:
                findings.append(finding)
                dropped.append((name, 'images'))
    kept = sum(map(len, splits.values()))
    counts = {
        name: count_labels(masks[pair.mask], labels, data)
        for part in splits.values()
        for pair in part
        for name in [pair.name]
    }
    notes = [*data.notes, *note_turned(decoded, counts)]
    hashes = {name: result.hash for name, result in decoded.items()}
    if ALL in splits:
        present = {pair.name: set(map(int, np.flatnonzero(counts[pair.name]))) for pair in splits[ALL]}
        notes += divide(splits, hashes, present, previous)
    else:
        findings += find_near_duplicates(data.root, splits, hashes)
    for name in (TRAIN, VAL):
        findings += _check_split(data, name, splits.get(name, []), counts)
    lost = [finding for finding in data.findings if finding.kind in WITHOUT_PAIR]
    spare = sum(finding.kind == 'mask-without-image' for finding in data.findings)
    found = len(pairs)
    checked = CheckedData(
        root=data.root,
        task='segmentation',
        format=data.format,
        classes=data.classes,
        findings=tuple(findings),
        notes=tuple(notes),
        counts=dict(
            images=Count(found + len(lost), found + len(lost) - kept),
            masks=Count(found + spare, found + spare - kept),
        ),
        split_counts=count_by_split(
            {name: dict(images=len(part)) for name, part in data.splits.items()},
            dropped,
            [(split_of_finding(finding, data.root, {}), 'images') for finding in lost],
        ),
        splits={name: _statistics(data, splits.get(name, []), decoded, counts) for name in (TRAIN, VAL)},
    )
    return CheckedMasks({name: splits.get(name, []) for name in (TRAIN, VAL)}, checked)


def label_table(data: MaskData) -> dict[int, int | None]:
    """Return the label of each mask value of a data set, or of each packed colour for masks in colours.

    Returns:
        Value or packed colour (see ``pack``) -> label. The label of unlabelled values is None.
    """
    if data.colours:
        ignored = {pack(colour) for colour in data.ignored if isinstance(colour, tuple)}
        labels = {pack(colour): label for colour, label in data.colours.items()}
    else:
        ignored = {value for value in data.ignored if isinstance(value, int)}
        labels = dict(data.values)
    return {**labels, **dict.fromkeys(ignored)}


def values_of(mask: MaskValues, data: MaskData) -> Mapping[int, int]:
    """Return the number of pixels of each value, or of each packed colour for masks in colours."""
    return mask.colours() if data.colours else mask.counts


def count_labels(mask: MaskValues, labels: Mapping[int, int | None], data: MaskData) -> np.ndarray:
    """Count the labelled pixels of a mask by class.

    Args:
        mask: Decoded mask. All of its values must be in ``labels``.
        labels: Label of each mask value or packed colour, as ``label_table`` returns it.
        data: Data set of the mask.

    Returns:
        (C,) int64, number of pixels of each of the C classes.
    """
    counts = np.zeros(len(data.classes), np.int64)
    for value, count in values_of(mask, data).items():
        label = labels[value]
        if label is not None:
            counts[label] += count
    return counts


def check_pair(
    data: MaskData, pair: MaskedImage, image: Decoded, mask: MaskValues, labels: Mapping[int, int | None]
) -> Finding | None:
    """Return the finding because of which a pair is left out; None if the pair is used.

    Args:
        data: Data set of the pair.
        pair: The pair.
        image: Its decoded image.
        mask: Its decoded mask.
        labels: Label of each mask value or packed colour, as ``label_table`` returns it.
    """
    image_path, mask_path = data.root / pair.name, data.root / pair.mask
    if pair.name != pair.name.strip() or not pair.name.isprintable():
        return Finding(
            'file-name', image_path, f'the name {pair.name!r} begins or ends with a blank or has a control character'
        )
    if image.problem:
        return Finding('unreadable-image', image_path, image.problem)
    if mask.problem:
        return Finding('unreadable-mask', mask_path, mask.problem)
    if mask.is_jpeg:
        return Finding('mask-jpeg', mask_path, f'it is a JPEG file with {mask.distinct} values')
    if (mask.width, mask.height) != (image.width, image.height):
        return _size_finding(data.root, pair, image, mask)
    return _value_finding(data, mask_path, mask, labels)


def _size_finding(root: Path, pair: MaskedImage, image: Decoded, mask: MaskValues) -> Finding:
    problem = f'it is {mask.width}x{mask.height}, but its image {pair.name} is {image.width}x{image.height}'
    if (mask.height, mask.width) == (image.width, image.height):
        orientation = exif_orientation(root / pair.name)
        if orientation > 4:
            return Finding(
                'mask-size-exif', root / pair.mask, f'{problem} as its EXIF orientation {orientation} turns it'
            )
    return Finding('mask-size', root / pair.mask, problem)


def _value_finding(data: MaskData, path: Path, mask: MaskValues, labels: Mapping[int, int | None]) -> Finding | None:
    counts = values_of(mask, data)
    unknown = [value for value in counts if value not in labels]
    if not unknown and mask.distinct <= len(mask.counts):
        return None
    pixels = sum(counts[value] for value in unknown)
    shown = [str(unpack(value) if data.colours else value) for value in sorted(unknown)[:MAX_LISTED]]
    listed = ', '.join(shown) + (f' and {len(unknown) - len(shown)} more' if len(unknown) > len(shown) else '')
    if data.colours:
        return Finding('mask-colour', path, f'{pixels} pixels have colours of no class: {listed}')
    noun = 'value' if len(unknown) == 1 else 'values'
    return Finding('mask-value', path, f'{pixels} pixels have the {noun} {listed}: {describe_values(data)}')


def describe_values(data: MaskData) -> str:
    """Describe the mask values of a data set, for messages."""
    values = sorted(data.values)
    is_run = values == list(range(values[0], values[-1] + 1)) if values else False
    classes = f'{values[0]} to {values[-1]}' if is_run else ', '.join(map(str, values[:20]))
    ignored = sorted(value for value in data.ignored if isinstance(value, int))[:MAX_LISTED]
    if not ignored:
        return f'{classes} are the classes'
    verb = 'is' if len(ignored) == 1 else 'are'
    return f'{classes} are the classes, and {", ".join(map(str, ignored))} {verb} unlabelled'


def _check_split(
    data: MaskData, split: str, pairs: Sequence[MaskedImage], counts: Mapping[str, np.ndarray]
) -> Iterator[Finding]:
    purpose = 'training' if split == TRAIN else 'validation'
    if not pairs:
        yield Finding(f'no-{purpose}-images', data.root, f'no {purpose} images remain')
        return
    total = sum((counts[pair.name] for pair in pairs), np.zeros(len(data.classes), np.int64))
    if not np.any(total):
        yield Finding(f'no-{purpose}-labels', data.root, f'no pixel of the {len(pairs)} {purpose} masks has a label')
        return
    for pair in pairs:
        if not counts[pair.name].any():
            yield Finding('mask-unlabelled', data.root / pair.mask, 'no pixel has a label')
    absent = [name for name, count in zip(data.classes, total, strict=True) if not count]
    if absent:
        shown = ', '.join(absent[:MAX_LISTED]) + (
            f' and {len(absent) - MAX_LISTED} more' if absent[MAX_LISTED:] else ''
        )
        problem = f'no {purpose} pixel is {shown} ({len(absent)} of {len(data.classes)} classes)'
        yield Finding(f'class-without-{purpose}-pixels', data.root, problem)


def _statistics(
    data: MaskData, pairs: Sequence[MaskedImage], decoded: Mapping[str, Decoded], counts: Mapping[str, np.ndarray]
) -> SplitStatistics:
    total = sum((counts[pair.name] for pair in pairs), np.zeros(len(data.classes), np.int64))
    return SplitStatistics(
        images=len(pairs),
        objects=int(total.sum()),
        empty_images=sum(not counts[pair.name].any() for pair in pairs),
        histogram={name: int(count) for name, count in zip(data.classes, total, strict=True)},
        image_sizes=count_sizes((decoded[pair.name].width, decoded[pair.name].height) for pair in pairs),
    )
