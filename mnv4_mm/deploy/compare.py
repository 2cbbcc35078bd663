"""Comparison of exported files with PyTorch: same images, same metric. Called by ``tools/compare.py``."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from mnv4_mm.apis.mistakes import telling_wrong_settings
from mnv4_mm.apis.model import load_model
from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.classes import set_classes_of, set_label_order
from mnv4_mm.config.data import (
    checkpoint_split,
    require_data,
    restore_data,
    with_data,
    with_data_roots,
    with_training_images,
)
from mnv4_mm.config.load import load_config
from mnv4_mm.deploy.arguments import check_compare
from mnv4_mm.deploy.artifacts import Artifact
from mnv4_mm.deploy.difference import difference
from mnv4_mm.deploy.evaluator import PredictorEvaluator, baseline_score
from mnv4_mm.deploy.graph import reference
from mnv4_mm.deploy.latency import Speed, measure_memory, measure_reading, measure_speed
from mnv4_mm.deploy.measured import Measurement, measured_files, read_measurements
from mnv4_mm.deploy.npu import NPUS
from mnv4_mm.deploy.table import Row, markdown, npu_details, write_json
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.paths import check_not_empty
from mnv4_mm.runtime import load
from mnv4_mm.runtime.meta import Meta
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.preprocess import is_reduced, prepare
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.checkpoint import read_checkpoint

MAX_IMAGES = 8  # images whose outputs are compared


class Tolerances(NamedTuple):
    """Largest differences from PyTorch that pass.

    Attributes:
        fp: Limit for the AP or mIoU of fp32 and fp16 files, and for the outputs of fp32 files, see
            ``Difference.largest``.
        int8: Limit for the AP or mIoU of int8 and bf16 files, and of any file that reads reduced JPEG images.
    """

    fp: float
    int8: float


class Reference(NamedTuple):
    """The PyTorch model, run with the input of an exported file, and its AP or mIoU.

    Attributes:
        predictor: The PyTorch model.
        meta: Metadata of the exported file.
        row: The row of this PyTorch model in the table, with its AP or mIoU.
    """

    predictor: Predictor
    meta: Meta
    row: Row

    @property
    def metric(self) -> float:
        assert self.row.metric is not None
        return self.row.metric

    def matches(self, meta: Meta) -> bool:
        """Return True if another file has the same input, resizing and selection of boxes, and so the same reference.

        Args:
            meta: Metadata of the other file.
        """
        return (self.meta.input, self.meta.resize, self.meta.selection) == (meta.input, meta.resize, meta.selection)


def compare(
    checkpoint: str,
    files: Sequence[str] = (),
    *,
    config: str | None = None,
    data: str | None = None,
    allow_dropped: bool = False,
    on: str = 'val',
    tolerance: float = 1e-3,
    int8_tolerance: float = 1e-2,
    rounds: int = 20,
    measured: Sequence[str] = (),
    npu: Sequence[str] = (),
    fast_jpeg: bool = False,
    out: str | None = None,
    log: Callable[[str], None] = print,
) -> list[Row]:
    """Compare exported files with the PyTorch model that they were exported from.

    Args:
        checkpoint: The checkpoint that the files were exported from. Or an exported file, which is then compared as
            well, and whose checkpoint ``checkpoint_of`` finds.
        files: Exported files. If empty and ``checkpoint`` is a checkpoint, all files that ``exported_files`` finds.
        config: Path or name of a config to use instead of the one in the checkpoint.
        data: Folder of the user's data set; the data set of the config if left out.
        allow_dropped: Leave out images and boxes of ``data`` that are broken, even if they are more than 1 %.
        on: ``val`` (the test set) or ``train`` (the training images).
        tolerance: Largest difference of AP or mIoU that passes for fp32 and fp16 files. It is also the limit for the
            outputs of fp32 files, see ``Difference.largest``.
        int8_tolerance: Largest difference of AP or mIoU that passes for int8 and bf16 files.
        rounds: Number of timed runs of each file; 0 leaves latency and memory out.
        measured: Files with measurements in browsers, see ``read_measurements``. Each measurement becomes a row.
        npu: Names of NPUs, see ``NPUS``, that the int8 files of their targets are compiled for.
        fast_jpeg: Add a row for each file that reads JPEG images at a reduced size, see
            ``runtime.predictor.Predictor``, with its AP or mIoU. Such a row is judged by ``int8_tolerance``.
        out: JSON file to which the table is also written.
        log: Function that prints a line.

    Returns:
        The rows of the table. A file that differs, or fails, is a row whose ``passes`` is False, not an error.

    Raises:
        UserError: An argument is invalid, a file cannot be read or was exported from another checkpoint, the data is
            missing or unusable, or latency cannot be measured. In the last case the table has been printed and written.
    """
    check_not_empty(config=config, data=data, measured=measured)
    measurements = read_measurements(measured)
    path, artifacts = check_compare(
        checkpoint,
        files,
        on=on,
        tolerance=tolerance,
        int8_tolerance=int8_tolerance,
        rounds=rounds,
        npu=npu,
        out=out,
    )
    return compare_checked(
        path,
        artifacts,
        measurements=measurements,
        config=config,
        data=data,
        allow_dropped=allow_dropped,
        on=on,
        tolerances=Tolerances(tolerance, int8_tolerance),
        rounds=rounds,
        npu=npu,
        fast_jpeg=fast_jpeg,
        out=out,
        log=log,
    )


def compare_checked(
    path: Path,
    artifacts: Sequence[Artifact],
    *,
    measurements: Sequence[Measurement] = (),
    config: str | None,
    data: str | None,
    allow_dropped: bool = False,
    on: str,
    tolerances: Tolerances,
    rounds: int,
    npu: Sequence[str] = (),
    fast_jpeg: bool = False,
    out: str | None,
    log: Callable[[str], None] = print,
) -> list[Row]:
    """Compare exported files with PyTorch like ``compare``, but with arguments that have been checked.

    The command line calls ``check_compare`` and ``read_measurements`` before it imports this module. Passing on their
    results avoids computing the checksums of large files twice.

    Args:
        path: The checkpoint that ``check_compare`` returned.
        artifacts: The exported files that ``check_compare`` returned.
        measurements: The result of ``read_measurements``.
        config: See ``compare``.
        data: See ``compare``.
        allow_dropped: See ``compare``.
        on: See ``compare``.
        tolerances: Largest differences that pass.
        rounds: See ``compare``.
        npu: See ``compare``.
        fast_jpeg: See ``compare``.
        out: See ``compare``.
        log: See ``compare``.

    Returns:
        See ``compare``.

    Raises:
        UserError: See ``compare``.
    """
    measured = measured_files(measurements, artifacts)
    loaded = read_checkpoint(path)
    model = load_model(loaded, config, device='cpu')
    model.cfg = with_data_roots(_test_config(model.cfg, data, on, allow_dropped, checkpoint_split(loaded)))
    require_data(model.cfg, 'test_dataloader')
    set_label_order(model.cfg)
    if matched := set_classes_of(model.cfg, loaded):
        log(matched)
    with telling_wrong_settings(config, checkpoint=path):
        evaluator = PredictorEvaluator(model.cfg)
        baseline = baseline_score(model.cfg, loaded)
    rows = [Row('PyTorch, as mnv4 test', path.stat().st_size / 1e6, baseline)]
    references: list[Reference] = []
    timed: list[tuple[Row, Artifact, Reference]] = []
    for artifact in artifacts:
        row = Row(artifact.path.name, artifact.megabytes)
        if _can_run(artifact, row):
            match = next((one for one in references if one.matches(artifact.meta)), None)
            if match is None:
                match = _reference(model, artifact.meta, evaluator)
                references.append(match)
                rows.append(match.row)
            _judge(row, artifact, match, evaluator, tolerances)
            if row.metric is not None and not TARGETS[artifact.meta.target].runs_elsewhere:
                timed.append((row, artifact, match))
                _place(row, artifact, npu)
        rows.append(row)
        if fast_jpeg and timed and timed[-1][0] is row:
            rows.append(_fast_jpeg_row(artifact, timed[-1][2], evaluator, tolerances.int8, rounds))

    timing_error = None
    if rounds and timed:
        try:
            _measure_latency(timed, path, config, evaluator.images()[0], rounds)
        except RuntimeError as error:
            timing_error = error
    rows += [_measured_row(artifact, one) for artifact, one in zip(measured, measurements, strict=True)]
    for line in (*markdown(rows, evaluator.metric, npu), *npu_details(rows)):
        log(line)
    if out:
        write_json(out, rows, evaluator.metric)
    if timing_error:
        raise UserError(f'latency and memory were not measured (--rounds 0 leaves them out): {timing_error}')
    return rows


def check_data_of(checkpoint: str, config: str | None = None, *, training: bool = False) -> None:
    """Check that the test set of a checkpoint's config exists, before a long export and comparison that need the set.

    Args:
        checkpoint: Checkpoint file.
        config: See ``compare``.
        training: Also check that the training images exist.

    Raises:
        UserError: The checkpoint or the config cannot be read, or the images are missing.
    """
    loaded = read_checkpoint(checkpoint)
    cfg = load_config(config) if config else checkpoint_config(loaded)
    for on in ('val', 'train') if training else ('val',):
        used = _test_config(copy.deepcopy(cfg), None, on, previous=checkpoint_split(loaded))
        require_data(with_data_roots(used), 'test_dataloader')


def _test_config(
    cfg: Config, data: str | None, on: str, allow_dropped: bool = False, previous: Mapping[str, str] | None = None
) -> Config:
    """Return a config with the data set of the user, or with its own if ``data`` is None.

    The test set is the training images if ``on`` is ``train``. ``cfg`` itself may be changed.
    """
    if data:
        layout = task_of(cfg).find(data, allow_dropped=allow_dropped, previous=previous)
        cfg = with_data(cfg, layout, allow_dropped)
    else:
        restore_data(cfg, previous)
    return with_training_images(cfg) if on == 'train' else cfg


def _reference(model: Any, meta: Meta, evaluator: PredictorEvaluator) -> Reference:
    """Evaluate PyTorch with the input that a file takes."""
    predictor = reference(model, meta)
    size = 'any size' if meta.input.size is None else '{}x{}'.format(*meta.input.size)
    name = f'PyTorch, {size} {meta.resize.mode}, {meta.input.dtype} {meta.input.layout}'
    return Reference(predictor, meta, Row(name, metric=evaluator.score(predictor)))


def _can_run(artifact: Artifact, row: Row) -> bool:
    """Return True if a file can be run on this machine; otherwise set the verdict of its row.

    If the runtime is installed but cannot run files on this operating system, the file passes if its content matches
    its metadata.
    """
    target = TARGETS.get(artifact.meta.target)
    if target is None:
        row.reject(f'not run: there is no runtime {artifact.meta.target!r}')
        return False
    if missing := target.absent():
        row.reject(f'not run: {missing}')
        return False
    if unsupported := target.cannot_run():
        try:
            row.verdict = f'not run: {unsupported}; {target.inspect(artifact.path, artifact.meta)}'
        except UserError as error:
            row.reject(str(error))
        return False
    return True


def _judge(
    row: Row, artifact: Artifact, reference: Reference, evaluator: PredictorEvaluator, tolerances: Tolerances
) -> None:
    """Run a file, fill in its row and set the verdict."""
    meta = artifact.meta
    images = evaluator.images()[:MAX_IMAGES]
    try:
        predictor = load(artifact.path)
        inputs = (prepare(read_image(image), meta.input, meta.resize)[0] for image in images)
        row.raw = difference(reference.predictor, predictor, inputs)
        row.metric = evaluator.score(predictor)
    # The exceptions of the runtimes have no common base class. A file that fails must not end the whole comparison.
    except Exception as error:
        row.reject(_failure(error))
        return
    row.to_pytorch = row.metric - reference.metric
    reasons = []
    if meta.precision == 'fp32' and not row.raw.largest <= tolerances.fp:
        reasons.append(f'outputs differ by {row.raw.largest:.2g}, over {tolerances.fp:g}')
    # For the others only the metric is judged. If it is zero for PyTorch, any file would pass.
    if meta.precision != 'fp32' and not reference.metric > 0:
        reasons.append(f'{evaluator.metric} of PyTorch is {reference.metric:g}: nothing is compared')
    if row.raw.inconclusive:
        reasons.append(row.raw.inconclusive)
    tolerance = tolerances.int8 if meta.precision in ('bf16', 'int8') else tolerances.fp
    if not abs(row.to_pytorch) <= tolerance:
        reasons.append(f'{evaluator.metric} differs by {row.to_pytorch:+.4f}, over {tolerance:g}')
    if reasons:
        row.reject('; '.join(reasons))
    else:
        row.verdict = 'ok'
        if TARGETS[meta.target].runs_elsewhere:
            row.verdict += ', by the ONNX Runtime of this computer; latency is measured in the browser (--measured)'


def _fast_jpeg_row(
    artifact: Artifact, reference: Reference, evaluator: PredictorEvaluator, tolerance: float, rounds: int
) -> Row:
    """Evaluate a file that reads JPEG images at a reduced size."""
    meta, images = artifact.meta, evaluator.images()
    row = Row(f'{artifact.path.name}, fast JPEG')
    if not any(is_reduced(image, meta.input, meta.resize) for image in images[:MAX_IMAGES]):
        row.verdict = (
            f'not measured: none of the first {MAX_IMAGES} images is a JPEG that is scaled down to a half or less'
        )
        return row
    try:
        row.metric = evaluator.score(load(artifact.path, fast_jpeg=True), reads_files=True)
    except Exception as error:  # as in _judge
        row.reject(_failure(error))
        return row
    row.to_pytorch = row.metric - reference.metric
    reasons = [*_metric_reasons(row.to_pytorch, reference, evaluator.metric, tolerance)]
    if reasons:
        row.reject('; '.join(reasons))
    else:
        row.verdict = 'ok'
    if rounds:
        whole, reduced = measure_reading(meta, images[:MAX_IMAGES], rounds)
        row.verdict += f'; an image is read and resized in {reduced:.1f} ms instead of {whole:.1f}'
    return row


def _metric_reasons(to_pytorch: float, reference: Reference, metric: str, tolerance: float) -> Iterator[str]:
    """Yield why a file that is judged by its metric alone does not pass."""
    # If it is zero for PyTorch, any file would pass.
    if not reference.metric > 0:
        yield f'{metric} of PyTorch is {reference.metric:g}: nothing is compared'
    if not abs(to_pytorch) <= tolerance:
        yield f'{metric} differs by {to_pytorch:+.4f}, over {tolerance:g}'


def _failure(error: Exception) -> str:
    return f'fails: {" ".join(str(error).split())[:200]}'


def _measured_row(artifact: Artifact, measurement: Measurement) -> Row:
    """Return the row of a measurement in a browser, in the column of its number of threads."""
    speed = Speed(measurement.p50, measurement.p95, measurement.whole)
    is_single = measurement.backend == 'wasm' and measurement.threads == 1
    return Row(
        f'{artifact.path.name} in {measurement}',
        speed=(speed, None) if is_single else (None, speed),
        verdict=f'measured there with {measurement.images} images, not judged',
    )


def _place(row: Row, artifact: Artifact, npu: Sequence[str]) -> None:
    """Compile a file for the NPUs that take its format. If a compilation fails, the row fails."""
    for name in npu:
        if NPUS[name].takes(artifact.meta):
            try:
                row.npu[name] = NPUS[name].place(artifact.path)
            # The compilers of the makers fail in many ways, also by time. Such a file must not end the comparison.
            except Exception as error:
                text = (
                    str(error)
                    if isinstance(error, UserError)
                    else f'{name} fails: {" ".join(str(error).split())[:200]}'
                )
                row.reject('; '.join(filter(None, (row.verdict if not row.passes else '', text))))


def _measure_latency(
    timed: Sequence[tuple[Row, Artifact, Reference]], checkpoint: Path, config: str | None, image: Path, rounds: int
) -> None:
    """Fill in latency and memory of the files, and of PyTorch with the input of the first one."""
    paths = [artifact.path for _, artifact, _ in timed]
    rows = [timed[0][2].row, *(row for row, _, _ in timed)]
    single, parallel = (measure_speed(checkpoint, config, paths, image, rounds, threads) for threads in (1, None))
    memory = measure_memory(checkpoint, config, paths, image)
    for row, one_thread, all_threads, mebibytes in zip(rows, single, parallel, memory, strict=True):
        row.speed, row.memory = (one_thread, all_threads), mebibytes
