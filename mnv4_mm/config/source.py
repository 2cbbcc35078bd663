"""Read a config without mmengine, so that checks need not wait for its import, which takes seconds.

The Runner always gets the config that mmengine loads (``load.py``). A config that needs more than plain values
(imports, bases of other packages, ``_base_.`` references) is not read here at all.
"""

import ast
import builtins
import importlib.util
import pickletools
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mnv4_mm.config.index import find_config
from mnv4_mm.config.literals import read_assignments
from mnv4_mm.errors import UserError

_CALLS = ('dict', 'float', 'int', 'len', 'list', 'max', 'min', 'range', 'round', 'str', 'sum', 'tuple')
_NODES_TO_REFUSE = (ast.Import, ast.ImportFrom, ast.Attribute, ast.FunctionDef, ast.ClassDef, ast.While, ast.Lambda)
_SUFFIXES = ('.py', '.json', '.yaml', '.yml')  # of bases, as mmengine allows


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
        Top-level values, merged as by mmengine; None if the config needs more than plain values, so that only mmengine
            can tell whether it is valid.

    Raises:
        UserError: A file is not valid Python or fails to run, ``_base_`` does not name files, or a module that the
            config imports does not exist.
    """
    try:
        values = _read(path, ())
        imports = values.get('custom_imports') or {}
        if not imports.get('allow_failed_imports'):
            names = imports.get('imports') or ()
            _check_modules([names] if isinstance(names, str) else names, path)
        return values
    except UserError:  # which is a ValueError
        raise
    except (ValueError, TypeError, AttributeError, RecursionError, MemoryError):
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


def _read(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    """Evaluate a config file and its bases.

    Args:
        path: Config file.
        chain: Files that lead to this one by their ``_base_``.

    Raises:
        UserError: See ``read_source``.
        ValueError: The config needs more than plain values.
    """
    if path.resolve() in chain:
        raise UserError(f'config {path} cannot be read: it is a base of itself, by its _base_ or that of its bases')
    try:
        text = path.read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
        raise UserError(f'config {path} cannot be read: it is not text in UTF-8') from error
    except OSError as error:
        raise unreadable(path, error) from error
    if '{{' in text:
        raise ValueError('mmengine replaces what is in double braces')
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:  # ValueError: there are null bytes
        raise unreadable(path, error) from error
    _check_modules(_imported(tree), path)
    _refuse_code(tree)
    merged: dict[str, Any] = {}
    for base in _bases(tree, path):
        merged.update(_read(base, (*chain, path.resolve())))
    return _merge(_run(tree, path), merged)


def _imported(tree: ast.Module) -> Iterator[str]:
    """Return the modules that the top level of a config imports by their full names."""
    for statement in tree.body:
        match statement:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module


def _check_modules(names: Iterable[str], path: Path) -> None:
    """Check that there are modules of these names. Packages are not imported to look for the modules in them.

    mmengine may take the imports of a config for those of its lazy style, which it never carries out.

    Raises:
        UserError: There is no such module or package.
    """
    for name in names:
        if importlib.util.find_spec(name.partition('.')[0]) is None:
            raise UserError(f'config {path} cannot be read: module {name} cannot be imported')


def _refuse_code(tree: ast.Module) -> None:
    """Check that a config consists of plain values.

    Raises:
        ValueError: It does not, or it uses values of its bases.
    """
    for node in ast.walk(tree):
        if isinstance(node, _NODES_TO_REFUSE):
            raise ValueError(f'line {node.lineno} is more than a value')
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _CALLS):
            raise ValueError(f'line {node.lineno} calls a function')
        if isinstance(node, ast.Name) and (
            node.id.startswith('__') or (node.id == '_base_' and isinstance(node.ctx, ast.Load))
        ):
            raise ValueError(f'line {node.lineno} uses {node.id}')


def _bases(tree: ast.Module, path: Path) -> list[Path]:
    """Return the files that the first assignment to ``_base_`` names, which is the one that mmengine reads.

    Raises:
        UserError: It names no files, or a file does not exist.
        ValueError: It is not a literal, or names a config that is not a Python file beside this one.
    """
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id='_base_'), *_], value=value):
                break
    else:
        return []
    try:
        names = ast.literal_eval(value)
    except TypeError as error:
        raise ValueError(f'line {value.lineno} is not a literal') from error
    names = names if isinstance(names, list) else [names]
    files = []
    for name in names:
        if not isinstance(name, str):
            raise UserError(
                f"config {path} cannot be read: _base_ must be a path or a list of paths, e.g. _base_ = './base.py', "
                f'got {name!r}'
            )
        if '::' in name:
            raise ValueError(f'{name} is a config of another package')
        if Path(name).suffix not in _SUFFIXES:
            raise UserError(
                f"config {path} cannot be read: _base_ is the path of a file from this config's folder, e.g. "
                f"_base_ = './{Path(name).name or 'base'}.py', got {name!r}"
            )
        if not (path.parent / name).is_file():
            raise UserError(f'config {path} cannot be read: no file {path.parent / name}, named by its _base_')
        if not name.endswith('.py'):
            raise ValueError(f'{name} is not Python')
        files.append(path.parent / name)
    return files


def _run(tree: ast.Module, path: Path) -> dict[str, Any]:
    """Run a config of plain values, and return these.

    Raises:
        UserError: It raises an error, as it would when mmengine runs it.
        ValueError: It uses a built-in function that is not provided here.
    """
    values: dict[str, Any] = {'__builtins__': {name: getattr(builtins, name) for name in _CALLS}}
    try:
        exec(compile(tree, str(path), 'exec'), values)  # noqa: S102 (plain values: see `_refuse_code`)
    except (RecursionError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, NameError) and hasattr(builtins, error.name or ''):
            raise ValueError(f'{error.name} is not provided') from error
        raise unreadable(path, error) from error
    # Names with two underscores are Python's own, e.g. __doc__; mmengine drops them, too.
    return {name: value for name, value in values.items() if name != '_base_' and not name.startswith('__')}


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
