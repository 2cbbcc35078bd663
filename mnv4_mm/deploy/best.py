"""Choose the file that is fastest on this computer's CPU among those that are as accurate as PyTorch."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mnv4_mm.deploy.arguments import check_compare
from mnv4_mm.deploy.compare import Tolerances, check_data_of, compare_checked
from mnv4_mm.deploy.export import export
from mnv4_mm.deploy.quiet import without_telemetry
from mnv4_mm.deploy.table import Row
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Precision

MAX_DIFFERENCE = 0.005  # of AP or mIoU from PyTorch: half a point
ROUNDS = 50


def export_best(
    checkpoint: str,
    *,
    config: str | None = None,
    out_dir: str | None = None,
    size: Sequence[int] | None = None,
    calibration: str | None = None,
    rounds: int = ROUNDS,
    log: Callable[[str], None] = print,
) -> Path:
    """Export a checkpoint to the runtimes that are installed, and choose a file for the CPU of this computer.

    Candidates are the fp32 and int8 files of each runtime, and bf16 files if the CPU supports bf16. A candidate passes
    if its AP or mIoU on the test set differs from PyTorch's by at most ``MAX_DIFFERENCE``. The outputs of an fp32 file
    must not differ by more either, see ``Difference.largest``. Of the files that pass, the one with the lowest latency
    from the decoded image to the result, on one thread, is chosen. The other files are kept.

    Args:
        checkpoint: Checkpoint file written by ``mnv4 train``.
        config: See ``export``.
        out_dir: See ``export``.
        size: See ``export``.
        calibration: See ``export``.
        rounds: Number of timed runs of each file.
        log: Function that prints a line.

    Returns:
        The path of the chosen file.

    Raises:
        UserError: ``rounds`` is below 1, no file could be exported, or none passes. See also ``check_data_of`` and
            ``compare``.
    """
    if rounds < 1:
        raise UserError(f'rounds must be at least 1, got {rounds}: the fastest file is chosen by its latency')
    check_data_of(checkpoint, config, training=calibration is None)
    for target in TARGETS.values():
        if not target.runs_elsewhere and not target.cannot_run() and (missing := target.absent(convert=True)):
            log(f'{target.name} is left out: {missing}')
    paths: list[Path] = []
    for target, precision in candidates():
        try:
            paths += export(
                checkpoint,
                [target.name],
                config=config,
                out_dir=out_dir,
                size=size,
                precision=precision,
                calibration=calibration,
                log=log,
            )
        except UserError as error:  # a file that differs from PyTorch, or a converter that fails
            log(f'{target.name} in {precision} is left out: {error}')
    if not paths:
        raise UserError(f'{checkpoint} could not be exported to any runtime that is installed')
    path, artifacts = check_compare(checkpoint, [str(file) for file in paths])
    rows = compare_checked(
        path,
        artifacts,
        config=config,
        data=None,
        on='val',
        tolerances=Tolerances(MAX_DIFFERENCE, MAX_DIFFERENCE),
        rounds=rounds,
        out=None,
        log=log,
    )
    exported = [row for row in rows if any(row.name == one.name for one in paths)]
    best = fastest(exported)
    if best is None:
        raise UserError(
            f'no file has an AP or mIoU within {100 * MAX_DIFFERENCE:g} points of PyTorch: the table says what differs'
        )
    for line in reasons(best, exported):
        log(line)
    return next(one for one in paths if one.name == best.name)


def candidates() -> Iterator[tuple[Target, Precision]]:
    """Yield each target whose converter and runtime are installed, paired with each precision to try on this CPU."""
    for target in TARGETS.values():
        if target.runs_elsewhere or target.absent(convert=True) or target.cannot_run():
            continue
        for precision in target.precisions:
            if precision in ('fp32', 'int8') or (precision == 'bf16' and has_bf16()):
                yield target, precision


def fastest(rows: Sequence[Row]) -> Row | None:
    """Return the passing row with the lowest latency from image to result on one thread; None if no row passes."""
    return min((row for row in rows if row.passes and row.speed), key=_milliseconds, default=None)


def reasons(best: Row, rows: Sequence[Row]) -> Iterator[str]:
    """Yield lines that say which file was chosen, and how much slower the other files are or why they were refused.

    Args:
        best: Row of the chosen file.
        rows: Rows of all files, including ``best``.
    """
    yield (
        f'best for this CPU: {best.name}, {_milliseconds(best):.1f} ms from image to result on one thread, '
        f'{100 * (best.to_pytorch or 0):+.2f} points from PyTorch'
    )
    for row in sorted(rows, key=_milliseconds):
        if row is best:
            continue
        ratio = _milliseconds(row) / _milliseconds(best)
        yield f'  {row.name}: {ratio:.2f} times as long' if row.passes else f'  {row.name}: refused, {row.verdict}'
    floats = {row.name: _milliseconds(row) for row in rows}
    for row in rows:
        # The names of files of one net and one runtime differ in the precision only: net_nms_int8.onnx.
        net, is_int8, suffix = row.name.rpartition('_int8')
        in_float = floats.get(f'{net}_fp32{suffix}', 0.0) if is_int8 else 0.0
        if row.speed and in_float and _milliseconds(row) > in_float:
            yield f'  {row.name}: int8 is slower than float here, {_milliseconds(row) / in_float:.2f} times as long'


def _milliseconds(row: Row) -> float:
    speed = row.speed and row.speed[0]
    return speed.whole if speed else float('inf')


def has_bf16() -> bool:
    """Return True if OpenVINO can compute in bf16 on this CPU. Otherwise it ignores the precision hint bf16."""
    return 'BF16' in without_telemetry('openvino').Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
