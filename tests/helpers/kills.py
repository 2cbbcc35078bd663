"""Runs that are killed at random moments and resumed, and their comparison with a run that is not."""

import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import torch

DETECTOR, SEGMENTER = 'mnv4_rtmdet_coco', 'mnv4_lraspp_ade20k'
SIDE = 64
_CONTEXT = multiprocessing.get_context('forkserver')
# Each run is forked from a process that has imported everything, which takes 5 seconds.
_CONTEXT.set_forkserver_preload(['mnv4_mm.apis.train', 'mnv4_mm.data.augment.seg', 'mnv4_mm.models.mobilenetv4'])


def detector_options(epochs: int, switch: int) -> dict[str, Any]:
    """Options of RTMDet with mosaic, mix-up, EMA and a change of its pipeline, on small images."""
    resized = dict(img_scale=(SIDE, SIDE), max_cached_images=4)
    crop = [
        dict(type='RandomResize', scale=(SIDE, SIDE), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(SIDE, SIDE)),
        dict(type='YOLOXHSVRandomAug'),
        dict(type='RandomFlip', prob=0.5),
        dict(type='Pad', size=(SIDE, SIDE), pad_val=dict(img=(114, 114, 114))),
    ]
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
    mosaic = [dict(type='CachedMosaic', pad_val=114.0, random_pop=False, **resized)]
    mix_up = [dict(type='CachedMixUp', ratio_range=(1.0, 1.0), random_pop=False, prob=0.5, **resized)]
    pack = [dict(type='PackDetInputs')]
    return {
        'train_dataloader.dataset.pipeline': [*load, *mosaic, *crop, *mix_up, *pack],
        'custom_hooks.1.switch_pipeline': [*load, *crop, *pack],
        'custom_hooks.1.switch_epoch': switch,
        'val_dataloader.dataset.pipeline.1.scale': (SIDE, SIDE),
        'val_dataloader.dataset.pipeline.2.size': (SIDE, SIDE),
        'train_dataloader.dataset.filter_cfg.min_size': 1,
        'train_cfg.val_interval': 1,
        'train_cfg.max_epochs': epochs,
        'default_hooks.checkpoint.interval': 1,
        'train_dataloader.batch_size': 2,
        'optim_wrapper.optimizer.lr': 1e-3,
    }


def segmenter_options(steps: int) -> dict[str, Any]:
    """Options of LR-ASPP with random crops, colours and dropout, on small images, without ImageNet weights."""
    return {
        'model.backbone.init_cfg': None,
        'train_dataloader.dataset.pipeline.0.scale': (4 * SIDE, SIDE),
        'train_dataloader.dataset.pipeline.0.crop_size': (SIDE, SIDE),
        'model.data_preprocessor.size': (SIDE, SIDE),
        'val_dataloader.dataset.pipeline.1.scale': (4 * SIDE, SIDE),
        'train_cfg.max_iters': steps,
        'train_cfg.val_interval': 3,
        'default_hooks.checkpoint.interval': 2,
        'train_dataloader.batch_size': 2,
        'model.decode_head.dropout_ratio': 0.1,
    }


def train(config: str, data: Path, work_dir: Path, options: dict[str, Any], resume: bool) -> None:
    """Train in this process, which is one of its own; its output goes to a file."""
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / 'started').touch()
    log = os.open(work_dir / 'output.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    from mnv4_mm.apis.train import train as run

    workers = {f'{split}_dataloader.num_workers': 2 if split == 'train' else 0 for split in ('train', 'val', 'test')}
    persistent = {f'{split}_dataloader.persistent_workers': split == 'train' for split in ('train', 'val', 'test')}
    fixed = {'randomness.seed': 7, 'visualizer.vis_backends': [dict(type='LocalVisBackend')]}
    run(
        config,
        data=str(data),
        work_dir=str(work_dir),
        resume=resume,
        cfg_options={**workers, **persistent, **fixed, **options},
    )


def start(config: str, data: Path, work_dir: Path, options: dict[str, Any], resume: bool) -> Any:
    process = _CONTEXT.Process(target=train, args=(config, data, work_dir, options, resume))
    process.start()
    return process


def finish(process: Any, work_dir: Path) -> float:
    """Wait for a run, and return the seconds that it took."""
    process.join()
    assert process.exitcode == 0, (work_dir / 'output.txt').read_text()[-3000:]
    return time.time() - (work_dir / 'started').stat().st_mtime


def kill_and_resume(
    config: str, data: Path, work_dir: Path, options: dict[str, Any], kills: int, length: float, seed: int
) -> list[str]:
    """Train, kill at random moments, and resume to the end.

    The first kill, and then every second, hits a write of a checkpoint. The others come after a further checkpoint has
    been written.

    Args:
        config: Name of a config.
        data: Data set.
        work_dir: Work directory.
        options: Values that replace the config's.
        kills: Number of kills.
        length: Seconds that a whole run takes.
        seed: Seed of the moments.

    Returns:
        What was in the work directory at each kill.
    """
    rng, moments = random.Random(seed), []
    for number in range(kills):
        (work_dir / 'started').unlink(missing_ok=True)
        process = start(config, data, work_dir, options, resume=number > 0)
        if number % 2 == 0:
            moments.append(f'writing {_wait_for_part(process, work_dir)}')
            time.sleep(rng.uniform(0, 0.01))
        else:
            # After a further checkpoint, so that the run gets on, but not to its end before the last kills.
            before = set(work_dir.glob('*.pth'))
            while process.is_alive() and not set(work_dir.glob('*.pth')) - before:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1) * length)
        process.kill()
        process.join()
        moments.append(json.dumps(sorted(path.name for path in work_dir.glob('*.pth'))))
    finish(start(config, data, work_dir, options, resume=True), work_dir)
    return moments


def _wait_for_part(process: Any, work_dir: Path) -> str:
    """Wait until a checkpoint is being written, and return the name of the temporary file; '' if the run ended."""
    while process.is_alive():
        if parts := list(work_dir.glob(f'.*.{process.pid}.part')):
            return parts[0].name
        time.sleep(0.001)
    return ''


def complete(work_dir: Path) -> list[str]:
    """Return the names of the checkpoints of a run that can be read."""
    from mnv4_mm.weights.checkpoint import read_checkpoint
    from mnv4_mm.weights.work_dir import list_checkpoints

    return [read_checkpoint(path).path.name for path in list_checkpoints(work_dir)]


def differences(one: Path, other: Path) -> list[str]:
    """Return the names of the values of two checkpoints that are not identical: weights, EMA, optimizer, schedule."""
    first, second = (torch.load(path, weights_only=False) for path in (one, other))
    keys = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    parts = [{key: content[key] for key in keys if key in content} for content in (first, second)]
    return [
        *_differences(parts[0], parts[1], ''),
        *(key for key in ('epoch', 'iter', 'seed') if first['meta'][key] != second['meta'][key]),
    ]


def _differences(one: Any, other: Any, name: str) -> list[str]:
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f'{name} keys']
        return [found for key in one for found in _differences(one[key], other[key], f'{name}.{key}')]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f'{name} length']
        return [
            found
            for place, (a, b) in enumerate(zip(one, other, strict=True))
            for found in _differences(a, b, f'{name}.{place}')
        ]
    return [] if one == other else [name]
