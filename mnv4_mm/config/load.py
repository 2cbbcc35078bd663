"""Load a config file and set single values in it."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mnv4_mm.config.index import find_config, near_names
from mnv4_mm.config.nested import on_copy
from mnv4_mm.errors import UserError

# Top-level keys that are used after the config file has been read. Other names of a config file (`batch_size`) are used
# while it is read, so that setting them later has no effect.
READ_KEYS = {
    *inspect.signature(Runner.__init__).parameters, 'compile', 'custom_imports', 'find_unused_parameters',
    'model_wrapper_cfg', 'sync_bn', 'report_on_training_pictures', 'channels_last',
} - {'self', 'cfg'}  # fmt: skip


def load_config(name: str | Path) -> Config:
    """Load a config by path, or a shipped one by name.

    Raises:
        UserError: There is no such config (similar names are listed), or the file is broken.
    """
    path = find_config(name)
    try:
        return Config.fromfile(str(path))
    # A config is a Python file that mmengine executes: it can raise anything.
    except Exception as error:
        raise UserError(
            f'config {path} cannot be read: {type(error).__name__}: {" ".join(str(error).split())}'
        ) from error


def set_options(cfg: Config, options: Mapping[str, Any]) -> Config:
    """Set the values of ``--cfg-options``, e.g. ``{'train_cfg.max_epochs': 3}``.

    Raises:
        UserError: The first part of a key is unknown or has no effect, or a list index is out of range.
    """
    for key in options:
        first = key.split('.')[0]
        if first in READ_KEYS:
            continue
        if first in cfg:
            raise UserError(
                f'--cfg-options {key}: {first} is used while the config file is read, setting it now would do nothing; '
                'set the value where it goes to, e.g. train_dataloader.batch_size or optim_wrapper.optimizer.lr'
            )
        raise UserError(f'--cfg-options {key}: the config has no {first!r}{near_names(first, READ_KEYS)}')
    try:
        cfg.merge_from_dict(dict(options))
    except (KeyError, TypeError, IndexError, AssertionError, ValueError) as error:
        raise UserError(f'--cfg-options: {" ".join(str(error).split())}') from error
    return cfg


merge_options = on_copy(set_options)
