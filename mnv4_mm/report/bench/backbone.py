"""Speed as ratios: both sides of a pair are measured in turn, in one process, so that a slow machine slows both."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from mnv4_mm.models import MobileNetV4


class Pair(NamedTuple):
    """Two ways to do the same thing.

    Attributes:
        name: What is done.
        ours: Does it once.
        theirs: Does it once, the other way.
    """

    name: str
    ours: Callable[[], object]
    theirs: Callable[[], object]


class Ratio(NamedTuple):
    """Medians in ms, and ``ours`` / ``theirs``: below 1 is faster than theirs."""

    name: str
    ours_ms: float
    theirs_ms: float
    ratio: float


def measure(pair: Pair, rounds: int = 30) -> Ratio:
    """Runs the two in turn, A B, B A, A B, ..., after two rounds that do not count."""
    times: tuple[list[float], list[float]] = ([], [])
    sides = [(0, pair.ours), (1, pair.theirs)]
    for turn in range(rounds + 2):
        for side, call in sides if turn % 2 else reversed(sides):
            start = time.perf_counter()
            call()
            if turn >= 2:
                times[side].append((time.perf_counter() - start) * 1e3)
    ours, theirs = (statistics.median(side) for side in times)
    # Of the pairs, not of the medians: what slows one round slows both of its sides.
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    return Ratio(pair.name, ours, theirs, ratio)


def backbone_pairs(batch: int = 8, size: int = 320) -> list[Pair]:
    """MNv4-Conv-S beside timm's features_only net."""
    x = torch.randn(batch, 3, size, size)
    theirs = timm.create_model('mobilenetv4_conv_small', features_only=True, out_indices=(1, 2, 3, 4))
    ours = MobileNetV4('conv_s', (0, 1, 2, 4))
    trunk = MobileNetV4('conv_s', (0, 1, 2, 3))
    for net in (ours, theirs):
        net.train()

    def step(net: nn.Module) -> Callable[[], object]:
        def run() -> None:
            maps: tuple[Tensor, ...] = net(x)
            torch.stack([m.mean() for m in maps]).sum().backward()
            net.zero_grad()

        return run

    def forward(net: nn.Module) -> Callable[[], object]:
        evaluated = net.eval()

        @torch.no_grad()
        def run() -> None:
            evaluated(x)

        return run

    wide = timm.create_model('mobilenetv4_conv_small', features_only=True, out_indices=(1, 2, 3, 4))
    name = f'MNv4-Conv-S, batch {batch}, {size}x{size}'
    return [
        Pair(f'{name}: forward and backward, same maps, against timm', step(ours), step(theirs)),
        Pair(f'{name}: forward to C5, against timm with its 960 channels', forward(trunk), forward(wide)),
    ]


def bench(out: Path) -> str:
    """Measures all pairs, writes ``out`` (JSON) and returns a Markdown table."""
    ratios = [measure(pair) for pair in backbone_pairs()]
    machine = (
        f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}'
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(dict(machine=machine, ratios=[ratio._asdict() for ratio in ratios]), indent=1))
    lines = [machine, '', '| what | ours, ms | theirs, ms | ours / theirs |', '|---|---|---|---|']
    lines += [f'| {r.name} | {r.ours_ms:.1f} | {r.theirs_ms:.1f} | {r.ratio:.2f} |' for r in ratios]
    return '\n'.join(lines)
