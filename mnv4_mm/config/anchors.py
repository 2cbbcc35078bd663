"""Change the feature levels and the anchors in the config of a detector."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import MODELS
from scipy.optimize import differential_evolution

from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.data import dataset_split
from mnv4_mm.config.rules import check_fittable, check_levels, check_same_task
from mnv4_mm.data.formats.configured import innermost_dataset
from mnv4_mm.engine.building import building
from mnv4_mm.errors import UserError
from mnv4_mm.models.model_config import dicts
from mnv4_mm.weights.checkpoint import Checkpoint

SAMPLE = 300  # boxes to fit to, the same number of each class; the report uses all boxes
SEED = 0


@dataclass(frozen=True)
class Boxes:
    """Boxes of the training images, in pixels of the model's input.

    Attributes:
        centres: (N, 2), x and y.
        sizes: (N, 2), width and height.
        classes: Label of each box, (N,): an index into ``names``.
        names: Names of the classes.
        input_size: ``scale`` of the test pipeline's ``Resize``, (width, height).
    """

    centres: np.ndarray
    sizes: np.ndarray
    classes: np.ndarray
    names: tuple[str, ...]
    input_size: tuple[int, int]

    def take(self, index: np.ndarray) -> 'Boxes':
        """Return the boxes with these indices."""
        return Boxes(self.centres[index], self.sizes[index], self.classes[index], self.names, self.input_size)


def set_levels(cfg: Config, stride: int) -> Config:
    """Set the output stride of the finest level of SSDLite; stride 8 adds a level for small objects.

    Args:
        cfg: Config of SSDLite on ``MobileNetV4`` or ``TimmFeatures``.
        stride: 16 (as in ``mnv4_ssdlite_coco``) or 8. The smallest anchor of the new level has half the size of the
            smallest anchor of the next level.

    Returns:
        ``cfg``, which is changed in place unless its finest level has this stride already.

    Raises:
        UserError: The config is not for SSDLite on one of these backbones, or the stride does not fit its finest level.
    """
    check_levels(cfg, stride)
    neck, head, backbone = cfg.model.neck, cfg.model.bbox_head, cfg.model.backbone
    if 4 * 2 ** min(backbone.out_indices) == stride:
        return cfg
    backbone.out_indices = (1, *backbone.out_indices)
    with building('model.backbone'):
        built = MODELS.build({key: value for key, value in backbone.items() if key != 'init_cfg'})
    channels = built.out_channels[0]
    for part, key in ((neck, 'in_channels'), (neck, 'out_channels'), (head, 'in_channels')):
        part[key] = (channels, *part[key])
    generator = head.anchor_generator
    first = generator.min_sizes[0]
    generator.min_sizes = [round(first / 2, 1), *generator.min_sizes]
    generator.max_sizes = [first, *generator.max_sizes]
    generator.ratios = [generator.ratios[0], *generator.ratios]
    generator.strides = [stride, *generator.strides]
    return cfg


def fit_anchors(cfg: Config) -> str:
    """Fit the anchors of a detector to the boxes of its training images.

    Like mmdet's ``optimize_anchors.py``, this maximises the mean IoU of a box with its best anchor by differential
    evolution. Unlike in mmdet's script, all classes have the same weight, and anchors lie on the grid of their level,
    as they do in the head. The anchors are fitted to a random sample of at most about 300 boxes. The number of anchors
    stays the same, and the fixed seed makes the result reproducible.

    Args:
        cfg: Config of a detector with anchors, changed in place: the sizes (or scales) and ratios of its anchor
            generator are replaced, unless this does not raise the mean IoU on all boxes.

    Returns:
        Text for the user with the mean IoU of each class before and after, and the final sizes and ratios.

    Raises:
        UserError: The detector has no anchors that can be fitted, there are no boxes, or the test pipeline has no
            ``Resize`` with a scale.
    """
    check_fittable(cfg)
    head = cfg.model.bbox_head
    old = head.anchor_generator
    if old.type == 'SSDAnchorGenerator':
        build, start, bounds = _ssd_space(old, max(_test_resize(cfg)['scale']))
    else:
        build, start, bounds = _retina_space(old)
    boxes = training_boxes(cfg)
    sample = _sample(boxes)

    def loss(values: np.ndarray) -> float:
        return -_mean_over_classes(best_iou(sample, build(values)), sample)

    result = differential_evolution(
        loss, bounds, x0=np.clip(start, *np.transpose(bounds)), seed=SEED, popsize=6, maxiter=40, tol=1e-3, polish=False
    )
    new = build(result.x)
    before, after = (best_iou(boxes, generator) for generator in (old, new))
    if _mean_over_classes(after, boxes) <= _mean_over_classes(before, boxes):
        new, after = old, before
    head['anchor_generator'] = new
    return _report(boxes, before, after, new)


def check_same_anchors(cfg: Config, checkpoint: Checkpoint) -> None:
    """Check that a checkpoint was trained for the task of a config, and with its anchors and coder of boxes.

    The shapes of the weights depend only on the number of anchors. With other anchors of the same number, or another
    coder, the weights would load without an error and predict wrong boxes.

    A checkpoint that carries no config, or was trained without anchors, passes the check.

    Raises:
        UserError: The checkpoint carries a config of another task or with other anchors or another coder, or one that
            cannot be read.
    """
    if not isinstance(checkpoint.meta.get('cfg'), str):
        return
    trained_cfg = checkpoint_config(checkpoint)
    check_same_task(cfg, trained_cfg, checkpoint.path)
    trained, coder = _of_head(trained_cfg, 'anchor_generator'), _of_head(trained_cfg, 'bbox_coder')
    if trained and trained != _of_head(cfg, 'anchor_generator'):
        raise UserError(
            f'{checkpoint.path} was trained with other anchors than this config has: evaluate it without a config, '
            'or resume with the same --size, --levels and --fit-anchors and the same data'
        )
    if trained and coder != _of_head(cfg, 'bbox_coder'):
        raise UserError(
            f'{checkpoint.path} was trained with another bbox_coder than this config has: evaluate it without a config'
        )


def _of_head(cfg: Config, key: str) -> Any:
    head = cfg.get('model', {}).get('bbox_head')
    value = head.get(key) if isinstance(head, dict) else None
    return json.loads(json.dumps(value))  # makes tuples and lists equal


def training_boxes(cfg: Config) -> Boxes:
    """Return the boxes of a detector's training images, resized as the test pipeline resizes an image.

    Crowds, boxes without area and boxes of classes that the config does not name are left out.

    Raises:
        UserError: There are no boxes, or the test pipeline has no ``Resize`` with a scale.
    """
    dataset = innermost_dataset(cfg.train_dataloader.dataset)
    content = json.loads(dataset_split(cfg, 'train_dataloader').annotations.read_text(encoding='utf-8'))
    names = [category['name'] for category in content['categories']]
    classes = list((dataset.get('metainfo') or {}).get('classes') or names)
    index = {
        category['id']: classes.index(category['name'])
        for category in content['categories']
        if category['name'] in classes
    }
    factors = _resize_factors(cfg, {image['id']: (image['width'], image['height']) for image in content['images']})
    rows = [
        (*entry['bbox'], *factors[entry['image_id']], index[entry['category_id']])
        for entry in content['annotations']
        if not entry.get('iscrowd') and entry['category_id'] in index and min(entry['bbox'][2:]) > 0
    ]
    if not rows:
        raise UserError('--fit-anchors: the training images have no boxes to fit to')
    table = np.array(rows, dtype=np.float64)
    sizes = table[:, 2:4] * table[:, 4:6]
    centres = table[:, :2] * table[:, 4:6] + sizes / 2
    return Boxes(centres, sizes, table[:, 6].astype(int), tuple(classes), tuple(_test_resize(cfg)['scale']))


def best_iou(boxes: Boxes, generator: Mapping[str, Any]) -> np.ndarray:
    """Return the IoU of each box with its best anchor of all levels, (N,).

    The grid of anchors is assumed to continue beyond the border of the image.

    Args:
        boxes: The boxes.
        generator: Config of an anchor generator.
    """
    levels = list(levels_of(generator))
    counts = [len(sizes) for _, _, sizes in levels]
    step = np.repeat([step for step, _, _ in levels], counts, axis=0)  # (A, 2)
    centre = np.repeat([centre for _, centre, _ in levels], counts, axis=0)
    anchor, box = np.concatenate([sizes for _, _, sizes in levels]), boxes.sizes[:, None]
    # Distance from the centre of a box to the nearest anchor's: anchors repeat at each stride.
    distance = boxes.centres[:, None] - centre
    distance = np.abs(distance - np.round(distance / step) * step)  # (N, A, 2)
    overlap = np.minimum(np.minimum(box, anchor), (box + anchor) / 2 - distance).clip(0).prod(-1)  # (N, A)
    return (overlap / (box.prod(-1) + anchor.prod(-1) - overlap)).max(1)


def levels_of(generator: Mapping[str, Any]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Compute the anchors of each level as mmdet's SSDAnchorGenerator and AnchorGenerator do.

    Args:
        generator: Config of one of these two anchor generators.

    Yields:
        A tuple for each level, in pixels: the stride as (x, y), (2,); the centre of the anchors in the first grid cell
        as (x, y), (2,); and the widths and heights of the A anchors of a cell, (A, 2).
    """
    is_ssd = generator['type'] == 'SSDAnchorGenerator'
    for i, stride in enumerate(generator['strides']):
        step = np.broadcast_to(np.array(stride, dtype=np.float64), 2)
        if is_ssd:
            low, high = generator['min_sizes'][i], generator['max_sizes'][i]
            root = np.sqrt([ratio for pair in generator['ratios'][i] for ratio in (1 / pair, pair)])
            sides = np.array([1, math.sqrt(high / low), *(1 / root)]) * low
            others = np.array([1, math.sqrt(high / low), *root]) * low
            yield step, step / 2, np.stack([sides, others], 1)
        else:
            base = (generator.get('base_sizes') or [min(step)] * (i + 1))[i]
            root = np.sqrt(generator['ratios'])[:, None]
            sides = base * np.array(_scales(generator))
            sizes = np.stack([(sides / root).ravel(), (sides * root).ravel()], 1)
            yield step, np.full(2, generator.get('center_offset', 0.0) * base), sizes


def _scales(generator: Mapping[str, Any]) -> list[float]:
    """Return the scales of a plain AnchorGenerator."""
    if generator.get('scales'):
        return list(generator['scales'])
    count = generator['scales_per_octave']
    return [generator['octave_base_scale'] * 2 ** (i / count) for i in range(count)]


Space = tuple[Callable[[np.ndarray], dict[str, Any]], np.ndarray, list[tuple[float, float]]]


def _ssd_space(old: Mapping[str, Any], limit: float) -> Space:
    """Return a function from parameters to an SSD generator, the parameters of the old generator, and their bounds.

    The parameters are the logarithms of: the minimum size of the finest level, the ratio of each minimum size to the
    one before, the ratio of maximum to minimum size of each level, and the aspect ratios that all levels share. No size
    exceeds ``limit``, in pixels.
    """
    levels, counts = len(old['strides']), [len(level) for level in old['ratios']]

    def build(values: np.ndarray) -> dict[str, Any]:
        low = np.exp(np.cumsum(values[:levels])).clip(max=limit)
        high = (low * np.exp(values[levels : 2 * levels])).clip(max=limit)
        ratios = [round(float(ratio), 2) for ratio in np.sort(np.exp(values[2 * levels :]))]
        return {
            **old,
            'min_sizes': [round(float(size), 1) for size in low],
            'max_sizes': [round(float(size), 1) for size in high],
            'ratios': [ratios[:count] for count in counts],
        }

    low, high = np.array(old['min_sizes']), np.array(old['max_sizes'])
    start = [low[0], *(low[1:] / low[:-1]), *(high / low), *max(old['ratios'], key=len)]
    bounds = [(4.0, limit)] + [(1.1, 4.0)] * (2 * levels - 1) + [(1.1, 5.0)] * max(counts)
    return build, np.log(start), _log(bounds)


def _retina_space(old: Mapping[str, Any]) -> Space:
    """Return the same as ``_ssd_space`` for a generator whose levels share their scales and ratios."""
    kept = {key: value for key, value in old.items() if key not in ('octave_base_scale', 'scales_per_octave')}
    scales = _scales(old)

    def build(values: np.ndarray) -> dict[str, Any]:
        numbers = [round(float(value), 3) for value in np.exp(values)]
        return {**kept, 'scales': sorted(numbers[: len(scales)]), 'ratios': sorted(numbers[len(scales) :])}

    bounds = [(0.5, 16.0)] * len(scales) + [(0.1, 10.0)] * len(old['ratios'])
    return build, np.log([*scales, *old['ratios']]), _log(bounds)


def _log(bounds: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(math.log(low), math.log(high)) for low, high in bounds]


def _sample(boxes: Boxes) -> Boxes:
    """Return about ``SAMPLE`` random boxes or fewer, the same number of each class if it has enough."""
    rng = np.random.default_rng(SEED)
    groups = [np.flatnonzero(boxes.classes == label) for label in np.unique(boxes.classes)]
    share = max(1, SAMPLE // len(groups))
    return boxes.take(np.concatenate([rng.permutation(group)[:share] for group in groups]))


def _mean_over_classes(iou: np.ndarray, boxes: Boxes) -> float:
    return float(np.mean([iou[boxes.classes == label].mean() for label in np.unique(boxes.classes)]))


def _test_resize(cfg: Config) -> Mapping[str, Any]:
    for transform in dicts(innermost_dataset(cfg.test_dataloader.dataset).pipeline):
        if transform.get('type') in ('Resize', 'mmdet.Resize') and transform.get('scale'):
            return transform
    raise UserError('--fit-anchors: the test pipeline of this config has no Resize with a scale')


def _resize_factors(cfg: Config, images: Mapping[Any, tuple[int, int]]) -> dict[Any, tuple[float, float]]:
    """Return the resize factors (width, height) of each image, by image id."""
    resize = _test_resize(cfg)
    width, height = resize['scale']
    factors = {}
    for key, (w, h) in images.items():
        if resize.get('keep_ratio'):
            # As in mmcv.rescale_size: the longer side of the image fits the longer side of the scale, and the shorter
            # side fits the shorter one.
            factor = min(max(width, height) / max(w, h), min(width, height) / min(w, h))
            factors[key] = (factor, factor)
        else:
            factors[key] = (width / w, height / h)
    return factors


def _report(boxes: Boxes, before: np.ndarray, after: np.ndarray, generator: Mapping[str, Any]) -> str:
    width, height = boxes.input_size
    lines = [
        f'anchors fitted to the training images; mean IoU of their {len(boxes.sizes)} boxes with the best anchor, at '
        f'{width}x{height}:'
    ]
    if after is before:
        lines = ['no better anchors were found, so those of the config stay; mean IoU of a box with its best anchor:']
    for label in np.unique(boxes.classes):
        mine = boxes.classes == label
        lines.append(f'  {boxes.names[label]:<20}{before[mine].mean():.3f} -> {after[mine].mean():.3f}')
    numbers = {key: generator[key] for key in ('min_sizes', 'max_sizes', 'scales', 'ratios') if key in generator}
    return '\n'.join([*lines, '  ' + ', '.join(f'{key}={value}' for key, value in numbers.items())])
