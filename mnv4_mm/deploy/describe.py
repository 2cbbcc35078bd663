"""A trained model and its config -> what an exported file of it takes and gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from mmdet.models.dense_heads import SSDHead
from mmengine.config import Config

from mnv4_mm.config.data import innermost_dataset
from mnv4_mm.deploy.graph import HEADS
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Input, Kind, Meta, Precision, Resize, Selection, Task, sha256
from mnv4_mm.version import __version__

DIVISOR = 32  # the coarsest map of every net here: sides that are multiples have maps without remainders


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
    """Says what a file is to take and give.

    Args:
        model: What ``apis.model.load_model`` returned.
        target: The runtime.
        kind: What is to come out; the runtime's first that fits the task if left out.
        precision: Of weights and arithmetic.
        size: Height and width of the input; those of the config's test pipeline if left out.
        dynamic: Any size.
        normalise: Whether the caller will normalise, instead of the graph.

    Raises:
        UserError: the runtime cannot do it, or the config has a step that is not known.
    """
    task: Task = 'detection' if hasattr(model, 'bbox_head') else 'segmentation'
    head = getattr(model, 'bbox_head' if task == 'detection' else 'decode_head', None)
    if not hasattr(head, 'loss_by_feat'):
        raise UserError(f'{type(model).__name__} is not exported: single-stage detectors and encoder-decoders are')
    if task == 'detection' and not isinstance(head, HEADS):  # others with the same coders decode in ways of their own
        names = ', '.join(kind.__name__ for kind in HEADS)
        raise UserError(f'{type(head).__name__} is not exported: {names} and what is made of them are')
    cfg = model.cfg
    kinds = [one for one in target.kinds if (one in ('nms', 'raw')) == (task == 'detection')]
    kind = kind or kinds[0]
    if kind not in kinds:
        raise UserError(
            f'--{kind.replace("_", "-")} does not fit {task} in {target.name}, which has {", ".join(kinds)}'
        )
    if precision not in target.precisions:
        raise UserError(f'--precision {precision} does not fit {target.name}, which has {", ".join(target.precisions)}')
    if dynamic and not target.dynamic:
        raise UserError(f'--dynamic does not fit {target.name}, whose files have one size')
    if dynamic and size:
        raise UserError('--size and --dynamic exclude each other')
    order: Literal['RGB', 'BGR'] = 'RGB' if cfg.model.data_preprocessor.get('bgr_to_rgb') else 'BGR'
    own_size, resize = _resize(cfg, order, dynamic)
    if size and (len(size) != 2 or any(side < DIVISOR or side % DIVISOR for side in size)):
        raise UserError(f'--size must be height and width, multiples of {DIVISOR}, got {" ".join(map(str, size))}')
    if not (size or dynamic) and any(side % DIVISOR for side in own_size):
        otherwise = 'train for others' if isinstance(head, SSDHead) else 'name height and width by --size'
        raise UserError(
            f'this config stretches every picture to {own_size[0]} {own_size[1]}; files take multiples of {DIVISOR}: '
            f'{otherwise}'
        )
    if size and tuple(size) != own_size and isinstance(head, SSDHead):
        raise UserError(
            f'--size does not fit SSD, whose anchors are made for one size, here {own_size[0]} {own_size[1]}: train '
            'for another one'
        )
    if task == 'segmentation':
        _check_segmenter(model)
    height, width = size or own_size
    info = cfg.model.data_preprocessor
    meta = model.dataset_meta
    return Meta(
        task=task,
        kind=kind,
        target=target.name,
        precision=precision,
        classes=tuple(meta['classes']),
        input=Input(
            size=None if dynamic else (height, width),
            layout='NCHW' if normalise else target.layout,
            dtype='float32' if normalise else target.dtype,
            channel_order=order,
            normalise=normalise,
            mean=_three(info.get('mean'), 0.0),
            std=_three(info.get('std'), 1.0),
            divisor=DIVISOR,
        ),
        resize=resize,
        selection=_selection(model) if task == 'detection' else None,
        category_ids=tuple(model.checkpoint_meta.get('category_ids') or ()) or None,
        first_value=int(bool(meta.get('reduce_zero_label'))),
        palette=tuple(tuple(colour) for colour in meta['palette']) if task == 'segmentation' else None,
    )


def _check_segmenter(model: Any) -> None:
    """Refuses what a file would do otherwise than the model, without a word."""
    if model.decode_head.align_corners:
        raise UserError('a decode_head with align_corners is not exported: class maps are enlarged without')
    if model.decode_head.out_channels != model.decode_head.num_classes:
        raise UserError('a decode_head of two classes with one channel is not exported: the class of most is')
    if model.test_cfg.get('mode') == 'slide':
        raise UserError(
            'this config sees windows (model.test_cfg.mode=slide), a file whole pictures: name a config with '
            "mode='whole' by --config"
        )


def source_of(checkpoint: Path, model: Any, target: Target) -> dict[str, str]:
    """Where a file came from: checkpoint, its SHA-256, config, and the versions that made it."""
    return dict(
        checkpoint=checkpoint.name,
        sha256=sha256(checkpoint),
        config=Path(model.cfg.get('filename') or model.checkpoint_meta.get('experiment_name') or '').stem,
        mnv4_mm=__version__,
        torch=torch.__version__,
        **target.versions(),
    )


def _three(values: Any, otherwise: float) -> tuple[float, float, float]:
    a, b, c = values or (otherwise,) * 3
    return float(a), float(b), float(c)


def _resize(cfg: Config, order: str, dynamic: bool) -> tuple[tuple[int, int], Resize]:
    """What a config's test pipeline does to a picture's size: height and width where they are fixed, and how."""
    scale, keep, padded, colour = None, True, None, None
    for step in innermost_dataset(cfg.test_dataloader.dataset).pipeline:
        name = step['type'].rpartition('.')[2]
        if name == 'Resize':
            scale, keep = step.get('scale'), bool(step.get('keep_ratio'))
        elif name == 'Pad':
            padded, colour = step.get('size'), step.get('pad_val', 0)
        elif name.startswith('LoadImageFrom'):
            continue
        elif name not in ('LoadAnnotations', 'ResizeToMultiple', 'PackDetInputs', 'PackSegInputs'):
            raise UserError(f'the test pipeline of this config has a step that cannot be exported: {name}')
    if not isinstance(scale, list | tuple) or len(scale) != 2:
        raise UserError('the test pipeline of this config has no Resize with a scale of two numbers')
    if padded and tuple(padded) != tuple(scale):
        raise UserError(
            f'the test pipeline of this config resizes pictures to {scale[0]}x{scale[1]} and fills up to '
            f'{padded[0]}x{padded[1]}; only where both are one size it is exported'
        )
    width, height = scale
    if cfg.model.data_preprocessor.type.endswith('SegDataPreProcessor') and keep:
        # Test pictures have all sizes; training crops had this one.
        height, width = cfg.model.data_preprocessor.get('size') or (height, width)
    if not keep:
        if dynamic:
            raise UserError(f'--dynamic does not fit: this config stretches every picture to {width}x{height}')
        return (height, width), Resize('stretch', (0, 0, 0))
    size = (-(-height // DIVISOR) * DIVISOR, -(-width // DIVISOR) * DIVISOR)
    colour = colour.get('img', 0) if isinstance(colour, dict) else colour
    if colour is None:  # without a Pad mmdet fills after normalising, with zeros: with the mean
        colour = [round(float(mean)) for mean in _three(cfg.model.data_preprocessor.get('mean'), 0.0)]
    elif isinstance(colour, int | float):
        colour = [colour] * 3
    elif order == 'RGB':  # Pad works on BGR
        colour = list(colour)[::-1]
    a, b, c = (int(part) for part in colour)
    return size, Resize('letterbox', (a, b, c), (scale[0], scale[1]) if dynamic else None)


def _selection(model: Any) -> Selection:
    cfg = model.bbox_head.test_cfg
    nms = cfg.get('nms', {})
    if nms.get('type', 'nms') != 'nms' or nms.get('class_agnostic') or 'iou_threshold' not in nms:
        raise UserError(f'nms of this config is {dict(nms)}; plain nms, class by class, is exported')
    most, looked_at = int(cfg.get('max_per_img', 0)), int(cfg.get('nms_pre', -1))
    if most < 1:
        raise UserError(f'max_per_img of this config is {most}; a file gives a number of boxes from 1 on')
    return Selection(
        score_thr=float(cfg.get('score_thr', 0)),
        iou_thr=float(nms['iou_threshold']),
        max_per_img=most,
        min_size=float(cfg.get('min_bbox_size', -1)),
        # Not above 0: all.
        candidates=looked_at * len(model.bbox_head.prior_generator.strides) if looked_at > 0 else 2**31 - 1,
    )
