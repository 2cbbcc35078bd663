"""Two ways to do the same thing, measured in turn in one process, so that a slow machine slows both."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """Two ways to do the same thing.

    Attributes:
        name: What is done.
        ours: Does it once.
        theirs: Does it once, the other way.
        wanted: How many times as fast ours is to be; None where nothing is promised.
        rounds: How often each side is measured.
        warm_up: Rounds before that do not count.
    """

    name: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    wanted: float | None = None
    rounds: int = 30
    warm_up: int = 2


class Ratio(NamedTuple):
    """What was measured: medians in ms, and how many times as fast ours is, the median over the rounds."""

    name: str
    ours_ms: float
    theirs_ms: float
    times_as_fast: float
    wanted: float | None = None


class Figure(NamedTuple):
    """A number that has no other side.

    Attributes:
        name: What it is.
        value: The number.
        unit: Its unit.
        limit: What it is to stay below; None where nothing is promised.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None


def measure(pair: Pair) -> Ratio:
    """Runs the two in turn, A B, B A, A B, ..."""
    times: tuple[list[float], list[float]] = ([], [])
    sides = [(0, pair.ours), (1, pair.theirs)]
    for turn in range(-pair.warm_up, pair.rounds):
        for side, call in sides if turn % 2 else reversed(sides):
            start = time.perf_counter()
            call()
            if turn >= 0:
                times[side].append((time.perf_counter() - start) * 1e3)
    ours, theirs = (statistics.median(side) for side in times)
    # Of the pairs, not of the medians: what slows one round slows both of its sides.
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    return Ratio(pair.name, ours, theirs, ratio, pair.wanted)


class Process(NamedTuple):
    """What a command needed: seconds, its own most resident memory in MiB (not that of its workers), its output."""

    seconds: float
    peak_mib: float
    output: str


def run(command: list[str]) -> Process:
    """Runs Python with these arguments in a process of its own (Linux: memory is from /proc).

    Raises:
        RuntimeError: it fails; its output is told.
    """
    start = time.perf_counter()
    peak_kib = 0
    # Not wait4's maximum, which begins with the memory of the process that started it.
    with subprocess.Popen(  # noqa: S603
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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
        raise RuntimeError(f'{" ".join(command)} failed: {output[-2000:]}')
    return Process(seconds, peak_kib / 1024, output)
