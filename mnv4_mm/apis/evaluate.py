"""Evaluate a checkpoint."""

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process

from mnv4_mm.apis.launch import join_processes, lost_process_errors, prepare_processes
from mnv4_mm.apis.mistakes import telling_wrong_settings
from mnv4_mm.config.anchors import check_same_anchors
from mnv4_mm.config.classes import set_classes_of, set_label_order
from mnv4_mm.config.data import dataset_split, require_data, with_training_images
from mnv4_mm.config.evaluation import evaluation_config
from mnv4_mm.config.options import EvaluateOptions
from mnv4_mm.engine.runner import SafeRunner
from mnv4_mm.errors import UserError
from mnv4_mm.paths import make_output_folder
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.checkpoint import Checkpoint, read_checkpoint, tensors_only

# Keys of training and validation, which a test does not need.
TRAINING_KEYS = (
    'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr',
    'val_dataloader', 'val_cfg', 'val_evaluator', 'custom_hooks',
)  # fmt: skip


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
    allow_dropped: bool = False,
    inference: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
) -> dict[str, float]:
    """Evaluate a checkpoint file with a config, or with the one it carries.

    Args:
        config: Path or name of a config; the checkpoint's own if None.
        checkpoint: Checkpoint file.
        work_dir: Where to write logs and ``metrics.json``; ``test_val`` or ``test_train`` beside the checkpoint if
            None.
        out: Detection: file for the detections in COCO's result format, ``[{image_id, category_id, bbox: [x, y, w,
            h], score}]``. Segmentation: folder for class maps, indexed PNG files with the values of the data's masks.
        show_dir: Folder for drawn images, ground truth on the left and predictions on the right.
        on: ``val`` (the config's test set) or ``train`` (its training images; metrics are then called
            ``trained_on/...``).
        backbone: The backbone that the checkpoint was trained with, if it is not the config's.
        data: The data set that the checkpoint was trained with, if it is not the config's.
        allow_dropped: Leave out images and boxes of ``data`` that are broken, even if they are more than 1 %.
        inference: Segmentation: ``whole`` images or windows (``slide``); the config's own mode if None.
        cfg_options: Values that replace values of the config.
        launcher: mmengine's launcher: none, pytorch, slurm or mpi.

    Returns:
        Metrics in [0, 1] by name, e.g. ``coco/bbox_mAP`` or ``ade20k/mIoU``. Metrics without ground truth are left
            out, except ``bbox_mAP`` and ``mIoU``, which are then NaN.

    Raises:
        UserError: An option, the data or the checkpoint is missing, unreadable or does not fit, or the outputs would
            overwrite the data.
    """
    options = EvaluateOptions(
        work_dir=work_dir,
        out=out,
        show_dir=show_dir,
        on=on,
        backbone=backbone,
        data=data,
        allow_dropped=allow_dropped,
        inference=inference,
        cfg_options=cfg_options,
        launcher=launcher,
    )
    prepare_processes(launcher)
    loaded = read_checkpoint(checkpoint)
    cfg = evaluation_config(config or loaded, options, on_gpu=torch.cuda.is_available(), checkpoint=loaded)
    folder = Path(work_dir) if work_dir else Path(checkpoint).parent / f'test_{on}'
    join_processes(cfg)
    with telling_wrong_settings(config, cfg_options, checkpoint=checkpoint):
        return evaluate(cfg, loaded, work_dir=folder, out=out, show_dir=show_dir, on=on)


@lost_process_errors()
def evaluate(
    cfg: Config,
    checkpoint: str | Path | Checkpoint,
    *,
    work_dir: Path,
    out: str | None = None,
    show_dir: str | None = None,
    on: str = 'val',
    per_class: bool = True,
) -> dict[str, float]:
    """Evaluate a checkpoint on the test set, or on the training images.

    Several processes each predict and draw a share of the images; the first one computes the metrics over all images
    and writes the files.

    Args:
        cfg: The config, which is not changed; its ``launcher`` is the one that started this process.
        checkpoint: Checkpoint file, or the checkpoint that was read from it; must fit the config entirely.
        work_dir: Where to write logs and ``metrics.json``.
        out: Detection: file for the detections in COCO's result format, ``[{image_id, category_id, bbox: [x, y, w,
            h], score}]``. Segmentation: folder for class maps, indexed PNG files with the values of the data's masks.
        show_dir: Folder for drawn images, ground truth on the left and predictions on the right.
        on: ``val`` (the config's test set) or ``train`` (its training images; metrics are then called
            ``trained_on/...``).
        per_class: Print AP or IoU per class.

    Returns:
        Metrics in [0, 1] by name, e.g. ``coco/bbox_mAP`` or ``ade20k/mIoU``. Metrics without ground truth are left
            out, except ``bbox_mAP`` and ``mIoU``, which are then NaN.

    Raises:
        UserError: Data or checkpoint are missing, unreadable or do not fit, or the outputs would overwrite the data.
    """
    task = task_of(cfg)
    if out:
        task.check_out(out)
    checkpoint = read_checkpoint(checkpoint)  # before anything is written
    check_same_anchors(cfg, checkpoint)
    cfg = with_training_images(cfg) if on == 'train' else copy.deepcopy(cfg)
    require_data(cfg, 'test_dataloader')
    _set_test_only(cfg, checkpoint, work_dir)
    set_label_order(cfg)
    matched = set_classes_of(cfg, checkpoint)
    if matched and is_main_process():
        print(matched)
    _set_outputs(cfg, out, show_dir, per_class)
    with tensors_only():
        runner = SafeRunner.from_cfg(cfg, checkpoint)
        measured = runner.test()
    metrics = {name: float(value) for name, value in measured.items() if not math.isnan(value)}
    unmeasured = getattr(runner.test_evaluator, 'unmeasured', ())
    metrics |= {name: math.nan for name in unmeasured if name.endswith(f'/{task.metric}')}
    if is_main_process():
        if out:
            task.finish_outputs(out)
        if show_dir:
            print(f'images, ground truth on the left and predictions on the right: {show_dir}')
        written = {name: None if math.isnan(value) else value for name, value in metrics.items()}
        (Path(work_dir) / 'metrics.json').write_text(json.dumps(written, indent=1))
    return metrics


def _set_test_only(cfg: Config, checkpoint: Checkpoint, work_dir: Path) -> None:
    for key in TRAINING_KEYS:
        cfg.pop(key, None)
    cfg.work_dir, cfg.load_from, cfg.resume = str(work_dir), str(checkpoint.path), False
    cfg.experiment_name = str(work_dir)  # mmengine identifies the loggers and scalars of a process by this name


def _set_outputs(cfg: Config, out: str | None, show_dir: str | None, per_class: bool) -> None:
    """Configure the output of predictions and drawn images, and make the folders.

    Raises:
        UserError: The data would be overwritten.
    """
    split = dataset_split(cfg, 'test_dataloader')
    if show_dir and Path(show_dir).resolve() in [path.resolve() for path in task_of(cfg).data_paths(split)]:
        raise UserError(f'--show-dir {show_dir} is a folder of the data, which would be overwritten')
    task_of(cfg).set_outputs(cfg, split, per_class, out)
    if show_dir:
        make_output_folder('--show-dir', show_dir)
        cfg.default_hooks.visualization.update(draw=True, test_out_dir=str(Path(show_dir).absolute()))
