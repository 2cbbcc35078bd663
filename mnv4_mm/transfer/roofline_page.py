"""The page and the plot of the roofline, generated from its records."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from mnv4_mm.errors import UserError
from mnv4_mm.transfer.layers import KINDS, Layer
from mnv4_mm.transfer.nets import MODELS
from mnv4_mm.transfer.pages import machine_lines, prose, read_records, table
from mnv4_mm.transfer.roofline import (
    RIDGES,
    Fit,
    Residual,
    cached_time,
    fit,
    mean_shares,
    predicted_time,
    residuals,
    shares,
    spearman,
    spearman_gain,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECORD_KEYS = (
    'net', 'input', 'dtype', 'parameters', 'macs', 'weight_bytes', 'activation_bytes', 'latency_ms', 'round_ms',
    'cpu_ms', 'kind_ms', 'layers', 'machine', 'date',
)  # fmt: skip
# The paper's ridge points are for int8, with one byte per number; float32 has four.
NUMBER_BYTES = 4
# Published: section 3 of the paper. Device, fitted ridge point, Spearman's correlation of the roofline and of MACs.
PAPER = (
    ('Pixel 6 CPU', 31.2, 0.973, 0.962),
    ('Samsung S23 CPU', 39.7, 0.962, 0.940),
    ('Pixel 4 DSP', 347.3, 0.962, 0.758),
    ('Pixel 8 EdgeTPU', 433.8, 0.973, 0.857),
)
MIN_NETS = 3
MAX_DISTURBANCE = 1.1  # latency / CPU time
BINDING_AT = (0.0, 2.0, 5.0, 7.8, 9.9, 20.0, 50.0, 86.8, 108.5, 250.0, 500.0)  # includes the paper's, divided by 4
# Nets with a table of the layer that takes most time at each ridge point.
EXAMPLES = ('mnv4_conv_s', 'mnv4_conv_m', 'mnv4_hybrid_m', 'timm:mobilenetv3_large_100', 'timm:convnext_tiny')


class Roofline:
    """Records of nets and the roofline fitted to them.

    Args:
        records: Records that ``roofline_measure.record`` returned, all from one measurement. This is not checked here;
            ``load_roofline`` does it.

    Attributes:
        records: The records in the order of latency, the fastest first.
        by_name: Record by name of the net.
        layers: Layers by name of the net.
        latency: Latency in ms by name of the net.
        cpu: CPU time in ms by name of the net.
        macs_per_second: Peak rate of the machine in multiply-accumulates per second.
        bandwidth: Memory bandwidth of the machine in bytes per second.
        cached: Bytes per second of copies that are small enough for the caches, and of larger ones, see
            ``Peak.cached``.
        ridge: Measured ridge point in MACs per byte: ``macs_per_second`` / ``bandwidth``.
        nets: Names of the classification nets, the fastest first.
        models: Names of the detectors and segmenters, the fastest first.
        fit: The roofline fitted to the latencies of ``nets``.
    """

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self.records = sorted(records, key=lambda record: record['latency_ms'])
        self.by_name = {one['net']: one for one in self.records}
        self.layers = {one['net']: [Layer(*layer) for layer in one['layers']] for one in self.records}
        self.latency = {one['net']: one['latency_ms'] for one in self.records}
        self.cpu = {one['net']: one['cpu_ms'] for one in self.records}
        peak = self.records[0]['machine']['peak']  # all records are from one measurement
        self.macs_per_second, self.bandwidth, self.cached = peak['macs'], peak['bandwidth'], peak['cached']
        self.ridge = self.macs_per_second / self.bandwidth
        self.nets = [one['net'] for one in self.records if one['net'] not in MODELS]
        self.models = [one['net'] for one in self.records if one['net'] in MODELS]
        self.fit = self.fit_to(self.nets)

    def fit_to(self, names: Sequence[str], times: Mapping[str, float] | None = None) -> Fit:
        """Fit the ridge point to the measured times of nets.

        Args:
            names: Names of the nets.
            times: Measured time by name of the net; None for the latencies.
        """
        times = times or self.latency
        return fit([self.layers[name] for name in names], [times[name] for name in names])

    def at(self, names: Sequence[str], ridge: float, times: Mapping[str, float] | None = None) -> float:
        """Return Spearman's correlation of the times that the roofline predicts with the measured times of nets.

        Args:
            names: Names of the nets.
            ridge: Ridge point of the roofline in MACs per byte.
            times: Measured time by name of the net; None for the latencies.
        """
        times = times or self.latency
        return spearman([predicted_time(self.layers[name], ridge) for name in names], [times[name] for name in names])

    def with_caches(self, names: Sequence[str], times: Mapping[str, float] | None = None) -> float:
        """Return Spearman's correlation of the times that ``cached_time`` predicts with the measured times of nets.

        Args:
            names: Names of the nets.
            times: Measured time by name of the net; None for the latencies.
        """
        times = times or self.latency
        predicted = [cached_time(self.layers[name], self.macs_per_second, self.cached) for name in names]
        return spearman(predicted, [times[name] for name in names])

    def predicted_ms(self, name: str) -> float:
        """Return the latency in ms that the roofline predicts for a net from the measured peak rate and bandwidth."""
        return 1e3 * predicted_time(self.layers[name], self.ridge) / self.macs_per_second

    def residuals(self, names: Sequence[str]) -> list[Residual]:
        """Compare measured and predicted time by the kind of layer, summed over nets; see ``roofline.residuals``."""
        times = {one['net']: one['kind_ms'] for one in self.records}
        layers = [self.layers[name] for name in names]
        return residuals(layers, [times[name] for name in names], self.macs_per_second, self.bandwidth)

    def by_kind(self, names: Sequence[str], times: Mapping[str, float] | None = None) -> float:
        """Return Spearman's correlation of a roofline that is corrected by kind of layer with measured times of nets.

        To predict the time of a net, the time of each kind of layer is multiplied by a factor: the ratio of measured to
        predicted time of this kind in the profiles of all other nets of ``names`` (leave-one-out).

        Args:
            names: Names of the nets.
            times: Measured time by name of the net; None for the latencies.
        """
        predicted = []
        for name in names:
            others = [other for other in names if other != name]
            scale = {row.kind: row.measured_ms / row.predicted_ms for row in self.residuals(others) if row.predicted_ms}
            rows = self.residuals([name])
            predicted.append(sum(row.predicted_ms * scale.get(row.kind, 1.0) for row in rows))
        times = times or self.latency
        return spearman(predicted, [times[name] for name in names])


def load_roofline(path: Path) -> Roofline:
    """Read the records of a file and fit the roofline to them.

    Raises:
        UserError: The file is empty, a record is invalid, there are fewer than ``MIN_NETS`` classification nets, or the
            records are from several measurements, that is, with different CPUs, commits or peak rates.
    """
    records = read_records(path, RECORD_KEYS)
    try:
        machines = {json.dumps([one['machine'][key] for key in ('cpu', 'commit', 'peak')]) for one in records}
        if len(machines) > 1:
            raise UserError(f'--records {path}: latencies of several measurements cannot be ranked together')
        if sum(one['net'] not in MODELS for one in records) < MIN_NETS:
            raise UserError(f'--records {path}: a ranking needs at least {MIN_NETS} classification nets')
        return Roofline(records)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f'--records {path}: not a record of a roofline ({type(error).__name__}: {error}); --measure writes them'
        ) from error


def summary(result: Roofline) -> list[str]:
    """Return the measured peak rate and bandwidth, and the rank correlations, as lines of text."""
    rows = [('classification nets', result.nets)]
    if result.models:
        rows.append(('with detectors and segmenters', result.nets + result.models))
    lines = [
        f'peak {result.macs_per_second / 1e9:.1f} GMACs/s, bandwidth {result.bandwidth / 1e9:.1f} GB/s, ridge point '
        f'{result.ridge:.2f} MACs/byte (one thread, float32)'
    ]
    for label, names in rows:
        best = result.fit_to(names)
        lines.append(
            f'Spearman over {len(names)} {label}: roofline at the measured ridge point '
            f'{result.at(names, result.ridge):.3f}, at the best one ({_range(best)} MACs/byte) '
            f'{best.best_spearman:.3f}, with the bandwidth of the caches {result.with_caches(names):.3f}, MACs alone '
            f'{best.macs:.3f}'
        )
    cpu = result.fit_to(result.nets, result.cpu)
    lines.append(
        f'Spearman over the classification nets with CPU time instead of latency: measured ridge point '
        f'{result.at(result.nets, result.ridge, result.cpu):.3f}, best one ({_range(cpu)}) {cpu.best_spearman:.3f}, '
        f'with the bandwidth of the caches {result.with_caches(result.nets, result.cpu):.3f}, MACs alone {cpu.macs:.3f}'
    )
    return lines


def _range(found: Fit) -> str:
    low, high = found.best_range
    return f'{low:g}' if low == high else f'{low:g} to {high:g}'


def page(result: Roofline, image: str) -> str:
    """Return the page as Markdown.

    Args:
        result: The records and the fitted roofline.
        image: Path of the plot relative to the page.
    """
    names = result.nets
    everything = result.nets + result.models
    mean = mean_shares([result.layers[name] for name in names], result.ridge)
    memory = sum(value for (_, by_memory), value in mean.items() if by_memory)
    cached = ', '.join(f'{_size(int(size))} {rate / 1e9:.0f} GB/s' for size, rate in result.cached.items())
    lines = [
        '# Roofline',
        '',
        '    mnv4 roofline                # print the correlations; write this page and its plot from the records',
        '    mnv4 roofline --check        # exit code 1 if page and records disagree',
        '    mnv4 roofline --measure      # measure all nets anew: half an hour on an idle machine',
        '',
        *prose(
            """The roofline predicts the latency of a net from its layers (section 3 of the paper). The time of a
            layer is the larger of MACs / peak and bytes / bandwidth, with the bytes of weights and activations. The
            ranking of nets depends on one number, the ridge point: peak / bandwidth, in MACs per byte. This page
            compares the ranking with measured latencies. The command writes it; do not edit it."""
        ),
        *machine_lines(result.records),
        '## Result',
        '',
        *prose(
            f"""{len(names)} classification nets with random weights, batch 1, float32, exported by `mnv4_mm.deploy`
            and run by ONNX Runtime on one thread. The table has Spearman's rank correlation with the
            measured time."""
        ),
        *_disturbance(result),
        *table(
            ('', 'ridge point, MACs/byte', 'latency', 'CPU time', f'latency, with whole models ({len(everything)})'),
            _correlations(result, names, everything),
        ),
        '',
        *prose(
            """CPU time is that of the process for a run. It equals the latency on a machine that does nothing else, and
            is less disturbed by other processes."""
        ),
        *prose(
            """The same for groups of nets, with CPU time at the measured ridge point. The last column is the 95 %
            interval of the gain of the roofline over MACs alone, by a bootstrap over the nets. Many of the MobileNetV4
            nets are variants of each other."""
        ),
        *table(('nets', 'number', 'MACs alone', 'roofline', 'gain, 95 % interval'), _groups(result)),
        '',
        *prose(
            f"""Peak: {result.macs_per_second / 1e9:.1f} GMACs/s, the fastest of three square matrix products in ONNX
            Runtime. Bandwidth: {result.bandwidth / 1e9:.1f} GB/s, the bytes read plus the bytes written by a numpy copy
            of 256 MiB. By size of the copy, of which small ones stay in the caches: {cached}. At the measured ridge
            point, {100 * memory:.0f} % of the predicted time is in memory-bound layers (mean over nets)."""
        ),
        *prose(
            """The paper fits the ridge point to its measured latencies. Its values (published) are for int8 on the
            CPUs and accelerators of phones: a number is one byte there and four bytes here. The third column has them
            in the unit of this page."""
        ),
        *table(
            (
                'device',
                'fitted ridge point, MACs per int8 byte',
                'MACs per float32 byte',
                'Spearman, roofline',
                'Spearman, MACs',
            ),
            [
                (f'{name} (published)', f'{ridge:g}', f'{ridge / NUMBER_BYTES:.1f}', f'{a:.3f}', f'{b:.3f}')
                for name, ridge, a, b in PAPER
            ],
        ),
        '',
        f'![Rank correlation, predicted ranks and binding layers by ridge point]({image})',
        '',
        *_profile_section(result),
        *_binding_section(result),
        *_nets_section(result),
        *_method_section(),
    ]
    return '\n'.join(lines)


def _correlations(result: Roofline, names: Sequence[str], everything: Sequence[str]) -> list[tuple[str, ...]]:
    columns = ((names, result.latency), (names, result.cpu), (everything, result.latency))
    fits = [result.fit_to(*column) for column in columns]
    return [
        ('MACs alone', '0', *(f'{found.macs:.3f}' for found in fits)),
        (
            'roofline, measured ridge point',
            f'{result.ridge:.2f}',
            *(f'{result.at(nets, result.ridge, times):.3f}' for nets, times in columns),
        ),
        (
            'roofline, best ridge point of the column',
            'in brackets',
            *(f'{found.best_spearman:.3f} ({_range(found)})' for found in fits),
        ),
        (
            'roofline with the measured bandwidth of the caches',
            'by the bytes of a layer',
            *(f'{result.with_caches(*column):.3f}' for column in columns),
        ),
        (
            'rate of each kind of layer, from the profiles of the other nets',
            '-',
            *(f'{result.by_kind(*column):.3f}' for column in columns),
        ),
    ]


def _groups(result: Roofline) -> list[tuple[str, ...]]:
    """Return the correlations with CPU time and their uncertainty, for all nets, MobileNetV4 and others."""
    rows: list[tuple[str, ...]] = []
    groups = (
        ('all', result.nets),
        ('MobileNetV4', [name for name in result.nets if name.startswith('mnv4_')]),
        ('others', [name for name in result.nets if not name.startswith('mnv4_')]),
    )
    for label, names in groups:
        if len(names) < MIN_NETS:
            continue
        measured = [result.cpu[name] for name in names]
        columns = [[predicted_time(result.layers[name], ridge) for name in names] for ridge in (0.0, result.ridge)]
        low, high = spearman_gain(columns[1], columns[0], measured)
        macs, roofline = (spearman(column, measured) for column in columns)
        rows.append((label, str(len(names)), f'{macs:.3f}', f'{roofline:.3f}', f'{low:+.3f} to {high:+.3f}'))
    return rows


def _size(count: int) -> str:
    return f'{count // 2**20} MiB' if count >= 2**20 else f'{count // 2**10} KiB'


def _disturbance(result: Roofline) -> list[str]:
    """Return a paragraph that warns of other processes, if they have slowed the measurement."""
    ratio = float(np.median([result.latency[name] / result.cpu[name] for name in result.nets]))
    if ratio < MAX_DISTURBANCE:
        return []
    machine = result.records[0]['machine']
    load = ' and '.join('unknown' if value is None else f'{value:.1f}' for value in machine['load'])
    return prose(
        f"""**The machine was not idle.** Its load average before and after the measurement was {load}, on
        {machine['cores']} cores, and the latency is {ratio:.2f} times the CPU time (median over the nets). CPU time is
        the better figure here."""
    )


def _profile_section(result: Roofline) -> list[str]:
    rows = result.residuals(result.nets)
    total = sum(row.measured_ms for row in rows)
    predicted = sum(row.predicted_ms for row in rows)
    body = [
        (
            row.kind,
            f'{100 * row.measured_ms / total:.1f}',
            f'{100 * row.predicted_ms / predicted:.1f}',
            f'{row.measured_ms / row.predicted_ms:.2f}' if row.predicted_ms else '-',
            f'{row.macs / row.measured_ms / 1e6:.1f}' if row.macs and row.measured_ms else '-',
            f'{row.bytes / row.measured_ms / 1e6:.1f}' if row.measured_ms else '-',
        )
        for row in rows
    ]
    # Ranks are by the profiled times, as the differences are: other processes may have slowed the latencies.
    profiles = {name: sum(result.by_name[name]['kind_ms'].values()) for name in result.nets}
    ranks = _ranks(result, profiles)
    worst = sorted(result.nets, key=lambda name: -abs(ranks[name][0] - ranks[name][1]))[:6]
    return [
        '## What the roofline misses',
        '',
        *prose(
            """Time in each kind of layer, from the profiler of ONNX Runtime, summed over the nets. A factor of 1 is
            the prediction of the roofline."""
        ),
        *table(('layer', '% of measured time', '% of predicted time', 'measured / predicted', 'GMACs/s', 'GB/s'), body),
        '',
        'The nets whose rank is predicted worst, at the measured ridge point:',
        '',
        *table(
            (
                'net',
                'profile, ms',
                'predicted ms',
                'measured rank',
                'predicted rank',
                'largest differences in ms, by layer',
            ),
            [
                (
                    name,
                    f'{profiles[name]:.2f}',
                    f'{result.predicted_ms(name):.2f}',
                    f'{ranks[name][0]:.0f}',
                    f'{ranks[name][1]:.0f}',
                    _differences(result, name),
                )
                for name in worst
            ],
        ),
        '',
    ]


def _ranks(result: Roofline, times: Mapping[str, float]) -> dict[str, tuple[float, float, float]]:
    """Return the ranks of each net by the given times, by the roofline and by MACs."""
    columns = [
        stats.rankdata([times[name] for name in result.nets]),
        stats.rankdata([predicted_time(result.layers[name], result.ridge) for name in result.nets]),
        stats.rankdata([predicted_time(result.layers[name], 0) for name in result.nets]),
    ]
    return {name: (a, b, c) for name, a, b, c in zip(result.nets, *columns, strict=True)}


def _differences(result: Roofline, name: str) -> str:
    rows = sorted(result.residuals([name]), key=lambda row: -abs(row.measured_ms - row.predicted_ms))
    return ', '.join(f'{row.kind} {row.measured_ms - row.predicted_ms:+.2f}' for row in rows[:3])


def _binding_section(result: Roofline) -> list[str]:
    header = ['kind of layer', *(f'{ridge:g}' for ridge in BINDING_AT)]
    tables: list[str] = []
    for name in EXAMPLES:
        if name in result.layers:
            tables += ['', f'{name}, the layer that takes most time at each ridge point:', '', *_largest(result, name)]
    layers = [result.layers[name] for name in result.nets]
    columns = [mean_shares(layers, ridge) for ridge in BINDING_AT]
    rows = []
    for kind in KINDS:
        values = [[column.get((kind, by_memory), 0.0) for by_memory in (False, True)] for column in columns]
        if any(sum(pair) >= 0.005 for pair in values):
            rows.append([kind, *(_share(*pair) for pair in values)])
    return [
        '## Binding layers',
        '',
        *prose(
            """Percent of the predicted time by the kind of layer, mean over the nets, at ridge points from MACs
            alone (0) to those of accelerators. In brackets: the part of it in layers that memory limits."""
        ),
        *table(header, rows),
        *tables,
        '',
    ]


def _share(compute: float, memory: float) -> str:
    return f'{100 * (compute + memory):.0f} ({100 * memory:.0f})' if compute + memory >= 0.005 else '-'


def _largest(result: Roofline, name: str) -> list[str]:
    layers = result.layers[name]
    rows = []
    for ridge in (0.0, round(result.ridge, 1), 7.8, 20.0, 108.5):
        total = predicted_time(result.layers[name], ridge)
        largest = max(layers, key=lambda layer: predicted_time([layer._replace(repeats=1)], ridge))
        time = predicted_time([largest._replace(repeats=1)], ridge)
        by_memory = sum(value for (_, memory), value in shares(result.layers[name], ridge).items() if memory)
        rows.append(
            (
                f'{ridge:g}',
                largest.kind,
                f'{largest.macs / 1e6:.1f}',
                f'{largest.weight_bytes / 1e3:.0f}',
                f'{largest.activation_bytes / 1e3:.0f}',
                f'{100 * time / total:.0f}',
                'memory' if ridge * largest.bytes > largest.macs else 'MACs',
                f'{100 * by_memory:.0f}',
            )
        )
    header = ('ridge point', 'layer', 'MMACs', 'weights kB', 'activations kB', '% of the net', 'limit',
              '% of the net limited by memory')  # fmt: skip
    return table(header, rows)


def _nets_section(result: Roofline) -> list[str]:
    ranks = _ranks(result, result.latency)
    lines = ['## Nets', '', 'Latency is the median of the rounds; in brackets, the fastest and the slowest round.', '']
    for names in (result.nets, result.models):
        rows = []
        for name in names:
            one = result.by_name[name]
            size = one['input'][2:] if one['input'][1] == 3 else one['input'][1:3]
            row = [
                name,
                f'{size[0]}x{size[1]}',
                f'{one["parameters"] / 1e6:.2f}',
                f'{one["macs"] / 1e9:.3f}',
                f'{(one["weight_bytes"] + one["activation_bytes"]) / 1e6:.1f}',
                f'{one["latency_ms"]:.2f} ({min(one["round_ms"]):.2f} to {max(one["round_ms"]):.2f})',
                f'{one["cpu_ms"]:.2f}',
                f'{result.predicted_ms(name):.2f}',
                f'{one["macs"] / one["latency_ms"] / 1e6:.1f}',
            ]
            rows.append(row + ([' / '.join(f'{rank:.0f}' for rank in ranks[name])] if name in ranks else []))
        header = ['net', 'input', 'M params', 'GMACs', 'MB moved', 'latency ms', 'CPU ms', 'predicted ms', 'GMACs/s']
        if names is result.nets:
            header.append('rank: latency / roofline / MACs')
        if rows:
            lines += [*table(header, rows), '']
    return lines


def _method_section() -> list[str]:
    return [
        '## Method',
        '',
        *prose(
            """Layers, MACs and bytes come from the profile of ONNX Runtime. It lists the nodes that are executed
            with the shapes and bytes of their inputs and outputs: batch norms are folded and activations are fused.
            Views such as reshape count nothing. PyTorch's counter knows neither fusion nor bytes; a test compares its
            MACs with these. Layers are counted at the optimisation level `extended`, where shapes are not padded. The
            latency is that of the default level, which also fuses the sums of shortcuts and, in some nets, activations
            that are not fused here. Their bytes are counted as elementwise layers, which then take less time than
            predicted."""
        ),
        *prose(
            """The exported graph has operator set 18, in which GELU is five operators. ONNX Runtime executes them
            one by one. The bytes and the latency of nets with GELU include this. FastViT, RepViT and MobileOne are
            reparameterised: their branches are merged. Weights are random; latency does not depend on them."""
        ),
        *prose(
            """A MobileNetV4 net is the whole classifier; `mnv4_conv_m_seg`, which has none, ends at C5. Detectors
            and segmenters end before the selection of boxes and the class map. Every net is measured once in each
            round. Each file is compared with PyTorch first."""
        ),
        *prose(
            f"""`docs/results/roofline.jsonl` has a record for each net: {
                ', '.join(f'`{key}`' for key in RECORD_KEYS)
            }. An entry of `layers` is kind, MACs, bytes of weights and bytes of activations of one layer, and the
            number of layers equal to it: `macs` is the sum of MACs times number. `input` is
            (N, C, H, W) for a classifier and (N, H, W, C) for a whole detector or segmenter."""
        ),
        *table(('kind', 'layers'), [(kind, text) for kind, text in KINDS.items()]),
        '',
    ]


def plot(result: Roofline) -> 'Figure':
    """Draw three plots against the ridge point.

    The first plot has the rank correlation with the latency, the second one the predicted rank of each net. The third
    one has the share of each kind of layer in the predicted time, split into compute-bound and memory-bound layers.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 15), layout='constrained')
    first, second, third = figure.subplots(3, height_ratios=(1, 1.7, 1.2))
    found = result.fit
    first.plot(found.at, found.spearman, color='tab:blue', label='roofline')
    first.axhline(found.macs, color='grey', linestyle='--', label='MACs alone')
    first.set(ylabel=f"Spearman's correlation\nwith the latency of {len(result.nets)} nets")
    first.axvspan(*found.best_range, color='tab:green', alpha=0.3, label=f'best: {_range(found)} MACs/byte')
    for label, ridge, *_ in PAPER:
        first.axvline(ridge / NUMBER_BYTES, color='tab:orange', linewidth=0.8)
        first.annotate(
            f'{label} (published fit)', (ridge / NUMBER_BYTES, 0.02), xycoords=('data', 'axes fraction'), rotation=90,
            fontsize=7, ha='right', va='bottom',
        )  # fmt: skip
    ranks = np.array([stats.rankdata([predicted_time(result.layers[n], r) for n in result.nets]) for r in RIDGES])
    for i, name in enumerate(result.nets):
        ours = name.startswith('mnv4_')
        second.plot(RIDGES, ranks[:, i], color='tab:red' if ours else '0.6', linewidth=1.4 if ours else 0.9)
        second.annotate(
            f' {name.removeprefix("timm:")} ({result.latency[name]:.1f} ms)', (RIDGES[-1], ranks[-1, i]), fontsize=7,
            va='center', color='tab:red' if ours else '0.2',
        )  # fmt: skip
        second.plot(0, i + 1, marker='|', color='tab:blue', clip_on=False)
    second.set(ylabel='rank of the predicted latency, 1 is the fastest\n(in brackets: measured latency)')
    layers = [result.layers[name] for name in result.nets]
    at = RIDGES[:: max(1, len(RIDGES) // 160)]
    columns = [mean_shares(layers, ridge) for ridge in at]
    stacks = [
        (kind, by_memory, [column.get((kind, by_memory), 0.0) for column in columns])
        for by_memory in (False, True)
        for kind in KINDS
    ]
    stacks = [stack for stack in stacks if max(stack[2]) > 0.01]
    colours = dict(zip(KINDS, ('#4e79a7', '#a0cbe8', '#f28e2b', '#59a14f', '#e15759', '#b07aa1', '#9c755f', '#edc948',
                               '#bab0ac', '#76b7b2'), strict=True))  # fmt: skip
    areas = third.stackplot(
        at, [values for *_, values in stacks], colors=[colours[kind] for kind, *_ in stacks],
        labels=[f'{kind}, {"memory" if by_memory else "MACs"}' for kind, by_memory, _ in stacks],
    )  # fmt: skip
    for area, (_, by_memory, _) in zip(areas, stacks, strict=True):
        if by_memory:
            area.set(hatch='//', edgecolor='white', linewidth=0)
    third.set(ylabel='share of the predicted time (mean over nets)\nhatched: limited by memory', ylim=(0, 1))
    third.legend(fontsize=7, ncols=4, loc='lower right')
    ticks = (0, 2, 4, 6, 8, 10, 20, 50, 100, 200, 500)
    for axes in (first, second, third):
        axes.set_xscale('symlog', linthresh=10)
        axes.set_xlim(0, RIDGES[-1])
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.axvline(result.ridge, color='black', linestyle=':', label=f'this machine: {result.ridge:.1f}')
    first.legend(fontsize=8, loc='lower left')
    third.set_xlabel('ridge point in MACs per byte')
    return figure
