"""Change the input size of a config."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from mnv4_mm.config.data import LOADERS
from mnv4_mm.config.rules import check_sizable
from mnv4_mm.data.formats.configured import innermost_dataset
from mnv4_mm.models.input_size import scaled_value, set_model_size
from mnv4_mm.models.model_config import dicts

# Keys of transforms whose values are sizes: (width, height), but crops and mosaics of mmseg are (height, width).
SIZES = ('scale', 'scales', 'img_scale', 'max_size', 'size', 'crop_size', 'border')


def set_size(cfg: Config, size: Sequence[int]) -> Config:
    """Set the input size of a detector in all its pipelines, and scale the anchors of SSD.

    Every size in the pipelines and in ``custom_hooks``, such as the canvas of a mosaic, is multiplied by the ratio of
    new to old input width or height. See ``set_model_size`` for the anchors.

    Args:
        cfg: Config of a detector.
        size: (height, width), or (side,) for a square, in pixels; multiples of 32.

    Returns:
        ``cfg``, which is changed in place.

    Raises:
        UserError: The config is not for a detector, or has no ``input_size``.
    """
    height, width = size if len(size) == 2 else (size[0], size[0])
    check_sizable(cfg)
    old = tuple(cfg.input_size)
    set_pipeline_size(cfg, (width, height))
    set_model_size(cfg.model, old, (width, height))
    return cfg


def set_pipeline_size(cfg: Config, size: tuple[int, int]) -> None:
    """Set ``input_size`` and every size in the pipelines and in ``custom_hooks``, but nothing in the model.

    Args:
        cfg: Config with ``input_size``; changed in place.
        size: Width and height in pixels: for a detector of its input, for a segmenter of a training crop.
    """
    old = cfg.input_size
    factors = (size[0] / old[0], size[1] / old[1])
    datasets = [innermost_dataset(cfg[name].dataset) for name in LOADERS if cfg.get(name)]
    pipelines: list[Any] = [dataset.get('pipeline', []) for dataset in datasets]
    pipelines += [cfg.get(name, []) for name in ('train_pipeline', 'test_pipeline', 'custom_hooks')]
    # By identity: loaders may share a pipeline.
    for transform in {id(part): part for part in dicts(pipelines)}.values():
        is_mosaic = 'Mosaic' in str(transform.get('type'))
        for key in SIZES:
            is_turned = cfg.get('default_scope') == 'mmseg' and (key == 'crop_size' or is_mosaic)
            if key in transform:
                transform[key] = scaled_value(transform[key], factors[::-1] if is_turned else factors)
    cfg.input_size = size
