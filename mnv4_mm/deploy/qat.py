"""Start and export of a quantisation-aware fine-tuning.

Post-training quantisation determines which layers stay in float. The first ranges of activations are measured on
calibration images.
"""

import copy
import functools
import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, barrier, broadcast_object_list, is_distributed, is_main_process
from torch import nn

from mnv4_mm.apis import train as training
from mnv4_mm.apis.model import load_model
from mnv4_mm.config.data import dataset_split
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.deploy.calibration import MAX_CALIBRATION_IMAGES, evenly
from mnv4_mm.deploy.channels import equalise_channels
from mnv4_mm.deploy.describe import describe
from mnv4_mm.deploy.export import export
from mnv4_mm.deploy.graph import build_graph
from mnv4_mm.deploy.sensitivity import LayerSensitivity
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.deploy.targets.onnx import to_int8
from mnv4_mm.engine.qat import NAME, calibrate, layer_names, quantize_model
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.paths import make_output_folder
from mnv4_mm.runtime.meta import sha256
from mnv4_mm.runtime.preprocess import prepare
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.checkpoint import read_checkpoint, write_checkpoint
from mnv4_mm.weights.work_dir import find_checkpoint

START = 'qat_start.pth'  # name of the checkpoint that a run of --qat starts from, in its work directory
QUANTISATION_TIMEOUT = timedelta(hours=12)  # how long the other processes wait; NCCL's default is 10 minutes


@functools.wraps(training.train)
def train(config: str, **options: Any) -> Path:
    return training.train_with(config, TrainOptions(**options), start_qat)


def start_qat(cfg: Config) -> Path:
    """Write the checkpoint that a quantisation-aware fine-tuning starts from, into the work directory.

    The trained net is quantised as by ``mnv4 export --precision int8`` for ONNX Runtime. The layers that this
    quantisation keeps in float stay in float during the fine-tuning. The checkpoint has equalised channels, and its
    ranges of activations are measured on training images. Its config names the layers in float.

    With several processes, only the main one quantises, because another CPU may choose other layers. The others wait,
    and check that they read the same file.

    Args:
        cfg: Config of the run.

    Returns:
        The path of the checkpoint.

    Raises:
        UserError: The model cannot be exported, there are no training images, or the work directory is not the same
            for all processes.
    """
    path = make_output_folder('--work-dir', cfg.work_dir) / START
    outcome: list[Any] = [None, None]  # SHA-256 of the checkpoint, or a mistake
    if is_main_process():
        try:
            # The config of this process stays as that of the others, until all of them read the checkpoint.
            _write_start(copy.deepcopy(cfg), path)
            outcome[0] = sha256(path)
        except UserError as error:
            outcome[1] = str(error)
    group = None
    if is_distributed():  # the others wait here for the quantisation, and later on for each other only
        group = torch.distributed.new_group(backend='gloo', timeout=QUANTISATION_TIMEOUT)
    broadcast_object_list(outcome, group=group)
    if outcome[1]:
        raise UserError(outcome[1])
    for rank, other in enumerate(all_gather_object(sha256(path) if path.is_file() else None)):
        if other != outcome[0]:
            raise UserError(
                f'process {rank} does not find the {path} that process 0 has written: all machines must share the work '
                'directory'
            )
    return path


def _write_start(cfg: Config, path: Path) -> None:
    checkpoint = read_checkpoint(cfg[NAME].checkpoint)
    model: Any = load_model(checkpoint, device='cpu')
    task = task_of(cfg)
    meta = describe(model, TARGETS['onnx'], kind=task.raw_output, precision='int8')
    split = dataset_split(cfg, 'train_dataloader')
    files = evenly(task.image_files(split), MAX_CALIBRATION_IMAGES)
    if not files:
        raise UserError(f'no images for calibration in {split.images}')
    batches = [prepare(read_image(file), meta.input, meta.resize)[0] for file in files]
    equalise_channels(model, meta, batches)
    graph = build_graph(model, meta)
    quantised = to_int8(graph, batches)
    names = match_layers(model, quantised.layers)
    in_float = names_in_float(names)
    unrounded = [name for name, layer in names if layer.layer in quantised.chosen and layer.is_output_sensitive]
    cfg[NAME].update(in_float=in_float, unrounded=unrounded)
    pixels: Any = graph.module.pixels
    quantize_model(model, cfg[NAME])
    calibrate(model, (pixels(torch.from_numpy(batch)) for batch in batches))
    meta_of_run = {**checkpoint.meta, 'cfg': cfg.pretty_text}
    write_checkpoint(dict(meta=meta_of_run, state_dict=model.state_dict()), path)
    print(
        f'{len(in_float)} of {len(names)} layers stay in float, as without fine-tuning'
        f'{": " if in_float else ""}{", ".join(in_float)}; first ranges from {len(files)} training images'
    )


def names_in_float(layers: Sequence[tuple[str, LayerSensitivity]]) -> list[str]:
    """Return the names of the layers that stay in float.

    A convolution that levels of a feature pyramid share stays in float for all of them if it does for one.

    Args:
        layers: Pairs as ``match_layers`` returns them.
    """
    shared = {name.partition('#')[0] for name, layer in layers if layer.in_float and not name.startswith('product#')}
    return [name for name, layer in layers if layer.in_float or name.partition('#')[0] in shared]


def export_after_training(folder: Path) -> None:
    """Export a checkpoint of a quantisation-aware fine-tuning to an int8 file for ONNX Runtime.

    The newest ``best_*.pth`` is exported, or the last checkpoint if there is none. With several processes, only the
    main one exports.

    Args:
        folder: Work directory of the fine-tuning.

    Raises:
        UserError: See ``export``.
    """
    barrier()  # wait until the main process has written the checkpoint
    if is_main_process():
        export(str(find_checkpoint(folder)), ['onnx'], precision='int8')


def match_layers(model: Any, layers: Sequence[LayerSensitivity]) -> list[tuple[str, LayerSensitivity]]:
    """Match the layers of a quantised ONNX file with those of the model that it was exported from.

    In the file, weights are named after their module, with a number added if levels of a feature pyramid share the
    module. Products of two activations have no weights, so they are matched by their order.

    Args:
        model: The model in float.
        layers: Layers of the file, in any order.

    Returns:
        A pair for each layer, in the order of execution: its name as in ``QuantizedNet.layers``, and the layer of the
        file.

    Raises:
        UserError: The net has layers other than convolutions and products of two activations.
    """
    alias = _aliases(model)
    groups: dict[str, list[LayerSensitivity]] = {}
    for layer in sorted(layers, key=_number):
        groups.setdefault(_module(layer.weights, alias), []).append(layer)
    matched = []
    for name in layer_names(model):
        module = 'product' if name.startswith('product#') else re.sub(r'(_level\d+|#\d+)$', '', name)
        group = groups.get(alias.get(module.replace('.', '_'), module))
        if not group:
            raise UserError(f'--qat cannot round this net: its layer {name} is not in the ONNX file')
        matched.append((name, group.pop(0)))
    left = [layer.layer for group in groups.values() for layer in group]
    if left:
        raise UserError(f'--qat rounds convolutions and products of activations only, and this net also has {left[0]}')
    return matched


def _aliases(model: Any) -> dict[str, str]:
    """Map each name of a module, with underscores instead of dots, to the first name of that module.

    A module that levels of a feature pyramid share has several names, of which the exporter and fx may choose different
    ones.
    """
    head = model.bbox_head if hasattr(model, 'bbox_head') else model.decode_head
    first: dict[nn.Module, str] = {}
    names = {}
    for part, root in (('backbone', model.backbone), ('neck', getattr(model, 'neck', None)), ('head', head)):
        for name, module in root.named_modules(prefix=part, remove_duplicate=False) if root is not None else ():
            names[name.replace('.', '_')] = first.setdefault(module, name)
    return names


def _module(weights: str, alias: dict[str, str]) -> str:
    """Return the first name of the module that weights of an ONNX file belong to; ``product`` if there are none."""
    if not weights:
        return 'product'
    # ONNX Runtime multiplies weights by a constant factor that follows, as of RTMDet's strides.
    name = weights.removeprefix('ConvMulFusion_W_').replace('.', '_')
    while name and name not in alias:
        name = name.rpartition('_')[0]
    return alias.get(name, weights)


def _number(layer: LayerSensitivity) -> tuple[int, ...]:
    """Return the numbers in the names of weights and node: they follow the order of execution."""
    return tuple(int(number) for number in re.findall(r'\d+', f'{layer.weights.rpartition("_")[2]} {layer.layer}'))
