"""Facts about a run for its report: the model, its exported files, versions, and the commands to repeat the run."""

import importlib
import json
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mnv4_mm.deploy.artifacts import exported_files
from mnv4_mm.errors import UserError
from mnv4_mm.report.content import Export, Model
from mnv4_mm.runtime.meta import read_meta, sha256
from mnv4_mm.version import __version__
from mnv4_mm.weights.checkpoint import Checkpoint

PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'timm', 'numpy', 'cv2', 'faster_coco_eval')
COMPARED = 'compared.json'  # the table of `mnv4 compare`, in the work directory or in exported/


def describe_model(cfg: Config, checkpoint: Checkpoint) -> Model:
    """Describe a checkpoint and its model for the report."""
    meta, file = checkpoint.meta, checkpoint.path
    backbone, head = cfg.model.backbone, cfg.model.get('bbox_head') or cfg.model.get('decode_head') or {}
    # A table in place of the name of a net would be too long to read.
    named = {**backbone, 'arch': 'with a table of its own'} if isinstance(backbone.get('arch'), dict) else backbone
    names = [named.get(key) for key in ('type', 'arch', 'name', 'depth') if named.get(key) is not None]
    experiment = re.sub(r'_\d{8}_\d{6}$', '', str(meta.get('experiment_name', '')))
    by_epoch = cfg.train_cfg.get('type') == 'EpochBasedTrainLoop'
    weights = checkpoint.content.get('state_dict', {})
    return Model(
        checkpoint=file.name,
        sha256=sha256(file),
        megabytes=file.stat().st_size / 1e6,
        parameters=sum(
            tensor.numel()
            for name, tensor in weights.items()
            if tensor.is_floating_point() and not name.endswith(('running_mean', 'running_var'))
        ),
        step=f'epoch {meta.get("epoch")}' if by_epoch else f'iteration {meta.get("iter")}',
        is_best=file.name.startswith('best_'),
        config=experiment,
        head=str(head.get('type', '')),
        backbone=' '.join(map(str, names)),
        input_size=_input_size(cfg),
    )


def _input_size(cfg: Config) -> tuple[int, int] | None:
    for step in cfg.test_dataloader.dataset.get('pipeline', ()):
        if step.get('type') == 'Resize' and not step.get('keep_ratio') and isinstance(step.get('scale'), list | tuple):
            width, height = step['scale']
            return int(height), int(width)
    return None


def find_exports(checkpoint: Path, checksum: str) -> list[Export]:
    """Describe the files that were exported from a checkpoint, with the results of ``mnv4 compare``.

    Args:
        checkpoint: The checkpoint.
        checksum: SHA-256 of the checkpoint.

    Returns:
        The exported files, sorted by name. If a file of an export or its JSON is missing, damaged or was changed, the
        reason is the ``verdict``. The list is empty if nothing was exported.
    """
    try:
        files = exported_files(checkpoint, checksum)
    except UserError:
        return []  # nothing was exported
    rows = _compared(checkpoint.parent)
    exports = []
    for file in files:
        try:
            meta = read_meta(file)
        except UserError as error:
            exports.append(Export(file.name, '', '', None, file.stat().st_size / 1e6, verdict=str(error)))
            continue
        exports.append(
            Export(
                file=file.name,
                target=meta.target,
                precision=meta.precision,
                input_size=meta.input.size,
                megabytes=sum((file.parent / name).stat().st_size for name in meta.files) / 1e6,
                **rows.get(file.name, {}),
            )
        )
    return exports


def _measured(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``Export`` that a row of the table of ``mnv4 compare`` has measured.

    Raises:
        ValueError: A value is not what ``mnv4 compare`` writes; or a TypeError or KeyError.
    """
    verdict = row.get('verdict', '')
    if not isinstance(verdict, str):
        raise ValueError(f'verdict {verdict!r} is not text')
    single, parallel = row.get('speed') or (None, None)
    # The row of a measurement in a browser has only one of them.
    latency = None if single is None or parallel is None else (_p50(single), _p50(parallel))
    metrics = {name: None if row.get(name) is None else _number(row[name]) for name in ('metric', 'to_pytorch')}
    return dict(metrics, latency=latency, verdict=verdict)


def _p50(speed: Any) -> float:
    """Return the median of a ``Speed``, which JSON may store as a list."""
    return _number(speed['p50'] if isinstance(speed, dict) else speed[0])


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f'{value!r} is not a number')
    return float(value)


def _compared(work_dir: Path) -> dict[str, dict[str, Any]]:
    """Return what ``mnv4 compare`` has measured by file name, see ``_measured``; empty without a readable table."""
    exported = work_dir / 'exported'
    tables = [path for path in (work_dir / COMPARED, exported / COMPARED) if path.is_file()]
    rows: dict[str, dict[str, Any]] = {}
    files = {file.name: file for file in exported.glob('*')}
    for path in sorted(tables, key=lambda path: path.stat().st_mtime):
        try:
            found = {str(row['name']): _measured(row) for row in json.loads(path.read_bytes())['rows']}
        except (ValueError, TypeError, KeyError) as error:
            print(f'warning: {path} is not a table of `mnv4 compare`: {error}', file=sys.stderr)
            continue
        for name, row in found.items():
            file = files.get(name)
            # If a file is newer than the table, its row describes an earlier export.
            if file and file.stat().st_mtime <= path.stat().st_mtime:
                rows[name] = row
    return rows


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages in ``PACKAGES`` that are installed, by name.

    The additional key ``machine`` has the operating system, the architecture and the name of the GPU, if there is one.
    """
    found = {'mnv4_mm': __version__, 'Python': platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = str(importlib.import_module(name).__version__)
        except ImportError:  # timm is an extra
            continue
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    found['machine'] = ', '.join([platform.system(), platform.machine(), *gpu])
    return found


def commands(file: Path, command: str | None, data: str | None, threshold: float | None) -> list[tuple[str, str]]:
    """Return the commands to repeat a run and to use its result, each with its purpose.

    Args:
        file: The checkpoint.
        command: The training command. If None, a command is made for the config beside the checkpoint; without such a
            config, the training command is left out.
        data: Data set; None to use the config's.
        threshold: Score threshold for predictions; None to use the default.

    Returns:
        Pairs of purpose and command line.
    """
    given = ['--data', data] if data else []
    configs = sorted(file.parent.glob('*.py'))
    if command is None and configs:
        command = shlex.join(['mnv4', 'train', str(configs[0]), '--work-dir', 'NEW_FOLDER'])
    score = ['--score-thr', f'{threshold:.2f}'] if threshold is not None else []
    table = str(file.parent / 'exported' / COMPARED)
    lines = [
        ('Train', command or ''),
        ('Evaluate', shlex.join(['mnv4', 'test', str(file), *given])),
        ('Predict', shlex.join(['mnv4', 'infer', 'IMAGES', str(file), *score])),
        ('Try in the browser', shlex.join(['mnv4', 'demo', str(file)])),
        ('Export', shlex.join(['mnv4', 'export', str(file), '--to', 'onnx'])),
        ('Compare the exported files', shlex.join(['mnv4', 'compare', str(file), *given, '--out', table])),
        ('Make this report again', shlex.join(['mnv4', 'report', str(file), *given])),
    ]
    return [(purpose, line) for purpose, line in lines if line]
