"""Latency and memory of exported files and of PyTorch, measured in fresh processes.

``measure_speed`` and ``measure_memory`` start ``python -m mnv4_mm.deploy.latency``.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mnv4_mm.images import read_image
from mnv4_mm.runtime import load
from mnv4_mm.runtime.meta import Meta, read_meta
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.preprocess import prepare, prepare_reduced

WARM_UP = 3


class Speed(NamedTuple):
    """Latency in milliseconds.

    Attributes:
        p50: Median time of the model, from its input to its outputs.
        p95: 95th percentile of the time of the model.
        whole: Median time from a decoded image to results.
    """

    p50: float
    p95: float
    whole: float


def measure_speed(
    checkpoint: Path | None,
    config: str | None,
    files: Sequence[Path],
    image: Path,
    rounds: int,
    threads: int | None,
) -> list[Speed]:
    """Measure the latency of PyTorch and of exported files, which take turns in one process.

    Args:
        checkpoint: Checkpoint that the files were exported from. None measures the files only.
        config: Path or name of a config to use instead of the one in the checkpoint; None for that of the checkpoint.
        files: Exported files. PyTorch runs with the input of the first one.
        image: Image file to run on.
        rounds: Number of timed runs of PyTorch and of each file, at least 1.
        threads: 1 for one thread; on Linux the process is also restricted to one core, whatever the runtimes' settings.
            None for all cores. Other numbers count as None.

    Returns:
        The latency of PyTorch if ``checkpoint`` is not None, and then of each file.

    Raises:
        RuntimeError: The process failed.
    """
    return [Speed(*values) for values in _child('speed', checkpoint, config, files, image, rounds, threads)]


def measure_memory(
    checkpoint: Path, config: str | None, files: Sequence[Path], image: Path
) -> list[float] | list[None]:
    """Measure the memory that loading and running a model adds to a process, for PyTorch and for each file.

    Each model runs in a process of its own.

    Args:
        checkpoint: Checkpoint that the files were exported from.
        config: Path or name of a config to use instead of the one in the checkpoint; None for that of the checkpoint.
        files: Exported files, at least one. PyTorch runs with the input of the first one.
        image: Image file to run on.

    Returns:
        Peak memory in MiB above that before loading: of PyTorch, and then of each file. All values are None on systems
        other than Linux, where the peak memory cannot be reset.

    Raises:
        RuntimeError: A process failed.
    """
    if not Path('/proc/self/clear_refs').exists():
        return [None] * (1 + len(files))
    values = [_child('memory', checkpoint, config, files[:1], image, 1, None)]
    values += [_child('memory', None, None, [file], image, 1, None) for file in files]
    return [value[0] for value in values]


def measure_reading(meta: Meta, images: Sequence[Path], rounds: int) -> tuple[float, float]:
    """Measure the time from an image file to the input of a model, on one thread.

    Args:
        meta: Metadata of the exported file.
        images: Image files, which are read in turn.
        rounds: Number of timed passes over the images.

    Returns:
        Median times in milliseconds of ``preprocess.prepare`` with the whole image and of ``prepare_reduced``.
    """
    to, resize = meta.input, meta.resize
    times: tuple[list[float], list[float]] = [], []
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for image in [images[0], *rounds * list(images)]:  # the first is a warm-up
            for found, call in (
                (times[0], lambda image=image: prepare(read_image(image), to, resize)),
                (times[1], lambda image=image: prepare_reduced(image, to, resize)),
            ):
                start = time.perf_counter()
                call()
                found.append(1e3 * (time.perf_counter() - start))
    finally:
        cv2.setNumThreads(threads)
    return float(np.median(times[0][1:])), float(np.median(times[1][1:]))


def _child(
    measure: str,
    checkpoint: Path | None,
    config: str | None,
    files: Sequence[Path],
    image: Path,
    rounds: int,
    threads: int | None,
) -> list:
    command = [sys.executable, '-m', 'mnv4_mm.deploy.latency', measure, str(image), *map(str, files)]
    command += ['--rounds', str(rounds)]
    command += ['--checkpoint', str(checkpoint)] if checkpoint else []
    command += ['--config', config] if config else []
    environment = dict(os.environ)
    if threads == 1:
        command.append('--one-core')
        environment['OMP_NUM_THREADS'] = '1'
    else:
        environment.pop('OMP_NUM_THREADS', None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)  # noqa: S603
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1]
        raise RuntimeError(f'measuring failed: {reason[:300]}')
    return json.loads(done.stdout.splitlines()[-1])


def _pytorch(checkpoint: str, config: str | None, file: str) -> Predictor:
    from mnv4_mm.apis.model import load_model
    from mnv4_mm.deploy.graph import reference

    return reference(load_model(checkpoint, config, device='cpu'), read_meta(file))


def _kibibytes(name: str) -> int:
    """Return the current (``VmRSS``) or peak memory (``VmHWM``) of this process in KiB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f'{name}:'))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('measure', choices=('speed', 'memory'))
    parser.add_argument('image')
    parser.add_argument('files', nargs='+')
    parser.add_argument('--checkpoint')
    parser.add_argument('--config')
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--one-core', action='store_true')
    args = parser.parse_args()
    if args.one_core and hasattr(os, 'sched_setaffinity'):  # Linux
        # Before any runtime starts its threads: ExecuTorch takes all allowed cores.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    threads = 1 if args.one_core else None
    if args.checkpoint:
        import mnv4_mm.apis.model  # noqa: F401 (imported before anything is measured)
    image = read_image(args.image)
    if args.measure == 'memory':
        Path('/proc/self/clear_refs').write_text('5')  # reset the peak, which imports have raised
        before = _kibibytes('VmRSS')
        first = args.files[0]
        predictor = _pytorch(args.checkpoint, args.config, first) if args.checkpoint else load(first)
        for _ in range(WARM_UP):
            predictor(image)
        print(json.dumps([(_kibibytes('VmHWM') - before) / 1024]))
        return
    predictors = [_pytorch(args.checkpoint, args.config, args.files[0])] if args.checkpoint else []
    predictors += [load(file, threads) for file in args.files]
    batches = [prepare(image, one.meta.input, one.meta.resize)[0] for one in predictors]
    model: list[list[float]] = [[] for _ in predictors]
    whole: list[list[float]] = [[] for _ in predictors]
    for i in range(-WARM_UP, args.rounds):
        for j, (predictor, batch) in enumerate(zip(predictors, batches, strict=True)):
            for times, call, argument in ((model, predictor.run, batch), (whole, predictor, image)):
                start = time.perf_counter()
                call(argument)
                if i >= 0:
                    times[j].append(1e3 * (time.perf_counter() - start))
    rows = [
        (np.percentile(a, 50), np.percentile(a, 95), np.percentile(b, 50)) for a, b in zip(model, whole, strict=True)
    ]
    print(json.dumps(rows))


if __name__ == '__main__':
    main()
