"""Data without a split is split by group, and near-duplicates are found."""

from pathlib import Path

import numpy as np
import pytest

from mnv4_mm.data.form import TRAIN, VAL, LabelledImage
from mnv4_mm.data.split import find_near_duplicates, near_duplicates, split_images
from mnv4_mm.errors import UserError


def unrelated(count):
    return [int(value) for value in np.random.randint(0, 2**63 - 1, count)]


def flipped(value, bits):
    for bit in np.random.choice(64, bits, replace=False):
        value ^= 1 << int(bit)
    return value


def frames(count, bits=10):
    """Hashes of successive frames of a video, each differing from the one before."""
    values = unrelated(1)
    while len(values) < count:
        values.append(flipped(values[-1], bits))
    return values


def test_a_fifth_is_for_validation_and_the_seed_decides_which():
    hashes = {f'{i:04}.jpg': value for i, value in enumerate(unrelated(100))}
    split = split_images(hashes)
    assert len(split.val) == 20
    assert sorted(split.train + split.val) == list(hashes)
    assert split.train == sorted(split.train)
    assert split_images(hashes) == split
    assert split_images(hashes, seed=1).val != split.val


def test_near_duplicates_stay_together():
    originals = unrelated(50)
    hashes = {
        f'{i}_{kind}.jpg': flipped(v, bits) for i, v in enumerate(originals) for kind, bits in (('a', 0), ('b', 5))
    }
    split = split_images(hashes)
    assert len(split.val) == 20
    assert {name[:-6] for name in split.val}.isdisjoint(name[:-6] for name in split.train)
    assert 'near-duplicates stay on one side: 100 images' in split.notes


def roboflow(original, copy):
    return f'{original}_jpg.rf.{copy:032x}.jpg'


def test_roboflow_s_copies_stay_together():
    """Mirrored copies have other hashes."""
    names = [f'train/images/{roboflow(f"cell-{i}", 3 * i + copy)}' for i in range(20) for copy in range(3)]
    for seed in range(5):
        division = split_images(dict(zip(names, unrelated(60), strict=True)), seed=seed)
        assert len(division.val) == 12
        originals = [{name.split('.rf.')[0] for name in part} for part in (division.train, division.val)]
        assert originals[0].isdisjoint(originals[1])
        assert division.notes[1:] == ["Roboflow's copies of an image stay on one side: 60 images"]


def test_names_that_only_resemble_roboflow_s_are_not_linked():
    names = [f'a.rf.{i}.jpg' for i in range(20)] + [f'a.rf.{i:032x}/{i}.jpg' for i in range(20)]
    division = split_images(dict(zip(names, unrelated(40), strict=True)))
    assert len(division.notes) == 1


def test_roboflow_s_copies_in_both_splits_are_named():
    names = {TRAIN: ['train/' + roboflow(name, 1) for name in 'abc'], VAL: ['valid/' + roboflow(n, 2) for n in 'cbx']}
    hashes = dict(zip(names[TRAIN] + names[VAL], unrelated(6), strict=True))
    hashes[names[VAL][1]] = hashes[names[TRAIN][0]]  # named once, as what it resembles most
    splits = {split: [LabelledImage(name, Path(name)) for name in group] for split, group in names.items()}
    found = list(find_near_duplicates(Path('data'), splits, hashes))
    assert [(finding.kind, finding.file) for finding in found] == [
        ('near-duplicate', Path('data') / name) for name in names[VAL][:2]
    ]
    assert found[0].problem == f'it is made from the same image as the training image {names[TRAIN][2]}, by its name'
    assert found[1].problem == f'it is a near-duplicate of the training image {names[TRAIN][0]}'


def test_frames_of_a_video_stay_together():
    hashes = {f'day{v}/cam_{i}.jpg': value for v in range(10) for i, value in enumerate(frames(12))}
    split = split_images(hashes)
    videos = [{name.split('/')[0] for name in part} for part in (split.train, split.val)]
    assert videos[0].isdisjoint(videos[1])
    assert len(split.val) == 24


@pytest.mark.parametrize('name', ['{:04}.jpg', 'photo_{}.jpg', 'IMG ({}).JPG'])
def test_numbered_photographs_are_not_a_video(name):
    split = split_images({name.format(i): value for i, value in enumerate(unrelated(100))})
    assert len(split.val) == 20
    numbers = np.array([int(''.join(filter(str.isdigit, image))) for image in split.val])
    assert len(split.notes) == 1
    assert numbers.max() - numbers.min() > 50


def test_a_class_in_the_name_is_not_a_video():
    """Else all images of a class would be on one side."""
    hashes = {f'{name}_{i}.jpg': value for name in ('cat', 'dog') for i, value in enumerate(unrelated(30))}
    split = split_images(hashes)
    assert {name[:3] for name in split.val} == {name[:3] for name in split.train} == {'cat', 'dog'}


def test_one_video_is_cut_into_runs():
    split = split_images({f'{i}.jpg': value for i, value in enumerate(frames(100))})
    numbers = sorted(int(name[:-4]) for name in split.val)
    assert numbers == list(range(numbers[0], numbers[0] + 20))
    assert '100 of 100 images are alike or of one video (first: 0.jpg)' in split.notes[-1]


def test_each_class_is_divided():
    hashes = {f'{i:04}.jpg': value for i, value in enumerate(unrelated(100))}
    classes = {name: {0} | ({1} if i in (7, 70) else set()) for i, name in enumerate(hashes)}
    for seed in range(5):
        split = split_images(hashes, classes, seed=seed)
        assert len({'0007.jpg', '0070.jpg'} & set(split.val)) == 1
        assert len(split.val) == 20


@pytest.mark.parametrize(
    'hashes', [{'a.jpg': 1, 'b.jpg': 1}, {'a1.jpg': 1, 'a2.jpg': 1, 'a3.jpg': 1}, {'a': 1, 'b': 2**63}]
)
def test_both_sides_have_an_image(hashes):
    split = split_images(hashes)
    assert split.train
    assert len(split.val) == 1


def test_one_image_cannot_be_split():
    with pytest.raises(UserError, match='1 image cannot be split'):
        split_images({'a.jpg': 1})


def test_images_stay_where_they_were():
    hashes = {f'{i:04}.jpg': value for i, value in enumerate(unrelated(60))}
    first = split_images(hashes)
    previous = dict.fromkeys(first.val, 'val') | dict.fromkeys(first.train, 'train')
    near = flipped(hashes[first.train[0]], 2)
    more = hashes | {f'{i:04}.jpg': value for i, value in enumerate(unrelated(40), 60)} | {'near.jpg': near}
    second = split_images(more, previous=previous, seed=5)
    assert set(first.val) <= set(second.val)
    assert set(first.train) <= set(second.train)
    assert 'near.jpg' in second.train
    assert len(second.val) == 20
    # An earlier split that leaves nothing for validation is not kept.
    assert len(split_images(hashes, previous=dict.fromkeys(hashes, 'train')).val) == 12


def test_near_duplicates_between_two_sets():
    hashes = dict(zip('abcdef', unrelated(6), strict=True))
    others = {'x': flipped(hashes['c'], 8), 'y': flipped(hashes['d'], 9), 'z': hashes['e']}
    assert near_duplicates(hashes, others) == [('c', 'x'), ('e', 'z')]
    assert near_duplicates({}, others) == near_duplicates(hashes, {}) == []
