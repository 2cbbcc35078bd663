"""Find published weights on this machine. Imports nothing heavy."""

import os
import sys
from pathlib import Path


def cached_path(tag: str) -> Path:
    """Return the path of a tag's weights in torch's checkpoint cache, whether or not the file exists."""
    if torch := sys.modules.get('torch'):
        folder = torch.hub.get_dir()  # torch.hub.set_dir may have changed it
    else:
        # The same folder, without the slow import of torch.hub.
        cache = os.environ.get('XDG_CACHE_HOME', '~/.cache')
        folder = os.path.join(os.path.expanduser(os.environ.get('TORCH_HOME', os.path.join(cache, 'torch'))), 'hub')
    return Path(folder) / 'checkpoints' / f'{tag}.safetensors'


def is_cached(tag: str) -> bool:
    """Return True if a tag's weights are in torch's cache or in the one of huggingface_hub.

    Args:
        tag: Key of ``weights.tags.TAGS``, without ``timm://``.
    """
    if cached_path(tag).is_file():
        return True
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:  # an installation that only runs exported files
        return False
    return isinstance(try_to_load_from_cache(f'timm/{tag}', 'model.safetensors'), str)
