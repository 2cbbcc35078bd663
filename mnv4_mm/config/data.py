"""Data sets and classes of a config."""

import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mnv4_mm.config.index import find_data
from mnv4_mm.config.nested import dicts
from mnv4_mm.data.formats.configured import innermost_dataset
from mnv4_mm.errors import UserError
from mnv4_mm.tasks import task_of
from mnv4_mm.tasks.segmentation import Segmentation
from mnv4_mm.tasks.task import Layout

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
EVALUATORS = ('val_evaluator', 'test_evaluator')


def fit_data(cfg: Config, layout: Layout) -> Config:
    """Points the data loaders and evaluators at a user's data set, and the heads at its classes.

    Args:
        cfg: A config.
        layout: What its task's ``find`` recognised.
    """
    cfg, task = copy.deepcopy(cfg), task_of(cfg)
    splits = dict(train_dataloader=layout.train, val_dataloader=layout.val, test_dataloader=layout.val)
    for loader, split in splits.items():
        dataset_split(cfg, loader)
        dataset = innermost_dataset(cfg[loader].dataset)
        task.set_split(dataset, split)
        task.set_classes(dataset, layout)
    for evaluator in EVALUATORS:
        task.set_truth(cfg[evaluator], layout.val)
        # Its score is neither the benchmark's nor the small set's.
        cfg[evaluator].prefix = layout.root.resolve().name
    for part in dicts(cfg.model):
        if 'num_classes' in part:
            part['num_classes'] = len(layout.classes)
    return cfg


def fit_inference(cfg: Config, mode: str) -> Config:
    """Whole pictures at once, or windows of a training crop's size that overlap by a third, their logits averaged.

    Args:
        cfg: A segmentation config.
        mode: ``whole`` or ``slide``. Windows that the config itself sets stay.

    Raises:
        UserError: the config is not of segmentation, or the mode unknown.
    """
    if mode not in ('whole', 'slide'):
        raise UserError(f'--inference must be whole or slide, got {mode!r}')
    if not isinstance(task_of(cfg), Segmentation):
        raise UserError('--inference is for segmentation; a detector always sees the whole picture')
    cfg = copy.deepcopy(cfg)
    windows = cfg.model.test_cfg.get('mode') == 'slide'
    if mode == 'whole':
        cfg.model.test_cfg = dict(mode='whole')
    elif not windows:
        size = cfg.model.data_preprocessor.get('size')  # what training crops are padded to: (height, width)
        if not size:
            raise UserError('--inference slide needs model.data_preprocessor.size, (height, width) of a training crop')
        cfg.model.test_cfg = dict(mode='slide', crop_size=size, stride=tuple(length * 2 // 3 for length in size))
    return cfg


def on_training_pictures(cfg: Config) -> Config:
    """A config whose test set is the training pictures, prepared as for a test, under the prefix ``trained_on``."""
    cfg, task = copy.deepcopy(cfg), task_of(cfg)
    split = dataset_split(cfg, 'train_dataloader')
    task.set_split(innermost_dataset(cfg.test_dataloader.dataset), split)
    task.set_truth(cfg.test_evaluator, split)
    cfg.test_evaluator.prefix = 'trained_on'
    return cfg


def dataset_split(cfg: Config, loader: str) -> Any:
    """The pictures and their truth of a data loader's data set, of the task's kind."""
    dataset = innermost_dataset(cfg[loader].dataset) if loader in cfg else None
    split = task_of(cfg).split(dataset) if dataset else None
    if split is None:
        raise UserError(
            f'{loader} of this config is not one data set with pictures and truth of its own, as these tools need'
        )
    return split


def require_data(cfg: Config, loader: str) -> None:
    """Checks that the data a loader reads is there, and fit.

    Raises:
        UserError: says what was looked for and where, how to fetch it, and what runs without it.
    """
    task_of(cfg).check(dataset_split(cfg, loader), cfg, innermost_dataset(cfg[loader].dataset))


def resolve_data_roots(cfg: Config) -> Config:
    """Lets a config find ``data/`` from any folder: relative paths that are not here but in the repository go there."""
    cfg, task = copy.deepcopy(cfg), task_of(cfg)
    for loader in LOADERS:
        split = dataset_split(cfg, loader)
        paths = {name: find_data(value) for name, value in split._asdict().items() if isinstance(value, Path)}
        task.set_split(innermost_dataset(cfg[loader].dataset), split._replace(**paths))
    for evaluator, loader in zip(EVALUATORS, LOADERS[1:], strict=True):
        if isinstance(cfg.get(evaluator), list):
            raise UserError(f'{evaluator} of this config is a list; these tools need one evaluator')
        task.set_truth(cfg.get(evaluator, {}), dataset_split(cfg, loader))
    return cfg
