"""Tables and plots of transfer records: a Markdown page, a CSV file and Pareto plots."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mnv4_mm.transfer.pages import table
from mnv4_mm.transfer.protocol import CONTROLS, Protocol
from mnv4_mm.transfer.records import Record, latest
from mnv4_mm.transfer.statistics import Summary, draw_means, indistinguishable, rank_agreement, summarise

COLUMNS = ('net', 'start', 'mean', 'spread', 'low', 'high', 'seeds', 'parameters', 'macs', 'latency_ms')
AXES = {'latency_ms': 'latency in ONNX Runtime, one thread, ms', 'macs': 'MACs', 'parameters': 'parameters'}
HEADINGS = (
    'net', 'mean ± spread of seeds', '95 % interval', 'seeds', 'M parameters', 'G MACs', 'ms', 'not told apart from',
)  # fmt: skip


@dataclass
class Row:
    """A net with its start, or a control.

    Attributes:
        net: Backbone.
        start: Weights that it starts from.
        control: Control, or empty.
        records: Records of its seeds.
        summary: Scores; None until ``rows_of`` has compared it with the others.
        equal: Names of the rows that it cannot be told apart from.
    """

    net: str
    start: str
    control: str
    records: list[Record] = field(default_factory=list)
    summary: Summary | None = None
    equal: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name in tables."""
        parts = [self.net.removeprefix('timm:')]
        parts += [self.start] if self.start != 'random' else []
        parts += [self.control] if self.control else []
        return ', '.join(parts)

    def value(self, key: str) -> float | None:
        """Return parameters, MACs or the lowest of the latencies, which others at the same time only increase."""
        values = [record[key] for record in self.records if record[key] is not None]
        return min(values) if values else None


@dataclass
class Group:
    """Records that may be compared: of the same head, recipe and data.

    Attributes:
        protocol: Name of the protocol.
        head: Name of the head.
        recipe: Digest of the recipe.
        data: Digest of the data.
        rows: Nets and controls, the best first.
        agreement: Kendall's tau between the halves of the seeds.
        failed: Records of failed runs.
    """

    protocol: str
    head: str
    recipe: str
    data: str
    rows: list[Row]
    agreement: float
    failed: list[Record]


def group_records(records: Iterable[Record]) -> list[Group]:
    """Group records that may be compared, and compare them."""
    done = list(latest(records).values())
    groups: dict[tuple[str, ...], dict[tuple[str, ...], Row]] = defaultdict(dict)
    for record in done:
        if 'error' in record:
            continue
        key = tuple(record[name] for name in ('protocol', 'head', 'recipe', 'data'))
        net = tuple(record[name] for name in ('net', 'start', 'control'))
        groups[key].setdefault(net, Row(*net)).records.append(record)
    compared = []
    for (protocol, head, recipe, data), rows in sorted(groups.items()):
        failed = [r for r in done if 'error' in r and (r['protocol'], r['head']) == (protocol, head)]
        compared.append(Group(protocol, head, recipe, data, *_compare(list(rows.values())), failed))
    return compared


def _compare(rows: list[Row]) -> tuple[list[Row], float]:
    for row in rows:
        row.records.sort(key=lambda record: record['seed'])
    draws = draw_means({row.name: np.array([record['resampled'] for record in row.records]) for row in rows})
    equal = indistinguishable(draws)
    for row in rows:
        row.summary = summarise([record['score'] for record in row.records], draws[row.name])
        row.equal = equal[row.name]
    nets = {row.name: [record['score'] for record in row.records] for row in rows if not row.control}
    return sorted(rows, key=lambda row: -_summary(row).mean), rank_agreement(nets)


def _summary(row: Row) -> Summary:
    assert row.summary is not None
    return row.summary


def page(groups: Sequence[Group], protocols: Sequence[Protocol], plots: str) -> str:
    """Return the tables as Markdown.

    Args:
        groups: Groups of records.
        protocols: Protocols of the groups, for titles and published numbers.
        plots: Folder of the plots, relative to the page.
    """
    titles = {protocol.name: protocol for protocol in protocols}
    lines: list[str] = []
    for group in groups:
        protocol = titles[group.protocol]
        records = [record for row in group.rows for record in row.records]
        hours = sum(record['processor_minutes'] for record in records) / 60
        best = group.rows[0].records[0]
        lines += [
            f'### {protocol.title}, {group.head}',
            '',
            f'{best["metric"]} in points on the {" and ".join(protocol.test)} images, {best["steps"]} steps. '
            f"{len(records)} runs, {hours:.1f} CPU hours. Kendall's tau between rankings by two halves of the seeds: "
            f'{group.agreement:.2f}. Recipe {group.recipe}, data {group.data}.',
            '',
            *table(HEADINGS, [_cells(row) for row in group.rows if not row.control]),
        ]
        lines += ['', f'![{protocol.title}, {group.head}]({plots}/{group.protocol}-{group.head}.png)', '']
        controls = [row for row in group.rows if row.control]
        if controls:
            lines += ['Controls:', '']
            lines += [f'- {row.control} ({CONTROLS[row.control]}): {row.net} {_score(row)}' for row in controls]
            lines += ['']
        lines += [f'- failed: {record["head"]} {record["net"]}: {record["error"]}' for record in group.failed]
        if protocol.published:
            lines += ['', 'Published, with other protocols:', '']
            lines += [f'- {p["name"]}: {p["value"]} ({p["protocol"]}; {p["source"]})' for p in protocol.published]
        lines += ['']
    return '\n'.join(lines)


def _score(row: Row) -> str:
    summary = _summary(row)
    spread = f' ± {100 * summary.spread:.1f}' if summary.seeds > 1 else ''
    return f'{100 * summary.mean:.1f}{spread}'


def _cells(row: Row) -> list[str]:
    summary, latency, macs = _summary(row), row.value('latency_ms'), row.value('macs')
    parameters = row.value('parameters') or 0
    return [
        row.name,
        _score(row),
        f'{100 * summary.low:.1f} to {100 * summary.high:.1f}',
        str(summary.seeds),
        f'{parameters * 1e-6:.1f}',
        f'{(macs or 0) * 1e-9:.2f}',
        'not exported' if latency is None else f'{latency:.1f}',
        ', '.join(row.equal) or 'told apart from all',
    ]


def to_csv(groups: Sequence[Group]) -> str:
    """Return the tables as CSV, in the order of ``COLUMNS`` after protocol, head, recipe, data and control."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['protocol', 'head', 'recipe', 'data', 'control', *COLUMNS])
    for group in groups:
        for row in group.rows:
            summary = _summary(row)
            names = [group.protocol, group.head, group.recipe, group.data, row.control, row.net, row.start]
            scores = [*(f'{value:.5f}' for value in summary[:4]), summary.seeds]
            sizes = [row.value(key) for key in ('parameters', 'macs', 'latency_ms')]
            writer.writerow([*names, *scores, *('' if size is None else size for size in sizes)])
    return text.getvalue()


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points (cost, score) that no other point is better than in both, by cost."""
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front


def plot(group: Group, title: str, path: Path) -> None:
    """Draw score against latency, MACs and parameters, with the Pareto front and the spread of the seeds.

    Args:
        group: Records to plot; controls are left out.
        title: Title.
        path: The image file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 5.5), layout='constrained')
    figure.suptitle(title)
    for axes, (key, label) in zip(figure.subplots(1, 3), AXES.items(), strict=True):
        rows = [row for row in group.rows if not row.control and row.value(key)]
        points = [(float(row.value(key) or 0), 100 * _summary(row).mean) for row in rows]
        for row, (x, y) in zip(rows, points, strict=True):
            colour = 'tab:red' if row.net.startswith('mnv4') else 'tab:blue'
            axes.errorbar(x, y, yerr=100 * np.nan_to_num(_summary(row).spread), fmt='o', color=colour, capsize=3)
            axes.annotate(row.name, (x, y), xytext=(4, 4), textcoords='offset points', fontsize=7)
        front = [points[i] for i in pareto_front(points)]
        if front:
            axes.step(*zip(*front, strict=True), where='post', color='grey', linewidth=1, zorder=0)
        axes.set(xscale='log', xlabel=label, ylabel=group.rows[0].records[0]['metric'])
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
