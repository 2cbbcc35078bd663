"""Evaluate a checkpoint: what ``tools/test.py`` calls."""

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner

import mnv4_mm.engine  # noqa: F401 (registers the Runner)
from mnv4_mm.apis.launch import join_processes
from mnv4_mm.config.backbone import fit_backbone
from mnv4_mm.config.data import (
    dataset_split,
    fit_data,
    fit_inference,
    on_training_pictures,
    require_data,
    resolve_data_roots,
)
from mnv4_mm.config.load import load_config, merge_options
from mnv4_mm.config.training import fit_launcher
from mnv4_mm.engine.overlay import quiet_painter
from mnv4_mm.engine.runner import SafeRunner
from mnv4_mm.errors import UserError
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.files import checkpoint_config, load_checkpoint
from mnv4_mm.weights.strict import tensors_only


def build_runner(cfg: Config) -> Runner:
    """Builds the Runner, with safe loading."""
    return SafeRunner.from_cfg(cfg)


def evaluate_files(
    config: str | None,
    checkpoint: str,
    *,
    work_dir: str | None = None,
    out: str | None = None,
    show_dir: str | None = None,
    on: str = 'val',
    backbone: str | None = None,
    data: str | None = None,
    inference: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
) -> dict[str, float]:
    """Evaluates a checkpoint file with a config, or with the one it carries.

    Args:
        config: Path or name of a config; the checkpoint's own if None.
        checkpoint: Checkpoint file.
        work_dir: Where logs go; a folder beside the checkpoint if left out.
        out: See ``evaluate``.
        show_dir: See ``evaluate``.
        on: See ``evaluate``.
        backbone: As the checkpoint was trained with.
        data: As the checkpoint was trained with.
        inference: Whole pictures or windows, see ``config.fit_inference``; the config's own if left out.
        cfg_options: Values that replace the config's.
        launcher: mmengine's launcher: none, pytorch, slurm or mpi.

    Returns:
        Metrics by name.
    """
    join_processes(launcher)
    cfg = load_config(config) if config else checkpoint_config(load_checkpoint(checkpoint), checkpoint)
    if backbone:
        cfg = fit_backbone(cfg, backbone)
    if data:
        cfg = fit_data(cfg, task_of(cfg).find(data))
    if inference:
        cfg = fit_inference(cfg, inference)
    cfg = fit_launcher(cfg, launcher, on_gpu=torch.cuda.is_available())
    cfg = resolve_data_roots(merge_options(cfg, cfg_options or {}))
    folder = Path(work_dir) if work_dir else Path(checkpoint).parent / f'test_{on}'
    return evaluate(cfg, checkpoint, work_dir=folder, out=out, show_dir=show_dir, on=on)


def evaluate(
    cfg: Config,
    checkpoint: str,
    *,
    work_dir: Path,
    out: str | None = None,
    show_dir: str | None = None,
    on: str = 'val',
    per_class: bool = True,
) -> dict[str, float]:
    """Runs a checkpoint over the test set, or over the training pictures.

    Of several processes each predicts its share; the first measures all of them and writes the files. Segmenters'
    pictures are all drawn, of detectors' those of the first process (mmdet's painter).

    Args:
        cfg: The config; its ``launcher`` is the one with which this process was started.
        checkpoint: Checkpoint file; must fit the config entirely.
        work_dir: Where logs go.
        out: Detection: file for the detections in COCO's result format, ``[{image_id, category_id, bbox: [x, y, w,
            h], score}]``. Segmentation: folder for class maps, indexed PNG files with the values of the data's masks.
        show_dir: Folder for pictures, ground truth left and predictions right.
        on: ``val`` (the config's test set) or ``train`` (its training pictures; metrics are then called
            ``trained_on/...``).
        per_class: Print AP or IoU per class.

    Returns:
        Metrics by name, e.g. ``coco/bbox_mAP`` or ``ade20k/mIoU``, in [0, 1]; classes the data does not have
            are left out.

    Raises:
        UserError: data or checkpoint missing, unreadable or unfit.
    """
    task = task_of(cfg)
    if out:
        task.check_out(out)
    load_checkpoint(checkpoint)  # a file that cannot be read leaves no folders behind
    cfg = on_training_pictures(cfg) if on == 'train' else copy.deepcopy(cfg)
    require_data(cfg, 'test_dataloader')
    split = dataset_split(cfg, 'test_dataloader')
    if show_dir and Path(show_dir).resolve() in [part.resolve() for part in split if isinstance(part, Path)]:
        raise UserError(f'--show-dir {show_dir} is where the data is: it would be written over')
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr'):
        cfg.pop(key, None)
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'custom_hooks'):
        cfg.pop(key, None)
    cfg.work_dir, cfg.load_from, cfg.resume = str(work_dir), str(checkpoint), False
    cfg.experiment_name = str(work_dir)  # mmengine keeps loggers and scalars of a process by this name
    task.set_outputs(cfg, split, per_class, out)
    if show_dir:
        Path(show_dir).mkdir(parents=True, exist_ok=True)
        cfg.default_hooks.visualization.update(draw=True, test_out_dir=str(Path(show_dir).absolute()))
    with quiet_painter(), tensors_only():
        measured = build_runner(cfg).test()
    metrics = {name: float(value) for name, value in measured.items() if not math.isnan(value)}
    if is_main_process():
        if out:
            task.finish_outputs(out)
        if show_dir:
            print(f'pictures, ground truth left and predictions right: {show_dir}')
        (Path(work_dir) / 'metrics.json').write_text(json.dumps(metrics, indent=1))
    return metrics
