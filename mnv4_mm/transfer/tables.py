"""Tables of transfer records: a Markdown page and a CSV file."""

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mnv4_mm.errors import UserError
from mnv4_mm.transfer.pages import prose, table
from mnv4_mm.transfer.protocol import CONTROLS, Protocol
from mnv4_mm.transfer.records import Record, digests_of, latest, run_of
from mnv4_mm.transfer.statistics import (
    CONFIDENCE,
    Estimate,
    PooledVariance,
    Scores,
    equal_variances_p,
    estimate_difference,
    estimate_mean,
    indistinguishable,
    pooled_variance,
    rank_agreement,
)

COLUMNS = ('net', 'start', 'mean', 'spread', 'low', 'high', 'seeds', 'parameters', 'macs', 'latency_ms')
AXES = {'latency_ms': 'CPU time in ONNX Runtime, one thread, ms', 'macs': 'MACs', 'parameters': 'parameters'}
HEADINGS = (
    'net', 'mean ± spread of seeds', '95 % interval', 'behind the best', 'seeds', 'M parameters', 'G MACs', 'CPU ms',
    'not told apart from',
)  # fmt: skip
FAILED_RUNS = 'Failed runs'  # title of their list
MAX_ABOVE_CHANCE = 0.02  # score above chance at which the control `shuffled` is still right
MIN_SPREADS = 3  # standard deviations over seeds by which ImageNet weights should beat random ones


class Machine(NamedTuple):
    """A machine, as far as latencies depend on it.

    Attributes:
        cpu: Name of the CPU. Virtual machines may have the same name for CPUs with different vector extensions.
        instructions: Vector extensions.
        cores: Number of cores.
        onnxruntime: Version of ONNX Runtime.
    """

    cpu: str
    instructions: tuple[str, ...]
    cores: int | None
    onnxruntime: str | None

    def __str__(self) -> str:
        parts = [self.cpu + (f' ({" ".join(self.instructions)})' if self.instructions else '')]
        parts += [f'{self.cores} cores'] if self.cores else []
        parts += [f'ONNX Runtime {self.onnxruntime}'] if self.onnxruntime else []
        return ', '.join(parts)


@dataclass
class Row:
    """A row of a table: the runs of a net with one start, or of a control, over all seeds.

    Attributes:
        net: Backbone.
        start: Weights that it starts from.
        weights: SHA-256 of these weights; empty for random ones.
        control: Control, or empty.
        teacher: SHA-256 of the checkpoint of its teacher; empty without one.
        records: Records of its seeds.
        blocks: Number of blocks of images in each sample of ``resampled``; None if no record of the group has it.
        has_namesake: True if another row has the same net, start and control, but other weights or another teacher.
        mean: Mean score; None until ``group_records`` has set it.
        behind: Mean score minus that of the best net, at most zero; None for controls, and until ``group_records`` has
            set it.
        equal: Names (``Row.name``) of the other nets whose scores do not differ significantly from those of this net;
            empty for controls.
    """

    net: str
    start: str
    weights: str
    control: str
    teacher: str
    records: list[Record] = field(default_factory=list)
    blocks: int | None = None
    has_namesake: bool = False
    mean: Estimate | None = None
    behind: Estimate | None = None
    equal: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name in tables."""
        name = self.net.removeprefix('timm:')
        marks = [self.start] if self.start != 'random' else []
        marks += [digest[:8] for digest in (self.weights, self.teacher) if digest and self.has_namesake]
        marks += [self.control] if self.control else []
        return f'{name} ({" ".join(marks)})' if marks else name

    @property
    def scores(self) -> Scores:
        """Scores by seed."""
        seeds, resampled = (np.array([record[key] for record in self.records]) for key in ('score', 'resampled'))
        return Scores(seeds, resampled, self.blocks)

    @property
    def standard_deviation(self) -> float:
        """Sample standard deviation of the score over the seeds; NaN with one seed."""
        return float(np.std(self.scores.seeds, ddof=1)) if len(self.records) > 1 else math.nan

    @property
    def value(self) -> float:
        """Mean score."""
        assert self.mean is not None
        return self.mean.value

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean over seeds and test images, as (low, high).

        Both are NaN if no net of the table has two seeds.
        """
        assert self.mean is not None
        return self.value - self.mean.half_width, self.value + self.mean.half_width

    @property
    def deployed_net(self) -> tuple[str, bool]:
        """Attributes of the runs on which their costs depend: weights and labels do not change them."""
        return self.net, self.control == 'zeroed'


@dataclass
class Group:
    """Comparable records: those with the same protocol, head, recipe and data.

    Attributes:
        protocol: Name of the protocol.
        head: Name of the head.
        recipe: Digest of the recipe.
        data: Digest of the data.
        machine: The machine on which most latencies were measured; only its latencies are compared.
        size: Height and width of the input of most exported files; only their MACs and latencies are compared.
        rows: Nets, the best first.
        controls: Controls.
    """

    protocol: str
    head: str
    recipe: str
    data: str
    machine: Machine
    size: tuple[int, int]
    rows: list[Row]
    controls: list[Row]

    @property
    def records(self) -> list[Record]:
        """All records of the group."""
        return [record for row in (*self.rows, *self.controls) for record in row.records]

    def cost(self, row: Row, key: str) -> float | None:
        """Return the minimum of a cost over the records of a row and of others with the same net; None if unknown.

        The minimum of the latencies is taken because other processes on a machine can only increase them.

        Args:
            row: A row of the group.
            key: ``parameters``, ``macs`` or ``latency_ms``.
        """
        same = [one for one in (*self.rows, *self.controls) if one.deployed_net == row.deployed_net]
        records = [record for one in same for record in one.records if record[key] is not None]
        if key != 'parameters':
            records = [record for record in records if tuple(record['size']) == self.size]
        if key == 'latency_ms':
            records = [record for record in records if latency_machine(record) == self.machine]
        return min((record[key] for record in records), default=None)

    def pooled_variance(self) -> PooledVariance:
        """Return the variance over the seeds, pooled over the nets and the controls that are trained as they are."""
        controls = (row for row in self.controls if row.control in ('twin', 'distilled'))
        return pooled_variance(row.scores for row in (*self.rows, *controls))

    def equal_variances_p(self) -> float:
        """Return the p-value of the hypothesis that all nets vary equally from seed to seed; NaN if unknown."""
        return equal_variances_p(row.scores for row in self.rows)

    def agreement(self) -> tuple[float, str]:
        """Return ``rank_agreement`` of the nets from random weights, or of all if none is, and which nets these are."""
        rows = [row for row in self.rows if row.start == 'random']
        nets = 'the nets from random weights' if rows else 'the nets'
        return rank_agreement({row.name: row.scores.seeds.tolist() for row in rows or self.rows}), nets


def group_records(records: Iterable[Record]) -> list[Group]:
    """Group the records of successful runs by protocol, head, recipe and data, and compare the nets of each group.

    A group with controls only is left out.

    Raises:
        UserError: Records of a group have different numbers of samples of the test images.
    """
    groups: dict[tuple[str, ...], dict[tuple[str, ...], Row]] = defaultdict(dict)
    for record in latest(records):
        if 'error' in record:
            continue
        key = tuple(record[name] for name in ('protocol', 'head', 'recipe', 'data'))
        weights, teacher = digests_of(record)
        net = (record['net'], record['start'], weights, record['control'], teacher)
        groups[key].setdefault(net, Row(*net)).records.append(record)
    return [_compare(key, list(rows.values())) for key, rows in sorted(groups.items()) if any(not n[3] for n in rows)]


def latency_machine(record: Record) -> Machine:
    """Return the machine that the latency of a record was measured on."""
    machine = record.get('latency_machine') or record['machine']
    instructions = tuple(machine.get('instructions') or ())
    versions = machine.get('versions') or {}
    return Machine(machine['cpu'], instructions, machine.get('cores'), versions.get('onnxruntime'))


def _compare(key: tuple[str, ...], rows: list[Row]) -> Group:
    records = [record for row in rows for record in row.records]
    counts = sorted({len(record['resampled']) for record in records})
    # Records of earlier versions have no blocks, but those of the same data.
    blocks = sorted({record['blocks'] for record in records if record.get('blocks')})
    for name, values in (('scores in resampled', counts), ('blocks', blocks)):
        if len(values) > 1:
            raise UserError(
                f'records of {key[0]} with {key[1]} have {values[0]} and {values[-1]} {name}: they are not of '
                'the same test images'
            )
    names = Counter((row.net, row.start, row.control) for row in rows)
    for row in rows:
        row.records.sort(key=lambda record: record['seed'])
        row.blocks = blocks[0] if blocks else None
        row.has_namesake = names[row.net, row.start, row.control] > 1
    machines = Counter(map(latency_machine, records))
    sizes = Counter(tuple(record['size']) for record in records)
    nets, controls = ([row for row in rows if bool(row.control) == which] for which in (False, True))
    protocol, head, recipe, data = key
    machine, size = machines.most_common(1)[0][0], sizes.most_common(1)[0][0]
    group = Group(protocol, head, recipe, data, machine, size, nets, controls)
    spread = group.pooled_variance()
    for row in rows:
        row.mean = estimate_mean(row.scores, spread)
    nets.sort(key=lambda row: -row.value)
    equal = indistinguishable({row.name: row.scores for row in nets}, spread)
    for row in nets:
        row.equal = equal[row.name]
        row.behind = estimate_difference(row.scores, nets[0].scores, spread)
    return group


def page(groups: Sequence[Group], protocols: Sequence[Protocol], failed: Sequence[Record], plots: str) -> str:
    """Return the tables as Markdown.

    Args:
        groups: Groups of records.
        protocols: Protocols of the groups, for titles and published numbers.
        failed: Records of runs that have failed.
        plots: Folder of the plots, relative to the page.
    """
    titles = {protocol.name: protocol for protocol in protocols}
    records = [record for group in groups for record in group.records]
    hours = sum(record['processor_minutes'] for record in records) / 60
    on_gpu = sum(bool(record['machine'].get('gpu')) for record in records)
    lines = [
        f'{len(records)} runs, {hours:.1f} CPU hours'
        + (f'; {on_gpu} of the runs were trained on a GPU' * bool(on_gpu)),
        '',
    ]
    for group in groups:
        protocol = titles[group.protocol]
        lines += [f'### {protocol.title}, {group.head}', '', *_introduction(group, protocol)]
        lines += [*table(HEADINGS, [_cells(row, group) for row in group.rows]), '']
        for name in plot_names(group, groups):
            lines += [f'![{protocol.title}, {group.head}]({plots}/{name})', '']
        checks = [*control_lines(group), *start_lines(group)]
        if checks:
            lines += ['Controls:', '', *(f'- {line}' for line in checks), '']
        if protocol.published:
            lines += ['Published, with other protocols:', '']
            lines += [f'- {p["name"]}: {p["value"]} ({p["protocol"]}; {p["source"]})' for p in protocol.published]
            lines += ['']
    if failed:
        lines += [f'### {FAILED_RUNS}', '']
        lines += [f'- {one["protocol"]} {run_of(one).name}: {one["error"]}' for one in failed]
        lines += ['']
    return '\n'.join(lines)


def _introduction(group: Group, protocol: Protocol) -> list[str]:
    records = group.records
    hours = sum(record['processor_minutes'] for record in records) / 60
    agreement, ranked = group.agreement()
    commits = ', '.join(sorted({str(record['machine'].get('commit')) for record in records}))
    spread = 100 * math.sqrt(group.pooled_variance().variance)
    trained_on = sorted({record['machine'].get('gpu') or record['machine']['cpu'] for record in records})
    on_gpu = sum(bool(record['machine'].get('gpu')) for record in records)
    beside = '' if not on_gpu else f', beside a GPU in {on_gpu} runs' if on_gpu < len(records) else ' beside the GPU'
    text = (
        f'{records[0]["metric"]} in points on {" and ".join(protocol.test)}, after {records[0]["steps"]} steps. '
        f'{len(records)} run{"s" * (len(records) > 1)} on {" and ".join(trained_on)}, {hours:.1f} CPU hours{beside}. '
    )
    if not math.isnan(spread):
        text += f'Spread of seeds, pooled over the nets: {spread:.1f} points. '
    if group.equal_variances_p() < 1 - CONFIDENCE:
        own = [100 * row.standard_deviation for row in group.rows if len(row.records) > 1]
        text += (
            f'The spreads of the nets are {min(own):.1f} to {max(own):.1f} points, and differ by more than chance '
            f"(Bartlett's test, p = {group.equal_variances_p():.1g}): the intervals are too wide for most nets, and "
            'too narrow for those with the largest spread. '
        )
    if not math.isnan(agreement):
        text += f"Kendall's tau between rankings of {ranked} by two halves of the seeds: {agreement:.2f}. "
    text += (
        f'MACs and latency at {group.size[0]}x{group.size[1]} (height x width), latency on one thread of '
        f'{group.machine}. Recipe {group.recipe}, data {group.data}, commit {commits}.'
    )
    return prose(text)


def control_lines(group: Group) -> Iterator[str]:
    """Yield a line of text for each control, which compares its score with the expected one."""
    spread = group.pooled_variance()
    for control in group.controls:
        start = (control.net, control.start, control.weights)
        net = next((row for row in group.rows if (row.net, row.start, row.weights) == start), None)
        if net is None:
            yield f'{control.name}: {_score(control)}; {control.net} itself has no record'
            continue
        difference = estimate_difference(control.scores, net.scores, spread)
        if math.isnan(difference.error) and control.control != 'shuffled':
            yield f'not known with one seed: {control.name} {_score(control)}, {net.name} {_score(net)}'
            continue
        if control.control == 'distilled':
            is_gain = difference.value > 0 and difference.p_value < 1 - CONFIDENCE
            yield (
                f'{"ok" if is_gain else "**no gain shown**"}: {control.name} {_score(control)}, '
                f'{100 * difference.value:+.1f}{_plus_minus(difference.half_width)} points against the same net '
                f'without a teacher (p = {difference.p_value:.2g}{_teacher_score(control)})'
            )
            continue
        chance = max(record['chance'] for record in control.records)
        expected, is_right = {
            'shuffled': (
                f'at most {100 * (chance + MAX_ABOVE_CHANCE):.1f}, {100 * MAX_ABOVE_CHANCE:g} points above the chance '
                f'level of {100 * chance:.1f}',
                control.value <= chance + MAX_ABOVE_CHANCE,
            ),
            'twin': (f'not told apart from {_score(net)}', difference.p_value >= 1 - CONFIDENCE),
            'zeroed': (f'below {_score(net)}', difference.value < 0 and difference.p_value < 1 - CONFIDENCE),
        }[control.control]
        yield (
            f'{"ok" if is_right else "**FAILED**"}: {control.name} {_score(control)}, expected: {expected} '
            f'({CONTROLS[control.control]})'
        )


def start_lines(group: Group) -> Iterator[str]:
    """Yield a line of text for each net with both starts, which compares ImageNet weights with random ones.

    Nothing is yielded if no net has two seeds, because the spread of the seeds is unknown then.
    """
    random = {row.net: row for row in group.rows if row.start == 'random'}
    for row in group.rows:
        if row.start != 'imagenet' or row.net not in random:
            continue
        gain, spread = row.value - random[row.net].value, math.sqrt(group.pooled_variance().variance)
        if math.isnan(spread):
            continue
        spreads = gain / spread if spread else math.inf
        verdict = 'ok' if spreads > MIN_SPREADS else f'**less than {MIN_SPREADS} spreads**'
        own = math.hypot(row.standard_deviation, random[row.net].standard_deviation) / math.sqrt(2)
        own_spreads = f', {gain / own:.1f} of the spreads of these two alone' if own > 0 else ''
        yield (
            f'{verdict}: {row.name} {100 * gain:+.1f} points against random weights, {spreads:.1f} spreads of seeds'
            f'{own_spreads}'
        )


def _teacher_score(row: Row) -> str:
    """Return the score of the teacher, which records from before it was recorded do not have."""
    scores = [(record.get('teacher') or {}).get('score') for record in row.records]
    known = [score for score in scores if score is not None]
    return f'; score of the teacher: {100 * known[0]:.1f}' if known else ''


def _score(row: Row) -> str:
    return f'{100 * row.value:.1f}{_plus_minus(row.standard_deviation)}'


def _plus_minus(value: float) -> str:
    return '' if math.isnan(value) else f' ± {100 * value:.1f}'


def _cells(row: Row, group: Group) -> list[str]:
    latency, macs, parameters = (group.cost(row, key) for key in AXES)
    low, high = row.interval
    assert row.behind is not None
    behind = f'{100 * row.behind.value:.1f}{_plus_minus(row.behind.half_width)}'
    not_told_apart = _list_equal(row, [other.name for other in group.rows if other is not row])
    return [
        row.name,
        _score(row),
        'not known' if math.isnan(low) else f'{100 * low:.1f} to {100 * high:.1f}',
        'best' if row is group.rows[0] else behind,
        str(len(row.records)),
        f'{(parameters or 0) * 1e-6:.1f}',
        f'{(macs or 0) * 1e-9:.2f}',
        'not measured' if latency is None else f'{latency:.1f}',
        'not known with one seed' if math.isnan(low) else not_told_apart,
    ]


def _list_equal(row: Row, others: Sequence[str]) -> str:
    """List the nets that a net is not told apart from, or the exceptions if these are fewer."""
    if not others:
        return '-'
    apart = [name for name in others if name not in row.equal]
    if not row.equal:
        return 'told apart from all'
    if not apart:
        return 'all others'
    return ', '.join(row.equal) if len(row.equal) <= len(apart) else f'all but {", ".join(apart)}'


def to_csv(groups: Sequence[Group]) -> str:
    """Return the tables as CSV.

    Before ``COLUMNS`` there are the columns protocol, head, recipe, data, control, weights and teacher. The last two
    are SHA-256 of the weights and of the teacher's checkpoint. Scores are in [0, 1], and latencies are those of
    ``Group.machine``. Unknown values are empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['protocol', 'head', 'recipe', 'data', 'control', 'weights', 'teacher', *COLUMNS])
    for group in groups:
        for row in (*group.rows, *group.controls):
            names = [group.protocol, group.head, group.recipe, group.data, row.control, row.weights, row.teacher]
            names += [row.net, row.start]
            scores = [f'{value:.5f}' for value in (row.value, row.standard_deviation, *row.interval)]
            sizes = [group.cost(row, key) for key in ('parameters', 'macs', 'latency_ms')]
            costs = ['' if size is None else size for size in sizes]
            writer.writerow([*names, *('' if value == 'nan' else value for value in scores), len(row.records), *costs])
    return text.getvalue()


def plot_name(group: Group, groups: Sequence[Group]) -> str:
    """Return the file name of the plot of a group.

    Args:
        group: The group.
        groups: All groups of the page. If several have this protocol and head, the name of the file also has the first
            digits of the digests of recipe and data.
    """
    others = [one for one in groups if (one.protocol, one.head) == (group.protocol, group.head)]
    suffix = f'-{group.recipe[:6]}-{group.data[:6]}' if len(others) > 1 else ''
    return f'{group.protocol}-{group.head}{suffix}.png'


def curve_name(group: Group, groups: Sequence[Group]) -> str | None:
    """Return the file name of the plot of the scores during the training; None if no record has them."""
    if not any(record.get('curve') for record in group.records):
        return None
    return plot_name(group, groups).replace('.png', '-curve.png')


def plot_names(group: Group, groups: Sequence[Group]) -> list[str]:
    """Return the file names of all plots of a group. Score against cost is not plotted for a single net."""
    names = [plot_name(group, groups)] if len(group.rows) > 1 else []
    return [*names, *filter(None, [curve_name(group, groups)])]
