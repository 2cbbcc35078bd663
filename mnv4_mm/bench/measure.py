"""Timing of a function against a baseline: alternately in one process, so that a slow machine affects both alike."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """A function and its baseline.

    Attributes:
        name: Name of the measurement.
        ours: Our implementation.
        baseline: The implementation to compare with.
        target: Speedup that we aim at; None if there is no target.
        rounds: Number of timed rounds.
        warm_up: Number of untimed rounds before them.
        calls: Number of calls of each side in a round. With one, each side finds the caches as the other side has left
            them; with several, mostly as in a program that calls nothing else.
    """

    name: str
    ours: Callable[[], object]
    baseline: Callable[[], object]
    target: float | None = None
    rounds: int = 30
    warm_up: int = 2
    calls: int = 1


class Ratio(NamedTuple):
    """Result of a ``Pair``.

    Attributes:
        name: Name of the measurement.
        ours_ms: Median time of our implementation in ms.
        baseline_ms: Median time of the baseline in ms.
        speedup: Median over the rounds of the baseline's time divided by ours.
        target: See ``Pair``.
    """

    name: str
    ours_ms: float
    baseline_ms: float
    speedup: float
    target: float | None = None


class Figure(NamedTuple):
    """A measured number without a baseline.

    Attributes:
        name: Name of the measurement.
        value: The number.
        unit: Its unit.
        limit: Upper limit that we aim at; None if there is none.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None


def measure(pair: Pair) -> Ratio:
    """Time both sides of a pair in each round; the order alternates from round to round."""
    times: tuple[list[float], list[float]] = ([], [])
    sides = [(0, pair.ours), (1, pair.baseline)]
    for i in range(-pair.warm_up, pair.rounds):
        for side, call in sides if i % 2 else reversed(sides):
            start = time.perf_counter()
            for _ in range(pair.calls):
                call()
            if i >= 0:
                times[side].append((time.perf_counter() - start) * 1e3 / pair.calls)
    ours, baseline = (statistics.median(side) for side in times)
    # The median of the ratios, not the ratio of the medians: a disturbance slows both sides of a round.
    speedup = statistics.median(b / a for a, b in zip(*times, strict=True))
    return Ratio(pair.name, ours, baseline, speedup, pair.target)


class Process(NamedTuple):
    """Cost and output of a finished process.

    Attributes:
        seconds: Wall-clock time.
        peak_mib: Peak resident memory of the process in MiB, without its child processes; 0 if it ended within 20 ms.
        output: Text of stdout and stderr.
    """

    seconds: float
    peak_mib: float
    output: str


def run_python(arguments: list[str]) -> Process:
    """Run Python in a process of its own (Linux only: memory is read from /proc).

    Args:
        arguments: Command line arguments of the interpreter.

    Raises:
        RuntimeError: The process fails; the message contains the end of its output.
    """
    start = time.perf_counter()
    peak_kib = 0
    # The maximum that wait4 reports would include the memory of the parent process.
    with subprocess.Popen(  # noqa: S603
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while True:
            try:
                output, _ = process.communicate(timeout=0.02)
                break
            except subprocess.TimeoutExpired:
                status = Path(f'/proc/{process.pid}/status').read_text()
                peak_kib = int(status.split('VmHWM:')[1].split()[0]) if 'VmHWM:' in status else peak_kib
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f'{" ".join(arguments)} failed: {output[-2000:]}')
    return Process(seconds, peak_kib / 1024, output)
