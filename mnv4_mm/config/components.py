"""Names of OpenMMLab's and this package's classes in a config, checked before anything is read or built."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    Registry,
)

from mnv4_mm.config.index import near_names
from mnv4_mm.config.source import merge_values
from mnv4_mm.errors import UserError

LONGEST = 300  # characters of a message: there are hundreds of models
# Parts of a config and the registries that they are built from. A star stands for the items of a list, or of a dict
# that is no part itself. Parts that are not listed are left to OpenMMLab: not all of them are built from registries.
_MODEL = ('data_preprocessor', 'backbone', 'neck', 'rpn_head', 'roi_head', 'bbox_head', 'decode_head', 'auxiliary_head')
PLACES = {
    'model': MODELS,
    **{f'model.{part}': MODELS for part in _MODEL},
    **{f'model.{part}.*': MODELS for part in ('neck', 'decode_head', 'auxiliary_head')},
    'optim_wrapper': OPTIM_WRAPPERS,
    'optim_wrapper.optimizer': OPTIMIZERS,
    'param_scheduler': PARAM_SCHEDULERS,
    'param_scheduler.*': PARAM_SCHEDULERS,
    'default_hooks.*': HOOKS,
    'custom_hooks.*': HOOKS,
    'train_cfg': LOOPS,
    'val_cfg': LOOPS,
}
for _loader in ('train_dataloader', 'val_dataloader'):
    PLACES |= {f'{_loader}.sampler': DATA_SAMPLERS, f'{_loader}.batch_sampler': DATA_SAMPLERS}
    for _dataset in (f'{_loader}.dataset', f'{_loader}.dataset.dataset'):
        PLACES |= {_dataset: DATASETS, f'{_dataset}.pipeline.*': TRANSFORMS}
PLACES |= {'val_evaluator': METRICS, 'val_evaluator.*': METRICS}


def check_components(cfg: Config, cfg_options: Mapping[str, Any]) -> None:
    """Check that there are all classes that a config names in ``PLACES``.

    Args:
        cfg: Config of a training run.
        cfg_options: Values that will replace values of the config.

    Raises:
        UserError: There is no such class. Similar names are listed.
    """
    values: Mapping[str, Any] = dict(cfg.items())
    try:
        values = merge_values(values, cfg_options)
    # Reported when the options are set in the config.
    except (KeyError, TypeError):
        return
    for pattern, registry in PLACES.items():
        for place, part, scope in _parts(values, pattern.split('.'), '', cfg.get('default_scope')):
            name = part.get('type')
            # Anything else is the class itself. What has metrics is an evaluator, not a metric.
            if isinstance(name, str) and 'metrics' not in part:
                find_component(place, name, registry, scope)


def find_component(place: str, name: str, registry: Registry, scope: str | None) -> type:
    """Return the class that a part of a config names.

    Args:
        place: Keys of the part in the config.
        name: Name of the class.
        registry: mmengine's registry of such classes.
        scope: Scope of this part.

    Raises:
        UserError: There is no such class. Similar names are listed.
    """
    with registry.switch_scope_and_registry(scope) as scoped:
        found = scoped.get(name)
        if found is None:
            names = {*registry.module_dict, *scoped.module_dict}
            text = f'{place}.type={name}: there is no such {registry.name}{near_names(name, names)}'
            raise UserError(textwrap.shorten(text, LONGEST, placeholder=' ...'))
    return found


def _parts(
    value: Any, keys: Sequence[str], place: str, scope: str | None
) -> Iterator[tuple[str, Mapping[str, Any], str | None]]:
    """Return the dicts at a place of ``PLACES``, each with its keys in the config and the scope of its names."""
    if isinstance(value, Mapping):
        scope = value.get('_scope_', scope)
        if not keys:
            yield place.removeprefix('.'), value, scope
    if not keys:
        return
    items: dict[Any, Any] = {}
    if isinstance(value, Mapping):
        items = {key: item for key, item in value.items() if key == keys[0] or (keys[0] == '*' and 'type' not in value)}
    elif isinstance(value, list | tuple) and keys[0] == '*':
        items = dict(enumerate(value))
    for key, item in items.items():
        yield from _parts(item, keys[1:], f'{place}.{key}', scope)
