"""Blocks of MobileNetV4: ConvBN, FusedIB, UIB, MobileMQA.

Attribute names are timm's, so that its checkpoints load without renaming keys. A layer that a block does not have is
an ``nn.Identity``, so that ``forward`` has no branches.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mnv4_mm.models.arch import make_divisible


class Style(NamedTuple):
    """Settings shared by all blocks of a net.

    Attributes:
        norm_cfg: Config of the norm layers, as in mmcv.
        act_cfg: Config of the activations, as in mmcv.
        layer_scale: Initial value of the layer scale; None builds no layer scale.
        antialias: See ``arch.Arch``.
    """

    norm_cfg: dict
    act_cfg: dict
    layer_scale: float | None
    antialias: str | None = None


def _norm(style: Style, channels: int) -> nn.Module:
    return build_norm_layer(style.norm_cfg, channels)[1]


class BlurPool(nn.Module):
    """Depthwise 3x3 binomial filter of stride 2 (arXiv 1904.11486), with zero padding."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        # Not persistent, because timm's checkpoints do not contain it.
        self.register_buffer('filt', (line[:, None] * line).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, ceil(H / 2), ceil(W / 2))."""
        return F.conv2d(x, self.filt, stride=2, padding=1, groups=len(self.filt))


def _downsampling(style: Style, channels: int, stride: int) -> tuple[int, nn.Module]:
    """Return the stride of a downsampling convolution and the pooling layer that follows its activation."""
    if stride == 1 or style.antialias is None:
        return stride, nn.Identity()
    return 1, nn.AvgPool2d(stride) if style.antialias == 'avg' else BlurPool(channels)


def ConvBN(  # noqa: N802 (builds a layer and is named like one)
    style: Style,
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    act: bool = True,
    norm_name: str = 'bn',
) -> nn.Sequential:
    """Build a convolution without bias, followed by a norm layer and, unless ``act=False``, an activation.

    The result maps (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)). If ``stride`` is 2
    and ``style.antialias`` is not None, the convolution has stride 1 and a pooling layer of stride 2 comes last; with
    ``avg``, sizes are then rounded down.

    Args:
        style: Settings shared by all blocks of the net.
        in_channels: Input channels.
        out_channels: Output channels.
        kernel: Kernel size, odd.
        stride: Stride, 1 or 2.
        dilation: Dilation of the convolution.
        groups: Groups of the convolution.
        act: Add the activation.
        norm_name: Name of the norm layer in the result, which differs between timm's blocks.
    """
    stride, pool = _downsampling(style, out_channels, stride)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers['conv'] = nn.Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride,
        padding=kernel // 2 * dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    layers[norm_name] = _norm(style, out_channels)
    if act:
        layers['act'] = build_activation_layer(style.act_cfg)
    if not isinstance(pool, nn.Identity):
        layers['aa'] = pool
    return nn.Sequential(layers)


class LayerScale(nn.Module):
    """Layer scale (arXiv 2103.17239): one learned factor per channel."""

    def __init__(self, channels: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), init))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        return x * self.gamma.view(1, -1, 1, 1)


class Residual(nn.Module):
    """Base class of blocks that compute ``x + drop_path(layer_scale(branch(x)))``.

    Without a shortcut, in blocks that change the shape of their input, the result is ``layer_scale(branch(x))``.
    """

    def __init__(self, style: Style, channels: int, shortcut: bool, drop_path: float) -> None:
        super().__init__()
        self.layer_scale = nn.Identity() if style.layer_scale is None else LayerScale(channels, style.layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.merge = self._add if shortcut else self._replace

    def _add(self, branch: Tensor, x: Tensor) -> Tensor:
        return self.drop_path(branch) + x

    @staticmethod
    def _replace(branch: Tensor, x: Tensor) -> Tensor:
        return branch


class FusedIB(nn.Module):
    """Fused inverted bottleneck: a k x k convolution that expands the channels, then a linear 1x1 projection.

    It has no shortcut, because its stride is 2 in all published nets.

    Args:
        style: Settings shared by all blocks of the net.
        in_channels: Input channels.
        out_channels: Output channels.
        kernel: Kernel size of the expanding convolution.
        stride: Stride of the expanding convolution.
        expand: Factor by which the expansion multiplies ``in_channels``; the product is rounded by ``make_divisible``.
    """

    def __init__(
        self, style: Style, in_channels: int, out_channels: int, kernel: int, stride: int, expand: float
    ) -> None:
        super().__init__()
        mid = make_divisible(in_channels * expand)
        stride, self.aa = _downsampling(style, mid, stride)
        self.conv_exp = nn.Conv2d(in_channels, mid, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = _norm(style, mid)
        self.act = build_activation_layer(style.act_cfg)
        self.conv_pwl = nn.Conv2d(mid, out_channels, 1, bias=False)
        self.bn2 = _norm(style, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded as in ``ConvBN``."""
        x = self.aa(self.act(self.bn1(self.conv_exp(x))))  # (N, C * expand, H / stride, W / stride)
        return self.bn2(self.conv_pwl(x))  # (N, C', H / stride, W / stride)


class UIB(Residual):
    """Universal inverted bottleneck (paper section 4).

    The layers are ``[start DW] -> 1x1 expand -> [middle DW] -> 1x1 project``, where DW is an optional depthwise
    convolution. The middle DW has the stride of the block (TF ``middle_dw_downsample``); without a middle DW, the start
    DW has it. There is a shortcut if ``stride`` is 1 and ``in_channels`` equals ``out_channels``.

    Args:
        style: Settings shared by all blocks of the net.
        in_channels: Input channels.
        out_channels: Output channels.
        start_dw: Kernel size of the start DW; 0 for none.
        middle_dw: Kernel size of the middle DW; 0 for none.
        stride: Stride of the block.
        expand: Factor by which the expansion multiplies ``in_channels``; the product is rounded by ``make_divisible``.
        dilation: Dilation of the depthwise convolutions.
        drop_path: Stochastic depth rate.

    Raises:
        ValueError: The stride is above 1 and both depthwise convolutions are omitted.
    """

    def __init__(
        self,
        style: Style,
        in_channels: int,
        out_channels: int,
        start_dw: int,
        middle_dw: int,
        stride: int,
        expand: float,
        dilation: int = 1,
        drop_path: float = 0.0,
    ) -> None:
        if stride > 1 and not (start_dw or middle_dw):
            raise ValueError(f'a UIB of stride {stride} needs a depthwise convolution')
        super().__init__(style, out_channels, shortcut=stride == 1 and in_channels == out_channels, drop_path=drop_path)
        mid = make_divisible(in_channels * expand)
        conv = partial(ConvBN, style)
        start_stride, middle_stride = (1, stride) if middle_dw else (stride, 1)
        self.dw_start = (
            conv(in_channels, in_channels, start_dw, start_stride, dilation, groups=in_channels, act=False)
            if start_dw
            else nn.Identity()
        )
        self.pw_exp = conv(in_channels, mid, 1)
        self.dw_mid = conv(mid, mid, middle_dw, middle_stride, dilation, groups=mid) if middle_dw else nn.Identity()
        self.pw_proj = conv(mid, out_channels, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded as in ``ConvBN``."""
        branch = self.dw_start(x)  # (N, C, H, W)
        branch = self.pw_exp(branch)  # (N, C * expand, H, W)
        branch = self.dw_mid(branch)  # (N, C * expand, H / stride, W / stride)
        branch = self.pw_proj(branch)  # (N, C', H / stride, W / stride)
        return self.merge(self.layer_scale(branch), x)


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def matmul_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute ``softmax(q k^T / sqrt(d)) v`` as plain matrix products, which all graph converters support.

    Args:
        q: Queries, (N, heads, L, d), for L positions and d channels per head.
        k: Keys, (N, 1, P, d) if all heads share them, otherwise (N, heads, P, d), for P positions.
        v: Values, of the same shape as the keys.

    Returns:
        (N, heads, L, d).
    """
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (N, heads, L, P)
    return weights.softmax(dim=-1) @ v


def repeated_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute ``matmul_attention``, with the shared keys and values copied for each head.

    Arguments and result are those of ``matmul_attention``. LiteRT runs a matrix product in XNNPACK only if both factors
    have the same number of heads. Otherwise LiteRT multiplies the matrices one by one; a Mobile MQA block of 160
    channels then took 2.0 to 2.7 times as long.
    """
    if k.shape[1] != q.shape[1]:
        # Not `expand`, which litert-torch converts wrongly.
        k, v = (torch.cat([x] * q.shape[1], 1) for x in (k, v))
    return matmul_attention(q, k, v)


class MultiQueryAttention(nn.Module):
    """Attention with several query heads and one key and value head (paper section 5).

    There is no bias and no position encoding.

    Args:
        style: Settings shared by all blocks of the net.
        channels: Input and output channels.
        heads: Number of query heads.
        key_dim: Channels of the queries, keys and values of one head.
        kv_stride: Stride of keys and values. If it is above 1, keys and values each have their own 3x3 depthwise
            convolution of this stride, followed by a norm layer.
        dilation: Dilation of these depthwise convolutions.
        kv_heads: Number of key and value heads: 1, or ``heads`` for multi-head self-attention.

    Attributes:
        attend: Function that maps queries, keys and values to the output of all heads, with the shapes of
            ``matmul_attention``. An exporter can replace it.
    """

    def __init__(
        self,
        style: Style,
        channels: int,
        heads: int,
        key_dim: int,
        kv_stride: int,
        dilation: int = 1,
        kv_heads: int = 1,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.key_dim = key_dim
        self.kv_heads = kv_heads
        self.query = nn.Sequential(OrderedDict(proj=nn.Conv2d(channels, heads * key_dim, 1, bias=False)))
        self.key = self._key_or_value(style, channels, kv_heads * key_dim, kv_stride, dilation)
        self.value = self._key_or_value(style, channels, kv_heads * key_dim, kv_stride, dilation)
        self.output = nn.Sequential(OrderedDict(proj=nn.Conv2d(heads * key_dim, channels, 1, bias=False)))
        # An exporter sets `matmul_attention`, which computes the same, where its target needs it.
        self.attend: Attention = F.scaled_dot_product_attention

    @staticmethod
    def _key_or_value(style: Style, channels: int, out_channels: int, kv_stride: int, dilation: int) -> nn.Sequential:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if kv_stride > 1:
            layers['down_conv'] = nn.Conv2d(
                channels, channels, 3, kv_stride, padding=dilation, dilation=dilation, groups=channels, bias=False
            )
            layers['norm'] = _norm(style, channels)
        layers['proj'] = nn.Conv2d(channels, out_channels, 1, bias=False)
        return nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        n, _, h, w = x.shape
        q = (
            self.query(x).reshape(n, self.heads, self.key_dim, h * w).transpose(-1, -2).contiguous()
        )  # (N, heads, HW, d)
        k = self._split(self.key(x))  # (N, kv_heads, P, d)
        v = self._split(self.value(x))  # (N, kv_heads, P, d)
        out = self.attend(q, k, v)  # (N, heads, HW, d)
        out = out.transpose(-1, -2).reshape(n, self.heads * self.key_dim, h, w)  # (N, heads * d, H, W)
        return self.output(out)  # (N, C, H, W)

    def _split(self, x: Tensor) -> Tensor:
        """Map keys or values (N, kv_heads * d, H, W) to (N, kv_heads, HW, d)."""
        return x.flatten(2).unflatten(1, (self.kv_heads, self.key_dim)).transpose(-1, -2).contiguous()


class MobileMQA(Residual):
    """Mobile MQA block: norm, multi-query attention, layer scale and shortcut.

    It has no feed-forward part; the UIB that follows it in the architecture tables takes that role. ``drop_path`` is
    the stochastic depth rate, and the other arguments are those of ``MultiQueryAttention``.
    """

    def __init__(
        self,
        style: Style,
        channels: int,
        heads: int,
        key_dim: int,
        kv_stride: int,
        dilation: int = 1,
        drop_path: float = 0.0,
        kv_heads: int = 1,
    ) -> None:
        super().__init__(style, channels, shortcut=True, drop_path=drop_path)
        self.norm = _norm(style, channels)
        self.attn = MultiQueryAttention(style, channels, heads, key_dim, kv_stride, dilation, kv_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        return self.merge(self.layer_scale(self.attn(self.norm(x))), x)
