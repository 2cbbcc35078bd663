"""Errors while a run is built: those that the user's own settings may have caused, and others."""

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnv4_mm.config.index import CONFIGS, find_config
from mnv4_mm.engine.building import BuildError
from mnv4_mm.errors import UserError

LONGEST = 600  # characters of a message: mmengine's may contain whole configs


@contextmanager
def telling_wrong_settings(config: str | Path | None, cfg_options: Mapping[str, Any] | None) -> Iterator[None]:
    """Turn the ``BuildError`` of a ``with`` block into a ``UserError`` if the user has settings of their own.

    Errors that are raised while the run trains or evaluates are not concerned.

    Args:
        config: Name or path of the config; None for the one in a checkpoint.
        cfg_options: Values that replace values of the config.

    Raises:
        UserError: A component could not be built, and the config is not a shipped one, or ``cfg_options`` are given.
        Exception: A component could not be built although all settings are shipped ones: the original exception.
    """
    try:
        yield
    except BuildError as error:
        cause = error.__cause__
        assert cause is not None
        settings = []
        if config is not None and not find_config(config).resolve().is_relative_to(CONFIGS.resolve()):
            settings.append(f'config {config}')
        if cfg_options:
            settings.append(f'--cfg-options {" ".join(f"{key}={value}" for key, value in cfg_options.items())}')
        if not settings:
            raise cause from cause.__cause__
        message = textwrap.shorten(str(error), LONGEST, placeholder=' ...')
        raise UserError(f'{message}; check {" and ".join(settings)} (MNV4_DEBUG=1 shows the traceback)') from cause
