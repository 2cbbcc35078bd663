"""Parameters and multiply-accumulates (MACs) of nets and whole models."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mmengine.config import Config

from mnv4_mm.apis.mistakes import telling_wrong_settings
from mnv4_mm.config.backbone import with_backbone
from mnv4_mm.config.index import config_index
from mnv4_mm.config.load import load_config
from mnv4_mm.config.rules import check_complete
from mnv4_mm.errors import UserError
from mnv4_mm.models import MobileNetV4
from mnv4_mm.models.arch import ARCHS
from mnv4_mm.models.classifier import classifier
from mnv4_mm.models.complexity import Complexity, count
from mnv4_mm.tasks import build_model


class Published(NamedTuple):
    """Published complexity: millions of parameters and billions of MACs.

    Attributes:
        size: Height and width of the images in pixels.
        paper: Parameters and MACs in table 6 of the paper, which gives its larger nets in units of 2^20 and 2^30; None
            if the net is not in the table.
        timm: Parameters and MACs in timm's model cards, where MACs may be missing; None without a model card.
    """

    size: int
    paper: tuple[float, float] | None
    timm: tuple[float, float | None] | None


PUBLISHED = {
    'conv_s': Published(224, (3.8, 0.2), (3.77, 0.19)),
    'conv_m': Published(256, (9.2, 1.0), (9.72, 1.10)),
    'hybrid_m': Published(256, (10.5, 1.2), (11.07, 1.29)),
    'conv_l': Published(384, (31, 5.9), (32.59, 6.43)),
    'hybrid_l': Published(384, (35.9, 7.2), (37.76, 7.77)),
    'conv_s_035': Published(224, None, (1.91, 0.05)),
    'conv_s_050': Published(224, None, (2.24, 0.07)),
    'hybrid_m_075': Published(224, None, (7.31, None)),
    'hybrid_l_075': Published(256, None, (22.75, None)),
    'conv_aa_m': Published(256, None, (9.72, None)),
    'conv_aa_l': Published(384, None, (32.59, None)),
    'conv_blur_m': Published(224, None, (9.72, None)),
    'conv_m_seg': Published(256, None, None),
}


def nets_table() -> str:
    """Return a Markdown table of all nets.

    The columns are the parameters and MACs that are counted for the backbone and the classifier, and the values that
    the paper and timm publish.
    """
    lines = [
        '| net | image size | backbone M | backbone GMACs | classifier M | classifier GMACs '
        '| paper M / G | timm M / G |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for arch, published in PUBLISHED.items():
        size = (published.size, published.size)
        backbone = count(MobileNetV4(arch, out_indices=(3,)), size)
        whole = count(classifier(arch), size) if ARCHS[arch].head_conv else None
        cells = [f'mnv4_{arch}', str(published.size), f'{backbone.params / 1e6:.3f}', f'{backbone.macs / 1e9:.2f}']
        cells += [f'{whole.params / 1e6:.3f}', f'{whole.macs / 1e9:.2f}'] if whole else ['-', '-']
        for values in (published.paper, published.timm):
            cells.append(f'{values[0]} / {"-" if values[1] is None else values[1]}' if values else '-')
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def count_config(name: str, backbone: str | None = None) -> Complexity:
    """Count the parameters and MACs of the model of a config, at its ``input_size``.

    Args:
        name: Config name or path.
        backbone: Backbone that replaces the one of the config; None to keep it.

    Raises:
        UserError: The config or the backbone is unknown, or the config has no ``model`` or no ``input_size``.
    """
    return _count_loaded(name, _load(name, backbone))


def _load(name: str, backbone: str | None) -> Config:
    cfg = load_config(name)
    return with_backbone(cfg, backbone) if backbone else cfg


def _count_loaded(name: str, cfg: Config) -> Complexity:
    check_complete(cfg, ('model',))
    if 'input_size' not in cfg:
        raise UserError(
            'this config has no input_size = (width, height) in pixels, the size of the image to count with'
        )
    width, height = cfg.input_size
    cfg.model.backbone.pop('init_cfg', None)
    with telling_wrong_settings(name):
        model = build_model(cfg)
    return count(model, (height, width))


def table(names: list[str], backbone: str | None = None) -> str:
    """Return two Markdown tables of parameters and MACs: one of the five main nets, and one of configs.

    Args:
        names: Config names or paths; all shipped configs if empty.
        backbone: Backbone that replaces the ones of the configs; None to keep them.

    Raises:
        UserError: A config or the backbone is unknown, or a config has no ``model`` or no ``input_size``.
    """
    # All configs are loaded before any is counted, and counted before the nets, so that mistakes are reported at once.
    configs = [(name, _load(name, backbone)) for name in names or config_index()]
    counts_of_configs = [_count_loaded(name, cfg) for name, cfg in configs]
    lines = [
        '| net | channels of C2, C3, C4, C5 | backbone, M params | GMACs at 224 | 320 | 384 | 512 |',
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
    for (name, cfg), counted in zip(configs, counts_of_configs, strict=True):
        lines.append(
            f'| {name} | {backbone or _backbone_name(cfg.model.backbone)} | {cfg.input_size[0]}x{cfg.input_size[1]} '
            f'| {counted.params / 1e6:.2f} | {counted.macs / 1e9:.2f} |'
        )
    return '\n'.join(lines)


def _backbone_name(backbone: Mapping[str, Any]) -> str:
    """Return the name of a backbone as in ``--backbone``; for one of OpenMMLab, its type."""
    if backbone['type'] == 'TimmFeatures':
        return f'timm:{backbone["name"]}'
    return f'mnv4_{backbone["arch"]}' if backbone['type'] == 'MobileNetV4' else backbone['type']
