"""Speed of MNv4-Conv-S against timm's ``features_only`` net."""

from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from mnv4_mm.bench.measure import Pair
from mnv4_mm.models import MobileNetV4


def backbone_pairs(batch: int = 8, size: int = 320) -> list[Pair]:
    """Return two pairs that time our net and timm's.

    The first pair times forward and backward passes in training mode; both nets return the same feature maps. The
    second pair times the forward pass in evaluation mode. There, our net stops at C5, while timm's also computes the
    following 1x1 convolution to 960 channels, which it cannot leave out.

    Args:
        batch: Batch size.
        size: Height and width of the images in pixels.
    """
    images = torch.randn(batch, 3, size, size)
    ours = MobileNetV4('conv_s', (0, 1, 2, 4)).train()
    timm_net = timm.create_model('mobilenetv4_conv_small', features_only=True, out_indices=(1, 2, 3, 4)).train()
    ours_eval = MobileNetV4('conv_s', (0, 1, 2, 3)).eval()
    timm_eval = timm.create_model('mobilenetv4_conv_small', features_only=True, out_indices=(1, 2, 3, 4)).eval()

    def forward_backward(net: nn.Module) -> Callable[[], object]:
        def run() -> None:
            feature_maps: tuple[Tensor, ...] = net(images)
            torch.stack([feature_map.mean() for feature_map in feature_maps]).sum().backward()
            net.zero_grad()

        return run

    def forward(net: nn.Module) -> Callable[[], object]:
        @torch.no_grad()
        def run() -> None:
            net(images)

        return run

    name = f'MNv4-Conv-S, batch {batch}, {size}x{size}'
    return [
        Pair(
            f'{name}: forward and backward, same maps, against timm', forward_backward(ours), forward_backward(timm_net)
        ),
        Pair(f'{name}: forward to C5, against timm with its 960 channels', forward(ours_eval), forward(timm_eval)),
    ]
