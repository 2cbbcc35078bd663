"""Read pretrained weights from local files, timm's published weights, or any other source that mmengine reads.

Registers the schemes ``timm://`` and ``tensors://`` with mmengine's CheckpointLoader, so that ``init_cfg`` of any
OpenMMLab model takes them.
"""

import difflib
import pickle
from pathlib import Path
from typing import Any

from mmengine.runner import CheckpointLoader
from safetensors import SafetensorError
from safetensors.torch import load_file

from mnv4_mm.errors import UserError
from mnv4_mm.weights.cache import cached_path
from mnv4_mm.weights.checkpoint import read_checkpoint, reason, tensors_only
from mnv4_mm.weights.tags import TAGS

HUB_TIMEOUT = 5.0  # seconds until the hub must answer


def read_weights(source: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read weights as tensors only.

    Args:
        source: ``timm://<tag>``, a local ``.safetensors`` or ``.pth`` file, or a URL that mmengine reads.
        map_location: Device of the tensors, see ``torch.load``.

    Returns:
        The content of the file: weights by name, or a checkpoint that holds them, see ``strict.tensor_state``.

    Raises:
        UserError: The weights are missing or damaged, cannot be fetched, or would run code when read.
    """
    scheme = source.partition('://')[0] if '://' in source else 'tensors'
    if scheme == 'timm':
        return load_timm(source, map_location)
    if scheme == 'tensors':
        return load_tensors(source, map_location)
    try:
        with tensors_only():
            return CheckpointLoader.load_checkpoint(source, map_location)
    except pickle.UnpicklingError as error:
        raise UserError(f'{source} is refused: it holds objects that would run code when read') from error
    except OSError as error:  # no network, no such file on the server, ...
        raise UserError(f'{source} cannot be read: {error}') from error


@CheckpointLoader.register_scheme(prefixes='tensors://')
def load_tensors(source: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a local ``.safetensors`` file or a checkpoint as tensors only.

    Args:
        source: Path of the file, with or without the prefix ``tensors://``. A file without the suffix ``.safetensors``
            is read as a checkpoint.
        map_location: Device of the tensors, see ``torch.load``.

    Returns:
        Weights by name from a ``.safetensors`` file; the whole content of a checkpoint.

    Raises:
        UserError: The file is missing or damaged, or would run code when read.
    """
    path = Path(source.removeprefix('tensors://')).expanduser()
    if path.suffix != '.safetensors':
        return read_checkpoint(path, map_location).content
    if not path.is_file():
        raise UserError(f'no weights file at {path}')
    try:
        return load_file(path, device=str(map_location or 'cpu'))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f'{path} is not a readable safetensors file, perhaps cut short: {reason(error)}') from error


@CheckpointLoader.register_scheme(prefixes='timm://')
def load_timm(source: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read weights that timm publishes, from a cache on this machine or else from the Hugging Face hub.

    Args:
        source: ``timm://<tag>``, with a tag in ``TAGS``.
        map_location: Device of the tensors, see ``torch.load``.

    Returns:
        Weights by name.

    Raises:
        UserError: The tag is unknown, or the file is damaged or cannot be downloaded. If the download fails, the
            message says which file to fetch by hand, and where to put it.
    """
    tag = source.removeprefix('timm://')
    if tag not in TAGS:
        near = difflib.get_close_matches(tag, TAGS, n=3, cutoff=0.5)
        raise UserError(f'no weights {tag!r}{f", near: {near}" if near else ""}: `mnv4 weights` lists all')
    return load_tensors(str(fetch_timm(tag)), map_location)


def fetch_timm(tag: str) -> Path:
    """Return the path of a tag's ``.safetensors`` file. If no cache has the file, try once to download it.

    Raises:
        UserError: The file cannot be downloaded.
    """
    path = cached_path(tag)
    return path if path.is_file() else _download(tag, path)


def _download(tag: str, manual_path: Path) -> Path:
    # Imported here because it is slow, and a cached file does not need it.
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    repository, name = f'timm/{tag}', 'model.safetensors'
    found = try_to_load_from_cache(repository, name)
    if isinstance(found, str):
        return Path(found)
    try:
        # hf_hub_download alone tries six times, which takes 24 seconds without a network.
        get_hf_file_metadata(hf_hub_url(repository, name), timeout=HUB_TIMEOUT)
        return Path(hf_hub_download(repository, name))
    # The hub's client raises its own errors, httpx's, or OSError, depending on the cause.
    except Exception as error:
        raise UserError(
            f'{tag} cannot be downloaded ({type(error).__name__}): fetch '
            f'https://huggingface.co/timm/{tag}/resolve/main/model.safetensors and put it at {manual_path}, or start '
            'from random weights with --weights none'
        ) from error
