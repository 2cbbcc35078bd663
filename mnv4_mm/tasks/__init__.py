"""Everything that differs between detection and segmentation."""

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mnv4_mm.engine.building import building
from mnv4_mm.engine.qat import NAME as QAT
from mnv4_mm.engine.qat import quantize_model
from mnv4_mm.errors import UserError
from mnv4_mm.tasks.detection import Detection
from mnv4_mm.tasks.segmentation import Segmentation
from mnv4_mm.tasks.task import Task

TASKS: dict[str, Task] = {'mmdet': Detection(), 'mmseg': Segmentation()}


def task_of(cfg: Config) -> Task:
    """Return the task of a config, by its ``default_scope``.

    Raises:
        UserError: The scope is neither mmdet nor mmseg.
    """
    scope = cfg.get('default_scope')
    if scope not in TASKS:
        raise UserError(f'default_scope of a config must be one of {", ".join(TASKS)}, got {scope!r}')
    return TASKS[scope]


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config, with its types looked up in the registry of the config's ``default_scope``.

    If the config has ``qat`` settings, weights and activations are fake-quantised to 8 bits, see
    ``engine.qat.quantize_model``.

    Raises:
        BuildError: The config asks for a part that does not exist, or that refuses its arguments.
    """
    task_of(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), building('model'):
        model = MODELS.build(cfg.model)
    return quantize_model(model, cfg[QAT]) if cfg.get(QAT) else model
