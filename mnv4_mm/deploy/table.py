"""The table that ``compare`` prints and writes: one row for each file and each PyTorch reference."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from mnv4_mm.deploy.difference import Difference
from mnv4_mm.deploy.latency import Speed
from mnv4_mm.deploy.npu import Placement
from mnv4_mm.files import write_whole


@dataclasses.dataclass
class Row:
    """A row of the table. None stands for what was not measured.

    Attributes:
        name: Name of the file, or description of the PyTorch model.
        megabytes: Size on disk in MB.
        metric: AP or mIoU in [0, 1].
        to_pytorch: Metric minus the metric of PyTorch with the same input and postprocessing.
        raw: Difference between the outputs and PyTorch's.
        speed: Latency with one thread, and with all threads; in a browser only one of them.
        memory: Memory in MiB that loading and running adds to a process.
        npu: Placement of the operators of the file by the compiler of each NPU, by the name of the NPU.
        verdict: ``ok``, what is wrong, or why the file was not run; empty for PyTorch, which is not judged.
        passes: False if this row fails the comparison.
    """

    name: str
    megabytes: float | None = None
    metric: float | None = None
    to_pytorch: float | None = None
    raw: Difference | None = None
    speed: tuple[Speed | None, Speed | None] | None = None
    memory: float | None = None
    npu: dict[str, Placement] = dataclasses.field(default_factory=dict)
    verdict: str = ''
    passes: bool = True

    def reject(self, reason: str) -> None:
        """Mark this row as failed, with the reason as its verdict."""
        self.verdict, self.passes = reason, False


def markdown(rows: Sequence[Row], metric: str, npu: Sequence[str] = ()) -> Iterator[str]:
    """Yield the lines of the table in Markdown.

    Args:
        rows: The rows.
        metric: Name of the metric.
        npu: Names of NPUs. Each gets a column with the shares of operators that run on the NPU and, if the compiler
            estimates it, the latency in ms.
    """
    columns = ['file', 'MB', metric, 'to PyTorch', 'outputs differ by', '1 thread: p50, p95 ms', 'all: p50, p95 ms']
    columns += ['image to result ms', 'MiB', *(f'on {name}' for name in dict.fromkeys(npu)), 'verdict']
    yield f'| {" | ".join(columns)} |'
    yield f'|{"---|" * len(columns)}'
    for row in rows:
        single_thread, all_threads = row.speed or (None, None)
        either = single_thread or all_threads
        cells = [
            row.name.replace('|', '\\|'),
            _number(row.megabytes, '.1f'),
            _number(row.metric, '.4f'),
            _number(row.to_pytorch, '+.4f'),
            str(row.raw or ''),
            f'{single_thread.p50:.1f}, {single_thread.p95:.1f}' if single_thread else '',
            f'{all_threads.p50:.1f}, {all_threads.p95:.1f}' if all_threads else '',
            f'{either.whole:.1f}' if either else '',
            _number(row.memory, '.0f'),
            *(str(row.npu.get(name, '')) for name in dict.fromkeys(npu)),
            row.verdict.replace('|', '\\|'),
        ]
        yield f'| {" | ".join(cells)} |'


def npu_details(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a line for each file and each NPU that it was compiled for, see ``Placement.details``."""
    for row in rows:
        for name, placement in row.npu.items():
            yield f'{row.name} on {name}: {placement.details()}'


def write_json(path: str | Path, rows: Sequence[Row], metric: str) -> None:
    """Write the table as JSON. The file is written atomically.

    Args:
        path: The JSON file.
        rows: The rows.
        metric: Name of the metric.

    Raises:
        UserError: The file cannot be written.
    """
    content = [dataclasses.asdict(row) for row in rows]
    for entry in content:
        if entry['raw'] and not math.isfinite(entry['raw']['largest']):
            entry['raw']['largest'] = None  # JSON has no infinity
    write_whole(Path(path), json.dumps(dict(metric=metric, rows=content), indent=1))


def _number(value: float | None, form: str) -> str:
    return '' if value is None or math.isnan(value) else format(value, form)
