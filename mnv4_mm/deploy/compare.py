"""PyTorch and every exported file over the same pictures, by the same metric: what ``tools/compare.py`` calls."""

import copy
import dataclasses
import glob
import json
import math
import re
import tempfile
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, DefaultScope

from mnv4_mm.apis.evaluate import evaluate
from mnv4_mm.apis.model import load_model
from mnv4_mm.config.data import (
    dataset_split,
    fit_data,
    innermost_dataset,
    on_training_pictures,
    require_data,
    resolve_data_roots,
)
from mnv4_mm.deploy.difference import Difference, difference
from mnv4_mm.deploy.graph import reference
from mnv4_mm.deploy.latency import Speed, measure_memory, measure_speed
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.runtime import load
from mnv4_mm.runtime.meta import OUTPUTS, Meta, Precision, read_meta, sha256, sidecar
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.preprocess import prepare
from mnv4_mm.runtime.results import ClassMap, Detections
from mnv4_mm.tasks import task_of

LOOKED_AT = 8  # pictures whose raw outputs are compared


@dataclasses.dataclass
class Row:
    """A line of the table.

    Attributes:
        name: File, or which PyTorch.
        megabytes: Size on disk.
        metric: AP or mIoU in [0, 1].
        to_pytorch: The metric's difference to PyTorch with the same input and the same end of the graph.
        raw: What differs in the outputs.
        speed: One thread, and all threads.
        memory: MiB that loading and running it adds to a process.
        verdict: ``ok``, or what is wrong; empty where nothing is judged.
        passes: Whether the verdict is no reason to fail.
    """

    name: str
    megabytes: float | None = None
    metric: float | None = None
    to_pytorch: float | None = None
    raw: Difference | None = None
    speed: tuple[Speed, Speed] | None = None
    memory: float | None = None
    verdict: str = ''
    passes: bool = True


class Reference(NamedTuple):
    """What PyTorch does with the input of a file."""

    meta: Meta
    predictor: Predictor
    metric: float
    row: Row

    def fits(self, meta: Meta) -> bool:
        """Whether PyTorch does the same for another file: input, sizes, and what is left of the net at the end."""
        a = self.meta
        return (a.input, a.resize, a.selection) == (meta.input, meta.resize, meta.selection)


def compare(
    checkpoint: str,
    files: Sequence[str] = (),
    *,
    config: str | None = None,
    data: str | None = None,
    on: str = 'val',
    tolerance: float = 1e-3,
    int8_tolerance: float = 1e-2,
    rounds: int = 20,
    out: str | None = None,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Judges exported files.

    Args:
        checkpoint: What they were exported from; or one more file, in ``exported`` beside its checkpoint.
        files: Exported files; all of the checkpoint in ``exported`` beside it if left out.
        config: Config to use instead of the one inside the checkpoint.
        data: A user's data set; the config's own if left out.
        on: ``val`` (the test set) or ``train`` (the training pictures).
        tolerance: Most that AP or mIoU may differ from PyTorch's, and, for fp32, the outputs relative to their largest.
        int8_tolerance: Most that AP or mIoU may differ for int8.
        rounds: How often each is timed; 0: no latency and no memory.
        out: JSON file to write the table to as well.
        say: Where lines go.

    Returns:
        The table.

    Raises:
        UserError: a bad argument, an unreadable file, or one that is not of this checkpoint.
    """
    if sidecar(Path(checkpoint)).is_file():
        files, checkpoint = [checkpoint, *files], str(checkpoint_of(Path(checkpoint)))
    paths = [Path(file) for file in files] or exported_beside(Path(checkpoint))
    if on not in ('val', 'train'):
        raise UserError(f'--on must be val or train, got {on}')
    if min(tolerance, int8_tolerance) < 0 or rounds < 0:
        raise UserError('--tolerance, --int8-tolerance and --rounds must not be negative')
    if out and (not Path(out).parent.is_dir() or Path(out).is_dir()):
        raise UserError(f'--out {out}: {"a folder" if Path(out).is_dir() else f"no folder {Path(out).parent}"}')
    metas = [read_meta(path) for path in paths]
    own = sha256(Path(checkpoint)) if Path(checkpoint).is_file() else ''
    for path, meta in zip(paths, metas, strict=True):
        if own and meta.source.get('sha256') != own:
            raise UserError(f'{path} was exported from another checkpoint: {meta.source.get("checkpoint")}')
    model = load_model(checkpoint, config, device='cpu')
    model.cfg = resolve_data_roots(with_data(model.cfg, data, on))
    require_data(model.cfg, 'test_dataloader')
    examiner = Examiner(model.cfg)

    rows = [Row('PyTorch, as tools/test.py', Path(checkpoint).stat().st_size / 1e6, _tested(model.cfg, checkpoint))]
    references: list[Reference] = []
    runnable: list[tuple[Row, Path]] = []
    first: Row | None = None  # PyTorch with the input of the first file that runs, with which it is timed
    for path, meta in zip(paths, metas, strict=True):
        row = Row(path.name, sum((path.parent / name).stat().st_size for name in meta.files) / 1e6)
        if not _can_run(path, meta, row):
            rows.append(row)
            continue
        known = next((found for found in references if found.fits(meta)), None)
        if known is None:
            predictor = reference(model, meta)
            expected = examiner.score(predictor)
            known = Reference(meta, predictor, expected, Row(f'PyTorch, {_how(meta)}', metric=expected))
            references.append(known)
            rows.append(known.row)
        _judge(row, path, meta, known, examiner, tolerance, int8_tolerance)
        rows.append(row)
        if row.metric is not None:
            first = first or known.row
            runnable.append((row, path))
    trouble = None
    if rounds and first:
        try:
            _time(first, runnable, Path(checkpoint), config, examiner.pictures()[0], rounds)
        except RuntimeError as error:
            trouble = error
    for line in table(rows, examiner.name):
        say(line)
    if out:
        content = [dataclasses.asdict(row) for row in rows]
        for entry in content:
            if entry['raw'] and not math.isfinite(entry['raw']['largest']):
                entry['raw']['largest'] = None  # JSON has no infinity
        part = Path(f'{out}.part')
        try:
            part.write_text(json.dumps(dict(metric=examiner.name, rows=content), indent=1))
            part.replace(out)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise UserError(f'--out {out} cannot be written: {error.strerror}') from error
    if trouble:
        raise UserError(f'latency and memory were not measured (--rounds 0 leaves them out): {trouble}')
    return rows


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that a file was exported from, in its folder or the one above."""
    name = read_meta(path).source.get('checkpoint', '')
    found = next((folder / name for folder in (path.parent.parent, path.parent) if (folder / name).is_file()), None)
    if found is None:
        raise UserError(
            f'{path} was exported from {name}, which is neither beside it nor a folder above: name it first'
        )
    return found


def exported_beside(checkpoint: Path) -> list[Path]:
    """What was exported of a checkpoint, as ``export`` names it."""
    found = sorted(checkpoint.parent.glob(f'exported/{glob.escape(checkpoint.stem)}_*.json'))
    # Not of a checkpoint whose name begins alike.
    kinds, precisions = '|'.join(OUTPUTS), '|'.join(typing.get_args(Precision))
    name = re.compile(rf'{re.escape(checkpoint.stem)}_({kinds})_({precisions})(_dynamic|_\d+x\d+)?(_normalised)?\.')
    paths = [path.with_suffix('') for path in found if name.match(path.name)]
    paths = [path for path in paths if path.exists()]  # not a sample, nor a list of layers
    if checkpoint.is_file():  # not of one that had this name before
        own = sha256(checkpoint)
        sources = [Meta.from_json(sidecar(path).read_bytes(), sidecar(path)).source for path in paths]
        paths = [path for path, source in zip(paths, sources, strict=True) if source.get('sha256') == own]
    if not paths:
        raise UserError(f'no exported files of {checkpoint} in {checkpoint.parent / "exported"}: name some')
    return paths


def with_data(cfg: Config, data: str | None, on: str) -> Config:
    """A config with a user's data, and with the training pictures as its test set if ``on`` says so."""
    if data:
        cfg = fit_data(cfg, task_of(cfg).find(data))
    return on_training_pictures(cfg) if on == 'train' else cfg


class Examiner:
    """Runs predictors over a config's test set and measures them by its metric.

    Raises:
        UserError: a detector's test set without boxes.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg = copy.deepcopy(cfg)
        task = task_of(cfg)
        self.name = task.metric
        # The metric that tools/test.py uses.
        task.set_outputs(cfg, dataset_split(cfg, 'test_dataloader'), False, None)
        info = innermost_dataset(cfg.test_dataloader.dataset).copy()
        # Truth only: pictures are read and prepared as the exported file asks.
        info['pipeline'] = [dict(type='LoadAnnotations')] if self.name == 'mIoU' else []
        info['test_mode'] = True
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            self.dataset = DATASETS.build(info)
        infos = (self.dataset.get_data_info(i) for i in range(len(self.dataset)))
        if self.name != 'mIoU' and not any(one['instances'] for one in infos):
            raise UserError(f'the test set has no boxes to measure {self.name} by')

    def pictures(self) -> list[Path]:
        return [Path(self.dataset.get_data_info(i)['img_path']) for i in range(len(self.dataset))]

    def score(self, predict: Callable[[np.ndarray], Detections | ClassMap]) -> float:
        """AP or mIoU, in [0, 1]."""
        with DefaultScope.overwrite_default_scope(self.cfg.default_scope):
            evaluator = Evaluator(self.cfg.test_evaluator)
            evaluator.dataset_meta = self.dataset.metainfo
            for i in range(len(self.dataset)):
                info = self.dataset[i]
                image = read_image(info['img_path'])
                evaluator.process([self._sample(info, image, predict(image))])
            metrics = evaluator.evaluate(len(self.dataset))
        return _of(metrics, self.name)

    def _sample(self, info: dict, image: np.ndarray, found: Detections | ClassMap) -> dict:
        if isinstance(found, ClassMap):
            truth = torch.from_numpy(info['gt_seg_map'].astype(np.int64))[None]
            return dict(
                pred_sem_seg=dict(data=torch.from_numpy(found.class_map.astype(np.int64))[None]),
                gt_sem_seg=dict(data=truth),
                img_path=info['img_path'],
                reduce_zero_label=info.get('reduce_zero_label'),
            )
        instances = dict(
            bboxes=torch.from_numpy(found.boxes),
            scores=torch.from_numpy(found.scores),
            labels=torch.from_numpy(found.labels),
        )
        return dict(img_id=info['img_id'], ori_shape=image.shape[:2], pred_instances=instances)


def _tested(cfg: Config, checkpoint: str) -> float:
    """What ``tools/test.py`` measures."""
    cfg = Config(cfg.to_dict())
    cfg.log_level = 'WARNING'
    with tempfile.TemporaryDirectory() as folder:
        metrics = evaluate(cfg, checkpoint, work_dir=Path(folder), per_class=False)
    return _of(metrics, task_of(cfg).metric)


def _of(metrics: Mapping[str, float], name: str) -> float:
    """AP or mIoU; 0 where nothing was found in any picture, of which there are no metrics.

    Raises:
        UserError: the config's evaluator measures something else, or the data has nothing to measure it by.
    """
    if not metrics:
        return 0.0
    found = next((float(value) for key, value in metrics.items() if key.endswith(name)), None)
    if found is None:
        raise UserError(f'the test_evaluator of this config gives {", ".join(metrics)}; {name} is compared')
    if not found >= 0:  # nan, or COCO's -1: no masks, or boxes of crowds only
        raise UserError(f'the test set has nothing to measure {name} by')
    return found


def _how(meta: Meta) -> str:
    size = 'any size' if meta.input.size is None else '{}x{}'.format(*meta.input.size)
    return f'{size} {meta.resize.mode}, {meta.input.dtype} {meta.input.layout}'


def _can_run(path: Path, meta: Meta, row: Row) -> bool:
    """Whether a file can be run here; the verdict if not."""
    target = TARGETS.get(meta.target)
    cannot = 'there is no such runtime' if target is None else (target.absent() or target.cannot_run())
    if not cannot:
        return True
    row.verdict, row.passes = f'not run: {cannot}', False
    if target and not target.absent():  # nowhere on this kind of machine
        try:
            row.verdict, row.passes = f'{row.verdict}; {target.inspect(path, meta)}', True
        except UserError as error:
            row.verdict = str(error)
    return False


def _judge(
    row: Row,
    path: Path,
    meta: Meta,
    by: Reference,
    examiner: Examiner,
    tolerance: float,
    int8_tolerance: float,
) -> None:
    inputs = (prepare(read_image(picture), meta.input, meta.resize)[0] for picture in examiner.pictures()[:LOOKED_AT])
    try:
        predictor = load(path)
        row.raw = difference(by.predictor, predictor, inputs)
        row.metric = examiner.score(predictor)
    # The runtimes' own exceptions have no common base. What one file does must not cost the others' rows.
    except Exception as error:
        row.verdict, row.passes = f'fails: {" ".join(str(error).split())[:200]}', False
        return
    row.to_pytorch = row.metric - by.metric
    wrong = []
    if meta.precision == 'fp32' and not row.raw.largest <= tolerance:
        wrong.append(f'outputs differ by {row.raw.largest:.2g}, over {tolerance:g}')
    if meta.precision != 'fp32' and not by.metric > 0:  # whose outputs are not judged
        wrong.append(f'{examiner.name} of PyTorch is {by.metric:g}: nothing is compared')
    if row.raw.vacuous:
        wrong.append(row.raw.vacuous)
    allowed = int8_tolerance if meta.precision == 'int8' else tolerance
    if not abs(row.to_pytorch) <= allowed:
        wrong.append(f'{examiner.name} differs by {row.to_pytorch:+.4f}, over {allowed:g}')
    row.verdict, row.passes = '; '.join(wrong) or 'ok', not wrong


def _time(
    first: Row,
    runnable: Sequence[tuple[Row, Path]],
    checkpoint: Path,
    config: str | None,
    picture: Path,
    rounds: int,
) -> None:
    paths = [path for _, path in runnable]
    single, every = (measure_speed(checkpoint, config, paths, picture, rounds, threads) for threads in (1, None))
    memory = measure_memory(checkpoint, config, paths, picture)
    for row, one, all_threads, added in zip([first, *(row for row, _ in runnable)], single, every, memory, strict=True):
        row.speed, row.memory = (one, all_threads), added


def table(rows: Sequence[Row], metric: str) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield (
        f'| file | MB | {metric} | to PyTorch | outputs differ by | 1 thread: p50, p95 ms | all: p50, p95 ms | '
        'picture to result ms | MiB | verdict |'
    )
    yield '|---|---|---|---|---|---|---|---|---|---|'
    for row in rows:
        cells = [
            row.name,
            _number(row.megabytes, '.1f'),
            _number(row.metric, '.4f'),
            _number(row.to_pytorch, '+.4f'),
            row.raw.text() if row.raw else '',
            *(f'{speed.p50:.1f}, {speed.p95:.1f}' for speed in row.speed or ()),
            *([''] * (0 if row.speed else 2)),
            f'{row.speed[0].whole:.1f}' if row.speed else '',
            _number(row.memory, '.0f'),
            row.verdict,
        ]
        yield f'| {" | ".join(cells)} |'


def _number(value: float | None, form: str) -> str:
    return '' if value is None or math.isnan(value) else format(value, form)
