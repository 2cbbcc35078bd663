"""Check the images and boxes of a detection data set, and correct or leave out those with mistakes.

The rule of each kind of finding is in ``findings.KINDS``.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mnv4_mm.data.checked import CheckedData, Count, SplitStatistics, count_by_split, count_sizes, split_of_finding
from mnv4_mm.data.decode import Decoded, decode_images, note_turned
from mnv4_mm.data.decode_once import MISSING
from mnv4_mm.data.findings import Finding, Rule, dark_image
from mnv4_mm.data.form import ALL, TEST, TRAIN, VAL, Box, DetectionData, LabelledImage
from mnv4_mm.data.formats.coco_json import NAME as COCO
from mnv4_mm.data.formats.files import first
from mnv4_mm.data.polygons import check_polygons
from mnv4_mm.data.split import divide, find_near_duplicates
from mnv4_mm.images import DARK, exif_orientation

# A box that extends beyond its image is clipped; it is left out if it extends further than this many pixels and than
# this share of the image's side.
CLIPPED_PIXELS, CLIPPED_SHARE = 3, 0.01
ROUNDING = 0.01  # pixels by which a box may be outside due to rounding
# Boxes are recognised as percent (Label Studio's unit) if there are at least MIN_PERCENT_BOXES of them, no side of an
# image is shorter than MIN_PERCENT_SIDE pixels, and no box ends beyond 100 although some end beyond NEAR_100.
MIN_PERCENT_BOXES, MIN_PERCENT_SIDE, NEAR_100 = 20, 250, 99.5
# Areas are in another unit than the boxes if more than half of at least MIN_AREAS boxes have an area of more than
# LARGE_AREA times (width + 1) times (height + 1), the area by tools that count both corners as inside of the box.
MIN_AREAS, LARGE_AREA = 5, 1.5
# Boxes are nearly twice in the data if more than NEAR_SHARE of them have another of their class and image with an IoU
# above NEAR_IOU.
NEAR_SHARE, NEAR_IOU = 0.1, 0.9
BARE_SHARE = 0.2  # of the images, above which those without boxes are mentioned
MIN_CORNERS = 5  # fewest boxes that can be recognised as (x1, y1, x2, y2) instead of (x, y, width, height)
OUTSIDE_SHARE = 0.2
DRIVE, SEPARATOR = re.compile('[A-Za-z]:'), re.compile(r'[/\\]')


@dataclass
class CheckedImages:
    """Images and boxes that passed the check, and its result.

    Attributes:
        splits: Images with their boxes by split. Images and boxes that are left out are not included.
        checked: Result of the check.
    """

    splits: dict[str, list[LabelledImage]]
    checked: CheckedData


def check_detection(data: DetectionData, previous: Mapping[str, str] | None = None) -> CheckedImages:
    """Check a detection data set, and split it into training and validation images if it has no such split.

    Every image is decoded, unless the result of an earlier check is in the cache. Boxes are clipped to their image. The
    sizes of the images are set to those of the decoded images.

    Args:
        data: The data set as read; not changed.
        previous: Earlier split, image name -> ``train`` or ``val``, if the data set has no split of its own. See
            ``split_images``.

    Returns:
        The images and boxes that are not left out, and the result of the check. If the data cannot be trained on,
        there is no error: ``checked.refusals()`` gives the reasons.

    Raises:
        UserError: The cache cannot be written.
    """
    findings = [*data.findings, *_check_classes(data)]
    splits = {name: list(images) for name, images in data.splits.items() if images}
    notes = [*data.notes, *_choose_splits(splits)]
    found = {
        name: dict(images=len(images), boxes=sum(len(image.boxes) for image in images))
        for name, images in splits.items()
    }
    notes += _note_bare(splits, data.has_centres)
    # ``found`` does not include the images and boxes that the reader has left out.
    lost = [finding for finding in data.findings if finding.rule is Rule.DROPPED]
    sources = {name: {image.source for image in images} for name, images in splits.items()}
    decoded, more, by_split, turned = _check_content(data.root, splits, data.has_centres)
    findings += more
    notes += turned
    if data.format == COCO and not any(finding.kind in WHOLE for finding in findings):
        for path in sorted(set().union(*sources.values())):
            findings += check_polygons(path)
    hashes = {name: result.hash for name, result in decoded.items()}
    if ALL in splits:
        labels = {image.name: {box.label for box in image.boxes if not box.is_crowd} for image in splits[ALL]}
        notes += divide(splits, hashes, labels, previous)
    else:
        findings += find_near_duplicates(data.root, splits, hashes)
    if not any(finding.rule is Rule.FATAL for finding in findings):
        findings += _check_rest(data, splits)
    dropped = Counter(_unit(finding) for finding in findings if finding.rule is Rule.DROPPED)
    checked = CheckedData(
        root=data.root,
        task='detection',
        format=data.format,
        classes=data.classes,
        findings=tuple(findings),
        notes=tuple(notes),
        counts={
            unit: Count(
                sum(units[unit] for units in found.values()) + sum(_unit(finding) == unit for finding in lost),
                dropped[unit],
            )
            for unit in ('images', 'boxes')
        },
        split_counts=count_by_split(
            found,
            [(name, _unit(finding)) for name, finding in by_split if finding.rule is Rule.DROPPED],
            [(split_of_finding(finding, data.root, sources), _unit(finding)) for finding in lost],
        ),
        splits={name: statistics(splits.get(name, []), data.classes) for name in (TRAIN, VAL)},
    )
    return CheckedImages(splits, checked)


def check_as_it_is(data: DetectionData) -> tuple[list[LabelledImage], list[Finding]]:
    """Check classes, images and boxes by the rules of ``check_detection``, with all splits joined into one.

    Args:
        data: The data set as read; not changed.

    Returns:
        The images and boxes that ``check_detection`` would not leave out, and the findings, those of the reader first.

    Raises:
        UserError: The cache cannot be written.
    """
    splits = {ALL: [image for images in data.splits.values() for image in images]}
    _, findings, *_ = _check_content(data.root, splits, data.has_centres)
    return splits[ALL], [*data.findings, *_check_classes(data), *findings]


def _check_content(
    root: Path, splits: dict[str, list[LabelledImage]], has_centres: bool
) -> tuple[dict[str, Decoded], list[Finding], list[tuple[str, Finding]], list[str]]:
    """Check images and boxes, and replace them, in place, by those that are not left out.

    Returns:
        The decoded images by name, the findings, those that belong to a split, with its name, and notes.
    """
    findings: list[Finding] = []
    by_split: list[tuple[str, Finding]] = []
    decoded = decode_images(root, _inside(image.name for images in splits.values() for image in images))
    unsized = {image.name for images in splits.values() for image in images if image.size is None}
    for name, images in splits.items():
        splits[name], more = _check_images(root, images, decoded)
        findings += more
        by_split += [(name, finding) for finding in more]
    labelled = [image.name for images in splits.values() for image in images if image.boxes]
    notes = note_turned(decoded, labelled, unsized)
    findings += _check_units(splits, has_centres)
    for name, images in splits.items():
        if not any(finding.kind in WHOLE for finding in findings):
            splits[name], more = _check_boxes(images, decoded)
            findings += more
            by_split += [(name, finding) for finding in more]
    if not any(finding.kind in WHOLE for finding in findings):
        findings += _check_copies(splits)
    return decoded, findings, by_split, notes


# Kinds that concern all boxes: if there is such a finding, the boxes are not checked one by one.
WHOLE = ('boxes-as-shares', 'boxes-as-percent', 'boxes-as-corners', 'area-unit')
IMAGE_KINDS = ('annotation-missing', 'annotation-shared', 'annotation-unreadable', 'missing-image', 'unreadable-image')


def _unit(finding: Finding) -> str:
    return 'images' if finding.kind in IMAGE_KINDS else 'boxes'


def statistics(images: Sequence[LabelledImage], classes: Sequence[str]) -> SplitStatistics:
    """Return the statistics of a split.

    Args:
        images: Checked images of the split.
        classes: Class names in the order of labels.
    """
    boxes = [box for image in images for box in image.boxes if not box.is_crowd]
    sides: dict[str, list[float]] = {name: [] for name in classes}
    for box in boxes:
        sides[classes[box.label]].append(round(math.sqrt(box.xywh[2] * box.xywh[3]), 1))
    return SplitStatistics(
        images=len(images),
        objects=len(boxes),
        empty_images=sum(not image.boxes for image in images),
        histogram={name: len(values) for name, values in sides.items()},
        image_sizes=count_sizes(image.size for image in images if image.size),
        box_sides={name: sorted(values) for name, values in sides.items()},
        crowds=sum(box.is_crowd for image in images for box in image.boxes),
    )


def _choose_splits(splits: dict[str, list[LabelledImage]]) -> list[str]:
    """Reduce the splits to ``TRAIN`` and ``VAL``, or to ``ALL``, in place; return notes on the decisions."""
    notes = []
    if TRAIN in splits and VAL not in splits:
        if TEST in splits:
            splits[VAL] = splits.pop(TEST)
            notes.append('there are no validation images: the test images are used')
        else:
            splits[ALL] = [*splits.pop(TRAIN), *splits.get(ALL, ())]
            notes.append('there are no validation images: some of the training images are used')
    if VAL in splits and TRAIN not in splits and ALL in splits:
        splits[TRAIN] = splits.pop(ALL)
        notes.append(f'the {len(splits[TRAIN])} images of no split are for training')
    if TEST in splits:
        notes.append(f'the {len(splits.pop(TEST))} test images are not used')
    if ALL in splits and TRAIN in splits:
        notes.append(f'{len(splits.pop(ALL))} images of no split are not used')
    return notes


def _note_bare(splits: Mapping[str, Sequence[LabelledImage]], has_centres: bool) -> list[str]:
    """Return a note if more than ``BARE_SHARE`` of the images have no boxes.

    The reader of YOLO has already named the images without a label file. Of such a data set, only empty label files
    are noted here.
    """
    images = [image for images in splits.values() for image in images]
    bare = [image for image in images if not image.boxes]
    is_named = has_centres and all(image.source.suffix != '.txt' for image in bare)
    if is_named or not BARE_SHARE * len(images) < len(bare) < len(images):
        return []
    names = first([image.name for image in bare])
    return [f'{len(bare)} of {len(images)} images have no boxes, taken as images without objects: {names}']


def _check_classes(data: DetectionData) -> Iterator[Finding]:
    # If what was left out had the classes, that is to be corrected.
    if not data.classes and not any(finding.rule is Rule.DROPPED for finding in data.findings):
        yield Finding('no-classes', data.root, 'no class is named')
    for name in data.classes:
        if name.strip() and (name != name.strip() or re.search(r'[<>/\\"]', name)):
            yield Finding('class-name-unusual', data.root, f'the class name {name!r}')


def _inside(names: Iterable[str]) -> list[str]:
    return [name for name in names if is_inside(name)]


def is_inside(name: str) -> bool:
    """Return True if a path is relative and has no ``..``, both in POSIX and in Windows notation."""
    return not name.startswith(('/', '\\')) and not DRIVE.match(name) and '..' not in SEPARATOR.split(name)


def _check_images(
    root: Path, images: Sequence[LabelledImage], decoded: Mapping[str, Decoded]
) -> tuple[list[LabelledImage], list[Finding]]:
    """Return the usable images, with the sizes of the decoded images, and the findings."""
    kept, findings = [], []
    for image in images:
        if not is_inside(image.name):
            findings.append(Finding('path-outside', image.source, f'the image {image.name} is outside of {root}'))
            continue
        result = decoded[image.name]
        if result.problem:
            is_missing = result.problem == MISSING
            kind, problem = (
                ('missing-image', f'no image {image.name}') if is_missing else ('unreadable-image', result.problem)
            )
            findings.append(Finding(kind, image.source if is_missing else root / image.name, problem))
            continue
        size = (result.width, result.height)
        if image.size and image.size != size:
            findings.append(_size_finding(root, image, image.size, size))
        if result.brightest <= DARK:
            findings.append(dark_image(root / image.name, result.brightest))
        kept.append(replace(image, size=size))
    return kept, findings


def _size_finding(root: Path, image: LabelledImage, stated: tuple[int, int], size: tuple[int, int]) -> Finding:
    problem = f'{image.name} is {size[0]}x{size[1]}, not {stated[0]}x{stated[1]}'
    orientation = exif_orientation(root / image.name)
    if orientation > 1:
        problem += f': its EXIF orientation {orientation} turns it'
    return Finding(
        'image-size-exif' if orientation > 4 and stated == size[::-1] else 'image-size', image.source, problem
    )


def _check_units(splits: Mapping[str, Sequence[LabelledImage]], has_centres: bool = False) -> Iterator[Finding]:
    """Yield a finding if the boxes as a whole are in another form than (x, y, width, height) in pixels.

    Args:
        splits: Images by split.
        has_centres: See ``DetectionData``.
    """
    pairs = [(image, box) for images in splits.values() for image in images for box in image.boxes]
    table = np.array([(*box.xywh, *(image.size or (0, 0))) for image, box in pairs], float).reshape(-1, 6)
    valid = np.isfinite(table).all(1) & (table[:, 2:4] > 0).all(1)
    pairs, table = [pair for pair, use in zip(pairs, valid, strict=True) if use], table[valid]
    if not pairs:
        return
    start, size, image_size = table[:, :2], table[:, 2:4], table[:, 4:]
    with np.errstate(over='ignore'):  # sum and product of two finite numbers may be infinite
        end, largest = start + size, LARGE_AREA * (size + 1).prod(1)
    is_share = (start >= -0.5).all(1) & (end <= 1 + 1e-3).all(1)
    if 2 * is_share.sum() > len(pairs):
        image, box = pairs[is_share.argmax()]
        problem = f'{is_share.sum()} of {len(pairs)} boxes are within one pixel, such as {_text(box)}'
        yield Finding('boxes-as-shares', image.source, problem, box.entry)
        return
    may_be_percent = len(pairs) >= MIN_PERCENT_BOXES and image_size.min() >= MIN_PERCENT_SIDE
    if may_be_percent and (end.max(0) > NEAR_100).all() and (start >= -0.5).all() and (end <= 100.5).all():
        image, box = pairs[0]
        problem = f'all {len(pairs)} boxes end within 100 pixels, such as {_text(box)}'
        yield Finding('boxes-as-percent', image.source, problem, box.entry)
        return
    is_outside = (end > image_size + CLIPPED_PIXELS).any(1) | (has_centres & (start < -CLIPPED_PIXELS)).any(1)
    stored = start + size / 2 if has_centres else start  # the first two numbers of a box in the file
    may_be_corners = (stored < size).all() and (size <= image_size + 1).all()
    if may_be_corners and len(pairs) >= MIN_CORNERS and is_outside.sum() > OUTSIDE_SHARE * len(pairs):
        image, box = pairs[is_outside.argmax()]
        problem = f'{is_outside.sum()} of {len(pairs)} boxes leave their image, such as {_text(box)}'
        yield Finding('boxes-as-corners', image.source, problem, box.entry)
        return
    areas = np.array([math.nan if box.area is None else box.area for image, box in pairs])
    is_larger = areas > largest
    if len(pairs) >= MIN_AREAS and 2 * is_larger.sum() > len(pairs):
        image, box = pairs[is_larger.argmax()]
        problem = (
            f'{is_larger.sum()} of {len(pairs)} boxes are smaller than their areas, such as {_text(box)} of the area '
            f'{box.area:g}'
        )
        yield Finding('area-unit', image.source, problem, box.entry)


def _check_copies(splits: Mapping[str, Sequence[LabelledImage]]) -> Iterator[Finding]:
    """Yield a finding if many boxes have a near copy: another box of their class in their image.

    Args:
        splits: Images by split, with boxes that are finite and not empty.
    """
    images = [image for group in splits.values() for image in group]
    boxes = [[box for box in image.boxes if not box.is_crowd] for image in images]
    owners = np.repeat(np.arange(len(images)), [len(group) for group in boxes])
    flat = [box for group in boxes for box in group]
    labels = np.array([box.label for box in flat])
    table = np.column_stack([owners, labels, np.array([box.xywh for box in flat], float).reshape(-1, 4)])
    order = np.lexsort(table[:, :3].T[::-1])  # by image, class and left edge
    table = table[order]
    start, size, area = table[:, 2:4], table[:, 4:], table[:, 4:].prod(1)
    end = start + size
    has_copy = np.zeros(len(flat), bool)
    example: tuple[int, int] | None = None
    # The left edges of two boxes of a large IoU are near each other: each box is compared with those that follow, until
    # one is of another image or class, or too far away.
    left: np.ndarray = np.arange(len(flat))
    step = 0
    while len(left):
        step += 1
        left = left[left + step < len(flat)]
        right = left + step
        is_near = (table[left, :2] == table[right, :2]).all(1)
        is_near &= start[right, 0] - start[left, 0] <= (1 - NEAR_IOU) * size[left, 0]
        left, right = left[is_near], right[is_near]
        sides = np.minimum(end[left], end[right]) - np.maximum(start[left], start[right])
        common = sides.clip(0).prod(1)
        found = common > NEAR_IOU * (area[left] + area[right] - common)
        has_copy[left[found]] = has_copy[right[found]] = True
        if found.any() and example is None:
            example = order[left[found.argmax()]], order[right[found.argmax()]]
    if example and has_copy.sum() > NEAR_SHARE * len(flat):
        one, other = (flat[i] for i in sorted(example))
        image = images[owners[example[0]]]
        problem = (
            f'{has_copy.sum()} of {len(flat)} boxes have a near copy of the same class, such as {_text(one)} and '
            f'{_text(other)} of {image.name}'
        )
        yield Finding('boxes-nearly-twice', image.source, problem, other.entry)


def _excess(image: LabelledImage, box: Box) -> tuple[float, float, float, float]:
    """Return by how many pixels a box leaves its image on the left, at the top, on the right and at the bottom."""
    x, y, width, height = box.xywh
    image_width, image_height = image.size or (0, 0)
    return -x, -y, x + width - image_width, y + height - image_height


def _text(box: Box) -> str:
    return f'[{", ".join(f"{value:g}" for value in box.xywh)}]'


def _check_boxes(
    images: Sequence[LabelledImage], decoded: Mapping[str, Decoded]
) -> tuple[list[LabelledImage], list[Finding]]:
    """Return the images with their remaining boxes, clipped, and the findings."""
    kept, findings = [], []
    for image in images:

        def found(kind: str, box: Box, problem: str, image: LabelledImage = image) -> None:
            if kind == 'box-outside' and decoded[image.name].orientation > 1:
                problem += ', which EXIF turns'
            findings.append(Finding(kind, image.source, problem, box.entry))

        if image.boxes and not any(any(box.xywh) for box in image.boxes):
            found('zero-box', image.boxes[0], f'{image.name} has the box [0, 0, 0, 0] alone')
            kept.append(replace(image, boxes=[]))
            continue
        boxes = []
        labels: dict[tuple[Any, ...], set[int]] = {}
        for box in image.boxes:
            checked = _check_box(image, box, found)
            if checked is None:
                continue
            same = labels.setdefault((checked.xywh, checked.is_crowd), set())
            if checked.label in same:
                found('box-twice', box, f'the box {_text(box)} of {image.name} is a repetition')
                continue
            if same:
                found('box-two-classes', box, f'the box {_text(box)} of {image.name} has another class, too')
            same.add(checked.label)
            boxes.append(checked)
        kept.append(replace(image, boxes=boxes))
    return kept, findings


def _check_box(image: LabelledImage, box: Box, found: Callable[[str, Box, str], None]) -> Box | None:
    """Return the box, clipped to its image and with a valid area; None if it is left out. Problems go to ``found``."""
    x, y, width, height = box.xywh
    image_width, image_height = image.size or (0, 0)
    is_inside = x >= 0 and y >= 0 and x + width <= image_width and y + height <= image_height
    largest = (width + 1) * (height + 1)  # see LARGE_AREA
    if is_inside and width >= 1 and height >= 1 and box.area is not None and 0 < box.area <= largest:
        return box  # a shortcut: almost all boxes are valid
    name = f'the box {_text(box)} of {image.name}'
    if not all(map(math.isfinite, box.xywh)):
        found('box-not-finite', box, f'{name} is not finite')
        return None
    if width < 0 or height < 0:
        found('box-negative', box, f'{name} has a negative size')
        return None
    if not width or not height:
        found('box-empty', box, f'{name} has no area')
        return None
    excess = _excess(image, box)
    sides = (image_width, image_height, image_width, image_height)
    if any(value > max(CLIPPED_PIXELS, CLIPPED_SHARE * side) for value, side in zip(excess, sides, strict=True)):
        found(
            'box-outside',
            box,
            f'{name} reaches {max(excess):g} pixels outside of its {image_width}x{image_height} image',
        )
        return None
    area = box.area
    if max(excess) > ROUNDING:
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + width, float(image_width)), min(y + height, float(image_height))
        if right - left < 1 or bottom - top < 1:
            found(
                'box-outside',
                box,
                f'{name} has less than a pixel of width or height inside of its {image_width}x{image_height} image',
            )
            return None
        found(
            'box-clipped',
            box,
            f'{name} reaches {max(excess):.2g} pixels outside of its {image_width}x{image_height} image',
        )
        area = min(area, (right - left) * (bottom - top)) if area is not None else None
        x, y, width, height = left, top, right - left, bottom - top
    if width < 1 or height < 1:
        found('box-sub-pixel', box, f'{name} is smaller than a pixel')
        return None
    if area is not None and not (math.isfinite(area) and area > 0):
        found('area-zero', box, f'the area of {name} is {area:g}')
        area = None
    elif area is not None and area > largest:
        found('area-too-large', box, f'the area of {name} is {area:g}, more than width times height')
        area = None
    return replace(box, xywh=(x, y, width, height), area=width * height if area is None else area)


def _check_rest(data: DetectionData, splits: Mapping[str, Sequence[LabelledImage]]) -> Iterator[Finding]:
    """Yield findings for splits without images or boxes, and for classes without boxes in a split."""
    for name, purpose in ((TRAIN, 'training'), (VAL, 'validation')):
        images = splits.get(name, ())
        boxes = [box for image in images for box in image.boxes]
        source = images[0].source if images else data.root
        if not images:
            yield Finding(f'no-{purpose}-images', source, f'no {purpose} images remain')
            continue
        present = Counter(box.label for box in boxes if not box.is_crowd)
        if boxes and not present:
            yield Finding('crowd-all', source, f'all {len(boxes)} {purpose} boxes are crowds')
        elif not boxes:
            yield Finding(f'no-{purpose}-boxes', source, f'none of the {len(images)} {purpose} images has a box')
        else:
            absent = [repr(name) for label, name in enumerate(data.classes) if not present[label]]
            if absent:
                plural = 'es' if len(absent) > 1 else ''
                yield Finding(f'class-without-{purpose}-boxes', source, f'the class{plural} {", ".join(absent)}')
