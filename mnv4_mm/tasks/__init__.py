"""Detection and segmentation: everything that differs by task."""

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mnv4_mm.errors import UserError
from mnv4_mm.tasks.detection import Detection
from mnv4_mm.tasks.segmentation import Segmentation
from mnv4_mm.tasks.task import Task

TASKS: dict[str, Task] = {'mmdet': Detection(), 'mmseg': Segmentation()}


def task_of(cfg: Config) -> Task:
    """Detection or segmentation, by the config's ``default_scope``.

    Raises:
        UserError: it is neither mmdet's nor mmseg's.
    """
    scope = cfg.get('default_scope')
    if scope not in TASKS:
        raise UserError(f'default_scope of a config must be one of {", ".join(TASKS)}, got {scope!r}')
    return TASKS[scope]


def build_model(cfg: Config) -> nn.Module:
    """Builds a config's model, with the names of its ``default_scope``."""
    task_of(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)
