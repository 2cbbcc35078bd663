"""What depends on the input size in the config of a model, ``model`` of a config of mmdet or mmseg."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

DIVISOR = 32  # largest stride of a backbone


def scaled_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Return a size in pixels times a scale, each side rounded to the nearest multiple of 32.

    A scale of 1 returns the size itself.
    """
    first, second = size
    if scale == 1:
        return first, second
    return tuple(max(DIVISOR, DIVISOR * round(side * scale / DIVISOR)) for side in (first, second))  # type: ignore[return-value]


def set_model_size(model: Any, old: Sequence[int], new: Sequence[int]) -> None:
    """Change what depends on the input size: the anchors of SSD, the windows and the padding of a segmenter.

    The sizes in an ``SSDAnchorGenerator`` are multiplied by the geometric mean of the ratios of new to old width and
    height, and its strides are computed anew. Other anchor generators stay as they are. A backbone's ``img_size``
    becomes the new size.

    Args:
        model: Config of the model; changed in place.
        old: Input size before, (width, height) in pixels.
        new: Input size to set, (width, height) in pixels.
    """
    factors = new[0] / old[0], new[1] / old[1]
    if 'img_size' in model['backbone']:
        model['backbone']['img_size'] = (new[1], new[0])
    if factors == (1, 1):
        return
    generator = (model.get('bbox_head') or {}).get('anchor_generator') or {}
    if generator.get('type') == 'SSDAnchorGenerator':
        for key in ('min_sizes', 'max_sizes'):
            generator[key] = [round(side * math.sqrt(factors[0] * factors[1]), 1) for side in generator[key]]
        generator['strides'] = _ssd_strides(model, new)
    if 'decode_head' in model:
        preprocessor, test = model.get('data_preprocessor') or {}, model.get('test_cfg') or {}
        padding = preprocessor.get('test_cfg') or {}
        for part, key in ((preprocessor, 'size'), (padding, 'size'), (test, 'crop_size'), (test, 'stride')):
            if part.get(key):
                height, width = part[key]
                part[key] = (round(height * factors[1]), round(width * factors[0]))


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
