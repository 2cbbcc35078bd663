"""Replace the backbone of a config, and check its pretrained weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from mnv4_mm.config.nested import on_copy
from mnv4_mm.config.rules import check_backbone_name, check_backbone_of
from mnv4_mm.errors import UserError
from mnv4_mm.models.model_config import dicts, set_channels
from mnv4_mm.models.timm_features import has_fixed_input_size, timm_normalisation
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.strict import pretrained_entries
from mnv4_mm.weights.tags import DEFAULT_TAGS, TAGS

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def set_backbone(cfg: Config, name: str) -> Config:
    """Replace the backbone of a model, and adapt the channels of the neck and the heads.

    ``out_indices`` and the training settings stay as they are.

    If the old backbone starts from ``timm://`` weights, the new backbone starts from its own default weights: those of
    ``DEFAULT_TAGS``, or timm's default for a timm net. Otherwise, or if no weights of a MobileNetV4 are published, the
    new backbone starts from random weights.

    In the neck and the heads, each ``in_channels`` and ``out_channels`` that begins with the channels of the old
    backbone begins with those of the new one instead. Without a neck, a head that selects a feature map by ``in_index``
    gets the channels of this feature map.

    For a timm net that is built for one image size, the net and a segmenter's inference are set to the config's
    ``input_size``.

    Args:
        cfg: A config with ``model.backbone`` of type MobileNetV4; changed in place.
        name: ``mnv4_`` and a name of ``ARCHS``, e.g. ``mnv4_conv_l``, or ``timm:`` and a name of timm's, e.g.
            ``timm:fastvit_sa12``.

    Raises:
        UserError: The name is unknown, timm is needed and not installed, or the backbone does not fit the config.
    """
    check_backbone_name(name)
    check_backbone_of(cfg)
    old = backbone_channels(cfg.model.backbone)
    entries = pretrained_entries(cfg.model.backbone.pop('init_cfg', None))
    pretrained = any(entry['checkpoint'].startswith('timm://') for entry in entries)
    if name.startswith('timm:'):
        _set_timm_backbone(cfg, name.removeprefix('timm:'))
    else:
        cfg.model.backbone.arch = name.removeprefix('mnv4_')
    tag = _default_tag(name)
    if pretrained and tag:
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=f'timm://{tag}')
    elif pretrained and cfg.model.backbone.get('norm_eval'):
        raise UserError(
            f'this config keeps the norm statistics of ImageNet weights, but no weights of {name} are published: use a '
            'config of your own without init_cfg and norm_eval in the backbone'
        )
    set_channels(cfg.model, old, backbone_channels(cfg.model.backbone))
    return cfg


with_backbone = on_copy(set_backbone)


def _default_tag(name: str) -> str | None:
    if name.startswith('timm:'):
        return name.removeprefix('timm:')
    return DEFAULT_TAGS.get(name.removeprefix('mnv4_'))


def _set_timm_backbone(cfg: Config, name: str) -> None:
    kept = {key: value for key, value in cfg.model.backbone.items() if key not in ('type', 'arch')}
    unknown = kept.keys() - {'out_indices', 'norm_eval', 'drop_path_rate', 'output_stride'}
    if unknown:
        raise UserError(f"timm:{name} does not take {', '.join(sorted(unknown))} of this config's backbone")
    cfg.model.backbone = dict(type='TimmFeatures', name=name, **kept)
    if has_fixed_input_size(name):
        if not cfg.get('input_size'):
            raise UserError(f'timm:{name} is built for one image size: the config needs input_size=(width, height)')
        width, height = cfg.input_size
        if width % 32 or height % 32:
            raise UserError(
                f'timm:{name} is built for one image size, in multiples of 32; this config has input_size=({width}, '
                f'{height})'
            )
        cfg.model.backbone.img_size = (height, width)
        task_of(cfg).set_one_size(cfg, (height, width))


def backbone_channels(backbone: Mapping[str, Any]) -> list[int]:
    """Return the channels of the feature maps of a backbone.

    Raises:
        UserError: The backbone cannot be built.
    """
    try:
        return list(MODELS.build({key: value for key, value in backbone.items() if key != 'init_cfg'}).out_channels)
    except ValueError as error:
        raise UserError(f'the backbone does not fit the config: {error}') from error


def pretrained_files(cfg: Config) -> list[str]:
    """Return the local files that parts of a model are initialised from (``init_cfg``), as written in the config."""
    sources = [part.get('checkpoint', '') for part in dicts(cfg.model) if part.get('type') == 'Pretrained']
    return [source for source in sources if '://' not in source]


def disagreeing_normalisation(cfg: Config) -> str | None:
    """Describe how the data preprocessor's normalisation differs from that of the backbone's pretrained weights.

    The normalisation is the mean, the standard deviation and the RGB order. That of the weights is known if their
    source is ``timm://`` or a local file named ``<tag>.safetensors``, with a tag of ``TAGS``.

    Returns:
        A sentence with both normalisations; None if they agree, if that of the weights is unknown, or if the backbone
        starts from random weights.
    """
    backbone = cfg.model.get('backbone') or {}
    preprocessor = cfg.model.get('data_preprocessor') or {}
    for entry in pretrained_entries(backbone.get('init_cfg')):
        required = _normalisation(entry['checkpoint'])
        used = (tuple(preprocessor.get('mean') or ()), tuple(preprocessor.get('std') or ()))
        if required is not None and not (_close(used, required) and preprocessor.get('bgr_to_rgb')):
            mean, std = required
            return (
                f'{entry["checkpoint"]} was trained on RGB images with mean={list(mean)} and std={list(std)}; this '
                f'data_preprocessor has mean={list(used[0])}, std={list(used[1])}, '
                f'bgr_to_rgb={bool(preprocessor.get("bgr_to_rgb"))}'
            )
    return None


def lost_weights(before: Config, after: Config) -> str | None:
    """Return a warning if a pretrained backbone was replaced by one that starts from random weights; otherwise None.

    Args:
        before: The config as it was loaded.
        after: The config of the run, whose backbone may have been replaced.
    """
    entries = [pretrained_entries((cfg.model.get('backbone') or {}).get('init_cfg')) for cfg in (before, after)]
    same = before.model.backbone.get('arch') == after.model.backbone.get('arch')
    if entries[0] and not entries[1] and not same:
        return (
            'the new backbone starts from random weights, unlike that of the config: its score cannot be compared with '
            'those of nets that start from ImageNet weights'
        )
    return None


def _normalisation(checkpoint: str) -> Normalisation | None:
    """Return mean and std (RGB, 0 to 255) of weights, given as a tag, a file named after a tag, or a timm net.

    None if they are unknown.
    """
    name = checkpoint.removeprefix('timm://')
    tag = TAGS.get(name) or TAGS.get(Path(name).name.removesuffix('.safetensors'))
    if tag:
        return tag.normalisation
    return timm_normalisation(name) if checkpoint.startswith('timm://') else None


def _close(a: Normalisation, b: Normalisation) -> bool:
    return all(
        len(x) == len(y) and all(abs(p - q) < 0.01 for p, q in zip(x, y, strict=True))
        for x, y in zip(a, b, strict=True)
    )
