"""Plots of transfer records: score against cost, and score during the training."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from mnv4_mm.pareto import pareto_front
from mnv4_mm.transfer.tables import AXES, Group


def plot(group: Group, title: str) -> Figure:
    """Draw score against latency, MACs and parameters, with the spread of the seeds and a Pareto front of each start.

    Args:
        group: Records to plot; controls are left out.
        title: Title.
    """
    figure = Figure(figsize=(16, 5.5), layout='constrained')
    figure.suptitle(title)
    for axes, (key, label) in zip(figure.subplots(1, 3), AXES.items(), strict=True):
        for start, line, marker in (('random', '-', 'o'), ('imagenet', '--', 's')):
            costs = {row.name: group.cost(row, key) for row in group.rows if row.start == start}
            rows = [row for row in group.rows if costs.get(row.name)]
            points = [(float(costs[row.name] or 0), 100 * row.value) for row in rows]
            for row, (x, y) in zip(rows, points, strict=True):
                colour = 'tab:red' if row.net.startswith('mnv4') else 'tab:blue'
                axes.errorbar(
                    x, y, yerr=100 * np.nan_to_num(row.standard_deviation), fmt=marker, color=colour, capsize=3
                )
                axes.annotate(row.name, (x, y), xytext=(4, 4), textcoords='offset points', fontsize=7)
            front = [points[i] for i in pareto_front(points)]
            if front:
                axes.step(*zip(*front, strict=True), where='post', color='grey', linestyle=line, linewidth=1, zorder=0)
        axes.set(xscale='log', xlabel=label, ylabel=group.records[0]['metric'])
        axes.set_xlim(right=1.5 * axes.get_xlim()[1])  # room for the last name
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=''))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    return figure


def plot_curves(group: Group, title: str) -> Figure:
    """Draw the score on the test images during the training, for each run that was evaluated during its training.

    Args:
        group: Records to plot.
        title: Title.
    """
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    last = 0.0
    for row in (*group.rows, *group.controls):
        for record in row.records:
            if curve := record.get('curve'):
                steps, scores = np.array(curve).T
                last = max(last, steps[-1])
                name = row.name if len(row.records) == 1 else f'{row.name}, seed {record["seed"]}'
                axes.plot(steps, 100 * scores, marker='o', markersize=3, label=name)
    # Evaluations of a training by epochs are numbered by epochs, and the last one is that of the last step.
    unit = 'step' if last == group.records[0]['steps'] else 'epoch'
    axes.set(title=title, xlabel=unit, ylabel=group.records[0]['metric'])
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
    return figure
