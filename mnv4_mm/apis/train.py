"""Train a config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.runner import Runner, find_latest_checkpoint

from mnv4_mm.apis.evaluate import evaluate
from mnv4_mm.apis.launch import is_first_of_machine, join_processes
from mnv4_mm.config.anchors import check_same_anchors
from mnv4_mm.config.anchors import fit_anchors as fit_anchors_of
from mnv4_mm.config.backbone import disagreeing_normalisation, lost_weights, pretrained_files
from mnv4_mm.config.data import data_lines, require_data
from mnv4_mm.config.load import load_config
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.resume import check_no_run, initial_checkpoint
from mnv4_mm.config.training import training_config
from mnv4_mm.engine.runner import SafeRunner
from mnv4_mm.errors import UserError
from mnv4_mm.paths import make_output_folder
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.checkpoint import Checkpoint, read_checkpoint, tensors_only
from mnv4_mm.weights.hub import load_tensors


def train(
    config: str,
    *,
    work_dir: str | None = None,
    resume: bool | str | Path = False,
    amp: bool = False,
    amp_dtype: str | None = None,
    channels_last: bool | None = None,
    fused: bool | None = None,
    compiled: bool = False,
    backbone: str | None = None,
    data: str | None = None,
    allow_dropped: bool = False,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
    auto_scale_lr: bool = False,
    epochs: int | None = None,
    iters: int | None = None,
    size: Sequence[int] | None = None,
    levels: int | None = None,
    fit_anchors: bool = False,
) -> Path:
    """Train a config; keep the best checkpoint and plot loss and metric.

    Besides the keys of mmengine's Runner, a config may have ``report_on_training_pictures``: evaluate on the training
    images too when training ends, and draw them.

    Args:
        config: Path, or name of a shipped config.
        work_dir: Where to write; ``work_dirs/<config>[_<backbone>][_<data>]`` if None.
        resume: Continue the work directory's last checkpoint (True) or this one.
        amp: Mixed precision: float16 with loss scaling on a GPU, bfloat16 on the CPU.
        amp_dtype: Mixed precision with this type, ``fp16`` or ``bf16``.
        channels_last: Keep feature maps as (N, H, W, C) in memory; as the config says if None.
        fused: Update all parameters in one kernel; if None, where the optimizer supports it.
        compiled: Compile backbone, neck and head with ``torch.compile``.
        backbone: Use another backbone, e.g. ``mnv4_conv_l``.
        data: Folder of a data set with boxes or, for segmentation, masks, in any format that ``mnv4_mm.check`` knows.
        allow_dropped: Leave out images and boxes of ``data`` that are broken, even if they are more than 1 %.
        cfg_options: Values that replace the config's.
        launcher: mmengine's launcher: none, pytorch, slurm or mpi.
        auto_scale_lr: Scale the learning rate to the actual batch size.
        epochs: Train for this number of epochs, with the schedule in proportion.
        iters: Train for this number of iterations; for configs that count in iterations.
        size: Detection: input size, (height, width) or (side,), in multiples of 32.
        levels: SSDLite: output stride of its finest level, 16 or 8.
        fit_anchors: Detection: fit the anchors to the boxes of the training images.

    Returns:
        The work directory.

    Raises:
        UserError: An option, the config, the data or a checkpoint is invalid, or the run was interrupted.
    """
    options = TrainOptions(
        work_dir=work_dir,
        resume=resume,
        amp=amp,
        amp_dtype=amp_dtype,
        channels_last=channels_last,
        fused=fused,
        compiled=compiled,
        backbone=backbone,
        data=data,
        allow_dropped=allow_dropped,
        cfg_options=cfg_options,
        launcher=launcher,
        auto_scale_lr=auto_scale_lr,
        epochs=epochs,
        iters=iters,
        size=size,
        levels=levels,
        fit_anchors=fit_anchors,
    )
    join_processes(launcher)
    loaded = load_config(config)
    cfg = training_config(loaded, options, on_gpu=torch.cuda.is_available())
    _check_data(cfg, launcher)
    if fit_anchors:
        fitted = fit_anchors_of(cfg)
        if is_main_process():
            print(fitted)
    if is_main_process():
        print('\n'.join(data_lines(cfg)))
    checkpoint = _read_weights(cfg)
    if cfg.resume and checkpoint:
        check_same_anchors(cfg, checkpoint)
    check_no_run(cfg)
    folder = make_output_folder('--work-dir', cfg.work_dir)
    _warn(disagreeing_normalisation(cfg), lost_weights(loaded, cfg))
    with tensors_only():
        runner = SafeRunner.from_cfg(cfg, checkpoint)
    del checkpoint  # the runner releases it when it has loaded it
    _run(runner, cfg)
    if cfg.get('report_on_training_pictures'):
        _report_on_training_images(cfg, folder)
    return folder


def _check_data(cfg: Config, launcher: str) -> None:
    # One process of each machine checks; the others wait for it when they meet.
    if is_first_of_machine(launcher):
        for loader in ('train_dataloader', 'val_dataloader'):
            require_data(cfg, loader)


def _read_weights(cfg: Config) -> Checkpoint | None:
    """Check the local weight files of the model, and read the checkpoint that the run starts from.

    Files that cannot be read safely and completely are refused before anything is built or written.
    """
    for file in pretrained_files(cfg):
        load_tensors(file)
    path = initial_checkpoint(cfg)
    return read_checkpoint(path) if path else None


def _warn(*warnings: str | None) -> None:
    for warning in warnings:
        if warning and is_main_process():
            print(f'warning: {warning}')


def _run(runner: Runner, cfg: Config) -> None:
    _warn_about_learning_rate(runner, cfg)
    try:
        with tensors_only():
            _cap_warm_up(runner)
            runner.train()
    except KeyboardInterrupt:
        raise UserError(
            f'stopped; continue with the same command and --resume (checkpoints are in {cfg.work_dir})'
        ) from None
    finally:
        for hook in runner.hooks:
            if hasattr(hook, 'close'):
                hook.close()


def _warn_about_learning_rate(runner: Runner, cfg: Config) -> None:
    """Warn if the batch size is not the one that the recipe's learning rate is made for, and the rate is not scaled."""
    scaling = cfg.get('auto_scale_lr', {})
    actual = cfg.train_dataloader.get('batch_size', 1) * runner.world_size
    if scaling.get('base_batch_size', actual) != actual and not scaling.get('enable'):
        runner.logger.warning(
            f'the learning rate is made for {scaling.base_batch_size} images a step, this run takes {actual}: '
            '--auto-scale-lr scales it'
        )


def _cap_warm_up(runner: Runner) -> None:
    """Limit warm-ups, which are counted in steps for COCO, to a tenth of the training on a small data set."""
    limit = max(1, runner.train_loop.max_iters // 10)
    for scheduler in runner.param_schedulers or []:
        warms_up = isinstance(scheduler, dict) and scheduler['type'] in ('LinearLR', 'ConstantLR')
        if not warms_up or scheduler.get('by_epoch', True) or scheduler.get('begin', 0):
            continue
        if scheduler.get('end', 0) > limit:
            runner.logger.info(f'warm-up of {scheduler["end"]} steps shortened to a tenth of the training, {limit}')
            scheduler['end'] = limit


def _report_on_training_images(cfg: Config, folder: Path) -> None:
    barrier()  # the first process has written it
    checkpoint = read_checkpoint(find_latest_checkpoint(str(folder)))
    trained_on = evaluate(
        cfg, checkpoint, work_dir=folder / 'trained_on', on='train', per_class=False, show_dir=str(folder / 'pictures')
    )
    held_out = evaluate(cfg, checkpoint, work_dir=folder / 'held_out', on='val', per_class=False)
    if is_main_process():
        task = task_of(cfg)
        print(f'{task.metric} of the last checkpoint:')
        for prefix, metrics in (('trained_on', trained_on), (cfg.test_evaluator.prefix, held_out)):
            # mmdet measures nothing if nothing was detected.
            name = f'{prefix}/{task.metric}'
            print(f'  {name:<28}{metrics.get(name, 0.0):.3f}')
        article = 'an' if task.benchmark[0] in 'AEIOU' else 'a'
        print(
            'The first is measured on the training images: it shows that training works, not that the model '
            f'generalises. Neither is {article} {task.benchmark} result.'
        )
