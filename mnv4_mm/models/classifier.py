"""The ImageNet classifier of MobileNetV4."""

from torch import Tensor, nn

from mnv4_mm.models.mobilenetv4 import MobileNetV4


def classifier(arch: str) -> nn.Sequential:
    """Build the ImageNet classification net of the paper and of timm, with random weights.

    The backbone, up to feature map 4, is followed by global average pooling, a 1x1 convolution to 1280 channels with
    batch norm and ReLU, and a linear layer. timm's Hybrid-L has GELU in place of this ReLU.

    Args:
        arch: Name of a net in ``arch.ARCHS``.

    Returns:
        A module that maps normalised images, (N, 3, H, W), to logits, (N, 1000).

    Raises:
        UserError: The net is unknown or has no classifier (``conv_m_seg``).
    """
    net = MobileNetV4(arch, out_indices=(4,))
    return nn.Sequential(
        net,
        _Select(0),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(net.out_channels[0], 1280, 1, bias=False),
        nn.BatchNorm2d(1280),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1280, 1000),
    )


class _Select(nn.Module):
    """Select one item of a tuple."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, feature_maps: tuple[Tensor, ...]) -> Tensor:
        return feature_maps[self.index]
