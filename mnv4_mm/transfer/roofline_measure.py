"""Measurements for the roofline: layers, latency and profile of each net; peak rate and bandwidth of the machine."""

import datetime
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from mnv4_mm.config.backbone import with_backbone
from mnv4_mm.config.load import load_config
from mnv4_mm.deploy.describe import describe
from mnv4_mm.deploy.graph import Graph, build_graph
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.models import MobileNetV4
from mnv4_mm.models.arch import ARCHS
from mnv4_mm.models.classifier import classifier
from mnv4_mm.tasks import build_model
from mnv4_mm.transfer.exported import Latency, convert_all, measure_latencies, net_graph
from mnv4_mm.transfer.layers import Layer, count_layers, kind_times
from mnv4_mm.transfer.machine import describe_machine
from mnv4_mm.transfer.nets import MNV4_SIZES, MODELS, PEERS
from mnv4_mm.transfer.peak import Peak, measure_peak

PACKAGES = ('torch', 'timm', 'onnx', 'onnxruntime', 'numpy')
# Largest difference from PyTorch, relative to the largest output: rounding errors grow in nets with random weights.
TOLERANCE = 1e-2


def build_net(name: str) -> tuple[nn.Module, tuple[int, int]]:
    """Build a classification net with random weights, in evaluation mode.

    Reparameterisable nets of timm, such as RepViT, are built with their branches merged. ``conv_m_seg``, which has no
    classifier, is built up to its last feature map, C5.

    Args:
        name: ``mnv4_<arch>`` with a key of ``ARCHS``, or ``timm:<name>`` with a key of ``PEERS``.

    Returns:
        The net, and height and width of its images in pixels.
    """
    if name.startswith('timm:'):
        import timm
        from timm.utils.model import reparameterize_model

        name = name.removeprefix('timm:')
        return reparameterize_model(timm.create_model(name).eval()), (PEERS[name], PEERS[name])
    arch = name.removeprefix('mnv4_')
    size = (MNV4_SIZES[arch], MNV4_SIZES[arch])
    if ARCHS[arch].head_conv is None:
        return MobileNetV4(arch, out_indices=(3,)).eval(), size
    return classifier(arch).eval(), size


def build(name: str) -> tuple[Graph, int]:
    """Build a classification net, a detector or a segmenter with random weights, as a graph for conversion to ONNX.

    The outputs of a detector are raw boxes and scores, those of a segmenter logits.

    Args:
        name: One of ``nets.NETS``.

    Returns:
        The graph, and the number of parameters.
    """
    torch.manual_seed(0)
    if name not in MODELS:
        net, size = build_net(name)
        return net_graph(net, size), _parameters(net)
    cfg = load_config(name)
    cfg.model.backbone.pop('init_cfg', None)
    cfg = with_backbone(cfg, f'mnv4_{cfg.model.backbone.arch}')
    cfg.model.backbone.pop('init_cfg', None)
    model: Any = build_model(cfg).eval()
    model.cfg, model.checkpoint_meta = cfg, {}
    is_detector = hasattr(model, 'bbox_head')
    head = model.bbox_head if is_detector else model.decode_head
    classes = tuple(map(str, range(head.num_classes)))
    model.dataset_meta = dict(classes=classes, palette=[(0, 0, 0)] * len(classes))
    meta = describe(model, TARGETS['onnx'], kind='raw' if is_detector else 'logits')
    return build_graph(model, meta), _parameters(model)


def _parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def measure_nets(
    names: Sequence[str], rounds: int = 5, seconds: float = 0.3, log: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Measure the layers, the latency and the profile of nets on one thread of ONNX Runtime.

    PyTorch's number of threads is set to 1 and is not restored.

    Args:
        names: Names of ``nets.NETS``.
        rounds: See ``measure_latencies``.
        seconds: See ``measure_latencies``.
        log: Function that prints a line.

    Returns:
        A record for each net, see ``record``. A net whose conversion fails, or whose ONNX file differs from PyTorch, is
        logged and has no record.
    """
    torch.set_num_threads(1)
    parameters: dict[str, int] = {}

    def graphs() -> Iterator[tuple[str, Callable[[], Graph]]]:
        for name in names:
            yield name, partial(_counted, name, parameters)
            log(name)

    with TemporaryDirectory() as folder:
        files, _ = convert_all(graphs(), Path(folder), TOLERANCE, log)
        layers = {name: count_layers(*file) for name, file in files.items()}
        before = describe_machine(PACKAGES)
        first = measure_peak()
        latencies = measure_latencies(files, rounds, seconds, log)
        times = {name: kind_times(*file) for name, file in files.items()}
        second = measure_peak()
        after = describe_machine(PACKAGES)
    # The better of both measurements: other processes can only lower them.
    peak = Peak(
        max(first.macs, second.macs),
        max(first.bandwidth, second.bandwidth),
        {size: max(rate, second.cached[size]) for size, rate in first.cached.items()},
    )
    machine = dict(before, load=[before['load'], after['load']], threads=1, peak=_rounded(peak))
    return [
        record(name, parameters[name], batch, layers[name], latencies[name], times[name], machine)
        for name, (_, batch) in files.items()
    ]


def _counted(name: str, parameters: dict[str, int]) -> Graph:
    graph, parameters[name] = build(name)
    return graph


def record(
    name: str,
    parameters: int,
    batch: np.ndarray,
    layers: Sequence[Layer],
    latency: Latency,
    times: dict[str, float],
    machine: dict[str, Any],
) -> dict[str, Any]:
    """Return the record of a net. The keys of records are listed in docs/roofline.md.

    Args:
        name: Name of the net, one of ``nets.NETS``.
        parameters: Number of parameters.
        batch: Input batch of one image. Its shape is (1, C, H, W) for classification nets and (1, H, W, C) for
            detectors and segmenters.
        layers: Layers of the net.
        latency: Measured latency.
        times: Milliseconds by kind of layer, see ``layers.kind_times``.
        machine: Description of the machine, see ``describe_machine``, with its peak rate and bandwidth.
    """
    return dict(
        net=name,
        input=[*batch.shape],
        dtype=str(batch.dtype),
        parameters=parameters,
        macs=sum(one.repeats * one.macs for one in layers),
        weight_bytes=sum(one.repeats * one.weight_bytes for one in layers),
        activation_bytes=sum(one.repeats * one.activation_bytes for one in layers),
        latency_ms=round(latency.median, 4),
        round_ms=[round(value, 4) for value in latency.rounds],
        cpu_ms=round(latency.cpu, 4),
        kind_ms={kind: round(value, 4) for kind, value in sorted(times.items())},
        layers=[list(layer) for layer in layers],
        machine=machine,
        date=datetime.date.today().isoformat(),
    )


def _rounded(peak: Peak) -> dict[str, Any]:
    return dict(
        macs=round(peak.macs),
        bandwidth=round(peak.bandwidth),
        cached={size: round(rate) for size, rate in peak.cached.items()},
    )
