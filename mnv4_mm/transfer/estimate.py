"""Estimate of the time that the runs of a protocol will take. Imports nothing heavy."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from statistics import mean

from mnv4_mm.transfer.protocol import Protocol, Run
from mnv4_mm.transfer.records import Record


def plan_lines(protocol: Protocol, runs: Sequence[Run], records: Iterable[Record], workers: int) -> Iterator[str]:
    """Describe the runs that are still to be made, and estimate their CPU time.

    The CPU time of a run is estimated as the mean over earlier runs with the same head and net. If there are none, the
    estimate is marked as a guess: it is the mean over all earlier runs with the head or, if there are none either, the
    protocol's ``minutes``. A guess is rough, since the CPU times of nets differ by more than a factor of five. If
    ``minutes`` is None too, the time is unknown.

    Args:
        protocol: The protocol.
        runs: Runs of the protocol that are still to be made.
        records: Records of earlier runs; failed ones are ignored.
        workers: Number of runs at the same time, by which the total time is divided.

    Yields:
        A line of text for each combination of head and net, then a line with the total, which leaves out runs of
        unknown time.
    """
    measured: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in records:
        if 'error' not in record:
            measured[record['head'], record['net']].append(record['processor_minutes'])
    total, unknown = 0.0, 0
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.head, run.net].append(run)
    for (head, net), group in groups.items():
        minutes, is_measured = _minutes(protocol, measured, head, net)
        unknown += len(group) * (minutes is None)
        total += len(group) * (minutes or 0)
        each = 'unknown' if minutes is None else f'{minutes:.1f} min each{"" if is_measured else ", a guess"}'
        starts = ', '.join(sorted({run.control or run.start for run in group}))
        yield f'{head} {net}: {len(group)} runs ({starts}), {each}'
    if not runs:
        yield 'no runs remain: all have records'
        return
    if unknown == len(runs):
        yield f'{unknown} runs of unknown length'
        return
    text = f'{len(runs)} runs, about {total / 60:.1f} CPU hours'
    text += f', {total / 60 / workers:.1f} h with {workers} at the same time' if workers > 1 else ''
    yield text + (f', and {unknown} runs of unknown length' if unknown else '')


def _minutes(
    protocol: Protocol, measured: dict[tuple[str, str], list[float]], head: str, net: str
) -> tuple[float | None, bool]:
    if times := measured.get((head, net)):
        return mean(times), True
    others = [time for (other, _), times in measured.items() if other == head for time in times]
    return (mean(others) if others else protocol.minutes), False
