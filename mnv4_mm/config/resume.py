"""The rule for resuming.

- ``resume=CHECKPOINT`` continues this checkpoint.
- ``resume=True`` continues the last checkpoint of the work directory; if there is none, the run starts as a new one.
- A run that does not resume needs a work directory without a run.
- ``resume`` and ``load_from`` in ``cfg_options`` take precedence, and mean what they mean in mmengine.
"""

import os
from collections.abc import Collection
from pathlib import Path

from mmengine.config import Config

from mnv4_mm.errors import UserError
from mnv4_mm.weights.work_dir import list_checkpoints


def set_resume(cfg: Config, resume: bool | str | Path, cfg_options: Collection[str] = ()) -> Config:
    """Set ``resume`` and ``load_from``.

    Args:
        cfg: A config with its final ``work_dir``.
        resume: False, True, or a checkpoint file.
        cfg_options: Keys of the config that the user has set.
    """
    start = None if isinstance(resume, bool) else os.fspath(resume)
    if 'resume' not in cfg_options:
        cfg.resume = start is not None or (resume and _last_checkpoint(cfg) is not None)
    if 'load_from' not in cfg_options and start is not None:
        cfg.load_from = start
    elif 'load_from' not in cfg_options and resume and cfg.resume:
        cfg.load_from = None  # mmengine takes the work directory's last checkpoint
    return cfg


def initial_checkpoint(cfg: Config) -> str | None:
    """Return the path of the checkpoint that a run resumes or takes its weights from; None if there is none."""
    return cfg.get('load_from') or (_last_checkpoint(cfg) if cfg.resume else None)


def check_no_run(cfg: Config) -> None:
    """Check that a new run does not overwrite another one.

    Raises:
        UserError: The work directory holds a run, and this one does not resume.
    """
    last = _last_checkpoint(cfg)
    if last and not cfg.resume:
        raise UserError(
            f'{cfg.work_dir} holds a run already ({last}): continue it with --resume or name another --work-dir'
        )


def _last_checkpoint(cfg: Config) -> str | None:
    return next(map(str, list_checkpoints(cfg.work_dir)), None)
