"""MNv4-Conv-S beside timm's features_only net."""

from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from mnv4_mm.bench.measure import Pair
from mnv4_mm.models import MobileNetV4


def backbone_pairs(batch: int = 8, size: int = 320) -> list[Pair]:
    """The same maps forward and backward, and the trunk alone, which ours can build without the rest."""
    x = torch.randn(batch, 3, size, size)
    theirs = timm.create_model('mobilenetv4_conv_small', features_only=True, out_indices=(1, 2, 3, 4))
    ours = MobileNetV4('conv_s', (0, 1, 2, 4))
    trunk = MobileNetV4('conv_s', (0, 1, 2, 3))
    for net in (ours, theirs):
        net.train()

    def step(net: nn.Module) -> Callable[[], object]:
        def run() -> None:
            maps: tuple[Tensor, ...] = net(x)
            torch.stack([m.mean() for m in maps]).sum().backward()
            net.zero_grad()

        return run

    def forward(net: nn.Module) -> Callable[[], object]:
        evaluated = net.eval()

        @torch.no_grad()
        def run() -> None:
            evaluated(x)

        return run

    wide = timm.create_model('mobilenetv4_conv_small', features_only=True, out_indices=(1, 2, 3, 4))
    name = f'MNv4-Conv-S, batch {batch}, {size}x{size}'
    return [
        Pair(f'{name}: forward and backward, same maps, against timm', step(ours), step(theirs)),
        Pair(f'{name}: forward to C5, against timm with its 960 channels', forward(trunk), forward(wide)),
    ]
