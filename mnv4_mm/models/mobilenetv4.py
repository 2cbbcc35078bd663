"""MobileNetV4, arXiv 2404.10518: table -> stages -> multi-scale maps."""

import math
from collections.abc import Iterator, Sequence
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
from mnv4_mm.models.layers import UIB, ConvBN, FusedIB, MobileMQA, MultiQueryAttention, Style, make_divisible
from mnv4_mm.weights.strict import load_pretrained, pretrained_entries


# Registered in mmengine's root registry: mmdet, mmseg, mmpretrain and mmyolo look there for names they do not have.
@MODELS.register_module()
class MobileNetV4(BaseModule):
    """MobileNetV4 trunk that hands out multi-scale maps.

    Maps are counted, not layers: 0...3 are C2, C3, C4, C5 at strides 4, 8, 16, 32 with the trunk's widths, and 4 is the
    960-channel 1x1 convolution behind C5 (stride 32), which timm's ``features_only`` hands out as its stride-32
    feature. A map that is not asked for is not built, nor is anything behind the last one.

    Parameter names are timm's: ``state_dict`` of ``mobilenetv4_*`` fits after its classifier is dropped.

    Args:
        arch: Name of a net in ``arch.ARCHS`` (``conv_s``, ``conv_m``, ``conv_l``, ``hybrid_m``, ``hybrid_l``, ...) or a
            table.
        out_indices: Maps to return, in rising order.
        output_stride: 32, or 16 or 8: from there on layers keep the map's size and are dilated instead, with the same
            weights.
        frozen_stages: Stages that do not train, counted with the stem: -1 none, 0 the stem, 1 the stem and the stage
            of C2, ... 4 up to C5. Frozen stages keep their norm statistics.
        norm_cfg: mmcv norm layer; batch norm (eps 1e-5, momentum 0.1, as timm's weights were trained) if left out.
        norm_eval: Keep the statistics of all norm layers while training.
        act_cfg: mmcv activation; the published net's (ReLU, Hybrid-L GELU) if left out.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 over the blocks.
        with_cp: Recompute activations in the backward pass: less memory, same numbers.
        init_cfg: mmengine initialisation. Without it, weights are drawn as in TF and timm.

    Attributes:
        out_channels: Channels of the returned maps.
        out_strides: Strides of the returned maps in pixels.

    Raises:
        UserError: unknown ``arch``, or indices out of range.
    """

    init_cfg: Any  # mmengine's

    def __init__(
        self,
        arch: str | table.Arch = 'conv_s',
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
        spec = self._spec(arch)
        maps = range(4 if spec.head_conv is None else 5)
        if not out_indices or list(out_indices) != sorted(set(out_indices) & set(maps)):
            raise UserError(f'out_indices must be rising numbers of maps from 0 (C2) to {maps[-1]}, got {out_indices}')
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

        # In place (GELU cannot be): a tenth faster, and nothing but the activation needs its input.
        act_cfg = act_cfg or (dict(type=spec.act) if spec.act == 'GELU' else dict(type=spec.act, inplace=True))
        style = Style(norm_cfg or dict(type='BN'), act_cfg, spec.layer_scale, spec.antialias)
        head_conv = () if spec.head_conv is None else ((table.Conv(1, 1, spec.head_conv),),)
        rows = (*spec.stages, *head_conv)
        # Rates as in timm: the whole net counts, also the blocks that are not built here.
        rates = iter([drop_path_rate * i / sum(map(len, rows)) for i in range(sum(map(len, rows)))])

        stem = ConvBN(style._replace(antialias=None), 3, spec.stem, 3, stride=2)
        self.conv_stem, self.bn1, self.act = stem.children()
        channels, stride, dilation = spec.stem, 2, 1
        widths, strides = [], []
        self.blocks = nn.ModuleList()
        for stage in rows[: self.out_indices[-1] + 1]:
            blocks = []
            for row in stage:
                row, shrink = _fit_row(row, spec.width, keep_size=stride * _stride(row) > output_stride)
                blocks.append(_build_block(row, style, channels, dilation, next(rates)))
                channels, stride = row.out, stride * _stride(row)
                # What would have shrunk the map still looks at the old grid; all behind it at every other place.
                dilation *= shrink
            self.blocks.append(nn.Sequential(*blocks))
            widths.append(channels)
            strides.append(stride)
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        self.out_strides = tuple(strides[i] for i in self.out_indices)

        self._init_as_published()
        self._freeze_stages()

    @staticmethod
    def _spec(arch: str | table.Arch) -> table.Arch:
        if isinstance(arch, table.Arch):
            return arch
        if arch not in table.ARCHS:
            raise UserError(f'arch must be one of {", ".join(table.ARCHS)}, got {arch!r}')
        return table.ARCHS[arch]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> one (N, C, ceil(H / stride), ceil(W / stride)) per map of ``out_indices``.

        Nets that shrink by a 2x2 mean (``conv_aa_*``) round down instead, as timm's do.
        """
        x = self.act(self.bn1(self.conv_stem(x)))  # (N, stem, H / 2, W / 2)
        recompute = self.with_cp and self.training and torch.is_grad_enabled()
        maps = []
        for i, stage in enumerate(self.blocks):
            for block in stage.children():
                x = _recomputed(block, x) if recompute else block(x)
            if i in self.out_indices:
                maps.append(x)
        return tuple(maps)

    def train(self, mode: bool = True) -> 'MobileNetV4':
        """Sets training mode; frozen stages, and all norms with ``norm_eval``, stay in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Initialises as mmengine does, but loads entries of type Pretrained strictly (see ``load_pretrained``)."""
        whole = self.init_cfg
        pretrained = pretrained_entries(whole)
        if pretrained:
            self.init_cfg = [] if isinstance(whole, dict) else [entry for entry in whole if entry not in pretrained]
        super().init_weights()
        self.init_cfg = whole
        for entry in pretrained:
            load_pretrained(self, entry['checkpoint'], entry.get('prefix') or '')

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.conv_stem, self.bn1, *self.blocks[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)

    def _init_as_published(self) -> None:
        """Draws weights as TF and timm do: normal, variance 2 / fan-out, with the groups counted; attention Xavier."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
        for module in self.modules():
            if isinstance(module, MultiQueryAttention):
                for conv in module.modules():
                    if isinstance(conv, nn.Conv2d):
                        nn.init.xavier_uniform_(conv.weight)


def _stride(row: table.Row) -> int:
    return 1 if isinstance(row, table.MQA) else row.stride


def _fit_row(row: table.Row, width: float, keep_size: bool) -> tuple[table.Row, int]:
    """A row of a table at a net's width; with its stride taken out, and returned, if the map is to keep its size."""
    row = row._replace(out=make_divisible(row.out * width))
    if isinstance(row, table.MQA) or not keep_size:
        return row, 1
    return row._replace(stride=1), row.stride


def _build_block(row: table.Row, style: Style, in_channels: int, dilation: int, drop_path: float) -> nn.Module:
    match row:
        case table.Conv(kernel, stride, out):
            return ConvBN(style, in_channels, out, kernel, stride, dilation, norm_name='bn1')
        case table.FusedIB(kernel, stride, expand, out):
            return FusedIB(style, in_channels, out, kernel, stride, expand)
        case table.UIB(start_dw, middle_dw, stride, expand, out):
            return UIB(style, in_channels, out, start_dw, middle_dw, stride, expand, dilation, drop_path)
        case table.MQA(heads, key_dim, kv_stride, _):
            return MobileMQA(style, in_channels, heads, key_dim, kv_stride, dilation, drop_path)
    raise TypeError(f'not a row of an architecture table: {row!r}')


def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _statistics_kept(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """While a block is recomputed its norms must not count the batch a second time."""
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
