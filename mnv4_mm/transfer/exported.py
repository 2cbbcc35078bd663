"""Export of nets and blocks to the runtimes, and measurement of their latency.

A bare net is a net or block without the preprocessing and postprocessing that exported detectors and segmenters have.
"""

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
    """Graph of a bare net, which maps (1, C, H, W) float32 to a tuple of one tensor.

    Attributes:
        channels: Number of channels of the input.
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
        net: The net, which returns a tensor or a tuple of one tensor. The net is changed in place: it is set to
            evaluation mode, its parameters no longer require gradients, and ``replace_layers`` is applied.
        size: Height and width of the input in pixels.
        target: Name of the runtime to convert to, a key of ``TARGETS``.
        channels: Number of channels of the input.
    """
    net = net.eval().requires_grad_(False)
    replace_layers(net, target)
    # The latency depends only on the layout and the size of the input: the other metadata are placeholders.
    to = Input(size, 'NCHW', 'float32', 'RGB', True, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1)
    resize = Resize('stretch', (0, 0, 0))
    meta = Meta('segmentation', 'logits', target, 'fp32', ('output',), to, resize)
    return NetGraph(_Outputs(net), meta, channels=channels)


def convert(graph: Graph, folder: Path, name: str) -> Path:
    """Convert a graph to the file format of its runtime.

    Args:
        graph: The graph; ``graph.meta.target`` is the runtime.
        folder: Folder to write the file to.
        name: Name of the file without suffix.

    Returns:
        The path of the file.
    """
    target = TARGETS[graph.meta.target]
    path = folder / f'{name}{target.suffix}'
    write(graph, target, path)
    return path


def session(path: Path, threads: int = 1) -> Session:
    """Load a converted file in its runtime.

    Args:
        path: The file.
        threads: Number of threads.

    Returns:
        The function that runs the file on an input batch and returns a list of output arrays.
    """
    return load(path, threads).session


def check_output(graph: Graph, path: Path, tolerance: float = 1e-3) -> np.ndarray:
    """Compare the outputs of a converted file with those of PyTorch on a random input.

    Args:
        graph: The graph that the file was converted from.
        path: The file.
        tolerance: Largest difference allowed, relative to the largest absolute value of an output.

    Returns:
        The random input, ``graph.example()``: (1, C, H, W) float32 for a ``NetGraph``, otherwise in the layout and
        dtype of ``graph.meta.input``.

    Raises:
        MismatchError: The difference exceeds the tolerance, or an output has another number of values.
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
        graphs: Pairs of a key of any hashable type and a function that builds the graph.
        folder: Folder to write the files to.
        tolerance: See ``check_output``.
        log: Function that prints a line; called for each failure.

    Returns:
        Two dicts by key. The first has the path and a random input batch of each file that agrees with PyTorch. The
        second has the error message of each graph that could not be built or converted, or whose file differs.
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
    """Latency of an inference in ms.

    Attributes:
        median: Median of ``rounds``.
        rounds: Median latency in each round.
        cpu: Median CPU time over the inferences of all rounds. It is smaller than the latency if other processes
            interrupt this one.
    """

    median: float
    rounds: tuple[float, ...]
    cpu: float


def time_inferences(run: Session, batch: np.ndarray, seconds: float) -> tuple[list[float], list[float]]:
    """Time inferences of a loaded file, after three untimed ones.

    Args:
        run: The file, see ``session``.
        batch: Input batch.
        seconds: Seconds for which inferences are timed. At least five are timed.

    Returns:
        Latency and CPU time of each inference in ms.
    """
    for _ in range(3):
        run(batch)
    times: list[float] = []
    cpu: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start, start_cpu = time.perf_counter(), time.process_time()
        run(batch)
        times.append(1e3 * (time.perf_counter() - start))
        cpu.append(1e3 * (time.process_time() - start_cpu))
    return times, cpu


def measure_latencies(
    files: Mapping[Any, tuple[Path, np.ndarray]],
    rounds: int = 5,
    seconds: float = 0.3,
    log: Callable[[str], None] = print,
) -> dict[Any, Latency]:
    """Measure the latency of files on one thread.

    All files are measured in each round, so that a change of the speed of the machine affects all of them.

    Args:
        files: Path and input batch of each file, by a key of any hashable type.
        rounds: Number of rounds.
        seconds: Seconds for which each file is timed in each round, see ``time_inferences``.
        log: Function that prints a line; called after each round.

    Returns:
        The latency of each file by its key in ``files``.
    """
    medians: dict[Any, list[float]] = {key: [] for key in files}
    cpu: dict[Any, list[float]] = {key: [] for key in files}
    for number in range(rounds):
        for key, (path, batch) in files.items():
            times, used = time_inferences(session(path), batch, seconds)
            medians[key].append(statistics.median(times))
            cpu[key] += used
        log(f'round {number + 1} of {rounds}')
    return {
        key: Latency(statistics.median(values), tuple(values), statistics.median(cpu[key]))
        for key, values in medians.items()
    }
