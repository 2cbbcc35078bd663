"""Initial weights of the backbone of a config."""

from pathlib import Path

from mmengine.config import Config

from mnv4_mm.config.nested import on_copy
from mnv4_mm.errors import UserError
from mnv4_mm.models.model_config import dicts
from mnv4_mm.paths import check_weights_file
from mnv4_mm.weights.hub import read_weights
from mnv4_mm.weights.strict import pretrained_entries, tensor_state
from mnv4_mm.weights.tags import DEFAULT_TAGS


def set_weights(cfg: Config, weights: str) -> Config:
    """Set the initial weights of the backbone.

    Args:
        cfg: A config; changed in place.
        weights: ``timm`` for the default ImageNet weights of the backbone, ``none`` for random weights, or a file with
            the weights of a backbone or of a whole model. ``none`` also unfreezes stages and norm statistics.

    Returns:
        ``cfg``.

    Raises:
        UserError: No ImageNet weights of this backbone are known, the file cannot be read, or the backbone is of a type
            that takes no file.
    """
    backbone = cfg.model.backbone
    others = [entry for entry in _entries(backbone.get('init_cfg')) if entry.get('type') != 'Pretrained']
    backbone.pop('init_cfg', None)
    if weights == 'none':
        source = None
        # Random weights must be trained: frozen stages and frozen norm statistics would be meaningless.
        for key, value in (('norm_eval', False), ('frozen_stages', -1)):
            if key in backbone:
                backbone[key] = value
    elif weights == 'timm':
        tag = default_tag(cfg)
        if tag is None:
            raise UserError(
                '--weights timm: no ImageNet weights of this backbone are known; --weights none starts from random ones'
            )
        source = dict(type='Pretrained', checkpoint=f'timm://{tag}')
    else:
        if backbone.type not in ('MobileNetV4', 'TimmFeatures'):
            raise UserError(
                f'--weights FILE needs a backbone of type MobileNetV4 or TimmFeatures; this config has {backbone.type}'
            )
        source = dict(type='Pretrained', checkpoint=str(check_weights_file(weights)))
        # For a timm net, timm itself reads the file.
        names = tensor_state(read_weights(weights), weights) if backbone.type == 'MobileNetV4' else ()
        if any(name.startswith('backbone.') for name in names):
            source['prefix'] = 'backbone.'
    if source or others:
        backbone.init_cfg = [*others, source] if others and source else (source or others)
    return cfg


with_weights = on_copy(set_weights)


def default_tag(cfg: Config) -> str | None:
    """Return the tag of the default weights of a config's backbone, as it follows ``timm://``.

    Returns:
        For MobileNetV4, a tag of ``TAGS``, or None if no weights of the net are published. For a timm net, its name,
        whether or not timm has weights of it. None for other backbones.
    """
    backbone = cfg.model.get('backbone') or {}
    if backbone.get('type') == 'TimmFeatures':
        return backbone.get('name')
    arch = backbone.get('arch')
    return DEFAULT_TAGS.get(arch) if backbone.get('type') == 'MobileNetV4' and isinstance(arch, str) else None


def is_pretrained(cfg: Config) -> bool:
    """Return True if the backbone of a config starts from trained weights."""
    return bool(pretrained_entries((cfg.model.get('backbone') or {}).get('init_cfg')))


def published_tags(cfg: Config) -> list[str]:
    """Return the tags of the published MobileNetV4 weights that parts of a model are initialised from."""
    sources = [part.get('checkpoint', '') for part in dicts(cfg.model) if part.get('type') == 'Pretrained']
    tags = [source.removeprefix('timm://') for source in sources if source.startswith('timm://')]
    return [tag for tag in tags if not _is_timm_net(cfg, tag)]


def _is_timm_net(cfg: Config, tag: str) -> bool:
    """Return True if timm itself loads the weights, for a backbone ``timm:<name>``."""
    backbone = cfg.model.get('backbone') or {}
    return backbone.get('type') == 'TimmFeatures' and Path(tag).name == Path(str(backbone.get('name'))).name


def _entries(init_cfg: object) -> list[dict]:
    return [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or [])  # type: ignore[call-overload]
