"""Train a config: what ``tools/train.py`` calls."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.runner import Runner, find_latest_checkpoint

from mnv4_mm.apis.evaluate import build_runner, evaluate
from mnv4_mm.apis.launch import is_first_of_machine, join_processes
from mnv4_mm.config.backbone import disagreeing_normalisation, lost_weights, pretrained_files
from mnv4_mm.config.data import require_data, resolve_data_roots
from mnv4_mm.config.load import load_config
from mnv4_mm.config.training import merge_train_arguments
from mnv4_mm.errors import UserError
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.files import load_checkpoint, load_tensors
from mnv4_mm.weights.strict import tensors_only


def train(
    config: str,
    *,
    work_dir: str | None = None,
    resume: bool | str = False,
    amp: bool = False,
    amp_dtype: str | None = None,
    channels_last: bool | None = None,
    fused: bool | None = None,
    compiled: bool = False,
    backbone: str | None = None,
    data: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
    auto_scale_lr: bool = False,
    epochs: int | None = None,
    iters: int | None = None,
) -> Path:
    """Trains, keeps the best checkpoint, and draws the curves.

    Of a config it reads what mmengine's Runner reads, and ``report_on_training_pictures``: whether to evaluate on the
    training pictures too when training ends, and draw them.

    Args:
        config: Path, or name of a shipped config.
        work_dir: Where to write; ``work_dirs/<config>`` if left out.
        resume: Continue the work directory's last checkpoint (True) or this one.
        amp: Mixed precision: float16 with loss scaling on a GPU, bfloat16 on the CPU.
        amp_dtype: Mixed precision of this type, ``fp16`` or ``bf16``.
        channels_last: Whether maps lie as (N, H, W, C) in memory; the config's own choice if left out.
        fused: Whether the optimiser updates all parameters in one kernel; if left out, wherever it can.
        compiled: Compile backbone, neck and head by ``torch.compile``.
        backbone: Another backbone, e.g. ``mnv4_conv_l``.
        data: Folder of a data set in COCO's layout, or for segmentation in ADE20K's.
        cfg_options: Values that replace the config's.
        launcher: mmengine's launcher.
        auto_scale_lr: Scale the learning rate to the real batch size.
        epochs: Train for that many epochs, with the schedule in proportion.
        iters: The same for a config that counts in iterations.

    Returns:
        The work directory.

    Raises:
        UserError: see its text.
    """
    join_processes(launcher)
    loaded = load_config(config)
    cfg = merge_train_arguments(
        loaded,
        Path(config).stem,
        work_dir=work_dir,
        resume=resume,
        amp=amp,
        amp_dtype=amp_dtype,
        channels_last=channels_last,
        fused=fused,
        compiled=compiled,
        on_gpu=torch.cuda.is_available(),
        backbone=backbone,
        layout=task_of(loaded).find(data) if data else None,
        options=cfg_options,
        launcher=launcher,
        auto_scale_lr=auto_scale_lr,
        epochs=epochs,
        iters=iters,
    )
    cfg = resolve_data_roots(cfg)
    # Of a machine's processes one checks; the others wait for it where they meet.
    if is_first_of_machine(launcher):
        for loader in ('train_dataloader', 'val_dataloader'):
            require_data(cfg, loader)
    folder = Path(cfg.work_dir)
    if resume is True:  # a run that has no checkpoint yet starts as if it were new
        cfg.resume = (folder / 'last_checkpoint').is_file()
        cfg.load_from = None if cfg.resume else cfg.get('load_from')
    # Files that cannot be read safely, and whole, are refused before anything is built.
    for file in pretrained_files(cfg):
        load_tensors(file)
    if cfg.get('load_from'):
        load_checkpoint(cfg.load_from)
    _check_work_dir(folder, cfg)

    for warning in (disagreeing_normalisation(cfg), lost_weights(loaded, cfg)):
        if warning and is_main_process():
            print(f'warning: {warning}')
    with tensors_only():
        runner = build_runner(cfg)
    _say_learning_rate(cfg, runner)
    try:
        with tensors_only():
            _cap_warm_up(runner)
            runner.train()
    except KeyboardInterrupt:
        raise UserError(f'stopped; continue with the same command and --resume (checkpoints are in {folder})') from None
    finally:
        for hook in runner.hooks:
            if hasattr(hook, 'close'):
                hook.close()
    if cfg.get('report_on_training_pictures'):
        _report_on_training_pictures(cfg, folder)
    return folder


def _say_learning_rate(cfg: Config, runner: Runner) -> None:
    """A recipe's learning rate is made for its batch size; says so where another is used unscaled."""
    scaling = cfg.get('auto_scale_lr', {})
    real = cfg.train_dataloader.get('batch_size', 1) * runner.world_size
    if scaling.get('base_batch_size', real) != real and not scaling.get('enable'):
        runner.logger.warning(
            f'the learning rate is made for {scaling.base_batch_size} pictures a step, this run takes {real}: '
            '--auto-scale-lr fits it'
        )


def _cap_warm_up(runner: Runner) -> None:
    """Warm-ups counted in steps are made for COCO; on a small data set they would outlast the training."""
    longest = max(1, runner.train_loop.max_iters // 10)
    for scheduler in runner.param_schedulers or []:
        warms_up = isinstance(scheduler, dict) and scheduler['type'] in ('LinearLR', 'ConstantLR')
        if not warms_up or scheduler.get('by_epoch', True) or scheduler.get('begin', 0):
            continue
        if scheduler.get('end', 0) > longest:
            runner.logger.info(f'warm-up of {scheduler["end"]} steps shortened to a tenth of the training, {longest}')
            scheduler['end'] = longest


def _check_work_dir(folder: Path, cfg: Config) -> None:
    """Refuses to write over a run, and a place that cannot be written."""
    last = find_latest_checkpoint(str(folder)) if (folder / 'last_checkpoint').is_file() else None
    if last and not cfg.resume:
        raise UserError(f'{folder} holds a run already ({last}): continue it with --resume or name another --work-dir')
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--work-dir {folder} cannot be made: {error.strerror}') from error
    if not os.access(folder, os.W_OK):
        raise UserError(f'--work-dir {folder} cannot be written')


def _report_on_training_pictures(cfg: Config, folder: Path) -> None:
    barrier()  # the first process has written it
    checkpoint = find_latest_checkpoint(str(folder))
    seen = evaluate(
        cfg, checkpoint, work_dir=folder / 'trained_on', on='train', per_class=False, show_dir=str(folder / 'pictures')
    )
    held_out = evaluate(cfg, checkpoint, work_dir=folder / 'held_out', on='val', per_class=False)
    if is_main_process():
        task = task_of(cfg)
        print(f'{task.metric} of the last checkpoint:')
        for prefix, metrics in (('trained_on', seen), (cfg.test_evaluator.prefix, held_out)):
            # mmdet measures nothing where nothing was detected.
            name = f'{prefix}/{task.metric}'
            print(f'  {name:<28}{metrics.get(name, 0.0):.3f}')
        article = 'an' if task.benchmark[0] in 'AEIOU' else 'a'
        print(
            'The first is on the very pictures it was trained on: it shows that the machinery learns, not that the '
            f'model generalises. Neither is {article} {task.benchmark} result.'
        )
