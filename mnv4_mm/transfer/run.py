"""One transfer run: train, evaluate, export, measure. Runs in a process of its own, see ``work.py``.

``python -m mnv4_mm.transfer.run`` takes a ``Job`` as JSON and writes the record to a file.
"""

import datetime
import hashlib
import json
import os
import resource
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

from mnv4_mm.apis.evaluate import evaluate
from mnv4_mm.apis.model import load_model
from mnv4_mm.apis.train import train
from mnv4_mm.config.backbone import set_backbone
from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.data import dataset_split, innermost_dataset, restore_data
from mnv4_mm.config.load import load_config
from mnv4_mm.deploy.evaluator import PredictorEvaluator
from mnv4_mm.deploy.export import export
from mnv4_mm.deploy.latency import measure_speed
from mnv4_mm.digest import file_digest
from mnv4_mm.engine.curves import read_scalars
from mnv4_mm.engine.iou import class_map_name
from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.models.complexity import count
from mnv4_mm.runtime.meta import read_meta
from mnv4_mm.tasks import task_of
from mnv4_mm.transfer.bootstrap import mean_iou, resampled_ap, resampled_iou
from mnv4_mm.transfer.data import data_digest, join_splits
from mnv4_mm.transfer.machine import describe_machine
from mnv4_mm.transfer.protocol import Head, Protocol, Run, read_protocol
from mnv4_mm.weights.checkpoint import Checkpoint, list_checkpoints, read_checkpoint
from mnv4_mm.weights.hub import fetch_timm

ROUNDS = 20  # of latency
CURVE = 60  # points of a loss curve
DRY_IMAGES = 4
PACKAGES = (
    'torch', 'timm', 'mmengine', 'onedl-mmengine', 'mmcv', 'onedl-mmcv', 'mmdet', 'onedl-mmdetection', 'mmsegmentation',
    'onedl-mmsegmentation', 'numpy', 'opencv-python', 'onnxruntime',
)  # fmt: skip
LOADING = ('LoadAnnotations', 'LoadMask')


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run and where it reads and writes.

    Attributes:
        protocol: Name or path of the protocol.
        run: The run.
        data: Folder of the data set; None if the configs know it.
        work_dir: Folder for checkpoints and logs.
        weights_dir: Folder of ImageNet weights, ``<net>.safetensors`` or ``<net>.pth``, used instead of a download.
        record: File to write the record to.
        dry: Make every step, with 4 images: one step or epoch of training, random weights where there are none.
    """

    protocol: str
    run: Run
    data: str | None
    work_dir: str
    weights_dir: str | None
    record: str
    dry: bool = False

    def to_json(self) -> str:
        """Return the job as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> 'Job':
        """Parse what ``to_json`` returns."""
        values = json.loads(text)
        return cls(**{**values, 'run': Run(*values['run'])})


def execute(job: Job) -> dict[str, Any]:
    """Train, evaluate, export and measure, and return the record.

    Raises:
        UserError: The run cannot be made: the net does not fit the head, or its weights cannot be loaded.
    """
    start, processor = time.monotonic(), time.process_time()
    protocol, run = read_protocol(job.protocol), job.run
    head, work_dir = protocol.heads[run.head], Path(job.work_dir)
    data = str(join_splits(Path(job.data), protocol.train, protocol.test, work_dir / 'data')) if job.data else None
    weights = None if job.dry else _weights(run, job.weights_dir)
    train(
        head.config,
        work_dir=str(work_dir),
        backbone=run.net,
        data=data,
        weights=weights or 'none',
        epochs=head.epochs and (1 if job.dry else head.epochs),
        iters=head.iters and (1 if job.dry else head.iters),
        cfg_options={
            **head.cfg_options,
            # Evaluated once, below, and at the end: no checkpoint is selected by its score.
            'train_cfg.val_begin': 10**9,
            'default_hooks.checkpoint.interval': 10**9,
            'randomness.seed': run.seed,
            **_control(head, run, data),
            **(_few_images(head) if job.dry else {}),
        },
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    checkpoint = read_checkpoint(list_checkpoints(work_dir)[0])
    cfg = restore_data(checkpoint_config(checkpoint))
    scores, resampled = _measure(cfg, checkpoint, work_dir / 'test')
    metric = task_of(cfg).metric
    minutes = (time.monotonic() - start) / 60
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() - processor + children.ru_utime + children.ru_stime
    losses = sorted(read_scalars(work_dir)[0].get('loss', {}).items())
    return {
        'protocol': protocol.name,
        **run._asdict(),
        'recipe': recipe_digest(protocol, head),
        'data': data_digest(cfg),
        'weights': weights and dict(name=Path(weights).name, sha256=_weights_digest(run, weights)),
        'metric': metric,
        'score': next(value for name, value in scores.items() if name.endswith(metric)),
        'scores': {name.partition('/')[2]: round(value, 5) for name, value in scores.items()},
        'resampled': [round(value, 5) for value in resampled],
        'loss': [[step, round(value, 4)] for step, value in losses[:: max(1, len(losses) // CURVE)]],
        'steps': int(checkpoint.meta['iter']),
        'minutes': round(minutes, 2),
        'processor_minutes': round(spent / 60, 2),
        'memory_mib': round(memory),
        **_deployed(checkpoint, cfg, head, work_dir),
        'threads': int(os.environ.get('OMP_NUM_THREADS', os.cpu_count() or 1)),
        'machine': describe_machine(PACKAGES),
        'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
    }


def _weights(run: Run, folder: str | None) -> str | None:
    if run.start == 'random':
        return None
    for suffix in ('.safetensors', '.pth'):
        path = Path(folder or '') / (run.net.removeprefix('timm:') + suffix)
        if folder and path.is_file():
            return str(path)
    return 'timm'


def _weights_digest(run: Run, weights: str) -> str | None:
    """Return the SHA-256 of the weights; None for a peer's, which timm itself downloads."""
    if weights != 'timm':
        return file_digest(weights).hexdigest()
    if run.net.startswith('timm:'):
        return None
    from mnv4_mm.weights.tags import DEFAULT_TAGS

    return file_digest(fetch_timm(DEFAULT_TAGS[run.net.removeprefix('mnv4_')])).hexdigest()


def _control(head: Head, run: Run, data: str | None) -> dict[str, Any]:
    """Return the values of the config that make a control of a run."""
    cfg = load_config(head.config)
    if run.control == 'zeroed':
        set_backbone(cfg, run.net)
        backbone = {key: value for key, value in cfg.model.backbone.items() if key != 'init_cfg'}
        return {'model.backbone': dict(type='ZeroedDeepest', backbone=backbone, _delete_=True)}
    if run.control != 'shuffled':
        return {}
    key, dataset = _innermost(cfg.train_dataloader.dataset, 'train_dataloader.dataset')
    classes = task_of(cfg).find(data).classes if data else innermost_dataset(dataset).metainfo.classes
    steps = [dict(step) for step in dataset.pipeline]
    after = 1 + max(i for i, step in enumerate(steps) if step['type'] in LOADING)
    return {f'{key}.pipeline': [*steps[:after], dict(type='ShuffleLabels', num_classes=len(classes)), *steps[after:]]}


def _few_images(head: Head) -> dict[str, Any]:
    """Return the values of the config that limit it to a few images."""
    values: dict[str, Any] = {'train_dataloader.batch_size': 2}
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        key, _ = _innermost(load_config(head.config)[loader].dataset, f'{loader}.dataset')
        values[f'{key}.indices'] = DRY_IMAGES
    return values


def _innermost(dataset: Any, key: str) -> tuple[str, Any]:
    """Return the data set inside of wrappers such as RepeatDataset, and its key in the config."""
    while 'pipeline' not in dataset:
        key, dataset = f'{key}.dataset', dataset.dataset
    return key, dataset


def _measure(cfg: Config, checkpoint: Checkpoint, folder: Path) -> tuple[dict[str, float], list[float]]:
    """Evaluate a checkpoint.

    Returns:
        All metrics, and the main one on resampled images.

    Raises:
        RuntimeError: The metric is not that of the written predictions.
    """
    task = task_of(cfg)
    if task.metric == 'bbox_mAP':
        file = folder / 'detections.json'
        folder.mkdir(parents=True, exist_ok=True)
        scores = evaluate(cfg, checkpoint, work_dir=folder, out=str(file))
        return scores, resampled_ap(Path(dataset_split(cfg, 'test_dataloader').annotations), file)
    scores = evaluate(cfg, checkpoint, work_dir=folder, out=str(folder / 'class_maps'))
    confusion = _confusion(cfg, folder / 'class_maps')
    score, counted = next(value for name, value in scores.items() if name.endswith('mIoU')), mean_iou(confusion.sum(0))
    if abs(score - counted) > 1e-9:
        raise RuntimeError(f'mIoU is {score}, and {counted} by the written class maps')
    return scores, resampled_iou(confusion)


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


def _deployed(checkpoint: Checkpoint, cfg: Config, head: Head, work_dir: Path) -> dict[str, Any]:
    """Export to ONNX and return parameters, MACs and latency. A net that cannot be exported has no latency."""
    values: dict[str, Any] = dict(latency_ms=None)
    size = head.size
    try:
        (file,) = export(str(checkpoint.path), ['onnx'], out_dir=str(work_dir / 'exported'), size=size)
        size = read_meta(file).input.size
        image = next(iter(task_of(cfg).image_files(dataset_split(cfg, 'test_dataloader'))))
        values['latency_ms'] = round(measure_speed(None, None, [file], image, ROUNDS, 1)[0].p50, 2)
    except (UserError, RuntimeError) as error:
        values['export_error'] = ' '.join(str(error).split())[:300]
    assert size is not None
    height, width = size
    complexity = count(load_model(checkpoint, device='cpu'), (height, width))
    return {**values, 'parameters': complexity.params, 'macs': complexity.macs, 'size': [height, width]}


def recipe_digest(protocol: Protocol, head: Head) -> str:
    """Return a digest of everything that the runs of a head have in common, apart from the data."""
    values = dict(
        config=load_config(head.config).pretty_text,
        head=asdict(head),
        train=list(protocol.train),
        test=list(protocol.test),
    )
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _exit_with_parent() -> None:
    # Ends when the process that started this one has ended. Not sys.stdin.read(): it would hold a lock for which the
    # workers of data loaders, which are forked, would wait for ever when they close sys.stdin.
    os.read(sys.stdin.fileno(), 1)
    os._exit(3)


def main() -> None:
    job = Job.from_json(sys.stdin.readline())
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        record = execute(job)
    except UserError as error:
        record = {'protocol': Path(job.protocol).stem, **job.run._asdict(), 'error': str(error)}
    write_whole(Path(job.record), json.dumps(record))


if __name__ == '__main__':
    main()
