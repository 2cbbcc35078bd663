"""Weights of the nets of a search space: parts of those of its largest net, the supernet.

As in once-for-all (arXiv 1908.09791) and BigNAS (arXiv 2003.11142), a smaller kernel is the centre of the largest one,
and a smaller width or expansion has the first channels. The same holds for the neck and the heads of a detector or
segmenter, whose channels follow those of the backbone.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mnv4_mm.errors import UserError
from mnv4_mm.models.arch import arch_from_dict, arch_to_dict
from mnv4_mm.models.input_size import has_scaled_anchors, scale_anchors, scaled_size, set_model_size
from mnv4_mm.models.mobilenetv4 import MobileNetV4
from mnv4_mm.models.model_config import set_channels
from mnv4_mm.models.space import Space

BLOCKS = 'backbone.blocks.'
# The coder of mmdet's heads with anchors, and its defaults.
ANCHOR_CODER = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4)


def subnet_model(
    model: Mapping[str, Any],
    space: Space,
    genes: Sequence[int],
    input_size: Sequence[int],
    *,
    codes_in_pixels: bool = True,
) -> Any:
    """Return the config of a detector or segmenter with another net of a space as its backbone.

    Args:
        model: Config of the model, with ``MobileNetV4`` as its backbone, whose ``arch`` is a dict.
        space: The space.
        genes: The net.
        input_size: Input size of ``model``, (width, height) in pixels.
        codes_in_pixels: Whether boxes of the same offset and size in pixels have the same code at all input sizes, as
            the weights of a supernet need. Otherwise codes are relative to the anchors, which shrink with the input.

    Returns:
        A copy of ``model`` with the net and, in neck and head, its channels and what depends on its input size.

    Raises:
        UserError: The genes do not fit the space, or the head has anchors and another coder than
            ``DeltaXYWHBBoxCoder``.
    """
    changed = copy.deepcopy(model)
    old = _channels(changed['backbone'])
    subnet = space.subnet(genes)
    changed['backbone']['arch'] = arch_to_dict(subnet.arch)
    set_channels(changed, old, _channels(changed['backbone']))
    size = scaled_size(input_size, subnet.scale)
    set_model_size(changed, input_size, size)
    if size == tuple(input_size):
        return changed
    # Objects shrink with the image. With anchors that do not, they would move to other levels and anchors than those of
    # the largest input, from which the net takes its weights.
    factor = math.sqrt(math.prod(size) / math.prod(input_size))
    scale_anchors(changed, factor)
    if codes_in_pixels and has_scaled_anchors(changed):
        _keep_box_codes(changed['bbox_head'], factor)
    return changed


def _keep_box_codes(head: Any, factor: float) -> None:
    """Change the box coder so that a box has the same code as before its anchor was multiplied by ``factor``.

    Nets of all input sizes share the layer that predicts boxes, and its features depend on sizes in pixels. With codes
    relative to the anchors, it would have to predict another code for the same pixels in each input size.
    """
    coder = {**ANCHOR_CODER, **(head.get('bbox_coder') or {})}
    if coder['type'].rpartition('.')[2] != ANCHOR_CODER['type']:
        raise UserError(f'nets of a search space need {ANCHOR_CODER["type"]} with their anchors, not {coder["type"]}')
    x, y, width, height = coder['target_means']
    sx, sy, *sides = coder['target_stds']
    means = [x / factor, y / factor, width - math.log(factor), height - math.log(factor)]
    head['bbox_coder'] = {**coder, 'target_means': means, 'target_stds': [sx / factor, sy / factor, *sides]}


def subnet_state(
    supernet: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], rows: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """Return the parameters and buffers of a net as views of those of the supernet.

    Args:
        supernet: Parameters and buffers of the detector or segmenter with the largest net, by name.
        shapes: Shapes of the parameters and buffers of that with the smaller net, by name.
        rows: See ``space.Subnet``.

    Returns:
        A tensor for each name of ``shapes``. Gradients flow to the tensors of ``supernet``.

    Raises:
        ValueError: A tensor is missing or too small.
    """
    return {name: _part(name, supernet, shape, rows) for name, shape in shapes.items()}


def _part(name: str, supernet: Mapping[str, Tensor], shape: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
    source = _supernet_name(name, rows)
    tensor = supernet.get(source)
    if tensor is None or tensor.ndim != len(shape) or any(a < b for a, b in zip(tensor.shape, shape, strict=True)):
        found = 'nothing' if tensor is None else f'shape {tuple(tensor.shape)}'
        raise ValueError(f'{name} needs shape {tuple(shape)}, and the supernet has {found} as {source}')
    parts = []
    for position, (old, new) in enumerate(zip(tensor.shape, shape, strict=True)):
        start = (old - new) // 2 if position >= 2 else 0  # height and width of a kernel
        parts.append(slice(start, start + new))
    return tensor[tuple(parts)]


def _supernet_name(name: str, rows: Sequence[Sequence[int]]) -> str:
    """Return the name in the supernet: a row that is left out moves those behind it."""
    if not name.startswith(BLOCKS):
        return name
    stage, row, rest = name.removeprefix(BLOCKS).split('.', 2)
    if int(stage) >= len(rows):  # the 1x1 convolution that follows C5
        return name
    return f'{BLOCKS}{stage}.{rows[int(stage)][int(row)]}.{rest}'


def _channels(backbone: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the channels of the feature maps of a backbone from its config."""
    arch = arch_from_dict(backbone['arch'])
    widths = [stage[-1].out for stage in arch.stages]
    widths += [arch.head_conv] if arch.head_conv else []
    return tuple(widths[i] for i in backbone.get('out_indices', (1, 2, 3)))


def build_backbone(space: Space, genes: Sequence[int], **options: Any) -> MobileNetV4:
    """Build a net of a space as a backbone with random weights.

    Args:
        space: The space.
        genes: The net.
        **options: Arguments of ``MobileNetV4``.

    Raises:
        UserError: The genes do not fit the space, or an argument is invalid.
    """
    return MobileNetV4(space.subnet(genes).arch, **options)
