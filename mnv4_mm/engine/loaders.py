"""Fit the settings of a data loader to its data."""

import copy
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS, DATASETS

from mnv4_mm.data.held_out import KEY as HELD_OUT
from mnv4_mm.data.held_out import part_of
from mnv4_mm.data.loading import RobustDataset, innermost, seeded
from mnv4_mm.errors import UserError
from mnv4_mm.processors import cores


def prepare_loader(loader: dict[str, Any], seed: int | None) -> dict[str, Any]:
    """Build the data set and the sampler of a data loader, and adjust settings that do not fit the data or the machine.

    Each adjustment is logged:

    - ``num_workers`` is reduced to the number of processors. torch warns that more of them may be slower.
    - ``persistent_workers`` and ``prefetch_factor`` are removed if ``num_workers`` is 0.
    - ``drop_last`` of a training loader is switched off if the epoch has fewer images than a batch, and switched on if
      the last batch would have one image, which batch norm cannot process. Infinite samplers are not affected.

    Args:
        loader: Config of a data loader; not changed. ``held_out`` is a share of the images that is left out, see
            ``data.held_out``.
        seed: Seed of the run, from which each training image gets a seed of its own. None to let the sampler draw a
            seed for the order of the images, and not to seed the images.

    Returns:
        A copy of the config, in which the data set is built and wrapped in ``RobustDataset``. For training, the sampler
            is built as well, unless ``num_batch_per_epoch`` is set.

    Raises:
        UserError: The data set has no images, or none after filtering.
    """
    loader = copy.deepcopy(loader)
    held_out = loader.pop(HELD_OUT, None)
    if isinstance(loader.get('dataset'), dict):
        loader['dataset'] = RobustDataset(_build_dataset(loader['dataset'], held_out))
    dataset = loader.get('dataset')
    is_training = not getattr(innermost(dataset), 'test_mode', False)
    name = 'train_dataloader' if is_training else 'data loader'
    if loader.get('num_workers', 0) > cores():
        _log(f'{name}: num_workers={cores()} instead of {loader["num_workers"]}, for as many processors')
        loader['num_workers'] = cores()
    if not loader.get('num_workers'):
        for key in ('persistent_workers', 'prefetch_factor'):
            if loader.pop(key, None):
                _log(f'{name}: with num_workers=0, {key} has no effect')
    if not (isinstance(dataset, RobustDataset) and isinstance(loader.get('sampler'), dict)):
        return loader
    if is_training and 'num_batch_per_epoch' not in loader:
        sampler = DATA_SAMPLERS.build(loader['sampler'], default_args=dict(dataset=dataset, seed=seed))
        _fit_batches(loader, name, len(sampler), isinstance(sampler, InfiniteSampler))
        loader['sampler'] = sampler if seed is None else seeded(sampler, seed)
    return loader


def _build_dataset(config: dict[str, Any], held_out: float | None) -> Any:
    inner = config
    while isinstance(inner.get('dataset'), dict):
        inner = inner['dataset']
    try:
        if held_out is not None:
            inner['indices'] = _without_held_out(inner, held_out)
        dataset = DATASETS.build(config)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        is_empty = not len(dataset)
    except ValueError as error:
        # mmengine cannot serialise an empty list of images.
        if 'need at least one array to concatenate' not in str(error):
            raise
        is_empty = True
    if is_empty:
        raise UserError(
            f'{inner.get("ann_file") or inner.get("data_prefix")}: no images remain to train on or to evaluate; '
            f'check the classes and filter_cfg={inner.get("filter_cfg")} of the data set'
        )
    return dataset


def _without_held_out(config: dict[str, Any], share: float) -> list[int]:
    """Return the indices of the images that are not held out, among those that ``indices`` of the config selects."""
    whole = DATASETS.build({**config, 'indices': None, 'lazy_init': False})
    selected, indices = list(range(len(whole))), config.get('indices')
    if isinstance(indices, int):
        selected = selected[:indices] if indices >= 0 else selected[indices:]
    elif indices is not None:
        selected = [selected[i] for i in indices]
    return part_of(whole, share, scored=False, selected=selected)


def _fit_batches(loader: dict[str, Any], name: str, samples: int, is_infinite: bool) -> None:
    """Adjust how the samples of an epoch, in one process, are divided into batches."""
    size = loader.get('batch_size', 1)
    if size > samples:
        effect = 'a step has images more than once' if is_infinite else f'a step has {samples}'
        _log(f'{name}: batch_size={size} is larger than the {samples} images of an epoch: {effect}')
    if is_infinite:
        return
    batches = loader['batch_sampler'] if isinstance(loader.get('batch_sampler'), dict) else loader
    if size > samples and batches.get('drop_last'):
        batches['drop_last'] = False
        _log(f'{name}: drop_last would leave no image, and is switched off')
    elif samples > size > 1 and samples % size == 1 and not batches.get('drop_last'):
        batches['drop_last'] = True
        _log(
            f'{name}: the last of {samples} images would be a batch of one, which batch norm cannot take: each epoch '
            'leaves out one image, another one each time'
        )


def _log(text: str) -> None:
    print_log(text, logger='current')
