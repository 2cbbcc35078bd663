"""Peak arithmetic rate and memory bandwidth of this machine, on one thread."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Bytes per copy: the smallest copies fit into the cache of a core, the largest only into memory.
COPY_SIZES = (2**18, 2**20, 2**22, 2**24, 2**26, 2**28)
GEMM_SIZES = (512, 1024, 2048)


class Peak(NamedTuple):
    """Limits of a machine, for one thread and float32.

    Attributes:
        macs: Multiply-accumulates per second of the fastest of the matrix products of ``GEMM_SIZES`` in ONNX Runtime.
        bandwidth: Bytes read plus bytes written per second when numpy copies an array of 256 MiB.
        cached: The same for an array of each of ``COPY_SIZES``. The keys are the sizes in bytes, as strings.
    """

    macs: float
    bandwidth: float
    cached: dict[str, float]

    @property
    def ridge(self) -> float:
        """Ridge point of the roofline in MACs per byte: layers with fewer MACs per byte are memory-bound."""
        return self.macs / self.bandwidth


def measure_peak(seconds: float = 0.5) -> Peak:
    """Measure the limits of this machine. As in the STREAM benchmark, the fastest repetition is taken.

    Args:
        seconds: Duration of the measurement of each matrix size and each copy size.
    """
    macs = max(size**3 / _best(_gemm(size), seconds) for size in GEMM_SIZES)
    rates = {str(size): 2 * size / _best(_copy(size), seconds) for size in COPY_SIZES}
    return Peak(macs, rates[str(COPY_SIZES[-1])], rates)


def _gemm(size: int) -> Callable[[], object]:
    """Return a function that multiplies two square matrices in ONNX Runtime. The second is a constant, like weights."""
    import onnxruntime as ort
    from onnx import numpy_helper, parser

    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> gemm (float[{size}, {size}] x) => (float[{size}, {size}] y) '
        '{ y = MatMul (x, w) }'
    )
    random = np.random.default_rng(0)
    model.graph.initializer.append(numpy_helper.from_array(random.random((size, size), np.float32), 'w'))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])
    x = random.random((size, size), np.float32)
    return lambda: session.run(None, {'x': x})


def _copy(size: int) -> Callable[[], object]:
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    repeats = max(1, 2**22 // size)  # a single small copy takes less time than reading the clock

    def run() -> None:
        for _ in range(repeats):
            np.copyto(target, source)

    run.repeats = repeats  # type: ignore[attr-defined]
    return run


def _best(call: Callable[[], object], seconds: float) -> float:
    """Return the shortest time of a call in seconds."""
    call()
    best, end = float('inf'), time.perf_counter() + seconds
    while best == float('inf') or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best / getattr(call, 'repeats', 1)
