"""Spread the ranges of a trained net's channels: a hard test for quantisation, with the same outputs in float.

Published MobileNetV4 weights have channels whose ranges differ by orders of magnitude; nets trained from scratch for a
short time do not. This is the opposite of ``equalise``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mnv4_mm.apis.model import load_model
from mnv4_mm.deploy.describe import describe
from mnv4_mm.deploy.equalise import MAX_OCTAVES, find_junctions, rescale, tensors_of
from mnv4_mm.deploy.graph import Detector, Graph, Segmenter
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.errors import UserError
from mnv4_mm.weights.checkpoint import read_checkpoint, write_checkpoint

MAX_DIFFERENCE = 1e-5  # of the outputs, relative to the largest value


def spread_channels(
    checkpoint: str, out: str, *, octaves: float = 2.0, seed: int = 0, log: Callable[[str], None] = print
) -> int:
    """Write a checkpoint with the same outputs, whose channels have other ranges.

    Each channel between two layers is multiplied by a random power of two, and the weights that read it are divided by
    the same.

    Args:
        checkpoint: Checkpoint of ``mnv4 train``.
        out: Checkpoint to write. It has no optimizer state.
        octaves: Standard deviation of the exponents.
        seed: Seed of the exponents.
        log: Function that prints a line.

    Returns:
        Number of feature maps that were rescaled. A shortcut and the blocks that it joins count as one.

    Raises:
        UserError: The checkpoint cannot be read or its head is not supported, no channel can be rescaled, or the
            outputs change.
    """
    content = read_checkpoint(checkpoint)
    model: Any = load_model(content, device='cpu').requires_grad_(False)
    meta = describe(model, TARGETS['onnx'], kind='raw' if hasattr(model, 'bbox_head') else 'logits')
    net = (Detector if meta.task == 'detection' else Segmenter)(model, meta.input).eval()
    image = Graph(net, meta).example()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        expected = net(image)
        module = torch.export.export(net, (image,)).module()
        assert isinstance(module, torch.fx.GraphModule)
        tensors = tensors_of(module)
        count = 0
        for junction in find_junctions(module):
            exponents = torch.randn(junction.channels, generator=generator) * octaves
            rescale(junction, exponents.round().clamp(-MAX_OCTAVES, MAX_OCTAVES).exp2(), tensors)
            count += 1
        if not count:
            raise UserError(f'{checkpoint}: no channel of this net can be rescaled')
        for name, value in net.state_dict().items():  # the model's own tensors
            if name in tensors:
                value.copy_(tensors[name])
        found = net(image)
    difference = max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in zip(found, expected, strict=True)
    )
    if not difference <= MAX_DIFFERENCE:
        raise UserError(
            f'{checkpoint}: with other ranges the outputs differ by {difference:.1e} of the largest value, more than '
            f'{MAX_DIFFERENCE:g}: use a smaller --octaves'
        )
    write_checkpoint(dict(meta=content.meta, state_dict=model.state_dict()), Path(out))
    same = 'equal to the last bit' if difference == 0 else f'equal to {difference:.1e}'
    log(f'{out}: {count} feature maps with channels times 2^N(0, {octaves:g}), seed {seed}; float outputs {same}')
    return count
