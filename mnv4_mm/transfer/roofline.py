"""The roofline model (section 3 of arXiv 2404.10518): latency of a net from the MACs and bytes of its layers.

The time of a layer is the larger of MACs / peak and bytes / bandwidth. The ranking of nets depends only on the ridge
point, peak / bandwidth, in MACs per byte. A ridge point of 0 ranks the nets by MACs alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from mnv4_mm.transfer.layers import Layer

# Ridge points of the sweep in MACs per byte: the paper's range, with smaller steps below 20, where CPUs are.
RIDGES = tuple(float(x) for x in np.unique(np.concatenate([np.arange(0, 20, 0.25), np.arange(20, 501, 2)])))


def predicted_time(layers: Iterable[Layer], ridge: float) -> float:
    """Predict the time of a net with the roofline model.

    Args:
        layers: Layers of the net.
        ridge: Ridge point in MACs per byte.

    Returns:
        The number of MACs that the machine computes at its peak rate in the predicted time. This number divided by the
        peak rate in MACs per second is the predicted time in seconds.
    """
    return sum(layer.repeats * max(layer.macs, ridge * layer.bytes) for layer in layers)


def cached_time(layers: Iterable[Layer], macs: float, copies: Mapping[str, float]) -> float:
    """Predict the time of a net in seconds, with a bandwidth that depends on the bytes of a layer.

    The data of small layers stays in the caches, which are several times as fast as the memory. The bandwidth of a
    layer is interpolated, on logarithmic scales, between the copies that read and write fewer and more bytes in total.
    If the layer has fewer bytes than the smallest copy or more than the largest, it has the bandwidth of that copy.

    Args:
        layers: Layers of the net.
        macs: Peak in multiply-accumulates per second.
        copies: Measured bandwidths, see ``Peak.cached``: bytes per second, read and written, by the number of bytes
            copied as a string.
    """
    sizes = sorted(map(int, copies))
    # A copy of n bytes moves 2n: it reads n and writes n.
    at = np.log([2 * size for size in sizes])
    rates = np.log([copies[str(size)] for size in sizes])

    def bandwidth(count: int) -> float:
        return float(np.exp(np.interp(np.log(max(1, count)), at, rates)))

    return sum(layer.repeats * max(layer.macs / macs, layer.bytes / bandwidth(layer.bytes)) for layer in layers)


def shares(layers: Sequence[Layer], ridge: float) -> dict[tuple[str, bool], float]:
    """Return the fraction of the predicted time of a net that each kind of layer takes.

    Args:
        layers: Layers of the net.
        ridge: Ridge point in MACs per byte.

    Returns:
        Fractions that add up to 1, by (kind of layer, True if the layer is memory-bound).
    """
    total = predicted_time(layers, ridge)
    result: dict[tuple[str, bool], float] = {}
    for layer in layers:
        key = layer.kind, ridge * layer.bytes > layer.macs
        result[key] = result.get(key, 0.0) + layer.repeats * max(layer.macs, ridge * layer.bytes) / total
    return result


def mean_shares(nets: Sequence[Sequence[Layer]], ridge: float) -> dict[tuple[str, bool], float]:
    """Return the mean of ``shares`` over nets. A net without a kind of layer counts as 0 for this kind."""
    result: dict[tuple[str, bool], float] = {}
    for layers in nets:
        for key, value in shares(layers, ridge).items():
            result[key] = result.get(key, 0.0) + value / len(nets)
    return result


def spearman(predicted: Sequence[float] | np.ndarray, measured: Sequence[float] | np.ndarray) -> float:
    """Return Spearman's rank correlation; NaN if one side is constant."""
    return float(stats.spearmanr(predicted, measured).statistic)


def spearman_gain(
    predicted: Sequence[float], baseline: Sequence[float], measured: Sequence[float], draws: int = 2000
) -> tuple[float, float]:
    """Return a 95 % confidence interval of the gain in rank correlation over a baseline, by a bootstrap over the nets.

    The gain is Spearman's correlation of the prediction with the measurement, minus that of the baseline with the
    measurement.

    Args:
        predicted: Predicted time of each net.
        baseline: Time of each net that the baseline predicts.
        measured: Measured time of each net.
        draws: Number of bootstrap samples.

    Returns:
        Lower and upper end of the interval.
    """
    columns, random = np.array([predicted, baseline, measured]), np.random.default_rng(0)
    gains: list[float] = []
    while len(gains) < draws:
        sample = columns[:, random.integers(len(measured), size=len(measured))]
        if (np.ptp(sample, axis=1) > 0).all():  # the correlation of a constant is not defined
            gains.append(spearman(sample[0], sample[2]) - spearman(sample[1], sample[2]))
    low, high = np.percentile(gains, [2.5, 97.5])
    return float(low), float(high)


class Fit(NamedTuple):
    """Rank correlation of the roofline with measured latencies.

    Attributes:
        macs: Spearman's correlation of the latency with the number of MACs.
        at: Ridge points of the sweep in MACs per byte.
        spearman: Spearman's correlation at each ridge point.
        best: Ridge point with the highest correlation; the middle one if several have it.
        best_spearman: The highest correlation.
        best_range: Smallest and largest ridge point with the highest correlation.
    """

    macs: float
    at: tuple[float, ...]
    spearman: tuple[float, ...]
    best: float
    best_spearman: float
    best_range: tuple[float, float]


def fit(nets: Sequence[Sequence[Layer]], latencies: Sequence[float], ridges: Sequence[float] = RIDGES) -> Fit:
    """Correlate the roofline of nets with their measured latencies at each ridge point.

    Args:
        nets: Layers of each net.
        latencies: Measured latency of each net.
        ridges: Ridge points in MACs per byte.
    """
    scores = [spearman([predicted_time(layers, ridge) for layers in nets], latencies) for ridge in ridges]
    highest = max(scores)
    best = [ridge for ridge, score in zip(ridges, scores, strict=True) if score > highest - 1e-9]
    macs = spearman([predicted_time(layers, 0) for layers in nets], latencies)
    return Fit(macs, tuple(ridges), tuple(scores), best[len(best) // 2], highest, (best[0], best[-1]))


class Residual(NamedTuple):
    """Measured and predicted time of a kind of layer, summed over nets.

    Attributes:
        kind: Kind of layer, one of ``layers.KINDS``.
        macs: Multiply-accumulates.
        bytes: Bytes of weights and activations that are read and written.
        measured_ms: Time in ms in the profile of ONNX Runtime.
        predicted_ms: Time in ms that the roofline predicts.
    """

    kind: str
    macs: int
    bytes: int
    measured_ms: float
    predicted_ms: float


def residuals(
    nets: Sequence[Sequence[Layer]], times: Sequence[dict[str, float]], macs: float, bandwidth: float
) -> list[Residual]:
    """Compare measured and predicted time by the kind of layer.

    Args:
        nets: Layers of each net.
        times: For each net, the measured milliseconds by kind of layer.
        macs: Peak in multiply-accumulates per second.
        bandwidth: Bandwidth in bytes per second.

    Returns:
        One entry per kind of layer, the largest measured time first.
    """
    kinds = {layer.kind for layers in nets for layer in layers} | {kind for net in times for kind in net}
    rows = []
    for kind in kinds:
        layers = [layer for net in nets for layer in net if layer.kind == kind]
        rows.append(
            Residual(
                kind,
                sum(layer.repeats * layer.macs for layer in layers),
                sum(layer.repeats * layer.bytes for layer in layers),
                sum(net.get(kind, 0.0) for net in times),
                1e3 * predicted_time(layers, macs / bandwidth) / macs,
            )
        )
    return sorted(rows, key=lambda row: -row.measured_ms)
