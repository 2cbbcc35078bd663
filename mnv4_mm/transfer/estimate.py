"""Estimate of the time that the runs of a protocol will take. Imports nothing heavy."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from statistics import mean

from mnv4_mm.processors import cores
from mnv4_mm.transfer.protocol import Protocol, Run
from mnv4_mm.transfer.records import Record


def plan_lines(protocol: Protocol, runs: Sequence[Run], records: Iterable[Record], workers: int) -> Iterator[str]:
    """Describe the runs that are still to be made, and estimate their CPU time.

    The CPU time of a run is estimated as the mean over earlier runs with the same head and net. If there are none, the
    estimate is marked as a guess: it is the mean over all earlier runs with the head or, if there are none either, the
    ``minutes`` of the head, in proportion to the protocol's ``costs`` of the nets. If ``minutes`` is None too, the time
    is unknown. The training of a teacher is a run of its own.

    Args:
        protocol: The protocol.
        runs: Runs of the protocol that are still to be made.
        records: Records of earlier runs; failed ones are ignored.
        workers: Number of runs at the same time, by which the total time is divided, or by the number of cores if that
            is smaller.

    Yields:
        A line of text for each combination of head and net, then a line with the total, which leaves out runs of
        unknown time.
    """
    records = list(records)
    measured: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in records:
        if 'error' not in record:
            measured[record['head'], record['net']].append(record['processor_minutes'])
    total, unknown = 0.0, 0
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for run in runs:
        groups[run.head, run.net].append(run.control or run.start)
    if protocol.teacher:
        trained = {record['head'] for record in records if record.get('teacher')}
        for head in {run.head: None for run in runs if run.control == 'distilled' and run.head not in trained}:
            groups[head, protocol.teacher.net].append('teacher')
    for (head, net), kinds in groups.items():
        minutes, is_measured = _minutes(protocol, measured, head, net)
        unknown += len(kinds) * (minutes is None)
        total += len(kinds) * (minutes or 0)
        each = 'unknown' if minutes is None else f'{minutes:.1f} min each{"" if is_measured else ", a guess"}'
        yield f'{head} {net}: {_runs(len(kinds))} ({", ".join(sorted(set(kinds)))}), {each}'
    if not runs:
        yield 'no runs remain: all have records'
        return
    count = sum(map(len, groups.values()))
    if unknown == count:
        yield f'{_runs(unknown)} of unknown length'
        return
    text = f'{_runs(count)}, about {total / 60:.1f} CPU hours'
    if workers > 1:
        text += f', {total / 60 / min(workers, cores()):.1f} h with {workers} at the same time on {cores()} cores'
    yield text + (f', and {_runs(unknown)} of unknown length' if unknown else '')


def _runs(count: int) -> str:
    return f'{count} run{"s" * (count != 1)}'


def _minutes(
    protocol: Protocol, measured: dict[tuple[str, str], list[float]], head: str, net: str
) -> tuple[float | None, bool]:
    if times := measured.get((head, net)):
        return mean(times), True
    # In units of the first net.
    others = [
        time / protocol.costs.get(name, 1)
        for (other, name), times in measured.items()
        if other == head
        for time in times
    ]
    unit = mean(others) if others else protocol.heads[head].minutes
    return (None if unit is None else unit * protocol.costs.get(net, 1)), False
