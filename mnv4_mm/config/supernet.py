"""The ``supernet`` settings of a config, with which ``engine.sandwich`` trains all nets of a search space at once."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from mnv4_mm.config.backbone import backbone_channels
from mnv4_mm.config.input_size import set_pipeline_size
from mnv4_mm.config.nested import on_copy
from mnv4_mm.config.options import WITHOUT_SPACE, TrainOptions
from mnv4_mm.config.rules import check_backbone_of, check_is_supernet
from mnv4_mm.data.held_out import KEY
from mnv4_mm.engine.sandwich import NAME
from mnv4_mm.errors import UserError
from mnv4_mm.models.arch import arch_from_dict, arch_to_dict
from mnv4_mm.models.input_size import has_scaled_anchors, scaled_size
from mnv4_mm.models.model_config import set_channels
from mnv4_mm.models.space import SPACES, Space
from mnv4_mm.models.supernet import subnet_model

RANDOM_NETS = 2  # in each step, besides the largest and the smallest one
DISTILLATION = 1.0  # weight
BOX_CODES = 'pixels'  # of detectors with anchors, see ``models.supernet.subnet_model``
HELD_OUT = 0.2  # share of the training images, on which nets are scored


def set_supernet(cfg: Config, options: TrainOptions) -> Config:
    """Replace the backbone of a config by the largest net of a search space, and add the ``supernet`` settings.

    The supernet starts from random weights, because its layers have other shapes than those of published weights. It
    has no frozen layers or norms, and no stochastic depth, as random nets have a random depth already. A share
    ``HELD_OUT`` of the training images is held out to score nets.

    Args:
        cfg: A config with ``model.backbone`` of type MobileNetV4; changed in place.
        options: Options of training; ``space`` names the search space.

    Returns:
        ``cfg``.

    Raises:
        UserError: The backbone is not MobileNetV4.
    """
    assert options.space is not None
    check_backbone_of(cfg)
    backbone = cfg.model.backbone
    old = backbone_channels(backbone)
    for key in ('init_cfg', 'norm_eval', 'frozen_stages', 'drop_path_rate'):
        backbone.pop(key, None)
    space = SPACES[options.space]
    backbone.arch = arch_to_dict(space.subnet(space.largest()).arch)
    set_channels(cfg.model, old, backbone_channels(backbone))
    scales = list(space.scales)
    cfg[NAME] = dict(
        space=options.space, scales=scales, box_codes=BOX_CODES, random=RANDOM_NETS, distillation=DISTILLATION
    )
    cfg.train_dataloader[KEY] = HELD_OUT
    return cfg


def check_supernet(cfg: Config, options: TrainOptions) -> None:
    """Check the config of a run that trains a supernet, whether by ``--space`` or by its own ``supernet`` settings.

    Args:
        cfg: Config of the run, with all options applied.
        options: Options of training.

    Raises:
        UserError: An option or a setting does not fit a supernet.
    """
    if not cfg.get(NAME):
        return
    options.check_excluded('--space', WITHOUT_SPACE)
    space = space_of(cfg)
    largest = arch_to_dict(space.subnet(space.largest()).arch)
    arch = cfg.model.backbone.get('arch')
    if not isinstance(arch, dict) or arch_from_dict(arch) != arch_from_dict(largest):
        raise UserError(f'model.backbone.arch of a supernet must be the largest net of the space {cfg[NAME].space!r}')
    size = cfg.get('input_size')
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise UserError('--space needs a config with input_size = (width, height), as the shipped ones have')
    sizes = [scaled_size(size, scale) for scale in space.scales]
    if len(set(sizes)) < len(sizes):
        raise UserError(
            f'--space needs a larger input_size than {size[0]}x{size[1]}: {", ".join(map(str, space.scales))} times '
            'this size, in multiples of 32, must differ; 128x128 is the smallest square'
        )
    with_subnet(cfg, space.smallest())  # raises if the model cannot take a smaller input
    count, weight, share = cfg[NAME].get('random'), cfg[NAME].get('distillation'), cfg.train_dataloader.get(KEY)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise UserError(f'{NAME}.random must be a number of nets, got {count!r}')
    if not isinstance(weight, int | float) or not 0 <= weight < float('inf'):
        raise UserError(f'{NAME}.distillation must be a weight of at least 0, got {weight!r}')
    if not isinstance(share, int | float) or not 0 < share < 1:
        raise UserError(f'train_dataloader.{KEY} must be a share between 0 and 1, got {share!r}')


def set_subnet(cfg: Config, genes: Sequence[int], *, codes_in_pixels: bool = True) -> Config:
    """Make the config of one net of a supernet: an ordinary config, with the input size of this net.

    Args:
        cfg: Config of a supernet; changed in place.
        genes: The net.
        codes_in_pixels: See ``subnet_model``.

    Returns:
        ``cfg``.

    Raises:
        UserError: This is not the config of a supernet, or the genes do not fit its space.
    """
    space = space_of(cfg)
    model = cfg.model.to_dict()
    cfg.model = subnet_model(model, space, genes, cfg.input_size, codes_in_pixels=codes_in_pixels)
    set_pipeline_size(cfg, scaled_size(cfg.input_size, space.subnet(genes).scale))
    cfg.pop(NAME)
    cfg.train_dataloader.pop(KEY, None)
    return cfg


with_subnet = on_copy(set_subnet)


def space_of(cfg: Any) -> Space:
    """Return the search space of the config of a supernet.

    Raises:
        UserError: This is not the config of a supernet, or there is no such space here.
    """
    check_is_supernet(cfg)
    settings = cfg[NAME]
    if settings['space'] not in SPACES:
        raise UserError(f'no search space {settings["space"]!r}; there are {", ".join(SPACES)}')
    space = SPACES[settings['space']]
    if list(settings.get('scales', ())) != list(space.scales):
        raise UserError('this supernet was trained for other input sizes than this version searches: train it anew')
    if settings.get('box_codes') != BOX_CODES and has_scaled_anchors(cfg.model):
        raise UserError('this supernet was trained with other codes of boxes than this version has: train it anew')
    return space


def model_digest(cfg: Any) -> str:
    """Return a SHA-256 of the detector or segmenter of a supernet, without what only training reads."""
    model = {key: value for key, value in cfg.model.to_dict().items() if key != 'train_cfg'}
    return hashlib.sha256(json.dumps(model, sort_keys=True, default=str).encode()).hexdigest()
