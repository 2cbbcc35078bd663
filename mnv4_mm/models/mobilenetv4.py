"""MobileNetV4 backbone (arXiv 2404.10518), built from an architecture table."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mnv4_mm.errors import UserError
from mnv4_mm.models import arch as table
from mnv4_mm.models.layers import UIB, ConvBN, FusedIB, MobileMQA, MultiQueryAttention, Style
from mnv4_mm.weights.strict import load_pretrained, pretrained_entries


# Registered in mmengine's root registry, where mmdet, mmseg, mmpretrain and mmyolo look up names they do not have.
@MODELS.register_module()
class MobileNetV4(BaseModule):
    """MobileNetV4 backbone that returns multi-scale feature maps.

    Parameter names are timm's: the ``state_dict`` of timm's ``mobilenetv4_*`` without its classifier can be loaded.

    Args:
        arch: Name of a net in ``arch.ARCHS`` (``conv_s``, ``conv_m``, ``conv_l``, ``hybrid_m``, ``hybrid_l``, ...), an
            architecture table, or such a table as ``arch.arch_to_dict`` returns it.
        out_indices: Feature maps to return, in ascending order. 0...3 are C2, C3, C4 and C5 at strides 4, 8, 16 and
            32. 4 is the output of the 1x1 convolution (960 channels at width 1) that follows C5 at stride 32, which
            timm's ``features_only`` returns as its stride-32 feature map; ``conv_m_seg`` has no such layer. Layers
            after the last feature map are not built.
        output_stride: Largest stride of the feature maps, 32, 16 or 8. Later layers are dilated instead of strided and
            use the same weights.
        frozen_stages: Number of stages after the stem that are not trained: -1 freezes nothing, 0 the stem, 1 the stem
            and the stage of C2, ... 4 everything up to C5. The norm statistics of frozen stages are fixed too.
        norm_cfg: mmcv config of the norm layers. Default: batch norm with eps 1e-5 and momentum 0.1, with which timm's
            weights were trained.
        norm_eval: Keep the running statistics of all batch norm layers fixed during training.
        act_cfg: mmcv config of the activations. Default: that of the published net (GELU in Hybrid-L, ReLU6 in
            ``conv_m_seg``, otherwise ReLU).
        drop_path_rate: Stochastic depth rate. As in timm, block i (from 0) of the n blocks of the whole net has
            the rate ``drop_path_rate * i / n``.
        with_cp: Recompute activations in the backward pass, which saves memory and does not change the results.
        init_cfg: Initialisation as in mmengine; weights of type ``Pretrained`` are loaded strictly. Default: weights
            are sampled from timm's distributions.

    Attributes:
        out_channels: Channels of each returned feature map.
        out_strides: Stride of each returned feature map in pixels.

    Raises:
        UserError: An argument is unknown or out of range.
    """

    init_cfg: Any  # mmengine's attribute

    def __init__(
        self,
        arch: str | table.Arch | Mapping[str, Any] = 'conv_s',
        out_indices: Sequence[int] = (1, 2, 3),
        output_stride: int = 32,
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        act_cfg: dict | None = None,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        spec = table.arch_of(arch)
        table.check_out_indices(out_indices, spec)
        if output_stride not in (8, 16, 32):
            raise UserError(f'output_stride must be 32, 16 or 8, got {output_stride}')
        if not -1 <= frozen_stages <= 4:
            raise UserError(f'frozen_stages must be -1 (none), 0 (stem) ... 4 (up to C5), got {frozen_stages}')
        if not 0 <= drop_path_rate < 1:
            raise UserError(f'drop_path_rate must be in [0, 1), got {drop_path_rate}')
        self.arch = arch if isinstance(arch, str) else None
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

        # In place where possible (not GELU): 10 % faster, and no other layer needs the input of an activation.
        act_cfg = act_cfg or (dict(type=spec.act) if spec.act == 'GELU' else dict(type=spec.act, inplace=True))
        style = Style(norm_cfg or dict(type='BN'), act_cfg, spec.layer_scale, spec.antialias)
        stages = table.placed_rows(spec, output_stride)
        # As in timm, rates increase over all blocks of the net, including those that are not built here.
        count = sum(map(len, stages))
        rates = iter([drop_path_rate * i / count for i in range(count)])

        stem = ConvBN(style._replace(antialias=None), 3, spec.stem, 3, stride=2)
        self.conv_stem, self.bn1, self.act = stem.children()
        self.blocks = nn.ModuleList(
            nn.Sequential(*[build_block(row, style, next(rates), spec.attention) for row in stage])
            for stage in stages[: self.out_indices[-1] + 1]
        )
        self.out_channels = tuple(stages[i][-1].row.out for i in self.out_indices)
        self.out_strides = tuple(stages[i][-1].stride * table.stride_of(stages[i][-1].row) for i in self.out_indices)

        self._init_like_timm()
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of ``out_indices``.

        Args:
            x: (N, 3, H, W), normalised.

        Returns:
            One tensor per index, (N, C, ceil(H / stride), ceil(W / stride)). As in timm, nets that downsample by a 2x2
                mean (``conv_aa_*``) round sizes down instead, except in the stem.
        """
        x = self.act(self.bn1(self.conv_stem(x)))  # (N, stem, H / 2, W / 2)
        recompute = self.with_cp and self.training and torch.is_grad_enabled()
        features = []
        for i, stage in enumerate(self.blocks):
            for block in stage.children():
                x = _checkpointed(block, x) if recompute else block(x)
            if i in self.out_indices:
                features.append(x)  # (N, C, H / stride, W / stride)
        return tuple(features)

    def train(self, mode: bool = True) -> 'MobileNetV4':
        """Set training mode. Frozen stages, and with ``norm_eval`` all batch norms, stay in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Initialise the weights as mmengine does, but load entries of type Pretrained strictly.

        Raises:
            UserError: Pretrained weights are missing or do not fit (see ``load_pretrained``).
        """
        init_cfg = self.init_cfg
        pretrained = pretrained_entries(init_cfg)
        if pretrained:
            self.init_cfg = [] if isinstance(init_cfg, dict) else [e for e in init_cfg if e not in pretrained]
        super().init_weights()
        self.init_cfg = init_cfg
        for entry in pretrained:
            load_pretrained(self, entry['checkpoint'], entry.get('prefix') or '')

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.conv_stem, self.bn1, *self.blocks[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)

    def _init_like_timm(self) -> None:
        """Sample the convolution weights from timm's distributions.

        Convolutions: normal with variance 2 / fan-out, with the fan-out divided by the number of groups. Convolutions
        of the attention: Xavier uniform. The Model Garden differs: it samples truncated normals with variance
        1 / fan-in (Keras's default for ``VarianceScaling``), and Glorot uniform in the attention.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
        for module in self.modules():
            if isinstance(module, MultiQueryAttention):
                for conv in module.modules():
                    if isinstance(conv, nn.Conv2d):
                        nn.init.xavier_uniform_(conv.weight)


def build_block(place: table.PlacedRow, style: Style, drop_path: float = 0.0, attention: str = 'mqa') -> nn.Module:
    """Build the block of a row.

    Args:
        place: The row at its place.
        style: Settings shared by all blocks of the net.
        drop_path: Stochastic depth rate.
        attention: See ``arch.Arch``.
    """
    in_channels, dilation = place.channels, place.dilation
    match place.row:
        case table.Conv(kernel, stride, out):
            return ConvBN(style, in_channels, out, kernel, stride, dilation, norm_name='bn1')
        case table.FusedIB(kernel, stride, expand, out):
            return FusedIB(style, in_channels, out, kernel, stride, expand)
        case table.UIB(start_dw, middle_dw, stride, expand, out):
            return UIB(style, in_channels, out, start_dw, middle_dw, stride, expand, dilation, drop_path)
        case table.MQA(heads, key_dim, kv_stride, _):
            kv_heads = heads if attention == 'mhsa' else 1
            return MobileMQA(style, in_channels, heads, key_dim, kv_stride, dilation, drop_path, kv_heads)
    raise TypeError(f'not a row of an architecture table: {place.row!r}')


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _frozen_statistics(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Keep the norm statistics of a block while it is recomputed, so that each batch is counted once."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= 1
