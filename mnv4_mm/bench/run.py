"""The benchmark: all measurements as a table, a JSON file and a plot. Each part is imported when it is measured."""

import json
import platform
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mnv4_mm.bench.measure import Figure, Pair, Ratio, measure
from mnv4_mm.bench.parts import check_bench
from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole


def _measured(pairs: Sequence[Pair]) -> Iterator[Ratio | Figure]:
    return (measure(pair) for pair in pairs)


def _augmentation() -> Iterator[Ratio | Figure]:
    from mnv4_mm.bench.augmentation import augmentation_pairs

    yield from _measured(augmentation_pairs())


def _training() -> Iterator[Ratio | Figure]:
    from mnv4_mm.bench.training import training

    yield from training()


def _step() -> Iterator[Ratio | Figure]:
    from mnv4_mm.bench.step import profile, step_pairs

    yield from _measured(step_pairs())
    yield from profile()


def _distillation() -> Iterator[Ratio | Figure]:
    from mnv4_mm.bench.distillation import distillation_pairs

    yield from _measured(distillation_pairs())


def _evaluation() -> Iterator[Ratio | Figure]:
    from mnv4_mm.bench.evaluation import coco_pairs, iou_pairs

    yield from _measured(coco_pairs())
    yield from _measured(iou_pairs())


def _startup() -> Iterator[Ratio | Figure]:
    from mnv4_mm.bench.startup import startup

    yield from startup()


def _checking() -> Iterator[Ratio | Figure]:
    from mnv4_mm.bench.checking import checking

    yield from checking()


def _backbone() -> Iterator[Ratio | Figure]:
    from mnv4_mm.bench.backbone import backbone_pairs

    yield from _measured(backbone_pairs())


def _exported() -> Iterator[Ratio | Figure]:
    from mnv4_mm.bench.detectors import detector_pairs, import_ultralytics
    from mnv4_mm.bench.exported import class_map_pairs, predictor_pairs

    import_ultralytics()  # an installation that cannot be imported is an error before anything is measured
    yield from _measured(predictor_pairs())
    yield from _measured(class_map_pairs())
    yield from _measured(detector_pairs())


def _labelling() -> Iterator[Ratio | Figure]:
    from mnv4_mm.bench.labelling import labelling

    yield from labelling()


def _gpu() -> Iterator[Ratio | Figure]:
    from mnv4_mm.bench.gpu import gpu_figures

    yield from gpu_figures()


MEASURE: dict[str, Callable[[], Iterator[Ratio | Figure]]] = {
    'augmentation': _augmentation,
    'training': _training,
    'step': _step,
    'distillation': _distillation,
    'evaluation': _evaluation,
    'startup': _startup,
    'checking': _checking,
    'backbone': _backbone,
    'exported': _exported,
    'labelling': _labelling,
    'gpu': _gpu,
}


def bench(out: Path, only: Sequence[str] = (), log: Callable[[str], None] = print) -> None:
    """Run the benchmark, and write the results to a JSON file and a plot of the speedups beside it.

    Each result is also printed as soon as it is known. There is no plot if no part measures a speedup.

    Args:
        out: The JSON file.
        only: Names of ``PARTS``; all but ``ONLY_ON_REQUEST`` if empty.
        log: Function that prints a line of the table.

    Raises:
        UserError: See ``check_bench``, or the part ``gpu`` has no GPU.
    """
    names = check_bench(out, only)

    import torch

    if 'gpu' in names and not torch.cuda.is_available():
        raise UserError("part 'gpu' needs a GPU, and there is none here")
    processor = platform.processor() or platform.machine()
    machine = f'{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}'
    log(f'{machine}\n\n| measurement | ours | baseline | speedup | target |\n|---|---|---|---|---|')
    ratios: list[Ratio] = []
    figures: list[Figure] = []
    for name in names:
        for result in MEASURE[name]():
            log(row(result))
            if isinstance(result, Ratio):
                ratios.append(result)
            else:
                figures.append(result)
    content = dict(
        machine=machine,
        ratios=[ratio._asdict() for ratio in ratios],
        figures=[figure._asdict() for figure in figures],
    )
    write_whole(out, json.dumps(content, indent=1))
    if ratios:
        plot(ratios, machine, out.with_suffix('.png'))


def row(result: Ratio | Figure) -> str:
    """Format a result as a row of the Markdown table."""
    if isinstance(result, Figure):
        target = f'below {result.limit:g} {result.unit}' if result.limit is not None else ''
        return f'| {result.name} | {result.value:.2f} {result.unit} | | | {target} |'
    target = f'{result.target:g}' if result.target is not None else ''
    times = f'{result.ours_ms:.1f} ms | {result.baseline_ms:.1f} ms'
    return f'| {result.name} | {times} | {result.speedup:.2f} | {target} |'


def plot(ratios: Sequence[Ratio], machine: str, path: Path) -> None:
    """Draw the speedups as bars on a logarithmic axis, with a red mark at each target.

    Args:
        ratios: The measured speedups.
        machine: Title of the plot.
        path: The image file to write.
    """
    from matplotlib.figure import Figure as Plot

    names = [textwrap.fill(ratio.name, 76) for ratio in ratios]
    figure = Plot(figsize=(12, 1.2 + 0.45 * len(ratios)), layout='constrained')
    figure.suptitle(machine)
    axes = figure.subplots()
    bars = axes.barh(range(len(ratios)), [ratio.speedup for ratio in ratios], color='tab:blue', height=0.6)
    axes.bar_label(bars, fmt=' %.2f', fontsize='small')
    for i, ratio in enumerate(ratios):
        if ratio.target is not None:
            axes.plot([ratio.target] * 2, [i - 0.4, i + 0.4], color='tab:red', linewidth=2)
    axes.set(xscale='log', xlabel='speedup over the baseline (red: target)')
    axes.set_yticks(range(len(ratios)), names, fontsize='small')
    axes.margins(x=0.15)  # room for the numbers
    axes.invert_yaxis()
    axes.axvline(1, color='grey', linewidth=1)
    figure.savefig(path, dpi=120)
