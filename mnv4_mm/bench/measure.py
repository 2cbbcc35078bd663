"""Timing of a function against a baseline.

Both are timed alternately in one process, so that other load on the machine affects both alike.
"""

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
        ours: Function that calls our implementation.
        baseline: Function that calls the implementation to compare with.
        target: Speedup over the baseline that we aim at; None if there is no target.
        rounds: Number of timed rounds.
        warm_up: Number of untimed rounds before them.
        calls: Number of consecutive calls of each side in a round. With one call, the CPU's caches are in the state
            that the other side has left. With several, most calls find them as in a program that calls nothing else.
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
        ours_ms: Median time of a call of our implementation in ms.
        baseline_ms: Median time of a call of the baseline in ms.
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
    """Time both sides of a pair in each round. The order of the two sides alternates from round to round."""
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
        seconds: Wall-clock time in seconds.
        peak_mib: Peak resident memory of the process in MiB, without its child processes. The process is polled every
            20 ms; the value is 0 if it ended before the first poll.
        output: Text of stdout and stderr.
    """

    seconds: float
    peak_mib: float
    output: str


def run_python(arguments: list[str]) -> Process:
    """Run Python in a new process, and measure its time and memory (Linux only: memory is read from /proc).

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
