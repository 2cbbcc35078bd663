"""Split a data set into training and validation images; find near-duplicates.

Images that show the same must not be on both sides: the model would be scored on what it was trained on.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from mnv4_mm.data.findings import Finding
from mnv4_mm.data.form import ALL, TRAIN, VAL, LabelledImage, MaskedImage
from mnv4_mm.errors import UserError

ImageT = TypeVar('ImageT', LabelledImage, MaskedImage)
VAL_SHARE = 0.2
# Number of the 64 bits in which the pHashes of near-duplicates, and of successive frames of a video, may differ.
# Unrelated images differ in 30 on average and hardly ever in fewer than 14 (BCCD, COCO). Successive frames of CamVid's
# videos, which are a second apart, differ in 14.
NEAR_BITS, SERIES_BITS = 8, 20
MIN_SERIES = 4  # fewest images that can be the frames of a video
CANDIDATES = 64  # random splits, of which the one that divides the classes most evenly is used
NUMBER = re.compile(r'(\d+)(?=\D*$)')
# Roboflow exports several augmented copies of an image, some of them mirrored or rotated, which pHash does not see.
ROBOFLOW = re.compile(r'(.+)\.rf\.[0-9a-f]{32}\.\w+')
ROWS = 1024  # rows of the distance matrix that are computed at once: 8 MB for each 1,000 images


class ImageSplit(NamedTuple):
    """A data set split in two.

    Attributes:
        train: Names of the training images, in their original order.
        val: Names of the validation images, in their original order.
        notes: Sentences on how the data set was split, e.g. the number of images on each side.
    """

    train: list[str]
    val: list[str]
    notes: list[str]


def split_images(
    hashes: Mapping[str, int],
    classes: Mapping[str, AbstractSet[int]] | None = None,
    *,
    seed: int = 0,
    previous: Mapping[str, str] | None = None,
) -> ImageSplit:
    """Split images at random, with near-duplicates, Roboflow's copies and the frames of a video on the same side.

    About a fifth of the images is for validation. Several random splits are drawn, and the one that divides the classes
    most evenly is used. Images that belong together and make up more than two fifths of all images are divided all the
    same, into runs of successive names; a note says so.

    Args:
        hashes: pHash by name of the image, as ``decode_images`` returns it; the names are paths with ``/``.
        classes: Labels that occur in each image, by name. None balances only the number of images.
        seed: The same seed splits the same images alike.
        previous: Earlier split, image name -> ``train`` or ``val``. Images keep it when others are added, so that an
            earlier model is not measured on images that it was trained on. A validation image still becomes a training
            image if a near-duplicate, or a frame of the same video, is a training image. A split that leaves one side
            empty is not kept.

    Raises:
        UserError: There are fewer than two images.
    """
    names = list(hashes)
    if len(names) < 2:
        raise UserError(f'{len(names)} image cannot be split into training and validation: at least 2 are needed')
    groups, notes = _groups(names, np.array([hashes[name] for name in names], np.uint64))
    present = _presence(names, classes or {})
    chosen = _choose(groups, present, _sides(names, groups, previous or {}), seed)
    if not chosen.any() or chosen.all():  # an earlier split that leaves one side empty
        chosen = _choose(groups, present, _sides(names, groups, {}), seed)
    notes.insert(
        0,
        f'{len(names) - int(chosen.sum())} images are for training and {int(chosen.sum())} for validation, '
        f'drawn with seed {seed}',
    )
    return ImageSplit(
        [name for name, is_val in zip(names, chosen, strict=True) if not is_val],
        [name for name, is_val in zip(names, chosen, strict=True) if is_val],
        notes,
    )


def divide(
    splits: dict[str, list[ImageT]],
    hashes: Mapping[str, int],
    classes: Mapping[str, AbstractSet[int]],
    previous: Mapping[str, str] | None = None,
) -> list[str]:
    """Split ``ALL`` into ``TRAIN`` and ``VAL``, in place, by ``split_images``.

    Args:
        splits: Images by split. ``ALL`` is replaced by ``TRAIN`` and ``VAL``. A single image goes to ``TRAIN``.
        hashes: See ``split_images``. Images that are not in ``ALL`` are ignored.
        classes: See ``split_images``.
        previous: See ``split_images``.

    Returns:
        Notes on the split, one sentence each. The list is empty if there are fewer than two images.
    """
    images = splits.pop(ALL)
    if len(images) < 2:
        splits.update({TRAIN: images, VAL: []})
        return []
    split = split_images({image.name: hashes[image.name] for image in images}, classes, previous=previous)
    is_val = set(split.val)
    splits[TRAIN] = [image for image in images if image.name not in is_val]
    splits[VAL] = [image for image in images if image.name in is_val]
    return split.notes


def find_near_duplicates(
    root: Path, splits: Mapping[str, Sequence[ImageT]], hashes: Mapping[str, int]
) -> Iterator[Finding]:
    """Yield a finding for each validation image that has a near-duplicate among the training images.

    Copies of one image by Roboflow, which their names tell, count as near-duplicates.

    Args:
        root: Folder of the data set.
        splits: Images by split, of which ``TRAIN`` and ``VAL`` are compared.
        hashes: pHash by name of the image, as ``decode_images`` returns it.
    """
    train, val = ({image.name: hashes[image.name] for image in splits.get(name, ())} for name in (TRAIN, VAL))
    near = {second: first for first, second in near_duplicates(train, val)}
    originals = {original: name for name in reversed(train) if (original := _original(name))}
    for name in val:
        if name in near:
            is_same = near[name] == name
            problem = 'a training image, too' if is_same else f'a near-duplicate of the training image {near[name]}'
        elif copy := originals.get(_original(name)):
            problem = f'made from the same image as the training image {copy}, by its name'
        else:
            continue
        yield Finding('near-duplicate', root / name, f'it is {problem}')


def near_duplicates(first: Mapping[str, int], second: Mapping[str, int]) -> list[tuple[str, str]]:
    """Find the images of a second set that have a near-duplicate in a first set.

    Args:
        first: pHash by name, for the images of the first set.
        second: pHash by name, for the images of the second set.

    Returns:
        (name in ``first``, name in ``second``) for each image of ``second`` that has a near-duplicate, in the order of
        ``second``. If an image has several near-duplicates, the nearest one is returned.
    """
    if not first:
        return []
    names, others = list(first), list(second)
    table = _signs(list(first.values()))
    pairs = []
    for start in range(0, len(others), ROWS):
        distances = _distances(_signs(list(second.values())[start : start + ROWS]), table)
        nearest = distances.argmin(1)
        for row in np.flatnonzero(distances.min(1) <= NEAR_BITS):
            pairs.append((names[nearest[row]], others[start + row]))
    return pairs


def _original(name: str) -> str:
    """Return the name that Roboflow's copies of an image share; empty for a name of another form."""
    match = ROBOFLOW.fullmatch(name.rpartition('/')[2])
    return match[1] if match else ''


def _signs(hashes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the bits of hashes, (N, 64) float32: 1 for bits that are set, -1 for the others."""
    octets = np.array(hashes, '>u8').view(np.uint8).reshape(-1, 8)
    return np.unpackbits(octets, axis=1).astype(np.float32) * 2 - 1


def _distances(signs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the Hamming distances, (N, M). They are computed by a matrix product, as numpy 1 cannot count bits."""
    return (64 - signs @ others.T) / 2


def _groups(names: Sequence[str], hashes: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the group number of each image, (N,), and notes on the groups."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    near, frames = _near_pairs(hashes), _series_pairs(names, hashes)
    copies = _copy_pairs(names)
    rows, columns = np.concatenate([near, copies, frames]).T
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(names), len(names)))
    groups = connected_components(links, directed=False)[1]
    notes = []
    if len(near):
        notes.append(f'near-duplicates stay on one side: {len(np.unique(near))} images')
    if len(copies):
        notes.append(f"Roboflow's copies of an image stay on one side: {len(np.unique(copies))} images")
    if len(frames):
        notes.append(f'frames of a video stay on one side: {len(np.unique(frames))} images')
    return _cut(names, groups, notes), notes


def _near_pairs(hashes: np.ndarray) -> np.ndarray:
    """Return pairs of images, (N, 2), that link each image with its near-duplicates."""
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    same = np.stack([first[inverse], np.arange(len(hashes))], 1)
    pairs = [same[same[:, 0] != same[:, 1]]]
    signs = _signs(values)
    for start in range(0, len(values), ROWS):
        rows, columns = np.nonzero(_distances(signs[start : start + ROWS], signs) <= NEAR_BITS)
        is_above = rows + start < columns
        pairs.append(np.stack([first[rows[is_above] + start], first[columns[is_above]]], 1))
    return np.concatenate(pairs)


def _copy_pairs(names: Sequence[str]) -> np.ndarray:
    """Return pairs of images, (N, 2), that link the copies of an image that Roboflow has made."""
    originals: dict[str, int] = {}
    pairs = [(originals.setdefault(original, i), i) for i, name in enumerate(names) if (original := _original(name))]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], int).reshape(-1, 2)


def _series_pairs(names: Sequence[str], hashes: np.ndarray) -> np.ndarray:
    """Return pairs of images, (N, 2), that link the successive frames of videos.

    Names that differ in a number are not enough: ``0001.jpg``, ``0002.jpg``, ... may be unrelated photographs, and what
    is before the number may be a class. In a video, at least half of the images also resemble the one before.
    """
    series: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for i, name in enumerate(names):
        folder, _, file = name.rpartition('/')
        stem = os.path.splitext(file)[0]
        if number := NUMBER.search(stem):
            series.setdefault((folder, NUMBER.sub('#', stem)), []).append((int(number[1]), i))
    signs = _signs(hashes)
    pairs: list[np.ndarray] = [np.empty((0, 2), int)]
    for members in series.values():
        order = np.array([i for _, i in sorted(members)])
        if len(order) < MIN_SERIES:
            continue
        steps = (64 - (signs[order[1:]] * signs[order[:-1]]).sum(1)) / 2
        if np.median(steps) <= SERIES_BITS:
            pairs.append(np.stack([order[:-1], order[1:]], 1))
    return np.concatenate(pairs)


def _cut(names: Sequence[str], groups: np.ndarray, notes: list[str]) -> np.ndarray:
    """Cut groups of more than two fifths of the images into runs of successive names, and add to the notes."""
    groups = groups.copy()
    limit = max(1, int(len(names) * VAL_SHARE))
    sizes = np.bincount(groups)
    for group in np.flatnonzero((sizes > 2 * limit) | (sizes == len(names))):
        members = sorted(np.flatnonzero(groups == group), key=lambda i: _natural(names[i]))
        notes.append(
            f'{len(members)} of {len(names)} images are alike or of one video (first: {names[members[0]]}): they are '
            'cut into runs of successive images, and the validation score is better than that of new images would be'
        )
        for start in range(limit, len(members), limit):
            groups[members[start : start + limit]] = groups.max() + 1
    return np.unique(groups, return_inverse=True)[1]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), '') if part.isdigit() else (-1, part) for part in re.split(r'(\d+)', name)]


def _presence(names: Sequence[str], classes: Mapping[str, AbstractSet[int]]) -> np.ndarray:
    """Return which classes occur in each image, (images, 1 + classes) of 0 and 1. The first column is always 1."""
    count = max((label for labels in classes.values() for label in labels), default=-1) + 1
    present = np.zeros((len(names), count + 1))
    present[:, 0] = 1
    for row, name in zip(present, names, strict=True):
        row[[label + 1 for label in classes.get(name, ())]] = 1
    return present


def _sides(names: Sequence[str], groups: np.ndarray, previous: Mapping[str, str]) -> np.ndarray:
    """Return the required side of each group: 1 for validation, 0 for training, -1 if it is free."""
    sides = np.full(groups.max() + 1, -1)
    sides[[group for name, group in zip(names, groups, strict=True) if previous.get(name) == VAL]] = 1
    sides[[group for name, group in zip(names, groups, strict=True) if previous.get(name) == TRAIN]] = 0
    return sides


def _choose(groups: np.ndarray, present: np.ndarray, sides: np.ndarray, seed: int) -> np.ndarray:
    """Return a bool for each image: True for validation."""
    per_group = np.zeros((groups.max() + 1, present.shape[1]))
    np.add.at(per_group, groups, present)
    total = per_group.sum(0)
    sizes = per_group[:, 0].tolist()
    target = max(1, round(len(groups) * VAL_SHARE))
    best: tuple[float, np.ndarray] | None = None
    generator = np.random.default_rng(seed)
    for _ in range(CANDIDATES):
        chosen = sides == 1
        count = per_group[chosen, 0].sum()
        for group in generator.permutation(np.flatnonzero(sides == -1)):
            if count >= target:
                break
            fits = count + sizes[group] <= 1.25 * target or not count
            if fits and count + sizes[group] < len(groups):
                chosen[group] = True
                count += sizes[group]
        val = per_group[chosen].sum(0)
        # Each class should be divided like the images. A class that is missing on one side counts most.
        occurs = total > 0
        error = np.abs(val - VAL_SHARE * total)[occurs] / total[occurs]
        missing = (total > 1) & ((val == 0) | (val == total))
        score = float(error.mean() + missing.sum() + (val == total)[occurs].sum() + error[0])
        if best is None or score < best[0]:
            best = score, chosen
    assert best is not None
    return best[1][groups]
