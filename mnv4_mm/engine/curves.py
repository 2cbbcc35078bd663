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
    """Plot the losses and the validation metrics that mmengine logged for a run, see ``read_scalars``.

    Args:
        work_dir: Work directory of the run. ``curves.png`` is written there.
        unit: Label of the x axis of the validation metrics, ``epoch`` or ``iteration``.

    Returns:
        Path of ``curves.png``.
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
    """Read the losses and the validation metrics that mmengine logged for a run.

    mmengine writes a new ``<timestamp>/vis_data/scalars.json`` each time a run is started or resumed. All these files
    are read. If several have an entry for the same step, the entry of the latest file is used.

    Args:
        work_dir: Work directory of the run.

    Returns:
        A tuple (losses, metrics). ``losses[name][step]`` is the value of a loss. ``metrics[name][step]`` is the value
            of a metric, where ``step`` is the epoch if the run counts epochs. Names of metrics have their prefix, such
            as ``coco/bbox_mAP``. Only metrics whose name after the prefix begins with a name in ``METRICS`` are
            returned, and only values that could be measured.
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
