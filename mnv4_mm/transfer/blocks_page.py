"""Page and plot of the latency of single blocks, generated from the records of ``blocks.measure_blocks``."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mnv4_mm.transfer.nets import BLOCK_RUNTIMES
from mnv4_mm.transfer.pages import machine_lines, prose, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYS = ('part', 'block', 'channels', 'side')
ALL_KEYS = (*KEYS, 'parameters', 'macs', 'bytes', 'latency_ms', 'round_ms', 'failed', 'machine', 'date')
NO_ATTENTION = 'no attention'
# Pairs of nets: the table shows the cost of attention in the first net relative to the second.
COMPARED = (('MQA, as published', 'MHSA'), ('MQA, kv stride 1', 'MHSA, kv stride 1'),
            ('MQA, as published', 'MQA, kv stride 1'), ('MHSA', 'MHSA, kv stride 1'))  # fmt: skip
COMPARED_BLOCKS = (('MQA', 'MHSA'), ('MQA, kv stride 2', 'MHSA, kv stride 2'), ('MQA, kv stride 2', 'MQA'))
RUNTIMES = {
    'onnx': 'ONNX Runtime',
    'openvino': 'OpenVINO',
    'ncnn': 'ncnn',
    'litert': 'LiteRT',
    'executorch': 'ExecuTorch',
}


def page(records: Sequence[dict[str, Any]], image: str) -> str:
    """Return the page as Markdown.

    Args:
        records: Records that ``blocks.measure_blocks`` returned.
        image: File name of the plot, relative to the page.
    """
    parts = {part: [one for one in records if one['part'] == part] for part in BLOCK_RUNTIMES}
    lines = [
        '# Blocks in isolation',
        '',
        '    mnv4 blocks                # write this page and its plot from the records',
        '    mnv4 blocks --check        # exit code 1 if page and records disagree',
        '    mnv4 blocks --measure      # measure anew: half an hour on an idle machine (LiteRT needs `make litert`)',
        '',
        *prose(
            """Latency of the blocks of MobileNetV4 in the runtimes: batch 1, float32, one thread, random weights.
            The command writes this page; do not edit it."""
        ),
        *machine_lines(records),
    ]
    if parts['nets']:
        lines += _nets(parts['nets'])
    if parts['attention']:
        lines += _attention(parts['attention'])
    if parts['uib']:
        lines += [f'![Latency of UIB and FusedIB by width and resolution]({image})', '', *_uib(parts['uib'])]
    failures = sorted({f'- {one["block"]} in {name}: {why}' for one in records for name, why in one['failed'].items()})
    if failures:
        lines += ['## Not measured', '', *failures, '']
    lines += [
        '## Records',
        '',
        *prose(
            f"""`docs/results/blocks.jsonl` has a record for each block: {', '.join(f'`{key}`' for key in ALL_KEYS)}.
            MACs and bytes are counted as for the [roofline](roofline.md)."""
        ),
    ]
    return '\n'.join(lines)


def _cell(record: dict[str, Any], runtime: str) -> str:
    if runtime not in record['latency_ms']:
        return '-'
    rounds = record['round_ms'][runtime]
    return f'{record["latency_ms"][runtime]:.3f} ±{(max(rounds) - min(rounds)) / 2:.3f}'


def _columns(part: str) -> tuple[tuple[str, ...], list[str]]:
    runtimes = BLOCK_RUNTIMES[part]
    return runtimes, [f'{RUNTIMES[name]} ms' for name in runtimes]


def _rows(part: str, records: Sequence[dict[str, Any]], place: bool = True) -> list[str]:
    runtimes, columns = _columns(part)
    header = ['block', *(['channels, size'] if place else []), 'k params', 'MMACs', 'kB moved', *columns]
    rows = [
        [
            one['block'],
            *([f'{one["channels"]}, {one["side"]}x{one["side"]}'] if place else []),
            f'{one["parameters"] / 1e3:.1f}',
            f'{one["macs"] / 1e6:.2f}',
            f'{one["bytes"] / 1e3:.0f}',
            *(_cell(one, name) for name in runtimes),
        ]
        for one in records
    ]
    return table(header, rows)


def _change(a: float, b: float) -> str:
    return f'{100 * (a / b - 1):+.0f} %' if b else '-'


def _nets(records: Sequence[dict[str, Any]]) -> list[str]:
    by_name = {one['block']: one for one in records}
    runtimes, _ = _columns('nets')
    lines = [
        '## Hybrid-M with other attention',
        '',
        *prose(
            f"""Hybrid-M up to C5 at {records[0]['side']}x{records[0]['side']}: with its eight attention blocks
            removed; as published (MQA, with keys and values of stride 2 in the four blocks before C4); with a key and
            value head for each query head (MHSA, `hybrid_m_mhsa`); and without down-sampled keys and values
            (`hybrid_m_kv1`). ± is half of the range of the rounds."""
        ),
        *_rows('nets', records, place=False),
        '',
    ]
    base = by_name.get(NO_ATTENTION)
    if base:
        rows = []
        for first, second in COMPARED:
            if first not in by_name or second not in by_name:
                continue
            a, b = by_name[first], by_name[second]
            cells = [f'{first} against {second}']
            cells += [_change(a[key] - base[key], b[key] - base[key]) for key in ('parameters', 'macs')]
            for runtime in runtimes:
                present = all(runtime in one['latency_ms'] for one in (a, b, base))
                cells.append(_added(a, b, base, runtime) if present else '-')
            rows.append(cells)
        rows.append(['MQA against MHSA in the paper (published)', '-25 %', '-25 %', *['-'] * len(runtimes)])
        lines += [
            *prose(
                """Cost of attention in the net: the net minus the net without attention. A change of latency is "not
                measurable" if the ranges of the rounds of both nets overlap, or if that of the second overlaps with
                that of the net without attention."""
            ),
            *table(
                ('', 'added parameters', 'added MACs', *(f'added latency, {RUNTIMES[name]}' for name in runtimes)), rows
            ),
            '',
            *prose(
                """The paper (published): three attention blocks behind a base of 6.0 GMACs, with MQA instead of MHSA,
                take the whole net from 9.69 to 5.16 ms on the EdgeTPU of a Pixel 7, from 2.76 to 2.60 ms on that of a
                Pixel 8, and from 16.46 to 15.10 ms on the GPU of a Samsung S23. It states 39 % less added latency.
                Accuracy is 84.88 % without attention, 85.27 % with MHSA and 85.24 % with MQA. Down-sampling in Hybrid-M
                takes the whole net from 15.8 to 12.8 ms on a CPU and from 7.4 to 5.9 ms on a GPU, and accuracy from
                80.77 % to 80.71 %."""
            ),
        ]
    return lines


def _overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    """Return True if the ranges of two series of rounds overlap."""
    return min(first) <= max(second) and min(second) <= max(first)


def _added(a: dict[str, Any], b: dict[str, Any], base: dict[str, Any], runtime: str) -> str:
    """Format the change of the added latency from ``b`` to ``a``, if it exceeds the spread of the rounds."""
    first, second, without = (one['round_ms'][runtime] for one in (a, b, base))
    if _overlap(first, second) or min(second) <= max(without):
        return 'not measurable'
    return _change(*(one['latency_ms'][runtime] - base['latency_ms'][runtime] for one in (a, b)))


def _attention(records: Sequence[dict[str, Any]]) -> list[str]:
    return [
        '## Attention blocks',
        '',
        *prose(
            """One block with norm, layer scale and shortcut, 4 heads of 64, on the feature maps of Hybrid-M at
            stride 16 (160 channels), for images of 256 and 512 pixels."""
        ),
        *_rows('attention', records),
        '',
        *prose('The same as differences. A change of latency is "not measurable" if the ranges of the rounds overlap.'),
        *table(
            ('', 'size', 'parameters', 'MACs', *(RUNTIMES[name] for name in BLOCK_RUNTIMES['attention'])),
            list(_block_changes(records)),
        ),
        '',
        *prose('Their accuracy after a training: *CamVid, attention* in [Transfer](transfer.md#results).'),
    ]


def _block_changes(records: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield a row for each pair of attention blocks and each size."""
    by_place = {(one['block'], one['side']): one for one in records}
    for first, second in COMPARED_BLOCKS:
        for side in sorted({one['side'] for one in records}):
            a, b = by_place.get((first, side)), by_place.get((second, side))
            if not a or not b:
                continue
            cells = [f'{first} against {second}', f'{side}x{side}']
            cells += [_change(a[key], b[key]) for key in ('parameters', 'macs')]
            for runtime in BLOCK_RUNTIMES['attention']:
                if runtime not in a['latency_ms'] or runtime not in b['latency_ms']:
                    cells.append('-')
                elif _overlap(a['round_ms'][runtime], b['round_ms'][runtime]):
                    cells.append('not measurable')
                else:
                    cells.append(_change(a['latency_ms'][runtime], b['latency_ms'][runtime]))
            yield cells


def _uib(records: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for runtime in BLOCK_RUNTIMES['uib']:
        for side in sorted({one['side'] for one in records}):
            cells = [one for one in records if one['side'] == side and runtime in one['latency_ms']]
            for name in dict.fromkeys(one['block'] for one in cells):
                rates = [one['macs'] / one['latency_ms'][runtime] / 1e6 for one in cells if one['block'] == name]
                rows.append((RUNTIMES[runtime], f'{side}x{side}', name, ', '.join(f'{rate:.1f}' for rate in rates)))
    widths = ', '.join(str(width) for width in dict.fromkeys(one['channels'] for one in records))
    return [
        '## UIB and FusedIB',
        '',
        *prose(
            """Expansion 4, stride 1, depthwise kernels 3x3. The published nets have expansions 2 to 6 and kernels 3
            and 5. FusedIB has no shortcut."""
        ),
        *_rows('uib', records),
        '',
        f'GMACs per second at {widths} channels:',
        '',
        *table(('runtime', 'size', 'block', 'GMACs/s'), rows),
        '',
    ]


def plot(records: Sequence[dict[str, Any]]) -> 'Figure':
    """Plot latency against the number of channels for the UIB variants and FusedIB.

    Error bars show the range of the rounds. The figure has a row of panels for each resolution and a column for each
    runtime.

    Args:
        records: Records of all parts; those of other parts than ``uib`` are ignored.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, NullFormatter, NullLocator

    uib = [one for one in records if one['part'] == 'uib']
    sides = sorted({one['side'] for one in uib})
    runtimes = BLOCK_RUNTIMES['uib']
    figure = Figure(figsize=(4 * len(runtimes), 3.2 * max(1, len(sides))), layout='constrained')
    for row, side in enumerate(sides):
        for column, runtime in enumerate(runtimes):
            axes = figure.add_subplot(len(sides), len(runtimes), row * len(runtimes) + column + 1)
            for name in dict.fromkeys(one['block'] for one in uib):
                points = sorted(
                    (one['channels'], one['latency_ms'][runtime], one['round_ms'][runtime])
                    for one in uib
                    if (one['block'], one['side']) == (name, side) and runtime in one['latency_ms']
                )
                if points:
                    widths, medians, rounds = zip(*points, strict=True)
                    below = [middle - min(each) for middle, each in zip(medians, rounds, strict=True)]
                    above = [max(each) - middle for middle, each in zip(medians, rounds, strict=True)]
                    axes.errorbar(widths, medians, yerr=[below, above], fmt='o-', ms=4, label=name)
            axes.set(
                title=f'{RUNTIMES[runtime]}, {side}x{side}', xlabel='channels', ylabel='ms', xscale='log', yscale='log'
            )
            axes.set_xticks(sorted({one['channels'] for one in uib}))
            axes.xaxis.set_minor_locator(NullLocator())
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FormatStrFormatter('%g'))  # not powers of ten
            axes.yaxis.set_minor_formatter(NullFormatter())
            if axes.lines:
                axes.legend(fontsize=7)
    return figure
