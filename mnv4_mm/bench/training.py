"""`tools/train.py` as a user runs it, beside the same net and head in plain mmdet settings."""

import json
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

from mnv4_mm.bench.augmentation import MMDET
from mnv4_mm.bench.measure import Figure, Ratio, run
from mnv4_mm.config.index import REPOSITORY, config_index

BATCH, STEPS = 16, 36
LINE = 6  # steps a line of the log, of which it has the means
LR = 0.05  # the loss falls by half in so few steps


def training(rounds: int = 2) -> tuple[list[Ratio], list[Figure]]:
    """Trains for 36 steps on the small set, in turn with plain settings: float32, contiguous, mmdet's pipeline.

    Pictures are read by the process that trains: on two cores a worker would only take turns with it. Seconds a step
    are the median of the log's lines but the first.
    """
    runs: dict[str, list[Run]] = dict(plain=[], ours=[], bf16=[])
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / 'plain.py'
        shipped = config_index()['mnv4_ssdlite_coco']
        # In RepeatDataset, whose own keys stay.
        dataset = dict(dataset=dict(pipeline=MMDET, type='CocoDataset'))
        plain.write_text(f'_base_ = {str(shipped)!r}\ntrain_dataloader = dict(dataset={dataset!r})\n')
        commands = dict(
            plain=[str(plain), '--no-channels-last', '--no-fused'],
            ours=['mnv4_ssdlite_coco'],
            bf16=['mnv4_ssdlite_coco', '--amp-dtype', 'bf16'],
        )
        for turn in range(rounds):
            for side in commands if turn % 2 else reversed(commands):
                runs[side].append(_train(commands[side], Path(folder) / f'{side}{turn}', seed=turn))
    name = f'tools/train.py mnv4_ssdlite_coco, a step of {BATCH} pictures of 320x320'
    ms = {side: 1e3 * statistics.median(run.seconds for run in found) for side, found in runs.items()}
    losses = {side: [loss for run in found for loss in run.losses] for side, found in runs.items()}
    ratios, figures = [], []
    for side, words, wanted in (('ours', '', 1.5), ('bf16', ' --amp-dtype bf16', None)):
        ratio = statistics.median(b.seconds / a.seconds for a, b in zip(runs[side], runs['plain'], strict=True))
        ratios.append(Ratio(f'{name}{words}, against plain mmdet settings', ms[side], ms['plain'], ratio, wanted))
        figures.append(Figure(f'{name}{words}: pictures a second', BATCH / ms[side] * 1e3, 'img/s'))
        # The same seeds draw other numbers from each pipeline: curves agree if their difference is noise.
        apart = [a - b for a, b in zip(losses[side], losses['plain'], strict=True)]
        errors = abs(statistics.mean(apart)) / (statistics.stdev(apart) / len(apart) ** 0.5)
        figures.append(Figure(f'{name}{words}: loss beside plain', errors, 'standard errors', limit=3))
    for side, found in runs.items():
        figures.append(Figure(f'{name}: peak memory, {side}', statistics.median(run.peak_mib for run in found), 'MiB'))
        figures.append(Figure(f'{name}: loss of the last {LINE} steps, {side}', found[-1].losses[-1], ''))
    return ratios, figures


class Run(NamedTuple):
    """Seconds a step, the loss of each line of the log, and the most memory in MiB."""

    seconds: float
    losses: list[float]
    peak_mib: float


def _train(arguments: list[str], work_dir: Path, seed: int) -> Run:
    options = {
        'train_dataloader.batch_size': BATCH,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'train_dataloader.dataset.times': BATCH * STEPS // 64,  # the small set has 64 pictures
        'val_dataloader.num_workers': 0,
        'val_dataloader.persistent_workers': False,
        'val_dataloader.dataset.indices': 1,
        'default_hooks.logger.interval': LINE,
        'log_processor.window_size': LINE,
        'param_scheduler.0.start_factor': 1,  # no warm-up
        'optim_wrapper.optimizer.lr': LR,
        'randomness.seed': seed,
    }
    process = run(
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
