"""Read the config that a checkpoint carries, without running it."""

import ast
from typing import Any

from mmdet.utils import register_all_modules as register_mmdet
from mmengine.config import Config
from mmengine.registry import Registry, root
from mmseg.utils import register_all_modules as register_mmseg

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
        values = _read_assignments(text)
        _check_types(values)
        return Config(values)
    except (ValueError, SyntaxError, TypeError) as error:
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


def _read_assignments(text: str) -> dict[str, Any]:
    values = {}
    for statement in ast.parse(text).body:
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            raise ValueError(f'line {statement.lineno} is not an assignment')
        values[statement.targets[0].id] = _read_value(statement.value)
    return values


def _read_value(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=keywords):
            return _read_pairs([(ast.Constant(keyword.arg), keyword.value) for keyword in keywords])
        case ast.Call(func=ast.Name(id='dict'), args=[ast.Dict() as inner], keywords=[]):
            return _read_value(inner)
        case ast.Dict(keys=keys, values=values):
            return _read_pairs(list(zip(keys, values, strict=True)))
        case ast.List(elts=elements):
            return [_read_value(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_read_value(element) for element in elements)
    return ast.literal_eval(node)


def _read_pairs(pairs: list[tuple[ast.expr | None, ast.expr]]) -> dict[Any, Any]:
    values = {_read_value(key or ast.Constant(None)): _read_value(value) for key, value in pairs}
    if None in values:
        raise ValueError('a dict is unpacked with **')
    return values
