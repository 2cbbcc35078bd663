"""Report on a training run: evaluates the checkpoint and writes a page, a model card and the numbers as JSON."""

import datetime
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process

from mnv4_mm.apis.evaluate import evaluate
from mnv4_mm.apis.launch import LostProcessError
from mnv4_mm.apis.mistakes import telling_wrong_settings
from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.classes import set_classes_of, set_label_order
from mnv4_mm.config.data import dataset_split
from mnv4_mm.config.evaluation import evaluation_config
from mnv4_mm.config.options import EvaluateOptions
from mnv4_mm.engine.curves import METRICS, read_scalars
from mnv4_mm.engine.measured import NOT_MEASURABLE
from mnv4_mm.errors import UserError
from mnv4_mm.paths import make_output_folder
from mnv4_mm.report import class_maps, detections
from mnv4_mm.report.content import ClassResult, Confusion, Example, Model, Points, Report, measured
from mnv4_mm.report.data import summarise
from mnv4_mm.report.examples import draw_class_maps, draw_detections
from mnv4_mm.report.page import write_card, write_page
from mnv4_mm.report.run import commands, describe_model, find_exports, versions
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.checkpoint import Checkpoint, read_checkpoint
from mnv4_mm.weights.work_dir import find_checkpoint


def write_report(
    path: str | Path,
    *,
    data: str | None = None,
    out: str | Path | None = None,
    launcher: str = 'none',
    command: str | None = None,
) -> Path:
    """Evaluate a trained checkpoint and report on it.

    Writes the self-contained page ``index.html``, the model card ``README.md`` with its ``images/``, and
    ``report.json`` with all numbers. Logs and predictions go to ``held_out/`` beside the checkpoint or, if ``out`` is
    given, in that folder. If the config has ``report_on_training_images``, the training images are evaluated and
    drawn as well.

    Args:
        path: A checkpoint, or the work directory of a run. In a work directory, the best checkpoint is used, or the
            last one if there is no undamaged best one; damaged files that are skipped are printed. With
            ``report_on_training_images``, the last checkpoint is always used, since such a run is meant to learn its
            training images.
        data: Data set that the checkpoint was trained with, if it has moved; None to use the path in the config.
        out: Folder to write to; ``report`` beside the checkpoint if None.
        launcher: mmengine's launcher that started this process: none, pytorch, slurm or mpi.
        command: The training command to show in the report. If None, the command of an earlier report in the same
            folder is shown, or one for the config beside the checkpoint.

    Returns:
        The path of ``index.html``.

    Raises:
        UserError: There is no checkpoint, the checkpoint or its data cannot be used, or ``out`` cannot be written.
    """
    log: Callable[[str], object] = print if is_main_process() else lambda line: None
    checkpoint = read_checkpoint(find_checkpoint(path, log=log))
    options = EvaluateOptions(data=data, allow_dropped=True, launcher=launcher)
    cfg = evaluation_config(checkpoint, options, on_gpu=torch.cuda.is_available())
    if _on_training_images(cfg) and Path(path).is_dir():
        checkpoint = read_checkpoint(find_checkpoint(path, best=False, log=log))
    set_label_order(cfg)
    if (matched := set_classes_of(cfg, checkpoint)) and is_main_process():
        print(matched)
    file = checkpoint.path
    folder = make_output_folder('--out', out or file.parent / 'report')
    logs = folder if out else file.parent
    task = task_of(cfg)
    predictions = logs / 'held_out' / task.results
    trained_on: Mapping[str, float] | None = None
    with telling_wrong_settings(None, checkpoint=file):
        metrics = evaluate(cfg, checkpoint, work_dir=logs / 'held_out', on='val', out=str(predictions))
        if _on_training_images(cfg):
            trained_on = evaluate(
                cfg,
                checkpoint,
                work_dir=logs / 'trained_on',
                on='train',
                per_class=False,
                show_dir=str(logs / 'images'),
            )
    page = folder / 'index.html'
    if is_main_process():
        analysis = _analyse(cfg, checkpoint, predictions, folder)
        command = command or _earlier_command(folder)
        content = _gather(cfg, checkpoint, metrics, trained_on, analysis, data, command)
        (folder / 'report.json').write_text(content.to_json(), encoding='utf-8', errors='backslashreplace')
        write_page(content, page)
        write_card(content, folder / 'README.md')
        _print_summary(
            content, cfg.test_evaluator.get('prefix') or 'validation', task.benchmark, trained_on is not None
        )
        print(f'report: {page}')
    return page


def report_after_training(folder: Path, *, launcher: str = 'none', command: str | None = None) -> None:
    """Report on a run that has just ended, if ``report`` of its config is true.

    The default of ``report`` is true for configs with ``own_data`` or ``report_on_training_images``. If the report
    cannot be made because of a ``UserError``, a warning is printed, so that the training does not fail.

    Args:
        folder: Work directory of the run.
        launcher: See ``write_report``.
        command: See ``write_report``.

    Raises:
        LostProcessError: Another process has ended, so that the evaluation for the report is not complete.
    """
    barrier()  # wait until the main process has written the checkpoint
    try:
        cfg = checkpoint_config(read_checkpoint(find_checkpoint(folder, best=False, log=lambda line: None)))
        if cfg.get('report', bool(cfg.get('own_data')) or _on_training_images(cfg)):
            write_report(folder, launcher=launcher, command=command)
    except LostProcessError:
        raise
    except UserError as error:
        if is_main_process():
            print(f'warning: no report: {error}')


def _on_training_images(cfg: Config) -> bool:
    # The second name is that of earlier versions.
    return bool(cfg.get('report_on_training_images', cfg.get('report_on_training_pictures')))


class Analysis(NamedTuple):
    """Analysis of the predictions in the form that both tasks share.

    Attributes:
        classes: Class names, in the order of labels.
        counts: Number of boxes or pixels of each class in the ground truth.
        scores: Metrics of each class, see ``ClassResult.scores``.
        confusion: See ``Report``.
        examples: See ``Report``.
        precision_recall: See ``Report``.
        threshold: See ``Report``.
    """

    classes: tuple[str, ...]
    counts: list[int]
    scores: list[dict[str, float | None]]
    confusion: Confusion
    examples: list[Example]
    precision_recall: dict[str, Points]
    threshold: float | None


def _analyse(cfg: Config, checkpoint: Checkpoint, predictions: Path, folder: Path) -> Analysis:
    """Analyse the predictions that ``evaluate`` wrote, and draw examples into the folder of the report.

    Raises:
        UserError: The order of classes in the masks differs from the checkpoint.
    """
    classes = tuple(checkpoint.meta['dataset_meta']['classes'])
    if task_of(cfg).name == 'detection':
        split = dataset_split(cfg, 'test_dataloader')
        boxes = detections.analyse(split.annotations, json.loads(predictions.read_text()), classes)
        examples = draw_detections(boxes.images, split.images, classes, folder)
        return Analysis(
            classes, boxes.counts, boxes.scores, boxes.confusion, examples, boxes.precision_recall, boxes.threshold
        )
    masks = class_maps.Masks(cfg, predictions)
    if masks.classes != classes:
        raise UserError('the masks of the data have the classes of the checkpoint in another order')
    pixels = class_maps.analyse(masks)
    examples = draw_class_maps(pixels.images, masks, folder)
    return Analysis(classes, pixels.counts, pixels.scores, pixels.confusion, examples, {}, None)


def _gather(
    cfg: Config,
    checkpoint: Checkpoint,
    metrics: Mapping[str, float],
    trained_on: Mapping[str, float] | None,
    analysis: Analysis,
    data: str | None,
    command: str | None,
) -> Report:
    task, file = task_of(cfg), checkpoint.path
    summary, counts = summarise(cfg)
    train_counts = counts.get('training')
    # The evaluator's prefix is removed. Metrics of single classes are left out, as they have a table of their own.
    names = {name: name.partition('/')[2] for name in metrics}
    values = {names[name]: measured(value) for name, value in metrics.items() if names[name].startswith(METRICS)}
    # Without any detection there are no metrics: the value is 0 if there is ground truth, otherwise not measurable.
    value = values.get(task.metric, None if values or not any(analysis.counts) else 0.0)
    losses, validation = read_scalars(file.parent)
    model = describe_model(cfg, checkpoint)
    return Report(
        title=file.parent.resolve().name,
        task=task.name,
        created=datetime.datetime.now(datetime.timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
        model=model,
        metric=task.metric,
        value=value,
        # The metrics are empty if nothing was detected: the value is 0.
        trained_on=None if trained_on is None else _main_metric(trained_on, task.metric) if trained_on else 0.0,
        metrics=values,
        losses=_points(losses),
        validation={name.partition('/')[2]: points for name, points in _points(validation).items()},
        unit='epoch' if cfg.train_cfg.get('type') == 'EpochBasedTrainLoop' else 'iteration',
        classes=[
            ClassResult(name, train_counts[i] if train_counts else None, analysis.counts[i], analysis.scores[i])
            for i, name in enumerate(analysis.classes)
        ],
        precision_recall=analysis.precision_recall,
        threshold=analysis.threshold,
        confusion=analysis.confusion,
        examples=analysis.examples,
        data=summary,
        exports=find_exports(file, model.sha256),
        versions=versions(),
        commands=commands(file, command, data, analysis.threshold),
        notes=_notes(model, value, trained_on is not None),
    )


def _main_metric(metrics: Mapping[str, float], name: str) -> float | None:
    value = next((value for key, value in metrics.items() if key.partition('/')[2] == name), math.nan)
    return measured(value)


def _points(curves: Mapping[str, Mapping[int, float]]) -> dict[str, Points]:
    """Sort the points of each curve, and drop values that are not finite."""
    return {
        name: [(float(x), float(y)) for x, y in sorted(points.items()) if math.isfinite(y)]
        for name, points in sorted(curves.items())
    }


def _earlier_command(folder: Path) -> str | None:
    """Return the training command of an earlier report in the same folder."""
    path = folder / 'report.json'
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding='utf-8'))['commands']).get('Train')
    except (ValueError, KeyError, TypeError):
        return None  # of another version, or not ours


def _notes(model: Model, value: float | None, has_trained_on: bool) -> list[str]:
    notes = []
    if value is None:
        notes.append('The validation images have no ground truth to measure with.')
    if model.is_best and value is not None:
        notes.append(
            'The checkpoint was selected by its score on the validation images, so that its score there is a little '
            'optimistic. Images that took no part in the selection give an independent one.'
        )
    if has_trained_on:
        notes.append('The score on the training images shows that training works, not that the model generalises.')
    return notes


def _print_summary(content: Report, prefix: str, benchmark: str, has_trained_on: bool) -> None:
    print(f'{content.metric} of {content.model.checkpoint}:')
    rows = [(prefix, content.value)]
    if has_trained_on:
        rows.insert(0, ('trained_on', content.trained_on))
    for name, value in rows:
        text = NOT_MEASURABLE if value is None else f'{value:.3f}'
        print(f'  {f"{name}/{content.metric}":<28}{text}')
    if has_trained_on:
        article = 'an' if benchmark[0] in 'AEIOU' else 'a'
        print(
            'The first is measured on the training images: it shows that training works, not that the model '
            f'generalises. Neither is {article} {benchmark} result.'
        )
