"""Checkpoint files -> tensors. Nothing that would need running code is read (DESIGN rule 8)."""

import ast
import difflib
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.utils import register_all_modules as register_mmdet
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, print_log
from mmengine.registry import Registry, root
from mmengine.runner import CheckpointLoader
from mmseg.utils import register_all_modules as register_mmseg
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mnv4_mm.errors import UserError
from mnv4_mm.weights.strict import differences, tensor_state
from mnv4_mm.weights.tags import TAGS


def _history_statistic(owner: Any, name: str) -> Any:
    """Stands in for ``getattr``, which HistoryBuffer's pickled state calls to name its four statistics.

    The real one would hand out every method of every type allowed here, ``ndarray.tofile`` among them.
    """
    if owner is not HistoryBuffer or name not in ('mean', 'max', 'min', 'current'):
        raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r}) is not one of HistoryBuffer's statistics")
    return getattr(HistoryBuffer, name)


_array, _scalar = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
# What mmengine's Runner writes besides tensors and plain containers. Its own loader falls back to unpickling anything
# (upstream's refuses or unpickles, open-mmlab/mmengine#1655); these types, by name, are all a run needs.
RUNNER_TYPES: list[Any] = [
    HistoryBuffer,
    (_history_statistic, 'builtins.getattr'),
    np.dtype,
    np.ndarray,
    *(type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'int32', 'uint8', 'bool')),
    # numpy 1 and 2 write different module names for the same two functions.
    *((_array, f'{module}._reconstruct') for module in ('numpy._core.multiarray', 'numpy.core.multiarray')),
    *((_scalar, f'{module}.scalar') for module in ('numpy._core.multiarray', 'numpy.core.multiarray')),
]


def load_checkpoint(path: str | Path, map_location: Any = 'cpu') -> dict[str, Any]:
    """Reads a checkpoint file as tensors, plain containers and the types mmengine's Runner writes.

    Raises:
        UserError: the file is missing, damaged, not a checkpoint, or holds objects that would run code when read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'no checkpoint file at {path}')
    try:
        with torch.serialization.safe_globals(RUNNER_TYPES):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f'{path} is refused: it is no checkpoint, is damaged, or holds objects that would run code when read; '
            f'only tensors and plain values are loaded ({_reason(error)})'
        ) from error
    # Bytes that are no checkpoint make the unpickler fail in any way there is.
    except Exception as error:
        raise UserError(f'{path} is not a readable checkpoint, perhaps cut short: {_reason(error)}') from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get('meta', {}), dict):
        raise UserError(f'{path} is not a checkpoint: it is not a dict, or its meta is not')
    return checkpoint


def checkpoint_config(checkpoint: dict[str, Any], path: str | Path) -> Config:
    """The config that ``tools/train.py`` wrote into a checkpoint.

    It is stored as Python text; mmengine would execute it. Here it is read as literals and ``dict(...)`` only, and a
    ``type`` with a dot must be registered: mmengine imports and calls any other (``type='os.system'``).

    Raises:
        UserError: the checkpoint carries no config, or one that is not plain values and registered types.
    """
    meta = checkpoint.get('meta')
    text = meta.get('cfg') if isinstance(meta, dict) else None
    if not isinstance(text, str):
        raise UserError(f'{path} carries no config: give the config it was trained with')
    try:
        values = _read_assignments(text)
        _check_types(values)
        return Config(values)
    except (ValueError, SyntaxError, TypeError) as error:
        raise UserError(f'the config inside {path} is not plain values: {_reason(error)}') from error


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


def _reason(error: Exception) -> str:
    """What an error says, on one line; of torch's page about ``weights_only``, the part that names the culprit."""
    text = ' '.join(str(error).split()) or type(error).__name__
    culprit = re.search(r'GLOBAL (\S+)', text)
    text = f'it names {culprit.group(1)}' if culprit else text
    return text if len(text) <= 300 else f'{text[:297]}...'


def load_into(model: nn.Module, checkpoint: dict[str, Any], path: str | Path, strict: bool = True) -> None:
    """Copies a checkpoint's weights into a model.

    Args:
        model: The net.
        checkpoint: What ``load_checkpoint`` returned: a Runner's checkpoint or a bare ``state_dict``.
        path: Where it came from, for messages.
        strict: Whether anything missing, left over or of another shape is an error. If not, what fits is loaded and
            the rest is named in a log line.

    Raises:
        UserError: the weights do not fit.
    """
    given = tensor_state(checkpoint, path)
    given = {key.removeprefix('module.'): value for key, value in given.items()}  # of a net wrapped for several GPUs
    own = model.state_dict()
    text = differences(own, given)
    if text and strict:
        raise UserError(f'{path} does not fit this config (another backbone, head or number of classes?): {text}')
    if text:
        print_log(f'{path} is loaded in part: {text}', logger='current', level=logging.WARNING)
    fitting = {key: value for key, value in given.items() if key in own and value.shape == own[key].shape}
    model.load_state_dict(fitting, strict=False)


@CheckpointLoader.register_scheme(prefixes='tensors://')
def load_tensors(source: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """Loads ``tensors://<path>``: a local ``.safetensors`` file or a checkpoint, as tensors only.

    Raises:
        UserError: it is missing, damaged, or would run code.
    """
    path = Path(source.removeprefix('tensors://')).expanduser()
    if path.suffix != '.safetensors':
        return load_checkpoint(path, map_location)
    if not path.is_file():
        raise UserError(f'no weights file at {path}')
    try:
        return load_file(path, device=str(map_location or 'cpu'))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f'{path} is not a readable safetensors file, perhaps cut short: {_reason(error)}') from error


@CheckpointLoader.register_scheme(prefixes='timm://')
def load_timm(source: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """Loads ``timm://<tag>``: from the cache folder, else from the hub (in safetensors, by huggingface_hub).

    Raises:
        UserError: unknown tag, or no network: says which file to fetch and where to put it.
    """
    tag = source.removeprefix('timm://')
    if tag not in TAGS:
        near = difflib.get_close_matches(tag, TAGS, n=3, cutoff=0.5)
        raise UserError(
            f'no weights {tag!r}{f", near: {near}" if near else ""}: `python tools/list_weights.py` lists all'
        )
    path = cached_path(tag)
    if not path.is_file():
        path = _from_hub(tag, path)
    return load_tensors(f'tensors://{path}', map_location)


def cached_path(tag: str) -> Path:
    """Where a tag's file is looked for before the hub is asked: torch's cache of checkpoints."""
    return Path(torch.hub.get_dir()) / 'checkpoints' / f'{tag}.safetensors'


def is_cached(tag: str) -> bool:
    """Whether a tag's file is on this machine, put there by hand or by the hub's client."""
    from huggingface_hub import try_to_load_from_cache

    return cached_path(tag).is_file() or isinstance(try_to_load_from_cache(f'timm/{tag}', 'model.safetensors'), str)


def _from_hub(tag: str, wanted: Path) -> Path:
    # Imported here: it is slow, and a cached file needs none of it.
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(f'timm/{tag}', 'model.safetensors'))
    # The hub's client raises its own errors, httpx's, and OSError, depending on what is missing.
    except Exception as error:
        raise UserError(
            f'{tag} cannot be downloaded ({type(error).__name__}): fetch '
            f'https://huggingface.co/timm/{tag}/resolve/main/model.safetensors and put it at {wanted}'
        ) from error
