"""Speed of ``tools/train.py`` as a user runs it, against the same model with plain mmdet settings."""

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mnv4_mm.bench.augmentation import MMDET
from mnv4_mm.bench.measure import Figure, Ratio, run_python
from mnv4_mm.config.index import REPOSITORY, config_index

BATCH, STEPS = 16, 36
LOG_INTERVAL = 6  # steps per line of the log, which contains their means
LEARNING_RATE = 0.05  # high enough to halve the loss within ``STEPS``


class Run(NamedTuple):
    """Result of a training run.

    Attributes:
        seconds: Median time of a step in seconds.
        losses: Mean loss of each line of the log, which covers ``LOG_INTERVAL`` steps.
        peak_mib: Peak memory of the process in MiB.
    """

    seconds: float
    losses: list[float]
    peak_mib: float


def training(rounds: int = 2) -> Iterator[Ratio | Figure]:
    """Train for ``STEPS`` steps on the small data set, alternately with each of three settings.

    The settings are plain mmdet settings (float32, contiguous tensors and mmdet's data set and pipeline), our default
    settings, and our settings in bfloat16. Images are read by the training process, because on two cores a worker would
    only compete with it. The time of a step is the median over the lines of the log, without the first one.

    Args:
        rounds: Number of runs with each of the settings.
    """
    runs: dict[str, list[Run]] = dict(plain=[], ours=[], bf16=[])
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / 'plain.py'
        shipped = config_index()['mnv4_ssdlite_coco']
        # Overrides the data set inside RepeatDataset; the keys of RepeatDataset itself are inherited.
        dataset = dict(dataset=dict(pipeline=MMDET, type='CocoDataset'))
        plain.write_text(f'_base_ = {str(shipped)!r}\ntrain_dataloader = dict(dataset={dataset!r})\n')
        commands = dict(
            plain=[str(plain), '--no-channels-last', '--no-fused'],
            ours=['mnv4_ssdlite_coco'],
            bf16=['mnv4_ssdlite_coco', '--amp-dtype', 'bf16'],
        )
        for i in range(rounds):
            for side in commands if i % 2 else reversed(commands):
                runs[side].append(_train(commands[side], Path(folder) / f'{side}{i}', seed=i))
    name = f'tools/train.py mnv4_ssdlite_coco, a step of {BATCH} images of 320x320'
    milliseconds = {side: 1e3 * statistics.median(run.seconds for run in side_runs) for side, side_runs in runs.items()}
    losses = {side: [loss for run in side_runs for loss in run.losses] for side, side_runs in runs.items()}
    for side, options, target in (('ours', '', 1.5), ('bf16', ' --amp-dtype bf16', None)):
        speedup = statistics.median(b.seconds / a.seconds for a, b in zip(runs[side], runs['plain'], strict=True))
        yield Ratio(
            f'{name}{options}, against plain mmdet settings', milliseconds[side], milliseconds['plain'], speedup, target
        )
        yield Figure(f'{name}{options}: images a second', BATCH / milliseconds[side] * 1e3, 'img/s')
        # Pipelines draw different random numbers from the same seed: losses agree if their difference is just noise.
        differences = [a - b for a, b in zip(losses[side], losses['plain'], strict=True)]
        errors = abs(statistics.mean(differences)) / (statistics.stdev(differences) / len(differences) ** 0.5)
        yield Figure(f'{name}{options}: difference of the loss to plain', errors, 'standard errors', limit=3)
    for side, side_runs in runs.items():
        peak = statistics.median(run.peak_mib for run in side_runs)
        yield Figure(f'{name}: peak memory, {side}', peak, 'MiB')
        yield Figure(f'{name}: loss of the last {LOG_INTERVAL} steps, {side}', side_runs[-1].losses[-1], '')


def _train(arguments: list[str], work_dir: Path, seed: int) -> Run:
    options = {
        'train_dataloader.batch_size': BATCH,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'train_dataloader.dataset.times': BATCH * STEPS // 64,  # the small data set has 64 images
        'val_dataloader.num_workers': 0,
        'val_dataloader.persistent_workers': False,
        'val_dataloader.dataset.indices': 1,
        'default_hooks.logger.interval': LOG_INTERVAL,
        'log_processor.window_size': LOG_INTERVAL,
        'param_scheduler.0.start_factor': 1,  # no warm-up
        'optim_wrapper.optimizer.lr': LEARNING_RATE,
        'randomness.seed': seed,
    }
    process = run_python(
        [
            str(REPOSITORY / 'tools/train.py'),
            *arguments,
            '--data',
            str(REPOSITORY / 'data/mini/coco'),
            '--work-dir',
            str(work_dir),
            '--epochs',
            '1',
            '--cfg-options',
            *(f'{key}={value}' for key, value in options.items()),
        ]
    )
    lines = next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
    steps = [entry for entry in map(json.loads, lines) if 'loss' in entry]
    seconds = statistics.median(entry['time'] for entry in steps[1:])
    return Run(seconds, [entry['loss'] for entry in steps], process.peak_mib)
