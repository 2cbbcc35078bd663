"""`tools/train.py` as a user runs it, beside the same net and head in plain mmdet settings."""

import json
import statistics
import tempfile
from pathlib import Path

from mnv4_mm.apis import config as configs
from mnv4_mm.report.bench.augmentation import MMDET
from mnv4_mm.report.bench.measure import Figure, Process, Ratio, run

BATCH, STEPS, SKIPPED = 16, 24, 6


def training(rounds: int = 2) -> tuple[list[Ratio], list[Figure]]:
    """Trains for 24 steps on the small set, in turn with plain settings: float32, contiguous, mmdet's pipeline.

    Seconds a step are the median of the log's, without the first 6 steps; losses the mean of the last 12 steps.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / 'plain.py'
        shipped = configs.config_index()['mnv4_ssdlite_coco']
        # In RepeatDataset, whose own keys stay.
        dataset = dict(dataset=dict(pipeline=MMDET, type='CocoDataset'))
        plain.write_text(f'_base_ = {str(shipped)!r}\ntrain_dataloader = dict(dataset={dataset!r})\n')
        sides = dict(ours=['mnv4_ssdlite_coco'], theirs=[str(plain), '--no-channels-last', '--no-fused'])
        seconds: dict[str, list[float]] = dict(ours=[], theirs=[])
        losses: dict[str, list[float]] = dict(ours=[], theirs=[])
        peaks: dict[str, list[float]] = dict(ours=[], theirs=[])
        for turn in range(rounds):
            for side in ('ours', 'theirs') if turn % 2 else ('theirs', 'ours'):
                work_dir = Path(folder) / f'{side}{turn}'
                process = _train(sides[side], work_dir, seed=turn)
                lines = next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
                steps = [entry for entry in map(json.loads, lines) if 'loss' in entry]
                seconds[side].append(statistics.median(entry['time'] for entry in steps[SKIPPED:]))
                losses[side].append(statistics.mean(entry['loss'] for entry in steps[STEPS // 2 :]))
                peaks[side].append(process.peak_mib)
    name = f'tools/train.py mnv4_ssdlite_coco, a step of {BATCH} pictures of 320x320'
    ours, theirs = (statistics.median(seconds[side]) * 1e3 for side in ('ours', 'theirs'))
    ratio = statistics.median(b / a for a, b in zip(seconds['ours'], seconds['theirs'], strict=True))
    figures = [Figure(f'{name}: pictures a second', BATCH / ours * 1e3, 'img/s')]
    for side, words in (('ours', ''), ('theirs', ', plain mmdet settings')):
        figures.append(Figure(f'{name}: peak memory{words}', statistics.median(peaks[side]), 'MiB'))
        spread = f' ({", ".join(f"{loss:.2f}" for loss in losses[side])})'
        figures.append(
            Figure(f'{name}: loss, mean of steps 13 to 24{words}{spread}', statistics.mean(losses[side]), '')
        )
    return [Ratio(f'{name}, against plain mmdet settings', ours, theirs, ratio, 1.5)], figures


def _train(arguments: list[str], work_dir: Path, seed: int) -> Process:
    options = {
        'train_dataloader.batch_size': BATCH,
        'train_dataloader.num_workers': 1,
        'train_dataloader.dataset.times': BATCH * STEPS // 64 + 1,  # the small set has 64 pictures
        'val_dataloader.num_workers': 0,
        'val_dataloader.persistent_workers': False,
        'val_dataloader.dataset.indices': 1,
        'default_hooks.logger.interval': 1,
        'log_processor.window_size': 1,
        'param_scheduler.0.end': 1,
        'randomness.seed': seed,
    }
    return run(
        [
            str(configs.REPOSITORY / 'tools/train.py'),
            *arguments,
            '--data',
            str(configs.REPOSITORY / 'data/mini/coco'),
            '--work-dir',
            str(work_dir),
            '--epochs',
            '1',
            '--auto-scale-lr',
            '--cfg-options',
            *(f'{key}={value}' for key, value in options.items()),
        ]
    )
