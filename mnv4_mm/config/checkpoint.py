"""Read the config that a checkpoint carries, without running it."""

from typing import Any

from mmdet.utils import register_all_modules as register_mmdet
from mmengine.config import Config
from mmengine.registry import Registry, root
from mmseg.utils import register_all_modules as register_mmseg

from mnv4_mm.config.literals import NOT_PLAIN, read_assignments
from mnv4_mm.errors import UserError
from mnv4_mm.weights.checkpoint import Checkpoint, reason


def checkpoint_config(checkpoint: Checkpoint) -> Config:
    """Return the config that training wrote into a checkpoint.

    It is stored as Python text, which mmengine would execute. Here only literals and ``dict(...)`` are read, and a
    ``type`` with a dot must be registered, because mmengine imports and calls any other name (``type='os.system'``).

    Raises:
        UserError: The checkpoint carries no config, or one with more than plain values and registered types.
    """
    text = checkpoint.meta.get('cfg')
    if not isinstance(text, str):
        raise UserError(f'{checkpoint.path} carries no config: give the config it was trained with')
    try:
        values = read_assignments(text)
        _check_types(values)
        return Config(values)
    except NOT_PLAIN as error:
        raise UserError(f'the config inside {checkpoint.path} is not plain values: {reason(error)}') from error


def _check_types(value: Any) -> None:
    if isinstance(value, dict):
        name = value.get('type', '')
        if not isinstance(name, str) or ('.' in name and not _is_registered(name)):
            raise ValueError(f'type={name!r} is not registered')
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            _check_types(item)


def _is_registered(name: str) -> bool:
    register_mmdet(init_default_scope=False)
    register_mmseg(init_default_scope=False)
    scope, _, bare = name.rpartition('.')
    pending = [registry for registry in vars(root).values() if isinstance(registry, Registry)]
    while pending:
        registry = pending.pop()
        if registry.scope == scope and bare in registry.module_dict:
            return True
        pending.extend(registry.children.values())
    return False
