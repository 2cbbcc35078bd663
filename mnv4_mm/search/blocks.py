"""Blocks of the nets of a search space, with the multiply-accumulates and bytes of their layers."""

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mnv4_mm.models.arch import MQA, UIB, Arch, Conv, FusedIB, PlacedRow, make_divisible, placed_rows, stride_of
from mnv4_mm.models.space import Space
from mnv4_mm.transfer.layers import Layer

SAMPLED_NETS = 500  # of which the blocks are counted
FLOAT = 4  # bytes


def blocks_of(arch: Arch, backbone: Mapping[str, Any]) -> list[PlacedRow]:
    """Return the blocks of a net without its stem, in their order.

    Args:
        arch: The net.
        backbone: Config of the backbone, for its ``out_indices`` and ``output_stride``.
    """
    stages = placed_rows(arch, backbone.get('output_stride', 32))
    return list(itertools.chain(*stages[: backbone.get('out_indices', (1, 2, 3))[-1] + 1]))


def all_blocks(space: Space, backbone: Mapping[str, Any]) -> list[PlacedRow]:
    """Return the distinct blocks of all nets of a space, in the order of the rows.

    A block depends on the variables of its row, on the widths within its stage and, if it is the first one there, on
    the width of the stage before. All values of these are combined, row by row.

    Args:
        space: The space.
        backbone: See ``blocks_of``.
    """
    variables, largest = space.variables(), space.largest()
    found: dict[PlacedRow, None] = {}
    for number, stage in enumerate(space.stages, 2):
        for i in range(len(stage.rows)):
            widths = {f'C{number}.width', f'C{number - (i == 0)}.width'}
            varied = [
                index
                for index, variable in enumerate(variables)
                if variable.name.startswith(f'C{number}.{i}.')
                or variable.name in widths
                or (variable.name.startswith(f'C{number}.') and variable.name.endswith('.out'))
            ]
            for values in itertools.product(*[range(len(variables[index].values)) for index in varied]):
                genes = list(largest)
                for index, value in zip(varied, values, strict=True):
                    genes[index] = value
                found |= dict.fromkeys(blocks_of(space.subnet(genes).arch, backbone))
    return sorted(found, key=lambda block: (block.stride, type(block.row).__name__, block))


def choose_blocks(
    blocks: Sequence[PlacedRow], space: Space, backbone: Mapping[str, Any], size: tuple[int, int], count: int
) -> list[PlacedRow]:
    """Choose the blocks to measure: each kind, width, kernel and stride, then those with the most MACs in random nets.

    Args:
        blocks: The blocks to choose from, see ``all_blocks``.
        space: The space. MACs are counted over ``SAMPLED_NETS`` random nets of it, always the same ones.
        backbone: See ``blocks_of``.
        size: Height and width of the image in pixels.
        count: Number of blocks to choose.

    Returns:
        The blocks, at most ``count``.
    """
    generator = random.Random(0)  # noqa: S311
    counts: Counter[PlacedRow] = Counter()
    for _ in range(SAMPLED_NETS):
        counts.update(blocks_of(space.subnet(space.sample(generator)).arch, backbone))
    share = {block: counts[block] * sum(layer.macs for layer in layers_of(block, size)) for block in blocks}
    ordered = sorted(blocks, key=lambda block: -share[block])  # stable: equal shares keep their order
    seen: set[tuple] = set()
    first: list[PlacedRow] = []
    for block in ordered:
        values: set[tuple] = {(type(block.row), name, value) for name, value in block.row._asdict().items()}
        values.add((type(block.row), *block[1:]))  # input channels, stride and dilation
        if not values <= seen:
            seen |= values
            first.append(block)
    return [*first, *(block for block in ordered if block not in set(first))][:count]


def net_macs(space: Space, genes: Sequence[int], backbone: Mapping[str, Any], size: tuple[int, int]) -> int:
    """Return the multiply-accumulates of the backbone of a net, counted from its rows without building it.

    Args:
        space: The space.
        genes: The net.
        backbone: See ``blocks_of``.
        size: Height and width of the image in pixels.
    """
    stem = _convolution(3, space.stem, 3, size, (-(-size[0] // 2), -(-size[1] // 2)))
    blocks = blocks_of(space.subnet(genes).arch, backbone)
    return stem.macs + sum(layer.macs for block in blocks for layer in layers_of(block, size))


def input_size(block: PlacedRow, size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of a block's input, for an image of this height and width in pixels."""
    return -(-size[0] // block.stride), -(-size[1] // block.stride)


def output_size(block: PlacedRow, size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of a block's output, for an image of this height and width in pixels."""
    stride = block.stride * stride_of(block.row)
    return -(-size[0] // stride), -(-size[1] // stride)


def layers_of(block: PlacedRow, size: tuple[int, int]) -> list[Layer]:
    """Return the layers of a block with their MACs and bytes in float32, counted from its row.

    As in runtimes, norms are folded into convolutions and activations are fused. The norm before an attention is not
    folded.

    Args:
        block: The block.
        size: Height and width of the image in pixels.
    """
    return list(_layers(block, size))


def _layers(block: PlacedRow, size: tuple[int, int]) -> Iterator[Layer]:
    row, channels = block.row, block.channels
    side, out_side = input_size(block, size), output_size(block, size)
    match row:
        case Conv(kernel, _, out):
            yield _convolution(channels, out, kernel, side, out_side)
        case FusedIB(kernel, _, expand, out):
            mid = make_divisible(channels * expand)
            yield _convolution(channels, mid, kernel, side, out_side)
            yield _convolution(mid, out, 1, out_side, out_side)
        case UIB(start_dw, middle_dw, _, expand, out):
            mid = make_divisible(channels * expand)
            start_side = side if middle_dw else out_side  # the middle convolution has the stride, if there is one
            if start_dw:
                yield _depthwise(channels, start_dw, side, start_side)
            yield _convolution(channels, mid, 1, start_side, start_side)
            if middle_dw:
                yield _depthwise(mid, middle_dw, start_side, out_side)
            yield _convolution(mid, out, 1, out_side, out_side)
            if stride_of(row) == 1 and channels == out:
                yield _elementwise(3 * out * _area(side))
        case MQA(heads, key_dim, kv_stride, _):
            kv_side = -(-side[0] // kv_stride), -(-side[1] // kv_stride)
            length, kv_length = _area(side), _area(kv_side)
            yield _elementwise(2 * channels * length)  # norm
            yield _convolution(channels, heads * key_dim, 1, side, side)
            for _ in ('key', 'value'):
                if kv_stride > 1:
                    yield _depthwise(channels, 3, side, kv_side)
                yield _convolution(channels, key_dim, 1, kv_side, kv_side)
            weights = heads * length * kv_length
            for _ in ('weights', 'sum of values'):
                moved = heads * length * key_dim + kv_length * key_dim + weights
                yield Layer('attention', weights * key_dim, 0, FLOAT * moved)
            yield Layer('norm', 0, 0, FLOAT * 2 * weights)  # softmax
            yield _convolution(heads * key_dim, channels, 1, side, side)
            yield _elementwise(3 * channels * length)  # shortcut


def _area(side: tuple[int, int]) -> int:
    return side[0] * side[1]


def _convolution(channels: int, out: int, kernel: int, side: tuple[int, int], out_side: tuple[int, int]) -> Layer:
    weights = kernel**2 * channels * out
    moved = channels * _area(side) + out * _area(out_side)
    return Layer('conv' if kernel > 1 else 'pointwise', weights * _area(out_side), FLOAT * weights, FLOAT * moved)


def _depthwise(channels: int, kernel: int, side: tuple[int, int], out_side: tuple[int, int]) -> Layer:
    weights = kernel**2 * channels
    moved = channels * (_area(side) + _area(out_side))
    return Layer('depthwise', weights * _area(out_side), FLOAT * weights, FLOAT * moved)


def _elementwise(values: int) -> Layer:
    return Layer('elementwise', 0, 0, FLOAT * values)
