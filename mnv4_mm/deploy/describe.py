"""Metadata of an exported file, derived from a trained model and its config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from mmdet.models.dense_heads import SSDHead
from mmengine.config import Config

from mnv4_mm.config.data import innermost_dataset
from mnv4_mm.deploy.arguments import SIZE_DIVISOR, check_options, choose_kind
from mnv4_mm.deploy.graph import HEADS
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Input, Kind, Meta, Precision, Resize, Selection, Task
from mnv4_mm.tasks import task_of
from mnv4_mm.version import __version__
from mnv4_mm.weights.checkpoint import Checkpoint


def describe(
    model: Any,
    target: Target,
    *,
    kind: Kind | None = None,
    precision: Precision = 'fp32',
    size: Sequence[int] | None = None,
    dynamic: bool = False,
    normalise: bool = False,
) -> Meta:
    """Describe the inputs and outputs of a file to be exported.

    Args:
        model: Model that ``apis.model.load_model`` returned.
        target: The target.
        kind: Outputs of the file, see ``Meta.kind``; the first kind of the target that fits the task if left out.
        precision: Precision of weights and arithmetic.
        size: Height and width of the input in pixels, multiples of 32. If left out, the size to which the config's test
            pipeline resizes; for a segmenter whose images keep their aspect ratio, the size of a training crop.
        dynamic: Let the file take inputs of any height and width that are multiples of 32.
        normalise: Let the caller normalise the input, instead of the graph. The input is then NCHW float32.

    Returns:
        The metadata, without ``source`` and ``files``.

    Raises:
        UserError: The target does not support an option, or the model or config has a part that cannot be exported.
    """
    task: Task = 'detection' if hasattr(model, 'bbox_head') else 'segmentation'
    head = getattr(model, 'bbox_head' if task == 'detection' else 'decode_head', None)
    if not hasattr(head, 'loss_by_feat'):
        raise UserError(
            f'a {type(model).__name__} cannot be exported: only single-stage detectors and encoder-decoders can'
        )
    # Other heads with the same box coders decode differently.
    if task == 'detection' and not isinstance(head, HEADS):
        names = ', '.join(kind.__name__ for kind in HEADS)
        raise UserError(
            f'a model with the head {type(head).__name__} cannot be exported: only {names} and their subclasses can'
        )
    kind = choose_kind(target, task, kind)
    check_options(target, precision=precision, size=size, dynamic=dynamic)
    cfg, is_ssd = model.cfg, isinstance(head, SSDHead)
    preprocessor = cfg.model.data_preprocessor
    order: Literal['RGB', 'BGR'] = 'RGB' if preprocessor.get('bgr_to_rgb') else 'BGR'
    config_size, resize = _resize(cfg, order, dynamic)
    if not (size or dynamic) and any(side % SIZE_DIVISOR for side in config_size):
        advice = 'train for another size' if is_ssd else 'name height and width by --size'
        raise UserError(
            f'this config stretches every image to height {config_size[0]} and width {config_size[1]}; files take '
            f'multiples of {SIZE_DIVISOR}: {advice}'
        )
    if size and tuple(size) != config_size and is_ssd:
        raise UserError(
            '--size does not fit SSD, whose anchors are made for one size, here height '
            f'{config_size[0]} and width {config_size[1]}: train for another size'
        )
    if task == 'segmentation':
        _check_segmenter(model)
    height, width = size or config_size
    dataset_meta = model.dataset_meta
    return Meta(
        task=task,
        kind=kind,
        target=target.name,
        precision=precision,
        classes=tuple(dataset_meta['classes']),
        input=Input(
            size=None if dynamic else (height, width),
            layout='NCHW' if normalise else target.layout,
            dtype='float32' if normalise else target.dtype,
            channel_order=order,
            normalise=normalise,
            mean=_channels(preprocessor.get('mean'), 0.0),
            std=_channels(preprocessor.get('std'), 1.0),
            divisor=SIZE_DIVISOR,
        ),
        resize=resize,
        selection=_selection(model) if task == 'detection' else None,
        category_ids=tuple(model.checkpoint_meta.get('category_ids') or ()) or None,
        first_value=int(bool(dataset_meta.get('reduce_zero_label'))),
        palette=tuple(map(tuple, dataset_meta['palette'])) if task == 'segmentation' else None,
    )


def default_size(cfg: Config) -> tuple[int, int]:
    """Return height and width in pixels of the input of a file that is exported without ``size``.

    Raises:
        UserError: The test pipeline has a step that a file cannot reproduce.
    """
    return _resize(cfg, 'RGB', dynamic=False)[0]


def source_of(checkpoint: Checkpoint, model: Any, target: Target) -> dict[str, str]:
    """Describe the origin of a file: checkpoint, its SHA-256, config, and the versions of the packages used.

    Args:
        checkpoint: The checkpoint.
        model: Model that ``apis.model.load_model`` returned.
        target: The target.

    Returns:
        The values of ``Meta.source``: ``checkpoint`` (file name), ``sha256``, ``config`` (name without suffix), and
        versions by package name.

    Raises:
        UserError: The target is LiteRT, and the packages that convert to it are not installed.
    """
    return dict(
        checkpoint=checkpoint.path.name,
        sha256=checkpoint.sha256,
        config=Path(model.cfg.get('filename') or model.checkpoint_meta.get('experiment_name') or '').stem,
        mnv4_mm=__version__,
        torch=torch.__version__,
        **target.versions(),
    )


def _check_segmenter(model: Any) -> None:
    """Refuse settings that an exported file would silently ignore."""
    if model.decode_head.align_corners:
        raise UserError(
            'a decode_head with align_corners is not exported: exported files resize with align_corners=False'
        )
    if model.decode_head.out_channels != model.decode_head.num_classes:
        raise UserError('a decode_head with one channel for two classes is not exported: it needs a channel per class')
    if model.test_cfg.get('mode') == 'slide':
        raise UserError(
            'this config predicts in windows (model.test_cfg.mode=slide), but a file takes whole images: name a config '
            "with mode='whole' by --config"
        )


def _channels(values: Any, default: float) -> tuple[float, float, float]:
    a, b, c = values or (default,) * 3
    return float(a), float(b), float(c)


def _resize(cfg: Config, order: str, dynamic: bool) -> tuple[tuple[int, int], Resize]:
    """Read the input size and the resizing of images from a config, mainly from its test pipeline.

    Args:
        cfg: The config.
        order: Channel order of the input, ``RGB`` or ``BGR``.
        dynamic: True if the file takes inputs of any size.

    Returns:
        Height and width of the input in pixels, and the resizing. If images keep their aspect ratio, the size is that
        of the task (``export_size``), rounded up to multiples of 32.

    Raises:
        UserError: The test pipeline has a step that a file cannot reproduce.
    """
    scale, keep_ratio, padded_size, pad_value = None, True, None, None
    for step in innermost_dataset(cfg.test_dataloader.dataset).pipeline:
        name = step['type'].rpartition('.')[2]
        if name == 'Resize':
            scale, keep_ratio = step.get('scale'), bool(step.get('keep_ratio'))
        elif name == 'Pad':
            padded_size, pad_value = step.get('size'), step.get('pad_val', 0)
        elif name.startswith('LoadImageFrom'):
            continue
        elif name not in ('LoadAnnotations', 'ResizeToMultiple', 'PackDetInputs', 'PackSegInputs'):
            raise UserError(f'the test pipeline of this config has a step that cannot be exported: {name}')
    if not isinstance(scale, list | tuple) or len(scale) != 2:
        raise UserError('the test pipeline of this config has no Resize with a scale of two numbers')
    if padded_size and tuple(padded_size) != tuple(scale):
        raise UserError(
            f'the test pipeline of this config resizes images to {scale[0]}x{scale[1]} and pads them to '
            f'{padded_size[0]}x{padded_size[1]}; both must be the same size to be exported'
        )
    width, height = scale
    if keep_ratio:
        height, width = task_of(cfg).export_size(cfg, (height, width))
    else:
        if dynamic:
            raise UserError(f'--dynamic does not fit: this config stretches every image to {width}x{height}')
        return (height, width), Resize('stretch', (0, 0, 0))
    size = (-(-height // SIZE_DIVISOR) * SIZE_DIVISOR, -(-width // SIZE_DIVISOR) * SIZE_DIVISOR)
    colour = pad_value.get('img', 0) if isinstance(pad_value, dict) else pad_value
    if colour is None:  # without a Pad, mmdet pads with zeros after normalising: the mean
        colour = [round(float(mean)) for mean in _channels(cfg.model.data_preprocessor.get('mean'), 0.0)]
    elif isinstance(colour, int | float):
        colour = [colour] * 3
    elif order == 'RGB':  # Pad works on BGR
        colour = list(colour)[::-1]
    a, b, c = (int(part) for part in colour)
    return size, Resize('letterbox', (a, b, c), (scale[0], scale[1]) if dynamic else None)


def _selection(model: Any) -> Selection:
    """Read the settings of NMS from ``test_cfg`` of a detector."""
    cfg = model.bbox_head.test_cfg
    nms = cfg.get('nms', {})
    if nms.get('type', 'nms') != 'nms' or nms.get('class_agnostic') or 'iou_threshold' not in nms:
        raise UserError(
            f'nms of this config is {dict(nms)}; only plain nms for each class is exported, with an iou_threshold'
        )
    max_detections, candidates = int(cfg.get('max_per_img', 0)), int(cfg.get('nms_pre', -1))
    if max_detections < 1:
        raise UserError(f'max_per_img of this config is {max_detections}; a file needs at least 1')
    return Selection(
        score_thr=float(cfg.get('score_thr', 0)),
        iou_thr=float(nms['iou_threshold']),
        max_per_img=max_detections,
        min_size=float(cfg.get('min_bbox_size', -1)),
        # An nms_pre of 0 or less means no limit.
        candidates=candidates * len(model.bbox_head.prior_generator.strides) if candidates > 0 else 2**31 - 1,
    )
