"""Rescale the channels of a trained model, with the same outputs in float: spread their ranges, or equalise them.

Spreading makes a hard test for quantisation. Published MobileNetV4 weights have channels whose ranges differ by orders
of magnitude; nets trained from scratch for a short time do not.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from mnv4_mm.apis.model import load_model
from mnv4_mm.config.qat import qat_settings
from mnv4_mm.deploy.calibration import evenly
from mnv4_mm.deploy.describe import describe
from mnv4_mm.deploy.equalise import MAX_OCTAVES, equalise, find_junctions, rescale, tensors_of
from mnv4_mm.deploy.graph import MAX_EQUALISED_IMAGES, Graph, wrap
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Meta
from mnv4_mm.weights.checkpoint import read_checkpoint, write_checkpoint

MAX_DIFFERENCE = 1e-5  # of the outputs, relative to the largest value


def spread_channels(
    checkpoint: str, out: str, *, octaves: float = 2.0, seed: int = 0, log: Callable[[str], None] = print
) -> int:
    """Write a copy of a checkpoint with randomly rescaled channels and the same outputs.

    Each channel between two layers is divided by a random power of two, and the weights that read the channel are
    multiplied by the same power.

    Args:
        checkpoint: Checkpoint of ``mnv4 train``.
        out: Checkpoint to write. It has no optimizer state.
        octaves: Standard deviation of the normally distributed exponents, before they are rounded to integers.
        seed: Seed of the random exponents.
        log: Function that prints a line.

    Returns:
        Number of feature maps that were rescaled. A shortcut and the blocks that it joins count as one.

    Raises:
        UserError: The checkpoint cannot be read, has been fine-tuned for int8, or has a head that is not supported; no
            channel can be rescaled; or the outputs change.
    """
    content = read_checkpoint(checkpoint)
    if settings := qat_settings(content):
        raise UserError(
            f'{checkpoint} has been fine-tuned for int8: spread the checkpoint that it was started from, '
            f'{settings["checkpoint"]}'
        )
    model: Any = load_model(content, device='cpu')
    meta = describe(model, TARGETS['onnx'], kind='raw' if hasattr(model, 'bbox_head') else 'logits')
    net = _net(model, meta)
    image = Graph(net, meta).example()
    generator = torch.Generator().manual_seed(seed)

    def spread(module: fx.GraphModule) -> int:
        count = 0
        for junction in find_junctions(module):
            exponents = (torch.randn(junction.channels, generator=generator) * octaves).round()
            rescale(junction, exponents.clamp(-MAX_OCTAVES, MAX_OCTAVES).exp2(), tensors_of(module))
            count += 1
        return count

    with torch.no_grad():
        expected = net(image)
        count = _change(net, image, spread)
        found = net(image)
    if not count:
        raise UserError(f'{checkpoint}: no channel of this net can be rescaled')
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


def equalise_channels(model: Any, meta: Meta, batches: Sequence[np.ndarray]) -> int:
    """Equalise the ranges of a model's channels in place, see ``equalise``. The outputs of the model stay the same.

    Args:
        model: Single-stage detector of mmdet or encoder-decoder of mmseg, on the CPU.
        meta: Metadata of a file to be exported from the model. Only the task and the input are used.
        batches: Inputs as ``meta.input`` describes them, made of real images, one image each. At most
            ``MAX_EQUALISED_IMAGES`` of them are used, spread evenly.

    Returns:
        Number of feature maps that were rescaled. A shortcut and the blocks that it joins count as one.

    Raises:
        UserError: The head is not supported.
    """
    images = [torch.from_numpy(batch) for batch in evenly(batches, MAX_EQUALISED_IMAGES)]
    return _change(_net(model, meta), images[0], lambda module: equalise(module, images))


def _net(model: Any, meta: Meta) -> nn.Module:
    return wrap(model, meta).eval()


def _change(net: nn.Module, image: Tensor, change: Callable[[fx.GraphModule], int]) -> int:
    """Call a function that changes the weights in the graph of a net, and copy the changed weights into the net.

    Args:
        net: The net.
        image: Input with which the net is captured as a graph. Batch norms are not folded.
        change: Function that changes the graph in place.

    Returns:
        The result of ``change``.
    """
    with torch.no_grad():
        module = torch.export.export(net, (image,)).module()
        assert isinstance(module, fx.GraphModule)
        result = change(module)
        tensors = tensors_of(module)
        for name, value in net.state_dict().items():  # the model's own tensors
            if name in tensors:
                value.copy_(tensors[name])
    return result
