"""Parameters and multiply-accumulates of nets and whole models."""

from typing import NamedTuple

import torch
from mmengine.config import Config
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mnv4_mm.config.backbone import fit_backbone
from mnv4_mm.config.index import config_index
from mnv4_mm.config.load import load_config
from mnv4_mm.models import MobileNetV4
from mnv4_mm.models.arch import ARCHS
from mnv4_mm.tasks import build_model


class Complexity(NamedTuple):
    """Parameters, and multiply-accumulates of one forward pass (convolutions and matrix products only)."""

    params: int
    macs: int


def count(model: nn.Module, size: tuple[int, int]) -> Complexity:
    """Counts a net, or a model of mmdet or mmseg without its post-processing, on one (H, W) picture."""
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


class Printed(NamedTuple):
    """What is printed elsewhere: (M parameters, G MACs) at a size in pixels, in the paper's table 6 and by timm.

    The paper gives its larger nets in units of 2^20 and 2^30.
    """

    size: int
    paper: tuple[float, float] | None
    timm: tuple[float, float | None] | None


PRINTED = {
    'conv_s': Printed(224, (3.8, 0.2), (3.77, 0.19)),
    'conv_m': Printed(256, (9.2, 1.0), (9.72, 1.10)),
    'hybrid_m': Printed(256, (10.5, 1.2), (11.07, 1.29)),
    'conv_l': Printed(384, (31, 5.9), (32.59, 6.43)),
    'hybrid_l': Printed(384, (35.9, 7.2), (37.76, 7.77)),
    'conv_s_035': Printed(224, None, (1.91, 0.05)),
    'conv_s_050': Printed(224, None, (2.24, 0.07)),
    'hybrid_m_075': Printed(224, None, (7.31, None)),
    'hybrid_l_075': Printed(256, None, (22.75, None)),
    'conv_aa_m': Printed(256, None, (9.72, None)),
    'conv_aa_l': Printed(384, None, (32.59, None)),
    'conv_blur_m': Printed(224, None, (9.72, None)),
    'conv_m_seg': Printed(256, None, None),
}


def nets_table() -> str:
    """Markdown table of all nets: trunk and full classifier, measured, beside what the paper and timm print."""
    lines = [
        '| net | at | trunk M | trunk GMACs | classifier M | classifier GMACs | paper M / G | timm M / G |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for arch, printed in PRINTED.items():
        size = (printed.size, printed.size)
        trunk = count(MobileNetV4(arch, out_indices=(3,)), size)
        whole = count(classifier(arch), size) if ARCHS[arch].head_conv else None
        cells = [f'mnv4_{arch}', str(printed.size), f'{trunk.params / 1e6:.3f}', f'{trunk.macs / 1e9:.2f}']
        cells += [f'{whole.params / 1e6:.3f}', f'{whole.macs / 1e9:.2f}'] if whole else ['-', '-']
        for pair in (printed.paper, printed.timm):
            cells.append(f'{pair[0]} / {"-" if pair[1] is None else pair[1]}' if pair else '-')
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def count_config(name: str, backbone: str | None = None) -> Complexity:
    """Counts a shipped detector or segmenter at its config's ``input_size``.

    Args:
        name: Config name or path.
        backbone: Count it with this backbone instead.

    Raises:
        UserError: unknown config or backbone.
    """
    return _count_loaded(_load(name, backbone))


def _load(name: str, backbone: str | None) -> Config:
    cfg = load_config(name)
    return fit_backbone(cfg, backbone) if backbone else cfg


def _count_loaded(cfg: Config) -> Complexity:
    width, height = cfg.input_size
    cfg.model.backbone.pop('init_cfg', None)
    return count(build_model(cfg), (height, width))


def table(names: list[str], backbone: str | None = None) -> str:
    """Markdown tables of the trunks and of the shipped configs.

    Args:
        names: Config names; all shipped ones if empty.
        backbone: Count the models with this backbone instead.

    Raises:
        UserError: unknown config or backbone.
    """
    lines = [
        '| net | C2, C3, C4, C5 | trunk, M params | GMACs at 224 | 320 | 384 | 512 |',
        '|---|---|---|---|---|---|---|',
    ]
    for arch in ('conv_s', 'conv_m', 'conv_l', 'hybrid_m', 'hybrid_l'):
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
            f'| {name} | {backbone or "mnv4_" + cfg.model.backbone.arch} | {cfg.input_size[0]}x{cfg.input_size[1]} '
            f'| {counted.params / 1e6:.2f} | {counted.macs / 1e9:.2f} |'
        )
    return '\n'.join(lines)
