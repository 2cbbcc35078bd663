"""Read a config without mmengine, so that checks need not wait for its import, which takes seconds.

The Runner always gets the config that mmengine loads (``load.py``). A config that needs more than plain values
(imports, bases of other packages, ``_base_.`` references) is not read here at all.
"""

import ast
import builtins
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnv4_mm.config.index import find_config
from mnv4_mm.config.literals import read_assignments
from mnv4_mm.errors import UserError

_CALLS = ('dict', 'float', 'int', 'len', 'list', 'max', 'min', 'range', 'round', 'str', 'sum', 'tuple')
_NODES_TO_REFUSE = (ast.Import, ast.ImportFrom, ast.Attribute, ast.FunctionDef, ast.ClassDef, ast.While, ast.Lambda)


def check_config_file(name: str | Path) -> Path:
    """Return the path of a config, after checking the file as far as possible without mmengine.

    Args:
        name: Path of a file, or name of a shipped config.

    Raises:
        UserError: There is no such config, or ``read_source`` finds a mistake.
    """
    path = find_config(name)
    read_source(path)
    return path


def read_source(path: Path) -> dict[str, Any] | None:
    """Evaluate a config file and its bases.

    Args:
        path: Config file.

    Returns:
        Top-level values, merged as by mmengine; None if the config needs more than plain values, or fails to run.

    Raises:
        UserError: A file is not valid Python, or a base does not exist.
    """
    try:
        return _read(path)
    except UserError:
        raise
    # mmengine reports the mistake when it loads the file.
    except Exception:
        return None


def read_checkpoint_source(path: Path) -> dict[str, Any] | None:
    """Read the config that the Runner has saved in a checkpoint.

    Nothing is unpickled: the text of the config is looked for among the strings of the pickle. Nor is the text run, as
    ``config.checkpoint`` does not run it either: checkpoints come from other people, too.

    Args:
        path: ``.pth`` file.

    Returns:
        Top-level values; None if the file has no config, or one that needs more than plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith('/data.pkl'))
            with archive.open(name) as file:
                strings = (value for _, value, _ in pickletools.genops(file) if isinstance(value, str))
                next(value for value in strings if value == 'cfg')
                return read_assignments(next(strings))
    # The commands report what is wrong with the file when they read it.
    except Exception:
        return None


def unreadable(path: Path, error: Exception) -> UserError:
    """Return the ``UserError`` for a config that raises an error when it is read."""
    return UserError(f'config {path} cannot be read: {type(error).__name__}: {" ".join(str(error).split())}')


def _read(path: Path) -> dict[str, Any]:
    return _evaluate(path.read_text(encoding='utf-8'), path)


def _evaluate(text: str, path: Path) -> dict[str, Any]:
    if '{{' in text:
        raise ValueError('mmengine replaces what is in double braces')
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise unreadable(path, error) from error
    for node in ast.walk(tree):
        if isinstance(node, _NODES_TO_REFUSE):
            raise ValueError(f'line {node.lineno} is more than a value')
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _CALLS):
            raise ValueError(f'line {node.lineno} calls a function')
    values: dict[str, Any] = {'__builtins__': {name: getattr(builtins, name) for name in _CALLS}}
    exec(compile(tree, str(path), 'exec'), values)  # noqa: S102 (plain values: see above)
    del values['__builtins__']
    values.pop('__doc__', None)
    bases = values.pop('_base_', [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        if '::' in base or not base.endswith('.py'):
            raise ValueError(f'{base} is a config of another package, or not Python')
        if not (path.parent / base).is_file():
            raise UserError(f'config {path} cannot be read: no file {path.parent / base}, named by its _base_')
        merged.update(_read(path.parent / base))
    return _merge(values, merged)


def _merge(values: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Merge nested dicts as ``mmengine.Config`` does: a dict with ``_delete_`` replaces the dict of the base."""
    merged = dict(base)
    for key, value in values.items():
        if isinstance(value, dict):
            value = dict(value)
            delete = value.pop('_delete_', False)
            old = merged.get(key)
            value = _merge(value, old if isinstance(old, dict) and not delete else {})
        merged[key] = value
    return merged


def merge_values(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``--cfg-options`` into the values of a config, as ``mmengine.Config.merge_from_dict`` does.

    Args:
        values: Top-level values of a config; not changed.
        options: Values by key, e.g. ``{'train_cfg.max_epochs': 3, 'val_evaluator.0.ann_file': 'val.json'}``.

    Raises:
        KeyError: An index exceeds the length of its list.
        TypeError: A key leads into a value that is neither a dict nor a list, or a list index is not a number.
    """
    tree: dict[str, Any] = {}
    for key, value in options.items():
        *folders, last = key.split('.')
        place = tree
        for part in folders:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise TypeError(f'{part} of {key} is not a dict')
        place[last] = value
    return _merge_options(tree, dict(values))


def _merge_options(new: Mapping[str, Any], old: Any) -> Any:
    merged = old.copy()
    for key, value in new.items():
        if isinstance(merged, list):
            if not key.isdigit():
                raise TypeError(f'{key} is not the index of a list')
            if int(key) >= len(merged):
                raise KeyError(key)
            merged[int(key)] = _merge_options(value, merged[int(key)]) if isinstance(value, dict) else value
        elif isinstance(value, dict) and key in merged and not value.get('_delete_'):
            if not isinstance(merged[key], dict | list):
                raise TypeError(f'{key} is neither a dict nor a list')
            merged[key] = _merge_options(value, merged[key])
        elif isinstance(value, dict):
            merged[key] = {name: item for name, item in value.items() if name != '_delete_'}
        else:
            merged[key] = value
    return merged
