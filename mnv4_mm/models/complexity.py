"""Parameters and multiply-accumulates (MACs) of a model."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


class Complexity(NamedTuple):
    """Complexity of a model.

    Attributes:
        params: Number of parameters.
        macs: Multiply-accumulates of a forward pass of one image, in convolutions and matrix products.
    """

    params: int
    macs: int


def count(model: nn.Module, size: tuple[int, int]) -> Complexity:
    """Count the parameters and MACs of a net, or of a model of mmdet or mmseg without postprocessing.

    Args:
        model: The model, on the CPU. It is left in evaluation mode.
        size: Height and width of the image in pixels.
    """
    model.eval()
    # The counter does not know the fused attention kernel of the CPU; the math kernel is two matrix products.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, 3, *size))
    return Complexity(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)
