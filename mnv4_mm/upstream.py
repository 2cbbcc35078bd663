"""Work-arounds for OpenMMLab's own last releases; the maintained forks (``onedl-``) have fixed all of them.

Importing this module with a fork changes nothing.
"""

import ast
import sys
from pathlib import Path
from typing import Any

from mmengine.runner import CheckpointLoader, checkpoint

from mnv4_mm.weights.checkpoint import read_checkpoint

# The forks have a list of the types in a checkpoint.
IS_UPSTREAM = not hasattr(checkpoint, 'get_torch_safe_globals')
# mmseg 1.2.2 warns, for every loss of every head, that it calls a deprecated function of its own
# (open-mmlab/mmsegmentation#3587, merged after this release).
DEPRECATED_LOSSES = '``build_loss`` would be deprecated soon'


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a local checkpoint, for mmengine's ``CheckpointLoader``.

    mmengine 0.10.7 writes types into its checkpoints that torch, from 2.6 on, refuses to read for it
    (open-mmlab/mmengine#1655).

    Raises:
        UserError: The file is missing, damaged, not a checkpoint, or holds objects that would run code when read.
    """
    return read_checkpoint(Path(filename).expanduser(), map_location).content


def converts_channels(preprocessor: Any) -> bool:
    """Return whether a data preprocessor of mmdet or mmseg exchanges red and blue.

    The attribute of mmseg 1.2.2 has another name than that of mmengine, mmdet and the forks.
    """
    name = '_channel_conversion' if hasattr(preprocessor, '_channel_conversion') else 'channel_conversion'
    return bool(getattr(preprocessor, name))


def lazy_import(path: Path) -> bool | None:
    """Return ``Config.fromfile``'s argument of this name for a config file; None leaves the decision to mmengine.

    If a config without ``_base_`` imports the standard library only, mmengine 0.10.7 takes it for a config of its lazy
    style, and its values for names to be imported later, unless Python is the system's. Frozen modules, such as ``os``
    since Python 3.11, it always takes for that. No public issue was found; the check is open-mmlab/mmengine#1071's.
    """
    if not IS_UPSTREAM or path.suffix != '.py':
        return None
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add('' if node.level else str(node.module).partition('.')[0])
    return False if modules and modules <= sys.stdlib_module_names else None


if IS_UPSTREAM:
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
