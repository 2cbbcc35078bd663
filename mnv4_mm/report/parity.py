"""Parity table: comparison of the headline models in PyTorch and in each runtime.

Each model is trained for minutes with each of three nets, exported to each runtime and compared with PyTorch. The
models are trained on a few images of ``data/mini`` at a small size. This is enough for AP or mIoU to change if a
conversion is wrong. The metrics say nothing about the quality of a model.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mnv4_mm.apis.train import train
from mnv4_mm.config.backbone import with_backbone
from mnv4_mm.config.data import innermost_dataset
from mnv4_mm.config.load import load_config
from mnv4_mm.deploy.compare import compare
from mnv4_mm.deploy.export import export
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.models.model_config import dicts
from mnv4_mm.report.recipes import MODELS, NETS, check_parity
from mnv4_mm.tasks import task_of

# Number of training images: few, so that they are learned within minutes and the metrics are far from 0.
NUM_IMAGES = 16


def parity(
    models: Sequence[str] = (),
    nets: Sequence[str] = (),
    to: Sequence[str] = (),
    *,
    folder: Path = Path('work_dirs/parity'),
    log: Callable[[str], None] = print,
) -> list[str]:
    """Train the models, export them to each runtime, compare the files with PyTorch, and print the parity table.

    Finished results in ``folder`` are reused.

    Args:
        models: Names of ``MODELS``; all if left out.
        nets: Names of ``NETS``; all if left out.
        to: Names of ``TARGETS``. If left out, all targets except those with ``runs_elsewhere`` (``web``).
        folder: Folder for checkpoints, exported files and results, with a subfolder for each model and net.
        log: Function that prints a line.

    Returns:
        The models with a file that does not pass the comparison, as strings ``model net``; empty if all pass.

    Raises:
        UserError: A name is unknown, or a package of a target is not installed.
    """
    targets = check_parity(models, nets, to)
    results = {
        (model, net): _result(model, net, targets, folder / f'{model}-{net}')
        for model in models or MODELS
        for net in nets or NETS
    }
    # The table is printed last, so that output of training and export does not interrupt it.
    log(f'| model | net | AP or mIoU | {" | ".join(target.name for target in targets)} |')
    log('|---' * (3 + len(targets)) + '|')
    for (model, net), rows in results.items():
        log(_line(model, net, targets, rows))
    return [f'{model} {net}' for (model, net), rows in results.items() if not all(row['passes'] for row in rows)]


def training_config(model: str, net: str) -> Config:
    """Return the config to train a headline model from random weights, with the data and schedule of a small config.

    Args:
        model: Name of ``MODELS``.
        net: Name of ``NETS``.
    """
    recipe = MODELS[model]
    cfg, small = load_config(model), load_config(recipe.config)
    cfg.model.backbone.init_cfg = None
    cfg.model.backbone.norm_eval = False
    small.model = with_backbone(cfg, f'mnv4_{net}').model
    # The momenta of batch norm in the headline configs average over more steps than this training has.
    for part in dicts(small.model):
        if part.get('type') in ('BN', 'SyncBN'):
            part['momentum'] = 0.1
    if small.model.data_preprocessor.get('size'):
        small.model.data_preprocessor.size = small.input_size[::-1]
    if recipe.size:
        for loader in (small.train_dataloader, small.val_dataloader, small.test_dataloader):
            for step in innermost_dataset(loader.dataset).pipeline:
                if step.type == 'Resize':
                    step.scale = (recipe.size, recipe.size)
    small.train_dataloader.batch_size = 4  # more steps with the same number of images
    innermost_dataset(small.train_dataloader.dataset).indices = NUM_IMAGES
    if 'times' in small.train_dataloader.dataset:
        small.train_dataloader.dataset.times = 256 // NUM_IMAGES
    small.train_cfg.val_interval = 10**6  # no validation: ``compare`` evaluates the models
    small.report_on_training_images = False
    return small


def _result(model: str, net: str, targets: Sequence[Target], folder: Path) -> list[dict[str, Any]]:
    """Train, export and compare a model where needed, and return the rows of the JSON file of ``compare``."""
    result, last, length = folder / 'compared.json', folder / 'last_checkpoint', MODELS[model].length
    # The config is beside the folder: training writes the resolved config into it under the same name.
    config, cfg = folder.with_suffix('.py'), training_config(model, net)
    is_trained = last.is_file() and last.read_text().strip().endswith(f'_{length}.pth')  # training was not interrupted
    if not is_trained or not config.is_file() or config.read_text() != cfg.pretty_text:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        config.write_text(cfg.pretty_text)
        if 'max_epochs' in cfg.train_cfg:
            train(str(config), work_dir=str(folder), epochs=length)
        else:
            train(str(config), work_dir=str(folder), iters=length)
    elif result.is_file():
        rows = json.loads(result.read_text())['rows']
        if all(_rows_of(rows, target) for target in targets):
            return rows
    checkpoint, names = last.read_text().strip(), [target.name for target in targets]
    # ``unchecked``: the table also shows files that differ from PyTorch.
    export(checkpoint, names, kind=task_of(cfg).raw_output, unchecked=True)
    # Also export the default outputs, selected boxes or class map, for targets that can compute them in the file.
    export(checkpoint, [target.name for target in targets if 'nms' in target.kinds], unchecked=True)
    compare(checkpoint, on='train', rounds=0, out=str(result))
    return json.loads(result.read_text())['rows']


def _rows_of(rows: Sequence[dict[str, Any]], target: Target) -> list[dict[str, Any]]:
    return [row for row in rows if row['name'].endswith(target.suffix)]


def _line(model: str, net: str, targets: Sequence[Target], rows: Sequence[dict[str, Any]]) -> str:
    references = (row['metric'] for row in rows if row['name'].startswith('PyTorch, ') and row['megabytes'] is None)
    metric = next(references, rows[0]['metric'])  # the first row, also of PyTorch, is used if no file runs
    cells = [_cell(_rows_of(rows, target)) for target in targets]
    return f'| {model} | {net} | {metric:.3f} | {" | ".join(cells)} |'


def _cell(rows: Sequence[dict[str, Any]]) -> str:
    """Format the largest differences of the raw outputs and of the metric over the files of one target."""
    if failures := [row['verdict'] for row in rows if not row['passes']]:
        return '; '.join(failures)
    judged = [row for row in rows if row['raw']]
    if not judged:
        return 'description'
    # Results that an earlier version stored have the key ``of``.
    raw = max(row['raw']['largest'] for row in judged if row['raw'].get('kind', row['raw'].get('of')) == 'raw')
    largest = max((row['to_pytorch'] for row in judged), key=abs)
    return f'{raw:.0e}, {round(largest, 4) + 0.0:+.4f}'  # + 0.0 turns -0.0 into 0.0
