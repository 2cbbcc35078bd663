"""Architecture tables of the published MobileNetV4 nets: one row per block, with the paper's name of the block.

Sources: arXiv 2404.10518, tables 11-15; ``official/vision/modeling/backbones/mobilenet.py`` of ``tensorflow/models``
("TF" below); ``mobilenetv3.py`` of timm. The three agree except for Hybrid-M, where the paper's table 13 matches
neither the two implementations nor the paper's own parameter counts: Hybrid-M follows the implementations. Tests
compare every net with timm's net or, where timm has none, with the same table built by timm.

A net has a 3x3 stem of stride 2 and four stages that end in the feature maps C2, C3, C4 and C5 (strides 4, 8, 16, 32).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mnv4_mm.errors import UserError


class Conv(NamedTuple):
    """Convolution, batch norm and activation, without a shortcut."""

    kernel: int
    stride: int
    out: int


class FusedIB(NamedTuple):
    """Dense k x k convolution that multiplies the channels by ``expand``, followed by a linear 1x1 projection."""

    kernel: int
    stride: int
    expand: int
    out: int


class UIB(NamedTuple):
    """Universal inverted bottleneck.

    The two depthwise convolutions select one of the paper's four variants: ExtraDW has both, IB only the middle one,
    ConvNext only the start one, FFN neither.

    Attributes:
        start_dw: Kernel size of the depthwise convolution before the expansion; 0 for none.
        middle_dw: Kernel size of the depthwise convolution after the expansion; 0 for none.
        stride: Stride of the block.
        expand: Factor by which the 1x1 expansion multiplies the input channels.
        out: Output channels.
    """

    start_dw: int
    middle_dw: int
    stride: int
    expand: int
    out: int


class MQA(NamedTuple):
    """Mobile multi-query attention, which keeps the shape of the feature map.

    Attributes:
        heads: Number of query heads.
        key_dim: Channels of the queries, keys and values of one head.
        kv_stride: Stride by which the feature map is downsampled for the keys and values; 1 for no downsampling.
        out: Output channels, equal to the input channels.
    """

    heads: int
    key_dim: int
    kv_stride: int
    out: int


Row = Conv | FusedIB | UIB | MQA


class Arch(NamedTuple):
    """Architecture of a net.

    Attributes:
        stem: Output channels of the stem.
        act: Name of the activation in mmcv.
        layer_scale: Initial value of the layer scale (hybrids only); None for no layer scale.
        stages: Rows of the stages that end in C2, C3, C4 and C5.
        head_conv: Output channels of the 1x1 convolution at stride 32 that follows C5; None if the net has no such
            layer. The convolution is the first layer of the paper's classifier. Its output is the stride-32 feature
            map of timm's ``features_only`` and the second level of SSDLite.
        width: Multiplier of all channels except the stem's (timm ``fix_stem``). Products are rounded by
            ``make_divisible``.
        antialias: Downsampling in the layers after the stem. None uses the stride of the convolution. ``avg`` and
            ``blur`` give the convolution stride 1 and put a 2x2 mean or a binomial filter of stride 2 after its
            activation.
        attention: ``mqa`` shares one key and value head between all query heads; ``mhsa`` gives each head its own.
        kv_stride: Stride of keys and values in all attention blocks; None uses the stride of each row.
    """

    stem: int
    act: str
    layer_scale: float | None
    stages: tuple[tuple[Row, ...], ...]
    head_conv: int | None = 960
    width: float = 1.0
    antialias: str | None = None
    attention: str = 'mqa'
    kv_stride: int | None = None


ROWS: dict[str, type[Row]] = {kind.__name__: kind for kind in (Conv, FusedIB, UIB, MQA)}


def arch_to_dict(arch: Arch) -> dict[str, Any]:
    """Return an architecture as plain values for a config, ``model.backbone.arch``.

    Each row is a list of its kind and its values: ``['UIB', 5, 5, 2, 3, 96]``. Attributes with their default are left
    out.
    """
    values = {
        name: value
        for name, value in arch._asdict().items()
        if name not in Arch._field_defaults or value != Arch._field_defaults[name]
    }
    stages = [[[type(row).__name__, *row] for row in stage] for stage in arch.stages]
    return {**values, 'stages': stages}


def arch_from_dict(values: Mapping[str, Any]) -> Arch:
    """Read what ``arch_to_dict`` returns.

    Raises:
        UserError: A key is unknown or missing, a value or a row is invalid, or a stage does not halve the feature map.
    """
    unknown = values.keys() - set(Arch._fields)
    missing = set(Arch._fields) - Arch._field_defaults.keys() - values.keys()
    if unknown or missing:
        problem = f'unknown: {", ".join(sorted(unknown))}' if unknown else f'missing: {", ".join(sorted(missing))}'
        raise UserError(f'arch has the keys {", ".join(Arch._fields)}; {problem}')
    stages = values['stages']
    if (
        not isinstance(stages, list | tuple)
        or len(stages) != 4
        or not all(isinstance(stage, list | tuple) and stage for stage in stages)
    ):
        raise UserError('arch.stages must be four lists of rows, which end in C2, C3, C4 and C5')
    arch = Arch(**{**values, 'stages': tuple(tuple(map(_read_row, stage)) for stage in stages)})
    _check_values(arch)
    return arch


def _check_values(arch: Arch) -> None:
    checks = (
        ('stem', isinstance(arch.stem, int) and arch.stem > 0, 'a positive integer'),
        ('act', arch.act in ('ReLU', 'ReLU6', 'GELU', 'HSwish', 'Swish', 'SiLU'), 'the name of an activation in mmcv'),
        ('layer_scale', arch.layer_scale is None or isinstance(arch.layer_scale, int | float), 'a number or None'),
        ('head_conv', arch.head_conv is None or (isinstance(arch.head_conv, int) and arch.head_conv > 0),
         'a positive integer or None'),
        ('width', isinstance(arch.width, int | float) and arch.width > 0, 'a positive number'),
        ('antialias', arch.antialias in (None, 'avg', 'blur'), 'avg, blur or None'),
        ('attention', arch.attention in ('mqa', 'mhsa'), 'mqa or mhsa'),
        ('kv_stride', arch.kv_stride in (None, 1, 2), '1, 2 or None'),
    )  # fmt: skip
    for name, is_valid, expected in checks:
        if not is_valid:
            raise UserError(f'arch.{name} must be {expected}, got {getattr(arch, name)!r}')
    channels = arch.stem
    for number, stage in enumerate(arch.stages, 2):
        strides = [getattr(row, 'stride', 1) for row in stage]
        if math.prod(strides) != 2:
            raise UserError(f'arch.stages: the stage of C{number} must have one row of stride 2; it has {strides}')
        for row in stage:
            if problem := _row_problem(row, channels):
                raise UserError(f'arch.stages: {row} {problem}')
            channels = row.out


def _row_problem(row: Row, channels: int) -> str | None:
    """Return what is wrong with a row that has this number of input channels; None if nothing is."""
    kernels = [value for name, value in row._asdict().items() if name in ('kernel', 'start_dw', 'middle_dw')]
    optional = isinstance(row, UIB)
    if not all((optional and kernel == 0) or kernel % 2 for kernel in kernels):
        return 'has a kernel size that is not odd'
    if any(value < 1 for name, value in row._asdict().items() if name not in ('start_dw', 'middle_dw')):
        return 'has a value below 1'
    if isinstance(row, UIB) and row.stride > 1 and not any(kernels):
        return 'has a stride, but no depthwise convolution'
    if isinstance(row, MQA) and row.out != channels:
        return f'must have as many output as input channels, {channels}'
    return None


def _read_row(values: Any) -> Row:
    is_row = isinstance(values, list | tuple) and values and isinstance(values[0], str)
    kind = ROWS.get(values[0]) if is_row else None
    numbers = list(values[1:]) if kind else []
    is_valid = all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)
    if kind is None or len(numbers) != len(kind._fields) or not is_valid:
        forms = ', '.join(f'[{name}, {", ".join(one._fields)}]' for name, one in ROWS.items())
        raise UserError(f'a row of arch.stages must be one of {forms} with integers, got {values!r}')
    return kind(*numbers)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of ``divisor``, at least ``divisor`` (TF ``make_divisible``).

    If the nearest multiple is below 90 % of ``channels``, the next larger one is returned.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class PlacedRow(NamedTuple):
    """A row of an architecture table at its place in a net.

    Attributes:
        row: The row, with the width, attention stride and output stride of the net applied.
        channels: Input channels.
        stride: Stride of the input feature map in pixels.
        dilation: Dilation of the depthwise and dense convolutions.
    """

    row: Row
    channels: int
    stride: int
    dilation: int


def placed_rows(spec: Arch, output_stride: int = 32) -> list[list[PlacedRow]]:
    """Return the rows of the stages that end in C2...C5, and of the 1x1 convolution after C5 if the net has one.

    Args:
        spec: The net.
        output_stride: See ``MobileNetV4``.
    """
    head_conv = () if spec.head_conv is None else ((Conv(1, 1, spec.head_conv),),)
    channels, stride, dilation = spec.stem, 2, 1
    stages = []
    for stage in (*spec.stages, *head_conv):
        placed = []
        for row in stage:
            row, removed_stride = _fit_row(row, spec, dilate=stride * stride_of(row) > output_stride)
            placed.append(PlacedRow(row, channels, stride, dilation))
            channels, stride = row.out, stride * stride_of(row)
            # The layer whose stride was removed still samples the finer grid; the layers after it are dilated.
            dilation *= removed_stride
        stages.append(placed)
    return stages


def stride_of(row: Row) -> int:
    return 1 if isinstance(row, MQA) else row.stride


def _fit_row(row: Row, spec: Arch, dilate: bool) -> tuple[Row, int]:
    """Apply the settings of a net to a row of its table and, if ``dilate``, remove the stride of the row.

    Returns:
        The row and the stride that was removed from it, 1 if none.
    """
    row = row._replace(out=make_divisible(row.out * spec.width))
    if isinstance(row, MQA) and spec.kv_stride is not None:
        row = row._replace(kv_stride=spec.kv_stride)
    if isinstance(row, MQA) or not dilate:
        return row, 1
    return row._replace(stride=1), row.stride


CONV_S = Arch(
    stem=32,
    act='ReLU',
    layer_scale=None,
    stages=(
        (
            Conv(3, 2, 32),  # the paper calls this pair FusedIB; TF and timm have two ConvBN with ReLU
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
    act='GELU',  # the only published net without ReLU, in TF and in timm
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

# "Tailored MobileNetV4ConvMedium for dense prediction": only in TF (``_mnv4_conv_medium_seg_block_specs``), not in the
# paper or timm. Its table sets no activation, so that TF's default applies: ReLU6. C5 is a 1x1 convolution.
CONV_M_SEG = Arch(
    stem=32,
    act='ReLU6',
    layer_scale=None,
    head_conv=None,
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
            UIB(3, 0, 1, 4, 160),  # ConvNext
        ),
        (
            UIB(5, 5, 2, 6, 256),  # ExtraDW
            UIB(5, 5, 1, 4, 128),  # ExtraDW
            UIB(3, 5, 1, 4, 128),  # ExtraDW
            UIB(3, 5, 1, 4, 128),  # ExtraDW
            UIB(3, 0, 1, 4, 128),  # ConvNext
            UIB(3, 5, 1, 2, 128),  # ExtraDW
            UIB(5, 5, 1, 4, 128),  # ExtraDW
            UIB(5, 0, 1, 2, 128),  # ConvNext
            Conv(1, 1, 448),
        ),
    ),
)

ARCHS: dict[str, Arch] = {
    'conv_s': CONV_S,
    'conv_m': CONV_M,
    'conv_l': CONV_L,
    'hybrid_m': HYBRID_M,
    'hybrid_l': HYBRID_L,
    # Variants that exist only in timm.
    'conv_s_035': CONV_S._replace(width=0.35),
    'conv_s_050': CONV_S._replace(width=0.5),
    'hybrid_m_075': HYBRID_M._replace(width=0.75),
    'hybrid_l_075': HYBRID_L._replace(width=0.75),
    'conv_aa_m': CONV_M._replace(antialias='avg'),
    'conv_aa_l': CONV_L._replace(antialias='avg'),
    'conv_blur_m': CONV_M._replace(antialias='blur'),
    # Only in TF.
    'conv_m_seg': CONV_M_SEG,
    # Hybrid-M with the attention that the paper compares Mobile MQA with. There are no published weights.
    'hybrid_m_mhsa': HYBRID_M._replace(attention='mhsa'),
    'hybrid_m_kv1': HYBRID_M._replace(kv_stride=1),
}


def arch_of(arch: str | Arch | Mapping[str, Any]) -> Arch:
    """Return the architecture that ``model.backbone.arch`` of a config names or holds.

    Args:
        arch: Name in ``ARCHS``, an architecture, or what ``arch_to_dict`` returns.

    Raises:
        UserError: The name is unknown, or ``arch_from_dict`` finds a mistake.
    """
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, Mapping):
        return arch_from_dict(arch)
    if not isinstance(arch, str) or arch not in ARCHS:
        raise UserError(f'arch must be one of {", ".join(ARCHS)}, got {arch!r}')
    return ARCHS[arch]


def check_out_indices(out_indices: Any, arch: Arch) -> None:
    """Check which feature maps of a net are requested, see ``MobileNetV4``.

    Raises:
        UserError: ``out_indices`` are not indices of feature maps of the net in ascending order.
    """
    valid = range(4 if arch.head_conv is None else 5)
    is_list = isinstance(out_indices, Sequence) and not isinstance(out_indices, str)
    if not is_list or not out_indices or list(out_indices) != [i for i in valid if i in out_indices]:
        raise UserError(f'out_indices must be a list, ascending, from 0 (C2) to {valid[-1]}, got {out_indices}')


# Names in timm of the nets that it has.
TIMM_NAMES: dict[str, str] = {
    'conv_s': 'mobilenetv4_conv_small',
    'conv_m': 'mobilenetv4_conv_medium',
    'conv_l': 'mobilenetv4_conv_large',
    'hybrid_m': 'mobilenetv4_hybrid_medium',
    'hybrid_l': 'mobilenetv4_hybrid_large',
    'conv_s_035': 'mobilenetv4_conv_small_035',
    'conv_s_050': 'mobilenetv4_conv_small_050',
    'hybrid_m_075': 'mobilenetv4_hybrid_medium_075',
    'hybrid_l_075': 'mobilenetv4_hybrid_large_075',
    'conv_aa_m': 'mobilenetv4_conv_aa_medium',
    'conv_aa_l': 'mobilenetv4_conv_aa_large',
    'conv_blur_m': 'mobilenetv4_conv_blur_medium',
}
