"""Loss and metric curves of a run as a PNG file."""

import json
from pathlib import Path

from matplotlib.figure import Figure
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

METRICS = ('bbox_mAP', 'mIoU', 'mAcc', 'aAcc')


@HOOKS.register_module()
class CurvesHook(Hook):
    """Plot ``curves.png`` beside the checkpoints after training."""

    priority = 'LOWEST'  # after LoggerHook and the visualiser's back ends have written

    @master_only
    def after_train(self, runner: Runner) -> None:
        unit = 'epoch' if isinstance(runner.train_loop, EpochBasedTrainLoop) else 'iteration'
        runner.logger.info(f'curves: {plot_curves(Path(runner.work_dir), unit)}')


def plot_curves(work_dir: Path, unit: str = 'epoch') -> Path:
    """Plot the losses and the validation metrics that mmengine logged, over all resumed parts of a run.

    Args:
        work_dir: Folder of the run, with ``<timestamp>/vis_data/scalars.json`` of each part.
        unit: Label of the validation axis, ``epoch`` or ``iteration``.

    Returns:
        ``work_dir/curves.png``.
    """
    losses, metrics = read_scalars(work_dir)
    figure = Figure(figsize=(13, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    for name, points in sorted(losses.items()):
        left.plot(*zip(*sorted(points.items()), strict=True), label=name, linewidth=1.8 if name == 'loss' else 1)
    for name, points in sorted(metrics.items()):
        right.plot(*zip(*sorted(points.items()), strict=True), label=name, marker='o', markersize=3)
    left.set(title='training loss', xlabel='step')
    right.set(title='validation', xlabel=unit, ylim=(0, 1))
    for axes, filled in ((left, losses), (right, metrics)):
        axes.grid(alpha=0.3)
        if filled:
            axes.legend(fontsize='small', loc='upper left', bbox_to_anchor=(1, 1))
    path = work_dir / 'curves.png'
    figure.savefig(path, dpi=120)
    return path


def read_scalars(work_dir: Path) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
    """Read the losses and metrics of a run. Where its parts overlap, the later one is used.

    Returns:
        Losses by name and step, and metrics by name with their prefix, such as ``coco/bbox_mAP``, and epoch or step.
            Only metrics of ``METRICS`` that could be measured are read.
    """
    losses: dict[str, dict[int, float]] = {}
    metrics: dict[str, dict[int, float]] = {}
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            for name, value in entry.items():
                if 'loss' in name:
                    losses.setdefault(name, {})[entry['step']] = value
                # -1 marks a metric without ground truth, e.g. if no box has this size.
                elif '/' in name and name.partition('/')[2].startswith(METRICS) and value >= 0:
                    metrics.setdefault(name, {})[entry['step']] = value
    return losses, metrics
