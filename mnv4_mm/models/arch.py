"""The published MobileNetV4 nets as tables: one row a block, the paper's name of the block beside it.

Sources: arXiv 2404.10518, tables 11-15; ``tensorflow/models`` ``official/vision/modeling/backbones/mobilenet.py``;
timm ``mobilenetv3.py``. The three agree except for Hybrid-M: the paper's table 13 is not the net of the two codes (nor
of the paper's own parameter counts), so Hybrid-M follows the codes. A test compares every table with timm's net.

A net has a 3x3 stride-2 stem and four stages that end in the maps C2, C3, C4, C5 (strides 4, 8, 16, 32).
"""

from typing import NamedTuple


class Conv(NamedTuple):
    """Convolution, batch norm, activation; no residual."""

    kernel: int
    stride: int
    out: int


class FusedIB(NamedTuple):
    """Dense k x k convolution that expands by ``expand``, then a linear 1x1 projection."""

    kernel: int
    stride: int
    expand: int
    out: int


class UIB(NamedTuple):
    """Universal inverted bottleneck. A kernel of 0 leaves that depthwise convolution out.

    ``start_dw`` and ``middle_dw`` name the four forms of the paper: both ExtraDW, middle only IB, start only ConvNext,
    neither FFN.
    """

    start_dw: int
    middle_dw: int
    stride: int
    expand: int
    out: int


class MQA(NamedTuple):
    """Mobile multi-query attention; keys and values are taken from a map smaller by ``kv_stride``."""

    heads: int
    key_dim: int
    kv_stride: int
    out: int


Row = Conv | FusedIB | UIB | MQA


class Arch(NamedTuple):
    """A net: width of the stem, activation (mmcv name), initial layer scale (hybrids only) and the stages C2...C5."""

    stem: int
    act: str
    layer_scale: float | None
    stages: tuple[tuple[Row, ...], ...]


# Width of the 1x1 convolution at stride 32 that follows C5: the first layer of the classifier head in the paper, the
# stride-32 feature of timm's ``features_only``, and the second map of SSDLite.
HEAD_CONV = 960

CONV_S = Arch(
    stem=32,
    act='ReLU',
    layer_scale=None,
    stages=(
        (
            Conv(3, 2, 32),  # the paper calls this pair FusedIB; both codes have two ConvBN with ReLU
            Conv(1, 1, 32),
        ),
        (
            Conv(3, 2, 96),
            Conv(1, 1, 64),
        ),
        (
            UIB(5, 5, 2, 3, 96),  # ExtraDW
            UIB(0, 3, 1, 2, 96),  # IB
            UIB(0, 3, 1, 2, 96),  # IB
            UIB(0, 3, 1, 2, 96),  # IB
            UIB(0, 3, 1, 2, 96),  # IB
            UIB(3, 0, 1, 4, 96),  # ConvNext
        ),
        (
            UIB(3, 3, 2, 6, 128),  # ExtraDW
            UIB(5, 5, 1, 4, 128),  # ExtraDW
            UIB(0, 5, 1, 4, 128),  # IB
            UIB(0, 5, 1, 3, 128),  # IB
            UIB(0, 3, 1, 4, 128),  # IB
            UIB(0, 3, 1, 4, 128),  # IB
        ),
    ),
)

CONV_M = Arch(
    stem=32,
    act='ReLU',
    layer_scale=None,
    stages=(
        (FusedIB(3, 2, 4, 48),),
        (
            UIB(3, 5, 2, 4, 80),  # ExtraDW
            UIB(3, 3, 1, 2, 80),  # ExtraDW
        ),
        (
            UIB(3, 5, 2, 6, 160),  # ExtraDW
            UIB(3, 3, 1, 4, 160),  # ExtraDW
            UIB(3, 3, 1, 4, 160),  # ExtraDW
            UIB(3, 5, 1, 4, 160),  # ExtraDW
            UIB(3, 3, 1, 4, 160),  # ExtraDW
            UIB(3, 0, 1, 4, 160),  # ConvNext
            UIB(0, 0, 1, 2, 160),  # FFN
            UIB(3, 0, 1, 4, 160),  # ConvNext
        ),
        (
            UIB(5, 5, 2, 6, 256),  # ExtraDW
            UIB(5, 5, 1, 4, 256),  # ExtraDW
            UIB(3, 5, 1, 4, 256),  # ExtraDW
            UIB(3, 5, 1, 4, 256),  # ExtraDW
            UIB(0, 0, 1, 4, 256),  # FFN
            UIB(3, 0, 1, 4, 256),  # ConvNext
            UIB(3, 5, 1, 2, 256),  # ExtraDW
            UIB(5, 5, 1, 4, 256),  # ExtraDW
            UIB(0, 0, 1, 4, 256),  # FFN
            UIB(0, 0, 1, 4, 256),  # FFN
            UIB(5, 0, 1, 2, 256),  # ConvNext
        ),
    ),
)

CONV_L = Arch(
    stem=24,
    act='ReLU',
    layer_scale=None,
    stages=(
        (FusedIB(3, 2, 4, 48),),
        (
            UIB(3, 5, 2, 4, 96),  # ExtraDW
            UIB(3, 3, 1, 4, 96),  # ExtraDW
        ),
        (
            UIB(3, 5, 2, 4, 192),  # ExtraDW
            UIB(3, 3, 1, 4, 192),  # ExtraDW
            UIB(3, 3, 1, 4, 192),  # ExtraDW
            UIB(3, 3, 1, 4, 192),  # ExtraDW
            UIB(3, 5, 1, 4, 192),  # ExtraDW
            UIB(5, 3, 1, 4, 192),  # ExtraDW
            UIB(5, 3, 1, 4, 192),  # ExtraDW
            UIB(5, 3, 1, 4, 192),  # ExtraDW
            UIB(5, 3, 1, 4, 192),  # ExtraDW
            UIB(5, 3, 1, 4, 192),  # ExtraDW
            UIB(3, 0, 1, 4, 192),  # ConvNext
        ),
        (
            UIB(5, 5, 2, 4, 512),  # ExtraDW
            UIB(5, 5, 1, 4, 512),  # ExtraDW
            UIB(5, 5, 1, 4, 512),  # ExtraDW
            UIB(5, 5, 1, 4, 512),  # ExtraDW
            UIB(5, 0, 1, 4, 512),  # ConvNext
            UIB(5, 3, 1, 4, 512),  # ExtraDW
            UIB(5, 0, 1, 4, 512),  # ConvNext
            UIB(5, 0, 1, 4, 512),  # ConvNext
            UIB(5, 3, 1, 4, 512),  # ExtraDW
            UIB(5, 5, 1, 4, 512),  # ExtraDW
            UIB(5, 0, 1, 4, 512),  # ConvNext
            UIB(5, 0, 1, 4, 512),  # ConvNext
            UIB(5, 0, 1, 4, 512),  # ConvNext
        ),
    ),
)

HYBRID_M = Arch(
    stem=32,
    act='ReLU',
    layer_scale=1e-5,
    stages=(
        (FusedIB(3, 2, 4, 48),),
        (
            UIB(3, 5, 2, 4, 80),  # ExtraDW
            UIB(3, 3, 1, 2, 80),  # ExtraDW
        ),
        (
            UIB(3, 5, 2, 6, 160),  # ExtraDW
            UIB(0, 0, 1, 2, 160),  # FFN
            UIB(3, 3, 1, 4, 160),  # ExtraDW
            UIB(3, 5, 1, 4, 160),  # ExtraDW
            MQA(4, 64, 2, 160),
            UIB(3, 3, 1, 4, 160),  # ExtraDW
            MQA(4, 64, 2, 160),
            UIB(3, 0, 1, 4, 160),  # ConvNext
            MQA(4, 64, 2, 160),
            UIB(3, 3, 1, 4, 160),  # ExtraDW
            MQA(4, 64, 2, 160),
            UIB(3, 0, 1, 4, 160),  # ConvNext
        ),
        (
            UIB(5, 5, 2, 6, 256),  # ExtraDW
            UIB(5, 5, 1, 4, 256),  # ExtraDW
            UIB(3, 5, 1, 4, 256),  # ExtraDW
            UIB(3, 5, 1, 4, 256),  # ExtraDW
            UIB(0, 0, 1, 2, 256),  # FFN
            UIB(3, 5, 1, 2, 256),  # ExtraDW
            UIB(0, 0, 1, 2, 256),  # FFN
            UIB(0, 0, 1, 4, 256),  # FFN
            MQA(4, 64, 1, 256),
            UIB(3, 0, 1, 4, 256),  # ConvNext
            MQA(4, 64, 1, 256),
            UIB(5, 5, 1, 4, 256),  # ExtraDW
            MQA(4, 64, 1, 256),
            UIB(5, 0, 1, 4, 256),  # ConvNext
            MQA(4, 64, 1, 256),
            UIB(5, 0, 1, 4, 256),  # ConvNext
        ),
    ),
)

HYBRID_L = Arch(
    stem=24,
    act='GELU',  # the one net that is not ReLU, in both codes
    layer_scale=1e-5,
    stages=(
        (FusedIB(3, 2, 4, 48),),
        (
            UIB(3, 5, 2, 4, 96),  # ExtraDW
            UIB(3, 3, 1, 4, 96),  # ExtraDW
        ),
        (
            UIB(3, 5, 2, 4, 192),  # ExtraDW
            UIB(3, 3, 1, 4, 192),  # ExtraDW
            UIB(3, 3, 1, 4, 192),  # ExtraDW
            UIB(3, 3, 1, 4, 192),  # ExtraDW
            UIB(3, 5, 1, 4, 192),  # ExtraDW
            UIB(5, 3, 1, 4, 192),  # ExtraDW
            UIB(5, 3, 1, 4, 192),  # ExtraDW
            MQA(8, 48, 2, 192),
            UIB(5, 3, 1, 4, 192),  # ExtraDW
            MQA(8, 48, 2, 192),
            UIB(5, 3, 1, 4, 192),  # ExtraDW
            MQA(8, 48, 2, 192),
            UIB(5, 3, 1, 4, 192),  # ExtraDW
            MQA(8, 48, 2, 192),
            UIB(3, 0, 1, 4, 192),  # ConvNext
        ),
        (
            UIB(5, 5, 2, 4, 512),  # ExtraDW
            UIB(5, 5, 1, 4, 512),  # ExtraDW
            UIB(5, 5, 1, 4, 512),  # ExtraDW
            UIB(5, 5, 1, 4, 512),  # ExtraDW
            UIB(5, 0, 1, 4, 512),  # ConvNext
            UIB(5, 3, 1, 4, 512),  # ExtraDW
            UIB(5, 0, 1, 4, 512),  # ConvNext
            UIB(5, 0, 1, 4, 512),  # ConvNext
            UIB(5, 3, 1, 4, 512),  # ExtraDW
            UIB(5, 5, 1, 4, 512),  # ExtraDW
            MQA(8, 64, 1, 512),
            UIB(5, 0, 1, 4, 512),  # ConvNext
            MQA(8, 64, 1, 512),
            UIB(5, 0, 1, 4, 512),  # ConvNext
            MQA(8, 64, 1, 512),
            UIB(5, 0, 1, 4, 512),  # ConvNext
            MQA(8, 64, 1, 512),
            UIB(5, 0, 1, 4, 512),  # ConvNext
        ),
    ),
)

ARCHS: dict[str, Arch] = {
    'conv_s': CONV_S,
    'conv_m': CONV_M,
    'conv_l': CONV_L,
    'hybrid_m': HYBRID_M,
    'hybrid_l': HYBRID_L,
}
