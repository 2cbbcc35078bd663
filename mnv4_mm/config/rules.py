"""Checks of options that depend on the config.

Commands run these checks before they import mmengine. The Python API runs each check when it applies the option. This
module imports nothing heavy: a config is any mapping, read by ``config.source`` or by mmengine.
"""

import difflib
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mnv4_mm.config.index import near_names
from mnv4_mm.errors import UserError
from mnv4_mm.models.arch import ARCHS

# Parameters of mmengine's Runner. A test compares them with the installed mmengine.
RUNNER_KEYS = {
    'model', 'work_dir', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg', 'val_cfg', 'test_cfg',
    'auto_scale_lr', 'optim_wrapper', 'param_scheduler', 'val_evaluator', 'test_evaluator', 'default_hooks',
    'custom_hooks', 'data_preprocessor', 'load_from', 'resume', 'launcher', 'env_cfg', 'log_processor', 'log_level',
    'visualizer', 'default_scope', 'randomness', 'experiment_name',
}  # fmt: skip
# Device types of torch.
DEVICES = ('cpu', 'cuda', 'mps', 'xpu', 'npu', 'mlu', 'musa', 'hpu')
# Keys that a config must have to be trained.
TRAINING_PARTS = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
# Top-level keys that are used after the config file has been read. Other names of a config file (`batch_size`) are used
# while it is read, so that setting them later has no effect.
READ_KEYS = RUNNER_KEYS | {
    'compile', 'custom_imports', 'find_unused_parameters', 'model_wrapper_cfg', 'sync_bn', 'channels_last',
    'report', 'report_on_training_images', 'own_data', 'distillation', 'qat', 'supernet',
}  # fmt: skip


def check_backbone_name(name: str) -> None:
    """Check the name of a backbone.

    Raises:
        UserError: The name is unknown (similar names are listed), or timm is needed and not installed.
    """
    names = [f'mnv4_{arch}' for arch in ARCHS]
    if name.startswith('timm:'):
        _check_timm_name(name.removeprefix('timm:'))
    elif name not in names:
        raise UserError(f'no backbone {name!r}{near_names(name, names)}; or timm:<name of a timm net>')


def _check_timm_name(name: str) -> None:
    """Check the name of a timm net, e.g. ``resnet50`` or ``resnet50.a1_in1k``.

    Unless timm has been imported, which takes seconds, the names are read from its source files.
    """
    spec = importlib.util.find_spec('timm')
    if spec is None or not spec.submodule_search_locations:
        raise UserError('a timm:<name> backbone needs timm: pip install timm')
    net = name.partition('.')[0]
    if not net:
        raise UserError("no backbone 'timm:': name a timm net after the colon, e.g. timm:resnet50")
    if 'timm' in sys.modules:  # includes nets that other packages have registered
        names = sys.modules['timm'].list_models()
    else:
        files = (Path(spec.submodule_search_locations[0]) / 'models').glob('*.py')
        function = re.compile(r'^@register_model\s+def (\w+)', re.MULTILINE)
        names = [name for file in files for name in function.findall(file.read_text(encoding='utf-8'))]
    if names and net not in names:
        near = difflib.get_close_matches(net, names, n=5)
        similar = f'; near: {", ".join(near)}' if near else ''
        raise UserError(f'no backbone timm:{name}: timm has no net {net!r}{similar}')


def check_backbone_of(cfg: Any) -> None:
    """Check that the backbone of a config can be replaced.

    Args:
        cfg: A config, mmengine's or a dict.

    Raises:
        UserError: The backbone is not MobileNetV4.
    """
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    if backbone.get('type') != 'MobileNetV4':
        raise UserError('--backbone needs a config whose model.backbone is of type MobileNetV4')


def check_precision(dtype: str, on_gpu: bool) -> None:
    """Check that the device can train in a precision.

    Raises:
        UserError: ``dtype`` is ``fp16``, and there is no GPU.
    """
    if dtype == 'fp16' and not on_gpu:
        raise UserError('--amp-dtype fp16 needs a GPU; use bf16 on a CPU')


def may_have_gpu() -> bool:
    """Return False if torch would certainly find no CUDA or ROCm GPU.

    torch is not imported, which would take two seconds.
    """
    if sys.platform != 'linux':
        return sys.platform != 'darwin'  # a Mac has neither CUDA nor ROCm
    # Device files of NVIDIA (also Jetson), of WSL, and of AMD.
    return any(Path('/dev', name).exists() for name in ('nvidiactl', 'nvhost-ctrl', 'nvgpu', 'nvmap', 'dxg', 'kfd'))


def check_device(device: str) -> None:
    """Check that a text has the form of a torch device, e.g. ``cuda:1``, and that there may be such a device.

    Raises:
        UserError: The device type is unknown, the number is malformed, or it is a GPU and this machine has no driver.
    """
    if not re.fullmatch(rf'({"|".join(DEVICES)})(:\d+)?', device):
        raise UserError(
            f'--device {device}: name one of {", ".join(DEVICES)}, with a number if there are several: cuda:1'
        )
    if device.startswith('cuda') and not may_have_gpu():
        raise UserError(f'--device {device} cannot be used: this machine has no driver of a GPU')


def check_inference(cfg: Any) -> None:
    """Check that ``--inference`` fits a config.

    Args:
        cfg: A config, mmengine's or a dict; one without ``default_scope`` passes.

    Raises:
        UserError: The config is for a detector.
    """
    if cfg.get('default_scope') == 'mmdet':
        raise UserError('--inference is for segmentation; a detector always takes the whole image')


def check_is_supernet(cfg: Any) -> None:
    """Check that a config is that of a supernet.

    Args:
        cfg: A config, mmengine's or a dict.

    Raises:
        UserError: The config is not that of a supernet.
    """
    if not cfg.get('supernet'):
        raise UserError('this is not the checkpoint of a supernet: `mnv4 search train` makes one')


def check_same_task(cfg: Any, trained: Any, checkpoint: str | Path) -> None:
    """Check that a checkpoint was trained for the task of a config.

    Args:
        cfg: A config, mmengine's or a dict.
        trained: The config that the checkpoint carries. If either has no ``default_scope``, the check passes.
        checkpoint: The checkpoint, for the message.

    Raises:
        UserError: The tasks differ.
    """
    ours, theirs = cfg.get('default_scope'), trained.get('default_scope')
    if ours and theirs and ours != theirs:
        raise UserError(
            f'{checkpoint} was trained with default_scope {theirs!r}, and this config has {ours!r}: give the config it '
            'was trained with, or none'
        )


def check_complete(cfg: Any, keys: Iterable[str]) -> None:
    """Check that a config has all required parts.

    Args:
        cfg: A config, mmengine's or a dict.
        keys: Required top-level keys, whose values must be dicts.

    Raises:
        UserError: A key is missing, or its value is not a dict.
    """
    if missing := [key for key in keys if not isinstance(cfg.get(key), dict)]:
        raise UserError(
            f'this config is not complete: it has no {", ".join(missing)}; parts (configs/_base_) and deploy configs '
            'are not enough, `mnv4 configs` lists those that train'
        )


def check_unit(cfg: Any, unit: str) -> None:
    """Check the unit in which a config counts the length of its training.

    Args:
        cfg: A config, mmengine's or a dict.
        unit: ``epochs`` or ``iters``.

    Raises:
        UserError: The config counts in the other unit.
    """
    counts = 'epochs' if 'max_epochs' in (cfg.get('train_cfg') or {}) else 'iters'
    if unit != counts:
        raise UserError(f'--{unit} does not fit: this config counts in {counts}; use --{counts}')


def check_sizable(cfg: Any) -> None:
    """Check that ``--size`` fits a config.

    Args:
        cfg: A config, mmengine's or a dict.

    Raises:
        UserError: The config is not for a detector, or has no ``input_size``.
    """
    if cfg.get('default_scope') != 'mmdet':
        raise UserError('--size is for detectors; a segmenter is trained on crops, whose size is set in its config')
    if 'input_size' not in cfg:
        raise UserError('--size needs a config with input_size = (width, height), as the shipped ones have')


def check_levels(cfg: Any, stride: int) -> None:
    """Check that ``--levels`` fits a config.

    Args:
        cfg: A config, mmengine's or a dict.
        stride: Output stride of the finest level.

    Raises:
        UserError: The config is not for SSDLite on MobileNetV4 or a timm net, or the stride does not fit its finest
            level.
    """
    neck, backbone = ((cfg.get('model') or {}).get(part) or {} for part in ('neck', 'backbone'))
    if neck.get('type') != 'SSDNeck' or backbone.get('type') not in ('MobileNetV4', 'TimmFeatures'):
        raise UserError(
            '--levels is for SSDLite on MobileNetV4 or a timm net; RetinaNet and RTMDet already have a level of '
            'stride 8'
        )
    finest = 4 * 2 ** min(backbone['out_indices'])  # strides are 4, 8, 16 and 32 for indices 0 to 3, and 32 for 4
    if (finest, stride) not in ((16, 8), (stride, stride)):
        raise UserError(f'--levels {stride} does not fit: the finest level of this config has stride {finest}')


def check_fittable(cfg: Any) -> None:
    """Check that ``--fit-anchors`` fits a config.

    Args:
        cfg: A config, mmengine's or a dict.

    Raises:
        UserError: The model has no anchors whose sizes can be fitted.
    """
    head = (cfg.get('model') or {}).get('bbox_head')
    generator = (head.get('anchor_generator') if isinstance(head, dict) else None) or {}
    kind = generator.get('type')
    if kind != 'AnchorGenerator' and not (kind == 'SSDAnchorGenerator' and generator.get('min_sizes')):
        found = f'{kind}, which has no sizes to fit' if kind else 'no anchors'
        raise UserError(f'--fit-anchors is for SSDLite and RetinaNet; this config has {found}')


def check_keys(cfg_options: Mapping[str, Any], names: Iterable[str]) -> None:
    """Check the first parts of the keys of ``--cfg-options``.

    Args:
        cfg_options: Values by key, e.g. ``{'train_cfg.max_epochs': 3}``.
        names: Top-level names of the config.

    Raises:
        UserError: The first part of a key is unknown or has no effect.
    """
    names = set(names)
    for key in cfg_options:
        first = key.split('.')[0]
        if first == 'custom_imports':
            raise UserError(
                f'--cfg-options {key}: modules are imported while the config file is read; setting this now would '
                'import nothing. Write custom_imports into a config of your own (`mnv4 configs copy` makes one)'
            )
        if first in READ_KEYS:
            continue
        if first in names:
            raise UserError(
                f'--cfg-options {key}: {first} is used while the config file is read; setting it now would do nothing. '
                'Set the value where it goes to, e.g. train_dataloader.batch_size or optim_wrapper.optimizer.lr'
            )
        raise UserError(f'--cfg-options {key}: the config has no {first!r}{near_names(first, READ_KEYS)}')
