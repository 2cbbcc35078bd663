"""One transfer run: train, evaluate, export, measure. Runs in a process of its own, see ``work.py``.

``python -m mnv4_mm.transfer.run`` reads a ``Job`` as one line of JSON from standard input and writes the record to
``Job.record``. The process exits when standard input is closed, because its parent process has ended then.
"""

import datetime
import hashlib
import json
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from mmengine.config import Config
from PIL import Image
from torch import Tensor

from mnv4_mm.apis.evaluate import evaluate
from mnv4_mm.apis.model import load_model
from mnv4_mm.apis.train import train
from mnv4_mm.child_processes import run_task
from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.data import dataset_split, restore_data
from mnv4_mm.deploy.describe import default_size
from mnv4_mm.deploy.evaluator import PredictorEvaluator
from mnv4_mm.deploy.export import export
from mnv4_mm.digest import file_digest
from mnv4_mm.engine.curves import read_scalars
from mnv4_mm.engine.iou import class_map_name
from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.images import read_image
from mnv4_mm.models.complexity import count
from mnv4_mm.runtime.meta import read_meta
from mnv4_mm.runtime.preprocess import prepare
from mnv4_mm.tasks import task_of
from mnv4_mm.transfer.bootstrap import average_precision, count_blocks, mean_iou, resampled_ap, resampled_iou
from mnv4_mm.transfer.exported import measure_latencies
from mnv4_mm.transfer.job import Job
from mnv4_mm.transfer.machine import describe_machine
from mnv4_mm.transfer.protocol import Head, Protocol, Run, read_protocol
from mnv4_mm.transfer.recipe import head_data_digest, recipe_digest, run_options, weights_of
from mnv4_mm.transfer.records import failure
from mnv4_mm.weights.checkpoint import Checkpoint, read_checkpoint
from mnv4_mm.weights.hub import fetch_timm
from mnv4_mm.weights.tags import DEFAULT_TAGS
from mnv4_mm.weights.work_dir import list_checkpoints

CURVE = 60  # points of a loss curve
PACKAGES = (
    'torch', 'timm', 'mmengine', 'onedl-mmengine', 'mmcv', 'onedl-mmcv', 'mmdet', 'onedl-mmdetection', 'mmsegmentation',
    'onedl-mmsegmentation', 'numpy', 'opencv-python', 'onnxruntime',
)  # fmt: skip


def execute(job: Job) -> dict[str, Any]:
    """Execute a run: train, evaluate, export to ONNX, measure the latency.

    Returns:
        The record of the run, with the keys ``records.FIELDS``, ``teacher``, ``curve`` and ``gpu_memory_mib``. If the
        net cannot be exported, its ``latency_ms`` is None, and ``export_error`` has the reason.

    Raises:
        UserError: The run cannot be made: the net does not fit the head, its weights cannot be loaded, or the protocol,
            its config or the data has changed since the command was started.
        RuntimeError: The metric differs from the one computed from the written predictions.
    """
    machine = describe_machine(PACKAGES)  # at the start, as the checkout may change during the run
    machine['gpu'] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    _check_unchanged(job)
    protocol, run = read_protocol(job.protocol), job.run
    head, work_dir, teacher = protocol.heads[run.head], Path(job.work_dir), None
    checkpoint_of_teacher, options = None, None
    if run.control == 'distilled':
        assert protocol.teacher is not None
        checkpoint_of_teacher, teacher = _teacher(job, protocol)
        options = protocol.teacher.cfg_options
    # Neither the check of the data nor the teacher's training is part of the run.
    start, before = time.monotonic(), _processor_seconds()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    weights = _train(job, protocol, run, work_dir, checkpoint_of_teacher, options)
    memory = _peak_memory()
    checkpoint = read_checkpoint(list_checkpoints(work_dir)[0])
    cfg = restore_data(checkpoint_config(checkpoint))
    scores, resampled, blocks, chance = _measure(cfg, checkpoint, work_dir / 'test', protocol.block)
    metric = task_of(cfg).metric
    logged, validated = read_scalars(work_dir)
    losses = sorted(logged.get('loss', {}).items())
    curve = next((values for name, values in validated.items() if name.endswith(metric)), {})
    record = {
        'protocol': protocol.name,
        **run._asdict(),
        'recipe': job.recipe,
        'data': job.data_digest,
        'weights': weights and _describe_weights(run, weights),
        'teacher': teacher,
        'metric': metric,
        'score': _main(scores, metric),
        'scores': {name.partition('/')[2]: round(value, 5) for name, value in scores.items()},
        'resampled': [round(value, 5) for value in resampled],
        'blocks': blocks,
        'chance': round(chance, 5),
        'loss': [[step, round(value, 4)] for step, value in losses[:: max(1, len(losses) // CURVE)]],
        'curve': [[step, round(value, 5)] for step, value in sorted(curve.items())],
        'steps': int(checkpoint.meta['iter']),
        **memory,
        **_deployed(checkpoint, cfg, head, work_dir, job.lock),
        'threads': int(os.environ.get('OMP_NUM_THREADS', os.cpu_count() or 1)),
        'machine': machine,
        'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
    }
    record['minutes'] = round((time.monotonic() - start) / 60, 2)
    record['processor_minutes'] = round((_processor_seconds() - before) / 60, 2)
    _check_unchanged(job)
    return record


def _check_unchanged(job: Job) -> None:
    """Raise ``UserError`` if the protocol, its config or the data is not that of the job any more."""
    protocol = read_protocol(job.protocol)
    head = protocol.heads.get(job.run.head)
    if head is None or recipe_digest(protocol, head) != job.recipe:
        raise UserError(f'{protocol.path.name} or its config has changed since the start: use another --out')
    try:
        digest = head_data_digest(head, job.data)
    except OSError as error:
        raise UserError(f'the data cannot be read any more: {error}') from error
    if digest != job.data_digest:
        raise UserError('the data has changed since the start: use another --out')


def _peak_memory() -> dict[str, int | None]:
    """Return the peak memory of this process in MiB, on the host and on the GPU; None without a GPU."""
    on_gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    return dict(
        memory_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        gpu_memory_mib=None if on_gpu is None else round(on_gpu),
    )


def _processor_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _train(
    job: Job,
    protocol: Protocol,
    run: Run,
    work_dir: Path,
    teacher: Path | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> str | None:
    """Train a run, and return the weights that it started from, see ``_weights``."""
    head, weights = protocol.heads[run.head], _weights(job, run)
    train(
        head.config,
        work_dir=str(work_dir),
        backbone=run.net,
        data=job.data,
        weights=weights or 'none',
        teacher=str(teacher) if teacher else None,
        epochs=head.epochs and (1 if job.dry else head.epochs),
        iters=head.iters and (1 if job.dry else head.iters),
        size=head.input_size,
        cfg_options={
            **run_options(head, run, job.data, evaluations=protocol.evaluations, dry=job.dry),
            **(cfg_options or {}),
        },
    )
    return weights


def _weights(job: Job, run: Run) -> str | None:
    """Return the weights that a run starts from, see ``weights_of``. A dry run downloads none."""
    weights = weights_of(run, job.weights_dir)
    return None if job.dry and weights == 'timm' else weights


def _teacher(job: Job, protocol: Protocol) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint of the teacher and its description for the records.

    The first run that needs the teacher trains and evaluates it, while the others wait.
    """
    teacher = protocol.teacher
    assert teacher is not None
    run = Run(job.run.head, teacher.net, teacher.start, '', protocol.seeds[0])
    weights = _weights(job, run)
    described = weights and _describe_weights(run, weights)
    start = described['sha256'][:16] if described else 'random'
    name = '-'.join([job.run.head, job.recipe, job.data_digest, start, *(['dry'] if job.dry else [])])
    folder = Path(job.lock).parent / 'teachers' / name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f'.{name}.lock')):
        if not list_checkpoints(folder):  # written at the end of the training only
            _train(job, protocol, run, folder)
        checkpoint, scored = list_checkpoints(folder)[0], folder / 'score.json'
        if not scored.is_file():
            write_whole(scored, json.dumps(_score(checkpoint, folder / 'test')))
        score = json.loads(scored.read_text())
    digest = file_digest(checkpoint).hexdigest()
    return checkpoint, {**asdict(teacher), 'weights': described, 'score': score, 'sha256': digest}


def _score(path: Path, folder: Path) -> float:
    """Return the main metric of a checkpoint on the test images of its config."""
    checkpoint = read_checkpoint(path)
    cfg = restore_data(checkpoint_config(checkpoint))
    return _main(evaluate(cfg, checkpoint, work_dir=folder), task_of(cfg).metric)


def _main(scores: Mapping[str, float], metric: str) -> float:
    return next(value for name, value in scores.items() if name.endswith(metric))


def _describe_weights(run: Run, weights: str) -> dict[str, str]:
    """Return the name and the SHA-256 of the weights. For a timm net without a file, the digest is of its tensors."""
    if weights != 'timm':
        return dict(name=Path(weights).name, sha256=file_digest(weights).hexdigest())
    if not run.net.startswith('timm:'):
        tag = DEFAULT_TAGS[run.net.removeprefix('mnv4_')]
        return dict(name=tag, sha256=file_digest(fetch_timm(tag)).hexdigest())
    import timm

    net = timm.create_model(run.net.removeprefix('timm:'), pretrained=True)
    cfg: Any = net.pretrained_cfg
    tag = f'{cfg["architecture"]}.{cfg["tag"]}'
    return dict(name=tag, sha256=state_digest(net.state_dict()))


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of tensors, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        array = np.ascontiguousarray(tensor.cpu().numpy())
        digest.update(f'{name} {array.dtype} {array.shape}'.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _measure(
    cfg: Config, checkpoint: Checkpoint, folder: Path, block: int
) -> tuple[dict[str, float], list[float], int, float]:
    """Evaluate a checkpoint.

    Returns:
        All metrics, the main metric on each sample of the test images, the number of blocks of such a sample, and the
        chance level (0 for detection).

    Raises:
        RuntimeError: The metric differs from the one computed from the written predictions.
    """
    task = task_of(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / task.results
    scores = evaluate(cfg, checkpoint, work_dir=folder, out=str(results))
    if task.name == 'detection':
        annotations = Path(dataset_split(cfg, 'test_dataloader').annotations)
        _check_equal(_main(scores, 'bbox_mAP'), average_precision(annotations, results))
        images = len(json.loads(annotations.read_bytes())['images'])
        return scores, resampled_ap(annotations, results, block), count_blocks(images, block), 0.0
    confusion = _confusion(cfg, results)
    _check_equal(_main(scores, 'mIoU'), float(mean_iou(confusion.sum(0))))
    blocks = count_blocks(len(confusion), block)
    return scores, resampled_iou(confusion, block), blocks, chance_iou(confusion.sum(0))


def _check_equal(score: float, counted: float) -> None:
    if abs(score - counted) > 1e-6:
        raise RuntimeError(f'the metric is {score}, and {counted} by the written predictions')


def chance_iou(confusion: np.ndarray) -> float:
    """Return the mean IoU of a model that predicts the most frequent class of the ground truth for every pixel.

    Args:
        confusion: (classes, classes), numbers of pixels, with the ground truth in rows.
    """
    pixels = confusion.sum(1)
    return float(pixels.max() / pixels.sum() / np.count_nonzero(pixels))


def _confusion(cfg: Config, folder: Path) -> np.ndarray:
    """Return the confusion matrix of each test image, (images, classes, classes), from the written class maps."""
    dataset = PredictorEvaluator(cfg).dataset
    count, images = len(dataset.metainfo['classes']), dataset_split(cfg, 'test_dataloader').images
    matrices = []
    for i in range(len(dataset)):
        info = dataset[i]
        labels = np.asarray(info['gt_seg_map'])
        with Image.open(folder / class_map_name(Path(info['img_path'])).relative_to(images)) as file:
            predicted = np.asarray(file).astype(int) - int(bool(info.get('reduce_zero_label')))
        labelled = labels != 255
        pairs = labels[labelled].astype(int) * count + predicted[labelled]
        matrices.append(np.bincount(pairs, minlength=count**2).reshape(count, count))
    return np.array(matrices)


def _deployed(checkpoint: Checkpoint, cfg: Config, head: Head, work_dir: Path, lock: str) -> dict[str, Any]:
    """Export to ONNX and return parameters, MACs and latency. The latency is None if the net cannot be exported.

    The latency is the CPU time of the process. Other processes affect it only by their use of cache and memory.
    """
    values: dict[str, Any] = dict(latency_ms=None)
    height, width = head.size or default_size(cfg)
    try:
        (file,) = export(str(checkpoint.path), ['onnx'], out_dir=str(work_dir / 'exported'), size=head.size)
        meta = read_meta(file)
        image = next(iter(task_of(cfg).image_files(dataset_split(cfg, 'test_dataloader'))))
        batch, _ = prepare(read_image(image), meta.input, meta.resize)
        with FileLock(lock):
            latency = measure_latencies({'': (file, batch)}, log=lambda line: None)['']
        values['latency_ms'] = round(latency.cpu, 2)
    except Exception as error:  # a converter may raise anything, and the training must not be lost
        reason = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
        values['export_error'] = ' '.join(reason.split())[:300]
    complexity = count(load_model(checkpoint, device='cpu'), (height, width))
    return {**values, 'parameters': complexity.params, 'macs': complexity.macs, 'size': [height, width]}


def main(task: str) -> None:
    """Make the run of a job, and write its record."""
    job = Job.from_json(task)
    try:
        record = execute(job)
    except UserError as error:
        record = failure(job, str(error))
    write_whole(Path(job.record), json.dumps(record))


if __name__ == '__main__':
    run_task(main)
