"""Seeds of samples do not depend on workers or on resuming; unreadable images are replaced in training only."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader, Dataset

from mnv4_mm.data.loading import SKIPPED, Position, RobustDataset, seeded
from mnv4_mm.errors import UserError


class Noise(Dataset):
    """Samples with random numbers of all generators; some cannot be read."""

    def __init__(self, broken=(), error=UserError, test_mode=False):
        self.broken, self.error, self.test_mode, self.pipeline = broken, error, test_mode, ()

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index in self.broken:
            raise self.error(f'{index}.jpg is not a readable image')
        values = (index, np.random.rand(), float(torch.rand(1)))
        return dict(inputs=values, data_samples=BaseDataElement())


def batches(dataset, sampler, workers):
    loader = DataLoader(
        RobustDataset(dataset), 2, sampler=sampler, num_workers=workers, collate_fn=list,
        persistent_workers=workers > 0,
    )  # fmt: skip
    while True:
        for batch in loader:
            yield [sample['inputs'] for sample in batch]


def test_samples_do_not_depend_on_workers():
    def first(workers):
        return list(itertools.islice(batches(Noise(), seeded(DefaultSampler(Noise(), seed=3), 3), workers), 6))

    assert first(0) == first(2)


def test_each_epoch_has_numbers_of_its_own_that_a_resumed_run_has_too():
    sampler = seeded(DefaultSampler(Noise(), shuffle=False), 3)
    epochs = []
    for epoch in (0, 1, 1):
        sampler.set_epoch(epoch)
        epochs.append(list(itertools.islice(batches(Noise(), sampler, 0), 6)))
    assert epochs[0] != epochs[1] == epochs[2]


@pytest.mark.parametrize('has_skip', [True, False])
def test_an_infinite_sampler_goes_on_where_it_was(has_skip):
    """Some versions of mmengine call ``skip``, others load the images again up to there."""
    whole = list(itertools.islice(batches(Noise(), seeded(InfiniteSampler(Noise(), seed=3), 3), 0), 9))
    sampler = seeded(InfiniteSampler(Noise(), seed=3), 3)
    if has_skip:
        sampler.skip(10)
    resumed = list(itertools.islice(batches(Noise(), sampler, 0), 4 if has_skip else 9))
    assert resumed[-4:] == whole[5:]


def test_a_position_is_an_index_and_keeps_its_seed():
    position = pickle.loads(pickle.dumps(Position(4, (7, 0, 1, 2))))
    assert position == 4
    assert [10, 11, 12, 13, 14][position] == 14
    assert position.key == (7, 0, 1, 2)


@pytest.mark.parametrize('error', [UserError, FileNotFoundError])
def test_an_unreadable_image_is_replaced(error):
    dataset = RobustDataset(Noise(broken=(4, 5), error=error))
    first, again = (dataset[Position(4, (1, 0, 0, 4))] for _ in range(2))
    assert first['inputs'] == again['inputs']  # the same in a resumed run
    assert first['inputs'][0] not in (4, 5)
    problems = first['data_samples'].metainfo[SKIPPED]
    assert problems
    if error is UserError:
        assert problems[0] == '4.jpg is not a readable image'
    assert SKIPPED not in dataset[Position(3, (1, 0, 0, 4))]['data_samples'].metainfo


def test_a_mistake_of_the_program_is_not_an_unreadable_image():
    with pytest.raises(IndexError):
        RobustDataset(Noise(broken=(4,), error=IndexError))[4]


def test_validation_stops_at_an_unreadable_image():
    with pytest.raises(UserError, match=r'4\.jpg is not a readable image'):
        RobustDataset(Noise(broken=(4,), test_mode=True))[4]


def test_all_images_are_unreadable():
    with pytest.raises(UserError, match='images in a row cannot be read'):
        RobustDataset(Noise(broken=range(12)))[4]


def test_what_is_not_defined_is_that_of_the_data_set():
    dataset = RobustDataset(Noise(broken=(4,)))
    assert dataset.broken == (4,)
    dataset.pipeline = 'new'
    assert dataset.dataset.pipeline == 'new'
    assert pickle.loads(pickle.dumps(dataset)).broken == (4,)
    with pytest.raises(AttributeError):
        _ = dataset.nothing


class Broken(Dataset):
    test_mode = True

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError('/d/a.jpg is not a readable image: truncated')


def test_the_message_of_a_worker_has_no_traceback():
    with pytest.raises(UserError) as caught:
        list(DataLoader(Broken(), num_workers=1))
    assert str(caught.value) == '/d/a.jpg is not a readable image: truncated'
