"""All measurements, or some, as a table, a JSON file and a plot."""

import json
import platform
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure as Plot

from mnv4_mm.bench.augmentation import augmentation_pairs
from mnv4_mm.bench.backbone import backbone_pairs
from mnv4_mm.bench.detectors import detector_pairs
from mnv4_mm.bench.evaluation import coco_pairs, iou_pairs
from mnv4_mm.bench.exported import class_map_pairs, predictor_pairs
from mnv4_mm.bench.measure import Figure, Pair, Ratio, measure
from mnv4_mm.bench.parts import check_bench
from mnv4_mm.bench.startup import startup
from mnv4_mm.bench.step import profile, step_pairs
from mnv4_mm.bench.training import training

Measured = tuple[list[Ratio], list[Figure]]


def _pairs(*makers: Callable[[], list[Pair]]) -> Measured:
    return [measure(pair) for make in makers for pair in make()], []


PARTS: dict[str, Callable[[], Measured]] = {
    'augmentation': lambda: _pairs(augmentation_pairs),
    'training': training,
    'step': lambda: (_pairs(step_pairs)[0], profile()),
    'evaluation': lambda: _pairs(coco_pairs, iou_pairs),
    'startup': startup,
    'backbone': lambda: _pairs(backbone_pairs),
    'exported': lambda: _pairs(predictor_pairs, class_map_pairs, detector_pairs),
}


def bench(out: Path, only: Sequence[str] = (), say: Callable[[str], None] = print) -> None:
    """Measures, and writes ``out`` (JSON) and a plot beside it; each part's lines are told as soon as they are known.

    Args:
        out: The JSON file.
        only: Names of ``PARTS``; all of them if left out.
        say: Where lines of the table go.

    Raises:
        UserError: a part is unknown, or ``out`` cannot be written.
    """
    check_bench(out, only)
    out.parent.mkdir(parents=True, exist_ok=True)
    machine = (
        f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}'
    )
    say(f'{machine}\n\n| what | ours | theirs | times as fast | wanted |\n|---|---|---|---|---|')
    ratios: list[Ratio] = []
    figures: list[Figure] = []
    for name in only or PARTS:
        found = PARTS[name]()
        for measured in found:
            for one in measured:
                say(row(one))
        ratios += found[0]
        figures += found[1]
    content = dict(
        machine=machine,
        ratios=[ratio._asdict() for ratio in ratios],
        figures=[figure._asdict() for figure in figures],
    )
    out.write_text(json.dumps(content, indent=1))
    if ratios:
        plot(ratios, machine, out.with_suffix('.png'))


def row(measured: Ratio | Figure) -> str:
    """A line of the Markdown table."""
    if isinstance(measured, Figure):
        wanted = f'below {measured.limit:g} {measured.unit}' if measured.limit is not None else ''
        return f'| {measured.name} | {measured.value:.2f} {measured.unit} | | | {wanted} |'
    wanted = f'{measured.wanted:g}' if measured.wanted is not None else ''
    times = f'{measured.ours_ms:.1f} ms | {measured.theirs_ms:.1f} ms'
    return f'| {measured.name} | {times} | {measured.times_as_fast:.2f} | {wanted} |'


def plot(ratios: Sequence[Ratio], machine: str, path: Path) -> None:
    """Bars of how many times as fast ours is, on a logarithmic axis, with a mark where it is wanted to be."""
    names = [textwrap.fill(ratio.name, 76) for ratio in ratios]
    figure = Plot(figsize=(12, 1.2 + 0.45 * len(ratios)), layout='constrained')
    figure.suptitle(machine)
    axes = figure.subplots()
    bars = axes.barh(range(len(ratios)), [ratio.times_as_fast for ratio in ratios], color='tab:blue', height=0.6)
    axes.bar_label(bars, fmt=' %.2f', fontsize='small')
    for i, ratio in enumerate(ratios):
        if ratio.wanted is not None:
            axes.plot([ratio.wanted] * 2, [i - 0.4, i + 0.4], color='tab:red', linewidth=2)
    axes.set(xscale='log', xlabel='times as fast as the other side (red: wanted)')
    axes.set_yticks(range(len(ratios)), names, fontsize='small')
    axes.margins(x=0.15)  # room for the numbers
    axes.invert_yaxis()
    axes.axvline(1, color='grey', linewidth=1)
    figure.savefig(path, dpi=120)
