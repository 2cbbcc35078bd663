"""Sizes in pixels, and the parts of the config of a model of mmdet or mmseg that change with its input size."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnv4_mm.errors import UserError

DIVISOR = 32  # largest stride of a backbone
BATCH_SIZES = ('size', 'random_size_range')  # keys of batch augmentations


def scaled_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Return a size in pixels times a scale, each side rounded to the nearest multiple of 32.

    A scale of 1 returns the size itself.
    """
    first, second = size
    if scale == 1:
        return first, second
    return tuple(max(DIVISOR, DIVISOR * round(side * scale / DIVISOR)) for side in (first, second))  # type: ignore[return-value]


def scaled_value(value: Any, factors: tuple[float, float]) -> Any:
    """Multiply a size in a config.

    Args:
        value: A number of pixels, two of them, or a list of pairs or of more than two numbers.
        factors: Factors of the two numbers of a pair. A number that is not one of a pair gets their geometric mean.

    Returns:
        The value with whole pixels, of the same type. Anything else is returned as it is.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return round(value * math.sqrt(factors[0] * factors[1]))
    parts = list(value) if isinstance(value, list | tuple) else []
    if (parts and all(isinstance(part, list | tuple) for part in parts)) or len(parts) > 2:
        scaled = [scaled_value(part, factors) for part in parts]
    elif len(parts) == 2 and all(isinstance(side, int) for side in parts):
        scaled = [round(side * factor) for side, factor in zip(parts, factors, strict=True)]
    else:
        return value
    return scaled if isinstance(value, list) else tuple(scaled)


def set_model_size(model: Any, old: Sequence[int], new: Sequence[int]) -> None:
    """Change what depends on the input size: anchors of SSD, windows and padding of a segmenter, random input sizes.

    The sizes in an ``SSDAnchorGenerator`` are multiplied by the geometric mean of the ratios of new to old width and
    height, and its strides are computed anew. Other anchor generators stay as they are. A backbone's ``img_size``
    becomes the new size.

    Args:
        model: Config of the model; changed in place.
        old: Input size before, (width, height) in pixels.
        new: Input size to set, (width, height) in pixels.

    Raises:
        UserError: The anchors of SSD have no sizes in pixels, ``min_sizes`` and ``max_sizes``.
    """
    factors = new[0] / old[0], new[1] / old[1]
    if 'img_size' in model['backbone']:
        model['backbone']['img_size'] = (new[1], new[0])
    if factors == (1, 1):
        return
    generator = _anchor_generator(model)
    if _type_of(generator) == 'SSDAnchorGenerator':
        if not (generator.get('min_sizes') and generator.get('max_sizes')):
            raise UserError(
                'the input size of SSD can only be changed if its anchor_generator has min_sizes and max_sizes in '
                'pixels, as in the shipped configs'
            )
        for key in ('min_sizes', 'max_sizes'):
            generator[key] = [round(side * math.sqrt(factors[0] * factors[1]), 1) for side in generator[key]]
        generator['strides'] = _ssd_strides(model, new)
    preprocessor = model.get('data_preprocessor') or {}
    parts = [(augment, key) for augment in preprocessor.get('batch_augments') or [] for key in BATCH_SIZES]
    if 'decode_head' in model:
        padding, test = preprocessor.get('test_cfg') or {}, model.get('test_cfg') or {}
        parts += [(preprocessor, 'size'), (padding, 'size'), (test, 'crop_size'), (test, 'stride')]
    for part, key in parts:  # (height, width) in all of them
        if part.get(key):
            part[key] = scaled_value(part[key], factors[::-1])


def scale_anchors(model: Any, factor: float) -> None:
    """Multiply the sizes of the anchors of RetinaNet, which ``set_model_size`` leaves as they are.

    Args:
        model: Config of the model; changed in place.
        factor: Factor of widths and heights.
    """
    generator = _anchor_generator(model)
    if _type_of(generator) == 'AnchorGenerator':
        if generator.get('scales'):
            generator['scales'] = [scale * factor for scale in generator['scales']]
        else:
            generator['octave_base_scale'] *= factor


def has_scaled_anchors(model: Any) -> bool:
    """Return whether ``set_model_size`` or ``scale_anchors`` changes the anchors of the config of a model."""
    return _type_of(_anchor_generator(model)) in ('SSDAnchorGenerator', 'AnchorGenerator')


def _type_of(config: Any) -> str:
    return str(config.get('type', '')).rpartition('.')[2]  # without a scope such as mmdet.


def _anchor_generator(model: Any) -> Any:
    head = model.get('bbox_head')
    return (head.get('anchor_generator') if isinstance(head, dict) else None) or {}


def _ssd_strides(model: Any, size: Sequence[int]) -> list[Any]:
    """Return the spacing of anchors on each level of SSD in pixels: input size / size of the feature map.

    It is a number, or (width, height) if the two differ.
    """
    sides = np.array(size)
    steps = [tuple(round(float(side), 1) for side in sides / cells) for cells in ssd_maps(model, size)]
    return [step if step[0] != step[1] else step[0] for step in steps]


def ssd_maps(model: Any, size: Sequence[int]) -> list[np.ndarray]:
    """Return the size of the feature map on each level of SSD, (width, height).

    Args:
        model: Config of the model.
        size: Input size, (width, height) in pixels.
    """
    neck, sides = model['neck'], np.array(size)
    maps = [-(-sides // (4 * 2 ** min(index, 3))) for index in model['backbone']['out_indices']]
    for step, padding in zip(neck['level_strides'], neck['level_paddings'], strict=True):
        maps.append((maps[-1] + 2 * padding - 3) // step + 1)
    return maps
