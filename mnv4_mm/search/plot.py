"""The front of a search as a plot."""

from pathlib import Path

from matplotlib.figure import Figure

from mnv4_mm.files import replacing
from mnv4_mm.search.front import MS, Front


def write_plot(front: Front, baseline: Front | None, path: Path) -> None:
    """Draw a front and its baselines as a PNG file.

    Args:
        front: The front.
        baseline: The front of random nets. None, or one with costs of another latency table, other images or another
            supernet, is not drawn.
        path: The file to write.
    """
    fronts = [front]
    if baseline and _costs(baseline) == _costs(front):
        fronts.append(baseline)
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.subplots()
    for one, line in zip(fronts, ('o-', 's--'), strict=False):
        points = [(net.cost, 100 * net.score) for net in one.nets]
        axes.plot(*zip(*points, strict=True), line, drawstyle='steps-post', markersize=4, label=_label(one))
    for _, net in front.baselines:
        axes.plot(net.cost, 100 * net.score, 'k^')
    middle = sum(axes.get_xlim()) / 2
    for i, (name, net) in enumerate(front.baselines):
        # Towards the middle, so that no name is cut off; above and below in turn, so that fewer overlap.
        side, offset = ('right', -5) if net.cost > middle else ('left', 5)
        point, height = (net.cost, 100 * net.score), (-10, 5)[i % 2]
        axes.annotate(name, point, xytext=(offset, height), textcoords='offset points', fontsize=8, ha=side)
    axes.set(xlabel='predicted latency in ms' if front.unit == MS else 'GMACs of the backbone')
    axes.set_ylabel(f'{front.metric}, points')
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as part:
        figure.savefig(part, format='png', dpi=150)


def _costs(front: Front) -> tuple:
    """Return what two fronts must share for their scores and costs to be comparable."""
    return front.sha256, front.images, front.unit, front.plan.get('latency')


def _label(front: Front) -> str:
    return f'{front.plan.get("engine")}, {front.plan.get("nets")} nets asked for'
