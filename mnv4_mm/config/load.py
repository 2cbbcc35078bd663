"""Load a config file and set single values in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mnv4_mm.config.nested import on_copy
from mnv4_mm.config.rules import check_keys
from mnv4_mm.config.source import check_config_file, unreadable
from mnv4_mm.config.values import check_values
from mnv4_mm.errors import UserError
from mnv4_mm.upstream import lazy_import


def load_config(name: str | Path) -> Config:
    """Load a config by path, or a shipped one by name.

    Raises:
        UserError: There is no such config (similar names are listed), or the file is broken.
    """
    path = check_config_file(name)
    try:
        return Config.fromfile(str(path), lazy_import=lazy_import(path))
    except ImportError as error:
        if isinstance(error.__cause__, ImportError):
            # mmengine says "Failed to import X", then that of `custom_imports`, with all of sys.path.
            raise unreadable(path, error.__cause__.__context__ or error.__cause__) from error  # type: ignore[arg-type]
        raise unreadable(path, error) from error
    # A config is a Python file that mmengine executes: it can raise anything.
    except Exception as error:
        raise unreadable(path, error) from error


def set_options(cfg: Config, options: Mapping[str, Any]) -> Config:
    """Set the values of ``--cfg-options``, e.g. ``{'train_cfg.max_epochs': 3}``.

    Raises:
        UserError: The first part of a key is unknown or has no effect, the rest does not fit the value there, such as a
            list index that is out of range, or ``check_values`` refuses a value.
    """
    check_keys(options, cfg)
    try:
        cfg.merge_from_dict(dict(options))
    except (KeyError, TypeError, IndexError, AssertionError, ValueError) as error:
        raise UserError(f'--cfg-options: {" ".join(str(error).split())}') from error
    except AttributeError as error:
        items = ', '.join(key for key in options if key.rpartition('.')[2].isdigit())
        if not items:
            raise
        # mmengine merges an item of a list with a dict only.
        raise UserError(
            f'--cfg-options {items}: single items of a list cannot be replaced; set the whole list'
        ) from error
    check_values(cfg, options, only_options=True)
    return cfg


with_options = on_copy(set_options)
