"""Every headline model with three nets, trained for minutes, in every runtime: one table of what ``compare`` finds.

The weights are those of a run on a few pictures of ``data/mini``, at a small size: enough that boxes and classes are
found on them, whose AP or mIoU a wrong conversion changes. None of these numbers says how good a model is.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from mnv4_mm.apis.train import train
from mnv4_mm.config.backbone import fit_backbone
from mnv4_mm.config.data import innermost_dataset
from mnv4_mm.config.load import load_config
from mnv4_mm.config.nested import dicts
from mnv4_mm.deploy.compare import compare
from mnv4_mm.deploy.export import export
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.errors import UserError

NETS = ('conv_s', 'conv_m', 'hybrid_m')
# Pictures it is trained on. In minutes few are learned well and many hardly: what is compared is to be far from 0.
LEARNED = 16


class Short(NamedTuple):
    """How a headline model is trained for this table.

    Attributes:
        like: The small config whose data and schedule it takes.
        size: Side of its pictures in pixels; the small config's if None.
        length: Epochs of 256 pictures, or iterations; 4 pictures a step.
    """

    like: str
    size: int | None
    length: int


MODELS: dict[str, Short] = {
    'mnv4_ssdlite_coco': Short('mnv4_ssdlite_coco-mini', 192, 4),
    'mnv4_retinanet_coco': Short('mnv4_retinanet_coco-mini', 128, 3),
    'mnv4_retinanet-1x_coco': Short('mnv4_retinanet_coco-mini', 128, 8),
    'mnv4_rtmdet_coco': Short('mnv4_rtmdet_coco-mini', 128, 12),
    'mnv4_lraspp_ade20k': Short('mnv4_lraspp_ade20k-mini', None, 120),
    'mnv4_fpn_ade20k': Short('mnv4_fpn_ade20k-mini', None, 100),
    'mnv4_deeplabv3plus_ade20k': Short('mnv4_deeplabv3plus_ade20k-mini', None, 80),
    'mnv4_segformer_ade20k': Short('mnv4_segformer_ade20k-mini', None, 100),
}


def parity(
    models: Sequence[str] = (),
    nets: Sequence[str] = (),
    to: Sequence[str] = (),
    *,
    folder: Path = Path('work_dirs/parity'),
    say: Callable[[str], None] = print,
) -> list[str]:
    """Trains, exports to every runtime and compares. What is in ``folder`` already is not done again.

    Args:
        models: Names of ``MODELS``; all if left out.
        nets: Names of ``NETS``; all if left out.
        to: Names of ``TARGETS``; all if left out.
        folder: Where checkpoints, files and results go, a folder each.
        say: Where lines go.

    Returns:
        The pairs that have a file outside the tolerance, as ``model net``.

    Raises:
        UserError: an unknown name, or a runtime that is not installed.
    """
    for given, known in ((models, MODELS), (nets, NETS), (to, TARGETS)):
        if unknown := [name for name in given if name not in known]:
            raise UserError(f'no {unknown[0]!r} here; there are {", ".join(known)}')
    targets = [TARGETS[name] for name in to or TARGETS]
    if absent := [line for target in targets if (line := target.absent(convert=True))]:
        raise UserError('; '.join(absent))
    found = {
        (model, net): _result(model, net, targets, folder / f'{model}-{net}')
        for model in models or MODELS
        for net in nets or NETS
    }
    # Behind what training and exporting have said.
    say(f'| model | net | AP or mIoU | {" | ".join(target.name for target in targets)} |')
    say('|---' * (3 + len(targets)) + '|')
    for (model, net), rows in found.items():
        say(_line(model, net, targets, rows))
    return [f'{model} {net}' for (model, net), rows in found.items() if not all(row['passes'] for row in rows)]


def training_config(model: str, net: str) -> Config:
    """A headline model from random weights, with data and schedule of a small config."""
    short = MODELS[model]
    cfg, small = load_config(model), load_config(short.like)
    cfg.model.backbone.init_cfg = None
    cfg.model.backbone.norm_eval = False
    small.model = fit_backbone(cfg, f'mnv4_{net}').model
    # The recipes' norms average over more steps than there are here.
    for part in dicts(small.model):
        if part.get('type') in ('BN', 'SyncBN'):
            part['momentum'] = 0.1
    if small.model.data_preprocessor.get('size'):
        small.model.data_preprocessor.size = small.input_size[::-1]
    if short.size:
        for loader in (small.train_dataloader, small.val_dataloader, small.test_dataloader):
            for step in innermost_dataset(loader.dataset).pipeline:
                if step.type == 'Resize':
                    step.scale = (short.size, short.size)
    small.train_dataloader.batch_size = 4  # more steps from as many pictures
    innermost_dataset(small.train_dataloader.dataset).indices = LEARNED
    if 'times' in small.train_dataloader.dataset:
        small.train_dataloader.dataset.times = 256 // LEARNED
    small.train_cfg.val_interval = 10**6  # compare does
    small.report_on_training_pictures = False
    return small


def _result(model: str, net: str, targets: Sequence[Target], folder: Path) -> list[dict[str, Any]]:
    """The rows of compare's table for one trained net."""
    result, last, short = folder / 'compared.json', folder / 'last_checkpoint', MODELS[model]
    # Beside the folder: in it, training writes what it made of it under the same name.
    config, wanted = folder.with_suffix('.py'), training_config(model, net)
    detects = short.like.endswith('coco-mini')
    trained = last.is_file() and last.read_text().strip().endswith(f'_{short.length}.pth')  # not cut short
    if not trained or not config.is_file() or config.read_text() != wanted.pretty_text:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        config.write_text(wanted.pretty_text)
        if detects:
            train(str(config), work_dir=str(folder), epochs=short.length)
        else:
            train(str(config), work_dir=str(folder), iters=short.length)
    elif result.is_file():
        rows = json.loads(result.read_text())['rows']
        if all(_of(rows, target) for target in targets):
            return rows
    checkpoint, names = last.read_text().strip(), [target.name for target in targets]
    export(checkpoint, names, kind='raw' if detects else 'logits')
    # And what is made inside a file, where that is the default: boxes selected, or the class map.
    export(checkpoint, [name for name in names if 'nms' in TARGETS[name].kinds])
    compare(checkpoint, on='train', rounds=0, out=str(result))
    return json.loads(result.read_text())['rows']


def _of(rows: Sequence[dict[str, Any]], target: Target) -> list[dict[str, Any]]:
    return [row for row in rows if row['name'].endswith(target.suffix)]


def _line(model: str, net: str, targets: Sequence[Target], rows: Sequence[dict[str, Any]]) -> str:
    ran = (row['metric'] for row in rows if row['name'].startswith('PyTorch, ') and row['megabytes'] is None)
    expected = next(ran, rows[0]['metric'])  # where no file runs: of the first row, which is PyTorch's, too
    cells = [_cell(_of(rows, target)) for target in targets]
    return f'| {model} | {net} | {expected:.3f} | {" | ".join(cells)} |'


def _cell(rows: Sequence[dict[str, Any]]) -> str:
    """Of a runtime's files of one net: the raw outputs' difference, and the metric's largest."""
    if wrong := [row['verdict'] for row in rows if not row['passes']]:
        return '; '.join(wrong)
    run = [row for row in rows if row['raw']]
    if not run:
        return 'description'
    raw = max(row['raw']['largest'] for row in run if row['raw']['kind'] == 'raw')
    largest = max((row['to_pytorch'] for row in run), key=abs)
    return f'{raw:.0e}, {round(largest, 4) + 0.0:+.4f}'  # no -0.0000
