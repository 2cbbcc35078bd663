"""The config that an evaluation uses."""

from pathlib import Path

from mmengine.config import Config

from mnv4_mm.config.backbone import set_backbone
from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.data import checkpoint_split, restore_data, set_data, set_data_roots, set_inference
from mnv4_mm.config.launcher import set_launcher
from mnv4_mm.config.load import load_config, set_options
from mnv4_mm.config.options import EvaluateOptions
from mnv4_mm.config.qat import copy_qat_settings
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.checkpoint import Checkpoint


def evaluation_config(
    source: str | Path | Checkpoint,
    options: EvaluateOptions,
    *,
    on_gpu: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Config:
    """Return the config that ``evaluate`` runs.

    Args:
        source: Name or path of a config, or a checkpoint that carries one.
        options: Options of evaluation. ``cfg_options`` take precedence over all others.
        on_gpu: True if the evaluation runs on a GPU.
        checkpoint: Checkpoint to evaluate, if ``source`` is a config; not used otherwise. The config takes over the
            ``qat`` settings of the evaluated checkpoint and, if the data set has no split of its own, the split into
            training and validation images.

    Raises:
        UserError: The config, an option or the data is invalid, or they do not fit each other.
    """
    cfg = checkpoint_config(source) if isinstance(source, Checkpoint) else load_config(source)
    if options.backbone:
        set_backbone(cfg, options.backbone)
    checkpoint = source if isinstance(source, Checkpoint) else checkpoint
    if checkpoint:
        copy_qat_settings(cfg, checkpoint)
    previous = checkpoint_split(checkpoint) if checkpoint else {}
    if options.data:
        layout = task_of(cfg).find(options.data, allow_dropped=options.allow_dropped, previous=previous)
        set_data(cfg, layout, options.allow_dropped)
    else:
        restore_data(cfg, previous)
    if options.inference:
        set_inference(cfg, options.inference)
    set_launcher(cfg, options.launcher, on_gpu)
    set_options(cfg, options.cfg_options or {})
    return set_data_roots(cfg)
