"""Latency of single blocks of MobileNetV4, and of Hybrid-M with different attention blocks, in several runtimes.

The measurements check a claim of the MobileNetV4 paper (section 5): Mobile MQA has 25 % fewer parameters and MACs than
multi-head self-attention (MHSA), and adds 39 % less latency to a net.
"""

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import nn

from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.models import arch as table
from mnv4_mm.models.layers import UIB, FusedIB, MobileMQA, Style
from mnv4_mm.models.mobilenetv4 import MobileNetV4
from mnv4_mm.transfer.exported import NetGraph, convert_all, measure_latencies, net_graph
from mnv4_mm.transfer.layers import count_layers
from mnv4_mm.transfer.machine import describe_machine
from mnv4_mm.transfer.nets import BLOCK_RUNTIMES

PACKAGES = ('torch', 'onnx', 'onnxruntime', 'openvino', 'ncnn', 'ai-edge-litert', 'executorch', 'numpy')
HEADS, KEY_DIM = 4, 64  # Hybrid-M
# Channels and side of the feature maps of Hybrid-M at output stride 16, for images of 256 and 512 pixels.
ATTENTION_PLACES = ((160, 16), (160, 32))
# Name -> number of key and value heads, and stride of keys and values.
ATTENTIONS = {'MQA': (1, 1), 'MQA, kv stride 2': (1, 2), 'MHSA': (HEADS, 1), 'MHSA, kv stride 2': (HEADS, 2)}
# Name -> kernel sizes of the depthwise convolutions before and after the expansion; 0 for none.
UIB_FORMS = {'ExtraDW': (3, 3), 'IB': (0, 3), 'ConvNext': (3, 0), 'FFN': (0, 0)}
UIB_WIDTHS = (32, 64, 128, 256)
UIB_SIDES = (14, 28, 56)
EXPAND = 4
# Hybrid-M starts with 1e-5, at which a wrong branch would not be noticed in the output. With 0.5 and random weights,
# rounding errors grow through the whole net, up to 14 % of the output. With 0.2 they stay at 1e-6.
LAYER_SCALE = 0.2
TOLERANCE = 1e-3  # largest difference from PyTorch, relative to the largest output
# Variants of Hybrid-M up to C5, by their attention, and the size of their images in pixels.
NET_SIZE = 256
HYBRIDS: dict[str, table.Arch] = {
    'no attention': table.HYBRID_M._replace(
        stages=tuple(tuple(row for row in stage if not isinstance(row, table.MQA)) for stage in table.HYBRID_M.stages)
    ),
    'MQA, as published': table.HYBRID_M,
    'MHSA': table.ARCHS['hybrid_m_mhsa'],
    'MQA, kv stride 1': table.ARCHS['hybrid_m_kv1'],
    'MHSA, kv stride 1': table.HYBRID_M._replace(attention='mhsa', kv_stride=1),
}


class Block(NamedTuple):
    """A block, or a net, to be measured.

    Attributes:
        part: One of ``nets.BLOCK_PARTS``.
        name: Name of the block in the tables, such as ``ExtraDW``.
        channels: Number of channels of the input.
        side: Height and width of the input.
        module: The block or net itself.
    """

    part: str
    name: str
    channels: int
    side: int
    module: nn.Module


def blocks(part: str) -> Iterator[Block]:
    """Yield the blocks of a part with random weights, after setting PyTorch's global seed to 0.

    Args:
        part: One of ``nets.BLOCK_PARTS``: ``nets`` for variants of Hybrid-M up to C5, ``attention`` for single
            attention blocks, ``uib`` for single UIB and FusedIB blocks.

    Raises:
        ValueError: There is no such part.
    """
    torch.manual_seed(0)
    style = Style(dict(type='BN'), dict(type='ReLU'), None)
    if part == 'nets':
        for name, arch in HYBRIDS.items():
            spec = arch._replace(layer_scale=LAYER_SCALE)
            yield Block(part, name, 3, NET_SIZE, MobileNetV4(spec, out_indices=(3,)))
    elif part == 'attention':
        scaled = style._replace(layer_scale=LAYER_SCALE)
        for channels, side in ATTENTION_PLACES:
            for name, (kv_heads, stride) in ATTENTIONS.items():
                module = MobileMQA(scaled, channels, HEADS, KEY_DIM, stride, kv_heads=kv_heads)
                yield Block(part, name, channels, side, module)
    elif part == 'uib':
        for channels in UIB_WIDTHS:
            for side in UIB_SIDES:
                for name, (start, middle) in UIB_FORMS.items():
                    yield Block(part, name, channels, side, UIB(style, channels, channels, start, middle, 1, EXPAND))
                yield Block(part, 'FusedIB', channels, side, FusedIB(style, channels, channels, 3, 1, EXPAND))
    else:
        raise ValueError(f'no part {part!r}')


def measure_blocks(
    parts: Sequence[str], rounds: int = 5, seconds: float = 0.1, log: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Measure the latency of the blocks of some parts in each runtime.

    PyTorch's number of threads is set to 1 and not restored.

    Args:
        parts: Parts to measure, of ``nets.BLOCK_PARTS``.
        rounds: See ``measure_latencies``.
        seconds: See ``measure_latencies``.
        log: Function that prints a line.

    Returns:
        A record for each block, with the keys ``blocks_page.ALL_KEYS``. A block whose ONNX file cannot be made or
        differs from PyTorch has no record, as its MACs are counted from that file. A failure in another runtime is
        noted in the record under ``failed``.
    """
    torch.set_num_threads(1)
    records: list[dict[str, Any]] = []
    for part in parts:
        records += _measure_part(part, rounds, seconds, log)
    return records


def _measure_part(part: str, rounds: int, seconds: float, log: Callable[[str], None]) -> list[dict[str, Any]]:
    runtimes, every = BLOCK_RUNTIMES[part], list(blocks(part))
    absent = {runtime: reason for runtime in runtimes if (reason := TARGETS[runtime].absent(convert=True))}

    def graphs() -> Iterator[tuple[tuple[int, str], Callable[[], NetGraph]]]:
        for number, block in enumerate(every):
            size = (block.side, block.side)
            for runtime in runtimes:
                if runtime not in absent:
                    yield (number, runtime), partial(net_graph, block.module, size, runtime, block.channels)
            log(f'{part}: {block.name}, {block.channels} channels, {block.side}x{block.side}')

    with TemporaryDirectory() as folder:
        files, failed = convert_all(graphs(), Path(folder), TOLERANCE, log)
        failed |= {(number, runtime): reason for number in range(len(every)) for runtime, reason in absent.items()}
        layers = {number: count_layers(*files[number, 'onnx']) for number, runtime in files if runtime == 'onnx'}
        machine = describe_machine(PACKAGES)
        latencies = measure_latencies(files, rounds, seconds, log)
        machine['load'] = [machine['load'], describe_machine(())['load']]
    return [
        dict(
            part=part,
            block=block.name,
            channels=block.channels,
            side=block.side,
            parameters=sum(parameter.numel() for parameter in block.module.parameters()),
            macs=sum(one.repeats * one.macs for one in layers[number]),
            bytes=sum(one.repeats * one.bytes for one in layers[number]),
            latency_ms=_of_block(number, {key: round(value.median, 4) for key, value in latencies.items()}),
            round_ms=_of_block(number, {k: [round(one, 4) for one in v.rounds] for k, v in latencies.items()}),
            failed=_of_block(number, failed),
            machine=machine,
            date=datetime.date.today().isoformat(),
        )
        for number, block in enumerate(every)
        if number in layers  # without the ONNX file, nothing could be counted
    ]


def _of_block(number: int, values: Mapping[tuple[int, str], Any]) -> dict[str, Any]:
    """Return the values of a block by runtime."""
    return {runtime: value for (other, runtime), value in values.items() if other == number}
