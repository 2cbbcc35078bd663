"""Train a config: what ``tools/train.py`` calls."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import find_latest_checkpoint

from mnv4_mm.apis import config as configs
from mnv4_mm.apis.evaluate import build_runner, evaluate, require_data
from mnv4_mm.data.coco import find_coco
from mnv4_mm.errors import UserError
from mnv4_mm.weights import load_checkpoint


def train(
    config: str,
    *,
    work_dir: str | None = None,
    resume: bool | str = False,
    amp: bool = False,
    backbone: str | None = None,
    data: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
    auto_scale_lr: bool = False,
    epochs: int | None = None,
) -> Path:
    """Trains, keeps the best checkpoint, and draws the curves.

    Of a config it reads what mmengine's Runner reads, and ``report_on_training_pictures``: whether to evaluate on the
    training pictures too when training ends, and draw them.

    Args:
        config: Path, or name of a shipped config.
        work_dir: Where to write; ``work_dirs/<config>`` if left out.
        resume: Continue the work directory's last checkpoint (True) or this one.
        amp: Mixed precision.
        backbone: Another backbone, e.g. ``mnv4_conv_l``.
        data: Folder of a data set in COCO's layout.
        cfg_options: Values that replace the config's.
        launcher: mmengine's launcher.
        auto_scale_lr: Scale the learning rate to the real batch size.
        epochs: Train for that many epochs, with the schedule in proportion.

    Returns:
        The work directory.

    Raises:
        UserError: see its text.
    """
    cfg = configs.merge_train_arguments(
        configs.load_config(config),
        Path(config).stem,
        work_dir=work_dir,
        resume=resume,
        amp=amp,
        on_gpu=torch.cuda.is_available(),
        backbone=backbone,
        layout=find_coco(data) if data else None,
        options=cfg_options,
        launcher=launcher,
        auto_scale_lr=auto_scale_lr,
        epochs=epochs,
    )
    cfg = configs.resolve_data_roots(cfg)
    for loader in ('train_dataloader', 'val_dataloader'):
        require_data(cfg, loader)
    folder = Path(cfg.work_dir)
    if cfg.get('load_from'):
        load_checkpoint(cfg.load_from)
    _check_work_dir(folder, cfg)

    if launcher == 'pytorch' and not torch.cuda.is_available():
        # mmengine's own start asks for GPU LOCAL_RANK whatever the backend; it leaves a group that exists alone.
        torch.distributed.init_process_group('gloo')
    runner = build_runner(cfg)
    try:
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
    checkpoint = find_latest_checkpoint(str(folder))
    seen = evaluate(
        cfg, checkpoint, work_dir=folder / 'trained_on', on='train', per_class=False, show_dir=str(folder / 'pictures')
    )
    held_out = evaluate(cfg, checkpoint, work_dir=folder / 'held_out', on='val', per_class=False)
    if is_main_process():
        print('bbox_mAP of the last checkpoint:')
        for name, value in (*seen.items(), *held_out.items()):
            if name.endswith('bbox_mAP'):
                print(f'  {name:<28}{value:.3f}')
        print(
            'The first is on the very pictures it was trained on: it shows that the machinery learns, not that the '
            'model generalises. Neither is a COCO result.'
        )
