"""Train a config."""

import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, is_main_process
from mmengine.runner import Runner

from mnv4_mm.apis.launch import is_first_of_machine, join_processes, lost_process_errors, prepare_processes
from mnv4_mm.apis.mistakes import telling_wrong_settings
from mnv4_mm.config.anchors import check_same_anchors
from mnv4_mm.config.anchors import fit_anchors as fit_anchors_of
from mnv4_mm.config.backbone import disagreeing_normalisation, lost_weights, pretrained_files
from mnv4_mm.config.batch_norm import refuse_batch_of_one
from mnv4_mm.config.classes import set_classes_of, set_label_order
from mnv4_mm.config.data import data_lines, require_data
from mnv4_mm.config.load import load_config
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.qat import check_qat_classes, check_same_qat
from mnv4_mm.config.resume import check_no_run, initial_checkpoint
from mnv4_mm.config.small_data import set_started_backbone
from mnv4_mm.config.teacher import check_same_teacher, check_teacher
from mnv4_mm.config.training import training_config
from mnv4_mm.config.weights import published_tags
from mnv4_mm.engine.runner import SafeRunner
from mnv4_mm.errors import UserError
from mnv4_mm.paths import make_output_folder
from mnv4_mm.weights.checkpoint import Checkpoint, cannot_be_written, read_checkpoint, read_newest, tensors_only
from mnv4_mm.weights.hub import fetch_timm, load_tensors

# What all processes of a run must have in common: each makes its own step with the gradients of all.
SAME_KEYS = (
    'model', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr', 'randomness', 'qat', 'supernet',
)  # fmt: skip


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
    auto_scale_lr: bool | None = None,
    weights: str | None = None,
    teacher: str | None = None,
    teacher_config: str | None = None,
    qat: str | None = None,
    space: str | None = None,
    epochs: int | None = None,
    iters: int | None = None,
    size: Sequence[int] | None = None,
    levels: int | None = None,
    fit_anchors: bool = False,
) -> Path:
    """Train a config; keep the best checkpoint and plot loss and metric.

    ``mnv4_mm.write_report`` evaluates the result and reports on it, as ``mnv4 train`` does at its end.

    Args:
        config: Path, or name of a shipped config.
        work_dir: Where to write; ``work_dirs/<config>[_<backbone>][_<data>][_<space>][_int8]`` if None.
        resume: Continue from the last checkpoint of the work directory (True), or from this checkpoint.
        amp: Mixed precision: float16 with loss scaling on a GPU, bfloat16 on the CPU.
        amp_dtype: Mixed precision with this type, ``fp16`` or ``bf16``.
        channels_last: Keep feature maps as (N, H, W, C) in memory; None for the setting of the config.
        fused: Update all parameters in one kernel; if None, where the optimizer supports it.
        compiled: Compile backbone, neck and head with ``torch.compile``.
        backbone: Use another backbone, e.g. ``mnv4_conv_l``.
        data: Folder of a data set with boxes or, for segmentation, masks, in any format that ``mnv4_mm.check`` knows.
        allow_dropped: Leave out images and boxes of ``data`` that are broken, even if they are more than 1 %.
        cfg_options: Values that replace values of the config.
        launcher: mmengine's launcher: none, pytorch, slurm or mpi.
        auto_scale_lr: Scale the learning rate to the actual batch size; if None, only with ``data``.
        weights: Start the backbone from ``timm``'s ImageNet weights, from random ones (``none``), or from a file; None
            for the setting of the config or, with ``data``, the default that docs/training.md describes.
        teacher: Checkpoint of a trained model of the same task to distil from, of this package, mmdet or mmseg.
        teacher_config: Config of the teacher; the one in its checkpoint if None.
        qat: Fine-tune the trained model of this checkpoint for int8, by default in a tenth of the steps of its
            training. ``mnv4_mm.train`` starts such a run; ``mnv4_mm.apis.train.train``, which it wraps, can only resume
            one.
        space: Train a supernet, all nets of this search space (``models.space.SPACES``) at once.
        epochs: Train for this number of epochs, and scale the schedule in proportion.
        iters: Train for this number of iterations; for configs that count in iterations.
        size: Detection: input size, (height, width) or (side,), in multiples of 32.
        levels: SSDLite: output stride of its finest level, 16 or 8.
        fit_anchors: Detection: fit the anchors to the boxes of the training images.

    Returns:
        The work directory.

    Raises:
        UserError: An option, the config, the data or a checkpoint is invalid, the run was interrupted, or its files
            cannot be written.
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
        weights=weights,
        teacher=teacher,
        teacher_config=teacher_config,
        qat=qat,
        space=space,
        epochs=epochs,
        iters=iters,
        size=size,
        levels=levels,
        fit_anchors=fit_anchors,
    )
    return train_with(config, options)


@lost_process_errors()
def train_with(config: str, options: TrainOptions, start_qat: Callable[[Config], Path] | None = None) -> Path:
    """Train a config, see ``train``.

    Args:
        config: Path, or name of a shipped config.
        options: Options of training.
        start_qat: Function that is called with the config of a new ``options.qat`` run. It writes the checkpoint to
            start from, whose config names the layers in float, and returns its path. None if the run does not start a
            quantisation-aware fine-tuning.

    Returns:
        The work directory.

    Raises:
        UserError: See ``train``.
    """
    launcher = options.launcher
    prepare_processes(launcher)
    loaded = load_config(config)
    derived: list[str] = []
    cfg = training_config(loaded, options, on_gpu=torch.cuda.is_available(), log=derived.append)
    join_processes(cfg)
    _say(*derived)
    _check_data(cfg, launcher)
    if options.fit_anchors:
        fitted = fit_anchors_of(cfg)
        if is_main_process():
            print(fitted)
    if is_main_process():
        print('\n'.join(data_lines(cfg)))
    check_no_run(cfg)
    if options.qat and not cfg.resume:
        if start_qat is None:
            raise UserError('--qat is started by `mnv4 train` or mnv4_mm.train')
        check_qat_classes(cfg)
        cfg.load_from = str(start_qat(cfg))
    checkpoint = _read_weights(cfg)
    _check_same_start(cfg, checkpoint)
    set_label_order(cfg)
    if checkpoint is not None:
        if cfg.resume:
            check_same_anchors(cfg, checkpoint)
            check_same_teacher(cfg, checkpoint)
        check_same_qat(cfg, checkpoint)
        if cfg.resume and options.data and not options.qat:
            set_started_backbone(cfg, checkpoint, options)
        _say(set_classes_of(cfg, checkpoint, fine_tuning=not (cfg.resume or options.qat)))
    _say(check_teacher(cfg))
    folder = make_output_folder('--work-dir', cfg.work_dir)
    _warn(disagreeing_normalisation(cfg), lost_weights(loaded, cfg))
    with telling_wrong_settings(config, options.cfg_options):
        with tensors_only():
            runner = SafeRunner.from_cfg(cfg, checkpoint)
        del checkpoint  # so that its memory is free once the runner has loaded and released it
        _run(runner, cfg)
    return folder


def _check_data(cfg: Config, launcher: str) -> None:
    # One process of each machine checks; the others wait for it at the next synchronisation.
    if is_first_of_machine(launcher):
        for loader in ('train_dataloader', 'val_dataloader'):
            require_data(cfg, loader)


def _read_weights(cfg: Config) -> Checkpoint | None:
    """Check or fetch the weight files of the model, and read the checkpoint that the run starts from, if there is one.

    Files that cannot be read safely and completely are refused before anything is built or written.
    """
    for file in pretrained_files(cfg):
        load_tensors(file)
    if not cfg.resume:
        for tag in published_tags(cfg):
            fetch_timm(tag)
    path = initial_checkpoint(cfg)
    if path is None:
        return None
    # The last checkpoint of a run may be damaged: the newest undamaged one is resumed.
    return read_checkpoint(path) if cfg.get('load_from') else read_newest(cfg.work_dir)


def _check_same_start(cfg: Config, checkpoint: Checkpoint | None) -> None:
    """Check that all processes have the same recipe, and start from the same checkpoint.

    Each process reads the work directory. If machines do not share it, only the first process finds checkpoints there.

    Raises:
        UserError: Another process has another recipe, or starts from another checkpoint or from none.
    """
    own = None
    if checkpoint is not None:
        meta = checkpoint.meta
        own = f'{checkpoint.path.name}, step {meta.get("iter", "unknown")}, written {meta.get("time", "some time")}'
    recipe = {key: repr(cfg.get(key)) for key in SAME_KEYS}
    recipe['train_dataloader.batch_size'] = repr((cfg.get('train_dataloader') or {}).get('batch_size'))
    starts, recipes = zip(*all_gather_object((own, recipe)), strict=True)
    for rank, other in enumerate(recipes):
        if different := [key for key in recipe if other[key] != recipes[0][key]]:
            raise UserError(
                f'process {rank} was started with another config than process 0: {", ".join(different)} differ; start '
                'all of them by the same command'
            )
    for rank, other in enumerate(starts):
        if other != starts[0]:
            raise UserError(
                f'process 0 starts from {starts[0] or "no checkpoint"}, and process {rank} from '
                f'{other or "no checkpoint"}: {cfg.work_dir} must be one folder that all machines share'
            )


def _say(*lines: str | None) -> None:
    for line in lines:
        if line and is_main_process():
            print(line)


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
    except ValueError as error:
        if 'Expected more than 1 value per channel' not in str(error):
            raise
        raise refuse_batch_of_one(error) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(cannot_be_written(error.filename or cfg.work_dir, error, cfg.work_dir)) from error
    finally:
        for hook in runner.hooks:
            if hasattr(hook, 'close'):
                hook.close()


def _warn_about_learning_rate(runner: Runner, cfg: Config) -> None:
    """Warn if the batch size differs from that of the recipe, and the learning rate is not scaled."""
    scaling = cfg.get('auto_scale_lr', {})
    actual = cfg.train_dataloader.get('batch_size', 1) * runner.world_size
    if scaling.get('base_batch_size', actual) != actual and not scaling.get('enable'):
        runner.logger.warning(
            f'the learning rate is made for {scaling.base_batch_size} images a step, and this run takes {actual}: '
            '--auto-scale-lr scales it'
        )


def _cap_warm_up(runner: Runner) -> None:
    """Limit warm-ups, whose number of steps is made for COCO, to a tenth of the training."""
    limit = runner.train_loop.max_iters // 10
    for scheduler in list(runner.param_schedulers or []):
        warms_up = isinstance(scheduler, dict) and scheduler['type'] in ('LinearLR', 'ConstantLR')
        if not warms_up or scheduler.get('by_epoch', True) or scheduler.get('begin', 0):
            continue
        if limit < 2:
            # mmengine's warm-up of one step never reaches the full rate: the whole training would use a tiny one.
            runner.param_schedulers.remove(scheduler)
        elif scheduler.get('end', 0) > limit:
            runner.logger.info(f'warm-up of {scheduler["end"]} steps shortened to a tenth of the training, {limit}')
            scheduler['end'] = limit
