"""Another backbone in a config, and its pretrained weights."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from mnv4_mm.config.data import fit_inference
from mnv4_mm.config.index import near_names
from mnv4_mm.config.nested import dicts
from mnv4_mm.errors import UserError
from mnv4_mm.models.arch import ARCHS
from mnv4_mm.models.timm_features import has_fixed_input_size, timm_normalisation
from mnv4_mm.tasks import task_of
from mnv4_mm.tasks.segmentation import Segmentation
from mnv4_mm.weights.strict import pretrained_entries
from mnv4_mm.weights.tags import DEFAULT_TAGS, TAGS


def fit_backbone(cfg: Config, name: str) -> Config:
    """Puts another backbone into a model and gives its channels to the neck and the heads.

    The maps (``out_indices``) and the training settings stay the config's; if it starts from ``timm://`` weights, the
    new net starts from its own (``DEFAULT_TAGS``; of a timm net, timm's default) or, where none are published, from
    random ones. Wherever the neck or a head repeats the old channels at the start of its ``in_channels`` or
    ``out_channels``, or names a map by ``in_index``, the new ones are put.

    Args:
        cfg: A config with ``model.backbone`` of type MobileNetV4.
        name: ``mnv4_`` and a name of ``ARCHS``, e.g. ``mnv4_conv_l``, or ``timm:`` and one of timm's, e.g.
            ``timm:fastvit_sa12``.

    Raises:
        UserError: unknown name, or the net does not fit the config.
    """
    cfg = copy.deepcopy(cfg)
    if cfg.get('model', {}).get('backbone', {}).get('type') != 'MobileNetV4':
        raise UserError('--backbone needs a config whose model.backbone is of type MobileNetV4')
    old = _out_channels(cfg.model.backbone)
    entries = pretrained_entries(cfg.model.backbone.pop('init_cfg', None))
    pretrained = any(entry['checkpoint'].startswith('timm://') for entry in entries)
    if name.startswith('timm:'):
        cfg.model.backbone = _timm_backbone(cfg, name.removeprefix('timm:'))
    else:
        names = [f'mnv4_{arch}' for arch in ARCHS]
        if name not in names:
            raise UserError(f'no backbone {name!r}{near_names(name, names)}; or timm:<name of a timm net>')
        cfg.model.backbone.arch = name.removeprefix('mnv4_')
    tag = _default_tag(name)
    if pretrained and tag:
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=f'timm://{tag}')
    elif pretrained and cfg.model.backbone.get('norm_eval'):
        raise UserError(
            f'this config keeps the norm statistics of ImageNet weights and none of {name} are published: put a config '
            'of your own without init_cfg and norm_eval in the backbone'
        )
    _fit_channels(cfg.model, old, _out_channels(cfg.model.backbone))
    return cfg


def _fit_channels(model: Any, old: list[int], new: list[int]) -> None:
    """Puts the new channels where the neck or a head repeats the old ones, or, in mmseg's way, names a map."""
    for part in dicts({key: value for key, value in model.items() if key != 'backbone'}):
        for key in ('in_channels', 'out_channels'):
            value = part.get(key)
            if isinstance(value, list | tuple) and list(value[: len(old)]) == old:
                part[key] = type(value)([*new, *value[len(old) :]])
        if 'neck' not in model and isinstance(part.get('in_index'), int):
            part['in_channels'] = new[part['in_index']]
        if 'neck' not in model and part.get('c1_in_channels'):
            part['c1_in_channels'] = new[0]  # DeepLabV3+ takes its fine map from the first one


def _default_tag(name: str) -> str | None:
    if name.startswith('timm:'):
        return name.removeprefix('timm:')
    return DEFAULT_TAGS.get(name.removeprefix('mnv4_'))


def _timm_backbone(cfg: Config, name: str) -> dict[str, Any]:
    kept = {key: value for key, value in cfg.model.backbone.items() if key not in ('type', 'arch')}
    unknown = kept.keys() - {'out_indices', 'norm_eval', 'drop_path_rate', 'output_stride'}
    if unknown:
        raise UserError(f"timm:{name} does not take {', '.join(sorted(unknown))} of this config's backbone")
    backbone = dict(type='TimmFeatures', name=name, **kept)
    if has_fixed_input_size(name):
        width, height = cfg.input_size
        if width % 32 or height % 32:
            raise UserError(f'timm:{name} is built for one size of picture; this config keeps the shape of each')
        backbone['img_size'] = (height, width)
        if isinstance(task_of(cfg), Segmentation):
            # Training crops have the one size, test pictures do not: it sees them window by window.
            cfg.model.test_cfg = fit_inference(cfg, 'slide').model.test_cfg
            cfg.model.data_preprocessor.test_cfg = dict(size=(height, width))  # no window is smaller
    return backbone


def _out_channels(backbone: Mapping[str, Any]) -> list[int]:
    try:
        return list(MODELS.build({key: value for key, value in backbone.items() if key != 'init_cfg'}).out_channels)
    except ValueError as error:
        raise UserError(f'the backbone does not fit the config: {error}') from error


def pretrained_files(cfg: Config) -> list[str]:
    """Local files that any part of a model is to be initialised from."""
    sources = [part.get('checkpoint', '') for part in dicts(cfg.model) if part.get('type') == 'Pretrained']
    return [source for source in sources if '://' not in source]


def disagreeing_normalisation(cfg: Config) -> str | None:
    """Says where the data preprocessor is not what the backbone's pretrained weights were trained with; None if it is.

    Known for ``timm://`` tags, and for local files named after one.
    """
    backbone = cfg.model.get('backbone') or {}
    preprocessor = cfg.model.get('data_preprocessor') or {}
    for entry in pretrained_entries(backbone.get('init_cfg')):
        wanted = _normalisation(entry['checkpoint'])
        used = (tuple(preprocessor.get('mean') or ()), tuple(preprocessor.get('std') or ()))
        if wanted is not None and not (_close(used, wanted) and preprocessor.get('bgr_to_rgb')):
            mean, std = wanted
            return (
                f'{entry["checkpoint"]} was trained with RGB pictures of mean={list(mean)} and std={list(std)}; this '
                f'data_preprocessor has mean={list(used[0])}, std={list(used[1])}, '
                f'bgr_to_rgb={bool(preprocessor.get("bgr_to_rgb"))}'
            )
    return None


def lost_weights(before: Config, after: Config) -> str | None:
    """Says where a config would start from ImageNet weights but for another backbone that has none; None elsewhere."""
    entries = [pretrained_entries((cfg.model.get('backbone') or {}).get('init_cfg')) for cfg in (before, after)]
    same = before.model.backbone.get('arch') == after.model.backbone.get('arch')
    if entries[0] and not entries[1] and not same:
        return (
            'no weights of this backbone are published: it starts from random ones, and its score cannot be compared '
            'with those of nets that start from ImageNet weights'
        )
    return None


Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def _normalisation(checkpoint: str) -> Normalisation | None:
    """Mean and std (0 to 255, RGB) of known weights: a tag, a file named after one, or any net of timm."""
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
