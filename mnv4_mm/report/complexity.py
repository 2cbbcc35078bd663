"""Parameters and multiply-accumulates of nets and whole models."""

from typing import NamedTuple

import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
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
    # The fused attention kernel of the CPU is not known to the counter: the plain one is two matrix products.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, 3, *size))
    return Complexity(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def classifier(arch: str) -> nn.Module:
    """The whole classification net of the paper and of timm: trunk, 960, mean over the map, 1280, 1000 classes."""
    net = MobileNetV4(arch, out_indices=(4,))
    return nn.Sequential(
        net,
        _Only(0),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(net.out_channels[0], 1280, 1, bias=False),
        nn.BatchNorm2d(1280),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1280, 1000),
    )


class _Only(nn.Module):
    """Picks one of a tuple."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return maps[self.index]


# (M parameters, G MACs) as printed in the paper's table 6 and in timm's results .
# The paper's larger nets are in units of 2^20 and 2^30.
PUBLISHED = {
    'conv_s': (224, (3.8, 0.2), (3.77, 0.19)),
    'conv_m': (256, (9.2, 1.0), (9.72, 1.10)),
    'hybrid_m': (256, (10.5, 1.2), (11.07, 1.29)),
    'conv_l': (384, (31, 5.9), (32.59, 6.43)),
    'hybrid_l': (384, (35.9, 7.2), (37.76, 7.77)),
}


def nets_table() -> str:
    """Markdown table of all nets: trunk and full classifier, measured, beside what the paper and timm print."""
    lines = [
        '| net | at | trunk M | trunk GMACs | classifier M | classifier GMACs | paper M / G | timm M / G |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for arch, spec in ARCHS.items():
        size, paper, timm = PUBLISHED.get(arch, (384 if '_l' in arch else 224 if '_s' in arch else 256, None, None))
        trunk = count(MobileNetV4(arch, out_indices=(3,)), (size, size))
        whole = count(classifier(arch), (size, size)) if spec.head_conv else None
        cells = [f'mnv4_{arch}', str(size), f'{trunk.params / 1e6:.3f}', f'{trunk.macs / 1e9:.2f}']
        cells += [f'{whole.params / 1e6:.3f}', f'{whole.macs / 1e9:.2f}'] if whole else ['-', '-']
        cells += [f'{pair[0]} / {pair[1]}' if pair else '-' for pair in (paper, timm)]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


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
    for arch in PUBLISHED:
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
