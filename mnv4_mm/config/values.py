"""Checks of the values of a config that need neither torch nor OpenMMLab.

Only what is certain is refused: values that a Runner of mmengine, a data loader of torch, or this package's backbone
would refuse, and keys that they do not have. Everything else is left to them. A config is any mapping, as in
``config.rules``.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from mnv4_mm.config.index import near_names
from mnv4_mm.data.held_out import KEY as HELD_OUT
from mnv4_mm.errors import UserError
from mnv4_mm.models.arch import arch_of, check_out_indices

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')

# Keys of dicts by their type. Tests compare them with the parameters of the classes.
LOOP_KEYS = {
    'EpochBasedTrainLoop': {'max_epochs', 'val_begin', 'val_interval', 'dynamic_intervals'},
    'IterBasedTrainLoop': {'max_iters', 'val_begin', 'val_interval', 'dynamic_intervals', 'fast_forward_on_resume'},
}
BACKBONE_KEYS = {
    'MobileNetV4': {
        'arch', 'out_indices', 'output_stride', 'frozen_stages', 'norm_cfg', 'norm_eval', 'act_cfg', 'drop_path_rate',
        'with_cp', 'init_cfg',
    },
}  # fmt: skip
DATASET_KEYS = {
    'RepeatDataset': {'dataset', 'times', 'lazy_init'},
    'ClassBalancedDataset': {'dataset', 'oversample_thr', 'lazy_init'},
}
LOADER_KEYS = {
    # torch's DataLoader
    'dataset', 'batch_size', 'shuffle', 'sampler', 'batch_sampler', 'num_workers', 'collate_fn', 'pin_memory',
    'drop_last', 'timeout', 'worker_init_fn', 'multiprocessing_context', 'generator', 'prefetch_factor',
    'persistent_workers', 'pin_memory_device', 'in_order',
    # mmengine's Runner.build_dataloader, and this package
    'num_batch_per_epoch', 'disable_subprocess_warning', HELD_OUT,
}  # fmt: skip
RANDOMNESS_KEYS = {'seed', 'diff_rank_seed', 'deterministic'}
# Keys that mmengine takes out of any dict before it calls the class.
REGISTRY_KEYS = {'type', '_scope_'}


class Problem(NamedTuple):
    """A value that is not allowed, or a key that is unknown."""

    key: str
    value: Any
    text: str


class Range(NamedTuple):
    """Numbers that are allowed."""

    minimum: float = -math.inf
    maximum: float = math.inf
    integer: bool = True
    # Whether an integer may also be written as a float, such as 1e5.
    as_float: bool = False
    none: bool = False

    def __contains__(self, value: object) -> bool:
        if value is None:
            return self.none
        if isinstance(value, bool) or not isinstance(value, Real):
            return False
        number: Any = value  # mypy knows no comparison of Real with int
        if not self.minimum <= number <= self.maximum:
            return False
        return isinstance(value, Integral) or not self.integer or (self.as_float and float(value).is_integer())

    def __str__(self) -> str:
        kind = 'an integer' if self.integer else 'a number'
        span = f' of at least {self.minimum}' if self.maximum == math.inf else f' from {self.minimum} to {self.maximum}'
        return kind + (span if self.minimum > -math.inf else '') + (', or None' if self.none else '')


NUMBERS = {
    'train_cfg.max_epochs': Range(1, as_float=True),
    'train_cfg.max_iters': Range(1, as_float=True),
    'train_cfg.val_interval': Range(1, integer=False),  # infinite for no validation
    'train_cfg.val_begin': Range(integer=False),
    **{f'{loader}.batch_size': Range(1) for loader in LOADERS},
    **{f'{loader}.num_workers': Range(0) for loader in LOADERS},
    'optim_wrapper.optimizer.lr': Range(0, integer=False, none=True),  # None where the optimizer has a rule of its own
    'optim_wrapper.optimizer.weight_decay': Range(0, integer=False, none=True),
    'optim_wrapper.optimizer.momentum': Range(0, integer=False, none=True),
    'optim_wrapper.clip_grad.max_norm': Range(0, integer=False),
    'optim_wrapper.accumulative_counts': Range(1),
    # Hooks of mmengine compare these only after the first epoch. 0 and negative values stand for never, or for all.
    'default_hooks.checkpoint.interval': Range(as_float=True),
    'default_hooks.checkpoint.max_keep_ckpts': Range(),
    'default_hooks.logger.interval': Range(1),
    'default_hooks.logger.interval_exp_name': Range(1),
    'randomness.seed': Range(0, 2**32 - 1, none=True),  # numpy's range
}
# Keys of the dicts in ``param_scheduler``.
SCHEDULER_NUMBERS = {'begin': Range(integer=False), 'end': Range(integer=False)}
NUM_CLASSES = Range(1)
# Parts that are dicts; None leaves a part out.
DICTS = (
    'model', 'model.backbone', 'train_cfg', 'val_cfg', 'test_cfg', *LOADERS, 'optim_wrapper', 'optim_wrapper.optimizer',
    'randomness', 'default_hooks',
)  # fmt: skip
COCO_METRICS = ('bbox', 'segm', 'proposal', 'proposal_fast')


def check_values(cfg: Any, cfg_options: Mapping[str, Any], *, only_options: bool = False) -> None:
    """Check values of a config, after ``--cfg-options`` have been set in it.

    Args:
        cfg: A config, mmengine's or a dict.
        cfg_options: The options, values by key.
        only_options: Check only what the options have set, e.g. because the rest of the config is not used.

    Raises:
        UserError: A value is not allowed, or a key is unknown.
    """
    for problem in _problems(cfg):
        if option := _option_of(problem.key, cfg_options):
            leads_here = '' if option == problem.key else f'{problem.key}: '
            raise UserError(f'--cfg-options {option}={_short(cfg_options[option])}: {leads_here}{problem.text}')
        if not only_options:
            raise UserError(f'this config has {problem.key}={_short(repr(problem.value))}: {problem.text}')


def _short(value: Any) -> str:
    return textwrap.shorten(str(value), 100, placeholder=' ...')


def _option_of(key: str, cfg_options: Mapping[str, Any]) -> str | None:
    """Return the option that has set a value, a part of this value, or a dict around it; None if none has."""
    exact = [option for option in cfg_options if option == key]
    around = [option for option in cfg_options if f'{key}.'.startswith(f'{option}.') or option.startswith(f'{key}.')]
    return next(iter(exact + around), None)


def _problems(cfg: Any) -> Iterator[Problem]:
    for part in DICTS:
        *folders, last = part.split('.')
        value = _dict(cfg, *folders).get(last)
        if value is not None and not isinstance(value, Mapping):
            yield Problem(part, value, f'must be a dict; set one of its values, {part}.KEY=VALUE')
    for key, allowed in NUMBERS.items():
        *folders, last = key.split('.')
        place = _dict(cfg, *folders)
        if last in place and place[last] not in allowed:
            yield Problem(key, place[last], f'must be {allowed}')
    yield from _unknown_keys('train_cfg', _dict(cfg, 'train_cfg'), LOOP_KEYS)
    for key in sorted(_dict(cfg, 'randomness').keys() - RANDOMNESS_KEYS):
        yield _unknown('randomness', key, cfg['randomness'][key], 'randomness', RANDOMNESS_KEYS)
    for loader in LOADERS:
        yield from _problems_of_loader(loader, _dict(cfg, loader))
    yield from _problems_of_backbone(_dict(cfg, 'model', 'backbone'))
    yield from _problems_of_classes('model', cfg.get('model'))
    yield from _problems_of_schedulers(cfg.get('param_scheduler'))
    for evaluator in ('val_evaluator', 'test_evaluator'):
        yield from _problems_of_evaluator(evaluator, _dict(cfg, evaluator))


def _problems_of_loader(name: str, loader: Mapping[str, Any]) -> Iterator[Problem]:
    for key in sorted(loader.keys() - LOADER_KEYS):
        yield _unknown(name, key, loader[key], 'a data loader', LOADER_KEYS)
    place, dataset = f'{name}.dataset', _dict(loader, 'dataset')
    while _type_of(dataset) in DATASET_KEYS:
        yield from _unknown_keys(place, dataset, DATASET_KEYS, f'; the data set inside it is {place}.dataset')
        place, dataset = f'{place}.dataset', _dict(dataset, 'dataset')


def _problems_of_backbone(backbone: Mapping[str, Any]) -> Iterator[Problem]:
    if _type_of(backbone) != 'MobileNetV4':
        return
    yield from _unknown_keys('model.backbone', backbone, BACKBONE_KEYS)
    try:
        arch = arch_of(backbone.get('arch', 'conv_s'))
    except UserError as error:
        yield Problem('model.backbone.arch', backbone['arch'], str(error))
        return
    if 'out_indices' in backbone:
        try:
            check_out_indices(backbone['out_indices'], arch)
        except UserError as error:
            yield Problem('model.backbone.out_indices', backbone['out_indices'], str(error))


def _problems_of_classes(place: str, value: Any) -> Iterator[Problem]:
    """Return each ``num_classes`` of a model and its parts that is not a number of classes."""
    if isinstance(value, Mapping):
        if 'num_classes' in value and value['num_classes'] not in NUM_CLASSES:
            yield Problem(f'{place}.num_classes', value['num_classes'], f'must be {NUM_CLASSES}')
        parts = list(value.items())
    else:
        parts = list(enumerate(value)) if isinstance(value, list | tuple) else []
    for key, part in parts:
        yield from _problems_of_classes(f'{place}.{key}', part)


def _problems_of_schedulers(schedulers: Any) -> Iterator[Problem]:
    items = schedulers if isinstance(schedulers, list | tuple) else [schedulers]
    if schedulers is not None and not all(isinstance(item, Mapping) for item in items):
        yield Problem('param_scheduler', schedulers, 'must be a list of dicts, one dict, or None')
        return
    for number, item in enumerate(items if schedulers is not None else ()):
        place = f'param_scheduler.{number}' if items is schedulers else 'param_scheduler'
        for key, allowed in SCHEDULER_NUMBERS.items():
            if key in item and item[key] not in allowed:
                yield Problem(f'{place}.{key}', item[key], f'must be {allowed}')


def _problems_of_evaluator(name: str, evaluator: Mapping[str, Any]) -> Iterator[Problem]:
    if _type_of(evaluator) not in ('CocoMetric', 'FastCocoMetric') or 'metric' not in evaluator:
        return
    metric = evaluator['metric']
    metrics = metric if isinstance(metric, list | tuple) else [metric]
    if not all(item in COCO_METRICS for item in metrics):
        yield Problem(f'{name}.metric', metric, f'must be one of {", ".join(COCO_METRICS)}, or a list of them')


def _unknown_keys(
    place: str, values: Mapping[str, Any], keys_by_type: Mapping[str, set[str]], advice: str = ''
) -> Iterator[Problem]:
    """Return the keys of a dict that its type does not have; none if the keys of the type are not known here."""
    kind = _type_of(values)
    known = keys_by_type.get(kind)
    for key in () if known is None else sorted(values.keys() - known - REGISTRY_KEYS):
        yield _unknown(place, key, values[key], kind, known or (), advice)


def _unknown(place: str, key: str, value: Any, kind: str, known: Any, advice: str = '') -> Problem:
    return Problem(f'{place}.{key}', value, f'{kind} has no {key!r}{near_names(key, known)}{advice}')


def _type_of(values: Mapping[str, Any]) -> str:
    """Return the name of the class that a dict is for, without its scope; empty if it names none."""
    kind = values.get('type') or ''
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')


def _dict(values: Any, *keys: str) -> Mapping[str, Any]:
    """Return a nested dict; an empty one if it is missing or is something else."""
    for key in keys:
        values = values.get(key)
        if not isinstance(values, Mapping):
            return {}
    return values
