"""Compare the sizes of boxes with what the detector of a config can find."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mmdet.registry import TASK_UTILS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mnv4_mm.data.formats.configured import innermost_dataset

SMALL = 0.5  # share of the smallest anchor's side; a smaller box has an IoU below 0.25 with each anchor
MIN_SHARE = 0.2  # share of small boxes above which a class is named
NAMED = 5  # maximum number of classes named


def smallest_anchor(cfg: Config) -> float | None:
    """Return the side of the smallest anchor of a config, sqrt(width * height) in pixels; None without anchors."""
    head = cfg.model.get('bbox_head') or {}
    settings = head.get('anchor_generator')
    if not isinstance(settings, Mapping):
        return None
    with DefaultScope.overwrite_default_scope('mmdet'):
        generator = TASK_UTILS.build(settings)
    anchors = getattr(generator, 'base_anchors', None)  # generators of points have none
    if not anchors:
        return None
    return min(math.sqrt((x2 - x1) * (y2 - y1)) for level in anchors for x1, y1, x2, y2 in level.tolist())


def input_scale(cfg: Config) -> tuple[tuple[int, int], bool] | None:
    """Return the size that the test pipeline resizes images to, (width, height), and whether it keeps the ratio.

    None if the pipeline has no ``Resize`` with a scale.
    """
    for step in innermost_dataset(cfg.test_dataloader.dataset).get('pipeline') or []:
        if step.get('type') in ('Resize', 'mmdet.Resize') and isinstance(step.get('scale'), list | tuple):
            return tuple(step['scale']), bool(step.get('keep_ratio'))
    return None


def small_box_lines(content: Mapping[str, Any], cfg: Config) -> Iterator[str]:
    """Warn about classes with many boxes that are too small for the anchors of a config.

    A box is too small if the square root of its area is less than half the side of the smallest anchor, both at the
    input size. A class is named if more than 20 % of its boxes are too small.

    Args:
        content: Training annotations in COCO format.
        cfg: The config.

    Yields:
        One warning that names up to five classes, the one with the largest share first. Nothing if there is no such
        class, no anchors, or no ``Resize`` with a scale in the test pipeline.
    """
    anchor, scale = smallest_anchor(cfg), input_scale(cfg)
    if anchor is None or scale is None:
        return
    (width, height), keeps_shape = scale
    factors = {}
    for image in content['images']:
        x, y = width / image['width'], height / image['height']
        if keeps_shape:  # long side fits long side, short side fits short side
            sides = sorted((image['width'], image['height']))
            x = y = min(max(width, height) / sides[1], min(width, height) / sides[0])
        factors[image['id']] = math.sqrt(x * y)
    names = {category['id']: category['name'] for category in content['categories']}
    total, small = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for annotation in content['annotations']:
        side = math.sqrt(annotation['bbox'][2] * annotation['bbox'][3]) * factors[annotation['image_id']]
        total[annotation['category_id']] += 1
        small[annotation['category_id']] += side < SMALL * anchor
    shares = {name: small[number] / total[number] for number, name in names.items() if total[number]}
    found = sorted((name for name in shares if shares[name] > MIN_SHARE), key=shares.__getitem__, reverse=True)
    if not found:
        return
    parts = [f'{100 * shares[name]:.0f} % of {name!r}' for name in found[:NAMED]]
    parts[0] = parts[0].replace(' of ', ' of the boxes of ', 1)
    if len(found) > NAMED:
        parts.append(f'many of {len(found) - NAMED} more classes')
    yield (
        f'{", ".join(parts)} are smaller than half the smallest anchor ({anchor:.0f} pixels) at {width}x{height}, and '
        f'will hardly be found: {ADVICE}'
    )


ADVICE = (
    '--fit-anchors, with --levels 8 for SSDLite, a larger input by --size, or a config without anchors, '
    'mnv4_rtmdet_coco'
)
