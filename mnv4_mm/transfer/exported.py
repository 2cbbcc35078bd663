"""Export of a bare net or block, and its latency in the runtimes."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mnv4_mm.deploy.export import write
from mnv4_mm.deploy.graph import Graph, replace_layers
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.deploy.verify import MismatchError
from mnv4_mm.runtime.meta import Input, Meta, Resize
from mnv4_mm.runtime.predictor import load
from mnv4_mm.runtime.sessions import Session


class _Outputs(nn.Module):
    """Wrapper that makes a net return a tuple of outputs, as a backbone does."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        output = self.net(x)
        return output if isinstance(output, tuple) else (output,)


@dataclass(frozen=True)
class NetGraph(Graph):
    """A bare net: (1, C, H, W) float32 in, one tensor out.

    Attributes:
        channels: Channels of its input.
    """

    channels: int = 3

    def example(self) -> Tensor:
        """Return a random input, (1, C, H, W), the same at every call."""
        assert self.meta.input.size is not None
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1, self.channels, *self.meta.input.size, generator=generator)


def net_graph(net: nn.Module, size: tuple[int, int], target: str = 'onnx', channels: int = 3) -> NetGraph:
    """Return the graph of a bare net for conversion.

    Args:
        net: The net, with one output: a tensor, or a tuple with one. It is changed: set to evaluation mode, its
            parameters without gradients, and the layers that converters get wrong replaced.
        size: Height and width of its input in pixels.
        target: Name of a runtime.
        channels: Channels of its input.
    """
    net = net.eval().requires_grad_(False)
    replace_layers(net, target)
    # The latency depends only on the layout and the size of the input: the other metadata are placeholders.
    to = Input(size, 'NCHW', 'float32', 'RGB', True, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1)
    resize = Resize('stretch', (0, 0, 0))
    meta = Meta('segmentation', 'logits', target, 'fp32', ('output',), to, resize)
    return NetGraph(_Outputs(net), meta, channels=channels)


def convert(graph: Graph, folder: Path, name: str) -> Path:
    """Write a graph to ``folder`` as a file of its runtime, named ``name`` and the suffix, and return the path."""
    target = TARGETS[graph.meta.target]
    path = folder / f'{name}{target.suffix}'
    write(graph, target, path)
    return path


def session(path: Path) -> Session:
    """Load a converted file, on one thread."""
    return load(path, threads=1).session


def check_output(graph: Graph, path: Path, tolerance: float = 1e-3) -> np.ndarray:
    """Compare a file with PyTorch on a random input, so that no wrong file is measured.

    Args:
        graph: The net that the file was converted from.
        path: The file.
        tolerance: Largest difference allowed, relative to the largest output.

    Returns:
        The random input, (1, C, H, W) float32.

    Raises:
        MismatchError: The difference exceeds the tolerance, or the number of values differs.
    """
    example = graph.example()
    with torch.no_grad():
        outputs = [output.numpy() for output in graph.module(example)]
    for expected, found in zip(outputs, session(path)(example.numpy()), strict=True):
        same_size = found.size == expected.size
        difference = float(np.abs(found - expected).max() / np.abs(expected).max()) if same_size else np.inf
        if not difference <= tolerance:
            raise MismatchError(f'outputs differ from PyTorch by {difference:.2g} of the largest value')
    return example.numpy()


def convert_all(
    graphs: Iterable[tuple[Any, Callable[[], Graph]]], folder: Path, tolerance: float, log: Callable[[str], None]
) -> tuple[dict[Any, tuple[Path, np.ndarray]], dict[Any, str]]:
    """Convert graphs and compare each file with PyTorch.

    Args:
        graphs: Pairs of a key and a function that builds the graph.
        folder: Folder to write the files to.
        tolerance: See ``check_output``.
        log: Function that prints a line.

    Returns:
        By key: the file and its input, for graphs whose file agrees with PyTorch; the error, for the others.
    """
    files: dict[Any, tuple[Path, np.ndarray]] = {}
    failed: dict[Any, str] = {}
    for number, (key, build) in enumerate(graphs):
        try:
            graph = build()
            path = convert(graph, folder, str(number))
            files[key] = path, check_output(graph, path, tolerance)
        except Exception as error:  # converters raise errors of many kinds; the record has the reason
            failed[key] = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
            log(f'{key}: {failed[key]}')
    return files, failed


class Latency(NamedTuple):
    """Latency in ms.

    Attributes:
        median: Median of ``rounds``.
        rounds: Median of each round.
        cpu: Median CPU time of an inference. It is smaller than the latency if other processes interrupt this one.
    """

    median: float
    rounds: tuple[float, ...]
    cpu: float


def measure_latencies(
    files: Mapping[Any, tuple[Path, np.ndarray]],
    rounds: int = 5,
    seconds: float = 0.3,
    log: Callable[[str], None] = print,
) -> dict[Any, Latency]:
    """Measure the latency of files on one thread.

    All files are measured in each round, so that a change of the speed of the machine affects all of them.

    Args:
        files: File and input batch by key.
        rounds: Number of rounds.
        seconds: Time for each file in each round. At least five inferences are timed.
        log: Function that prints a line.
    """
    medians: dict[Any, list[float]] = {key: [] for key in files}
    cpu: dict[Any, list[float]] = {key: [] for key in files}
    for number in range(rounds):
        for key, (path, batch) in files.items():
            run = session(path)
            for _ in range(3):
                run(batch)
            times: list[float] = []
            end = time.perf_counter() + seconds
            while len(times) < 5 or time.perf_counter() < end:
                start, start_cpu = time.perf_counter(), time.process_time()
                run(batch)
                times.append(1e3 * (time.perf_counter() - start))
                cpu[key].append(1e3 * (time.process_time() - start_cpu))
            medians[key].append(statistics.median(times))
        log(f'round {number + 1} of {rounds}')
    return {
        key: Latency(statistics.median(values), tuple(values), statistics.median(cpu[key]))
        for key, values in medians.items()
    }
