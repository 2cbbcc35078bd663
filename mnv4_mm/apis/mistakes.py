"""Which of the user's settings to check when a component cannot be built."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnv4_mm.config.index import CONFIGS, find_config
from mnv4_mm.engine.building import BuildError
from mnv4_mm.errors import UserError


@contextmanager
def telling_wrong_settings(
    config: str | Path | None,
    cfg_options: Mapping[str, Any] | None = None,
    *,
    checkpoint: str | Path | None = None,
) -> Iterator[None]:
    """Name the settings that may have caused the ``BuildError`` of a ``with`` block.

    Errors that are raised while the run trains or evaluates are not concerned.

    Args:
        config: Name or path of the config; None for the one in a checkpoint.
        cfg_options: Values that replace values of the config.
        checkpoint: The checkpoint whose config is used if ``config`` is None.

    Raises:
        UserError: A component could not be built, and the config is not a shipped one, or ``cfg_options`` are given.
        Exception: A component could not be built although all settings are shipped ones, which is a bug of this
            package: the original exception.
    """
    try:
        yield
    except BuildError as error:
        cause = error.__cause__
        assert cause is not None
        settings = []
        if config is None:
            settings.append(f'the config in {checkpoint}')
        elif not find_config(config).resolve().is_relative_to(CONFIGS.resolve()):
            settings.append(f'config {config}')
        if cfg_options:
            settings.append(f'--cfg-options {" ".join(f"{key}={value}" for key, value in cfg_options.items())}')
        if not settings:
            raise cause from cause.__cause__
        raise UserError(f'{error}; check {" and ".join(settings)}') from cause
