"""Trained PyTorch models: loading them from a checkpoint, and predicting with them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mnv4_mm.apis.mistakes import telling_wrong_settings
from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.data import with_inference
from mnv4_mm.config.load import load_config
from mnv4_mm.config.qat import copy_qat_settings
from mnv4_mm.engine.runner import quiet_losses
from mnv4_mm.engine.step import use_channels_last
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.predictor import ImagePredictor
from mnv4_mm.runtime.results import ClassMap, Detections
from mnv4_mm.tasks import build_model, task_of
from mnv4_mm.weights.checkpoint import Checkpoint, read_checkpoint, tensors_only
from mnv4_mm.weights.strict import load_into


def load_model(
    checkpoint: str | Path | Checkpoint,
    config: str | None = None,
    device: str | None = None,
    inference: str | None = None,
) -> nn.Module:
    """Build a model from a checkpoint written by ``mnv4 train``, which carries its config and class names.

    Args:
        checkpoint: Checkpoint file, or the checkpoint that was read from it.
        config: Path or name of a config to use instead of the one in the checkpoint.
        device: torch device; by default the GPU if there is one.
        inference: Segmentation: ``whole`` images or ``slide`` for windows, see ``config.data.with_inference``; as in
            the config by default.

    Returns:
        The model in evaluation mode, with ``cfg`` and ``dataset_meta`` as mmdet's and mmseg's APIs expect, and the
        checkpoint's ``meta`` as ``checkpoint_meta``.

    Raises:
        UserError: The checkpoint cannot be read, carries no config or class names, or does not fit, its model cannot be
            built, or the device cannot be used.
    """
    content = read_checkpoint(checkpoint)
    cfg = copy_qat_settings(load_config(config), content) if config else checkpoint_config(content)
    if inference:
        cfg = with_inference(cfg, inference)
    with tensors_only(), quiet_losses(), telling_wrong_settings(config, checkpoint=content.path):
        model: Any = build_model(cfg)
    load_into(model, content)
    if cfg.get('channels_last'):
        use_channels_last(model)
    meta = content.meta
    if 'classes' not in (meta.get('dataset_meta') or {}):
        raise UserError(f'{content.path} does not name its classes: it was not written by `mnv4 train`')
    model.cfg, model.dataset_meta, model.checkpoint_meta = cfg, meta['dataset_meta'], meta
    try:
        model.to(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {device} cannot be used: {str(error).splitlines()[0]}') from error
    return model.eval()


class TorchPredictor(ImagePredictor):
    """A PyTorch model with the preprocessing of its config. It returns the same types as ``runtime.Predictor``.

    Args:
        model: A model as ``load_model`` returns.
    """

    def __init__(self, model: Any) -> None:
        task = task_of(model.cfg)
        self.model = model
        self.task = task.name
        self._predictor = task.predictor(model)
        self.classes = self._predictor.classes

    def predict(self, pixels: np.ndarray) -> Detections | ClassMap:
        return self._predictor(pixels)
