"""Parameters and multiply-accumulates of nets and whole models."""

from typing import NamedTuple

import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mnv4_mm.apis.config import config_index, fit_backbone, load_config
from mnv4_mm.models import MobileNetV4
from mnv4_mm.models.arch import ARCHS


class Complexity(NamedTuple):
    """Parameters, and multiply-accumulates of one forward pass (convolutions and matrix products only)."""

    params: int
    macs: int


def count(model: nn.Module, size: tuple[int, int]) -> Complexity:
    """Counts a net, or an mmdet model without its post-processing, on one (H, W) picture."""
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *size))
    return Complexity(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def count_config(name: str, backbone: str | None = None) -> Complexity:
    """Counts a shipped detector at its config's ``input_size``.

    Args:
        name: Config name or path.
        backbone: Count it with this backbone instead.

    Raises:
        UserError: unknown config or backbone.
    """
    return _count_loaded(_load(name, backbone))


def _load(name: str, backbone: str | None) -> Config:
    register_all_modules(init_default_scope=True)
    cfg = load_config(name)
    return fit_backbone(cfg, backbone) if backbone else cfg


def _count_loaded(cfg: Config) -> Complexity:
    width, height = cfg.input_size
    model = MODELS.build({**cfg.model, 'backbone': {**cfg.model.backbone, 'init_cfg': None}})
    return count(model, (height, width))


def table(names: list[str], backbone: str | None = None) -> str:
    """Markdown tables of the trunks and of the shipped detectors.

    Args:
        names: Config names; all shipped ones if empty.
        backbone: Count the detectors with this backbone instead.

    Raises:
        UserError: unknown config or backbone.
    """
    lines = [
        '| net | C2, C3, C4, C5 | trunk, M params | GMACs at 224 | 320 | 384 | 512 |',
        '|---|---|---|---|---|---|---|',
    ]
    for arch in ARCHS:
        net = MobileNetV4(arch, out_indices=(0, 1, 2, 3))
        counts = [count(net, (size, size)) for size in (224, 320, 384, 512)]
        macs = ' | '.join(f'{c.macs / 1e9:.2f}' for c in counts)
        lines.append(
            f'| mnv4_{arch} | {", ".join(map(str, net.out_channels))} | {counts[0].params / 1e6:.3f} | {macs} |'
        )
    lines += ['', '| config | backbone | input | M params | GMACs |', '|---|---|---|---|---|']
    for name in names or config_index():
        cfg = _load(name, backbone)
        counted = _count_loaded(cfg)
        lines.append(
            f'| {name} | mnv4_{cfg.model.backbone.arch} | {cfg.input_size[0]}x{cfg.input_size[1]} '
            f'| {counted.params / 1e6:.2f} | {counted.macs / 1e9:.2f} |'
        )
    return '\n'.join(lines)
