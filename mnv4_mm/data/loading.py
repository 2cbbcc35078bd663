"""Loading of training images that is reproducible after a resume and that survives unreadable images.

Each position of a run's sequence of images has a seed of its own. Augmentation therefore does not depend on how often
the workers of a data loader have been started: mmengine's ``worker_init_fn`` gives the first epoch after a resume the
random numbers of the first epoch of the run (open-mmlab/mmdetection#4193), and repeats them in each epoch without
``persistent_workers``.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from torch.utils.data import Dataset, Sampler

from mnv4_mm.errors import UserError

# Number of other images that are tried in place of one that cannot be read.
ATTEMPTS = 10
# Key in a sample's metadata under which SkippedImagesHook finds the messages of skipped images.
SKIPPED = 'skipped_images'


def set_seeds(*key: int, all_devices: bool = False) -> None:
    """Seed the generators of Python, numpy and torch with a hash of some integers.

    Args:
        *key: The integers.
        all_devices: Seed torch's generators of all devices, which takes 150 microseconds. False seeds only the CPU's.
    """
    first, second, third = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(first))
    np.random.seed(second)
    (torch.manual_seed if all_devices else torch.default_generator.manual_seed)(int(third))


class Position(int):
    """Index of a sample that carries the key of its seed through batch samplers and pickling.

    Args:
        index: Index in the data set.
        key: Seed of the run, rank, epoch, and place in the epoch. For an infinite sampler, epoch 0 and the place in the
            run. The default is only for unpickling, which sets the key afterwards.
    """

    key: tuple[int, ...]

    def __new__(cls, index: int, key: tuple[int, ...] = ()) -> 'Position':
        position = super().__new__(cls, index)
        position.key = key
        return position


class SeededSampler(Sampler):
    """Sampler whose indices carry the key of a seed.

    Args:
        sampler: Sampler of mmengine or mmdet. Attributes that are not defined here are taken from it.
        seed: Seed of the run.
    """

    def __init__(self, sampler: Sampler, seed: int) -> None:
        self.sampler = sampler
        self.seed = seed
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[Position]:
        for place, index in enumerate(self.sampler, self.start):
            yield Position(index, (self.seed, get_rank(), self.epoch, place))

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'sampler':
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def __deepcopy__(self, memo: dict) -> 'SeededSampler':
        return self  # mmengine copies the config of a data loader, and a generator cannot be copied

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)


class InfiniteSeededSampler(SeededSampler):
    """``SeededSampler`` for an ``InfiniteSampler``, which can start at a later place."""

    def skip(self, count: int) -> None:
        """Start at index ``count`` of the sequence. Some versions of mmengine call this method when they resume."""
        self.start = count

    def __iter__(self) -> Iterator[Position]:
        indices = iter(self.sampler)
        for _ in range(self.start):
            next(indices)
        for place, index in enumerate(indices, self.start):
            yield Position(index, (self.seed, get_rank(), 0, place))


def seeded(sampler: Sampler, seed: int) -> SeededSampler:
    return (InfiniteSeededSampler if isinstance(sampler, InfiniteSampler) else SeededSampler)(sampler, seed)


class RobustDataset(Dataset):
    """Data set that seeds each sample and, in training, replaces an image that cannot be read by another one.

    Up to ``ATTEMPTS`` images are tried before a UserError is raised. A replacement carries the error messages of the
    images that it replaces, see ``SkippedImagesHook``. In validation and tests an unreadable image is always an error:
    a metric over fewer images cannot be compared with others.

    Args:
        dataset: Data set of mmengine, or a wrapper of one. Attributes that are not defined here are taken from it.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._epoch = -1

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'dataset':
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __deepcopy__(self, memo: dict) -> 'RobustDataset':
        return self  # mmengine copies the config of a data loader; the data set in it has just been made

    @property
    def pipeline(self) -> Any:
        """The pipeline of the data set; mmdet's ``PipelineSwitchHook`` replaces it."""
        return self.dataset.pipeline

    @pipeline.setter
    def pipeline(self, value: Any) -> None:
        self.dataset.pipeline = value

    def __getitem__(self, index: int) -> Any:
        if isinstance(index, Position):
            self._start_epoch(index.key[2])
            set_seeds(*index.key)
        index = int(index)
        if getattr(innermost(self.dataset), 'test_mode', False):
            return self._get(index)
        problems: list[str] = []
        for _ in range(ATTEMPTS):
            try:
                sample = self._get(index)
            except UserError as error:
                problems.append(str(error))
                index = int(np.random.randint(len(self)))
            else:
                return _with_problems(sample, problems) if problems else sample
        raise UserError(f'{ATTEMPTS} images in a row cannot be read: {problems[-1]}')

    def _get(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except OSError as error:
            raise UserError(f'{error.filename or "an image"} cannot be read: {error.strerror or error}') from error

    def _start_epoch(self, epoch: int) -> None:
        """Empty the image caches of mosaic and mix-up, as a run that resumes at this epoch starts without them."""
        if epoch == self._epoch:
            return
        self._epoch = epoch
        for transform in _transforms(self.dataset):
            if hasattr(transform, 'results_cache'):
                transform.results_cache = []


def innermost(dataset: Any) -> Any:
    """Return the data set inside of wrappers with an attribute ``dataset``, such as RepeatDataset."""
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    return dataset


def _transforms(dataset: Any) -> Sequence[Any]:
    """Return the transforms of a data set and of the wrappers around it."""
    found: list[Any] = []
    while dataset is not None:
        pipeline = getattr(dataset, 'pipeline', ())
        found += getattr(pipeline, 'transforms', pipeline)
        dataset = getattr(dataset, 'dataset', None)
    return found


def _with_problems(sample: Any, problems: list[str]) -> Any:
    data_sample: Any = sample.get('data_samples') if isinstance(sample, dict) else None
    if not hasattr(data_sample, 'set_metainfo'):
        raise UserError(problems[0])  # there is no place to report it in
    data_sample.set_metainfo({SKIPPED: tuple(problems)})
    return sample
