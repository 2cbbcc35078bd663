"""Fit the coefficients that predict the latency of blocks that were not measured, and of whole nets."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import nnls

from mnv4_mm.search.roofline import ROOFLINE

PENALTIES = tuple(10.0**power for power in range(-4, 4))


def fit_roofline(features: Sequence[np.ndarray], ms: Sequence[float]) -> dict[str, float]:
    """Fit the non-negative times in ms of a MAC of each kind, a byte and a layer, by least squares.

    Unlike in ``transfer.roofline``, the times for MACs and for bytes are added. Fitting the larger of the two has local
    minima, and was not better on the blocks that were tried.

    Args:
        features: ``roofline_features`` of each block or net.
        ms: Latency of each in ms. Its relative error is minimised.

    Returns:
        A coefficient for each of ``ROOFLINE``.
    """
    weighted = np.array(features) / np.array(ms)[:, None]
    # Columns of one length, since MACs are billions and layers a few.
    length = np.linalg.norm(weighted, axis=0)
    length[length == 0] = 1.0
    found = nnls(weighted / length, np.ones(len(ms)))[0] / length
    return dict(zip(ROOFLINE, map(float, found), strict=True))


def fit_nets(features: Sequence[Mapping[str, float]], ms: Sequence[float]) -> dict[str, float]:
    """Fit the coefficients that predict whole nets.

    The first prediction is the sum of the blocks plus a constant. Ridge regression on the relative error corrects its
    coefficients. Of the penalties that give the sum of the blocks a positive coefficient, the one with the smallest
    leave-one-out error is used.

    Args:
        features: ``BlockTimes.features`` of each net, at least three.
        ms: Latency of each in ms.

    Returns:
        A coefficient for each feature, and ``constant``.
    """
    names = list(features[0])
    x, y = np.array([[one[name] for name in names] for one in features]), np.array(ms)
    penalties = [penalty for penalty in (math.inf, *reversed(PENALTIES)) if _ridge(x, y, penalty)[1] > 0]
    best = min(penalties, key=lambda penalty: _left_out(x, y, penalty))
    return dict(zip(['constant', *names], map(float, _ridge(x, y, best)), strict=True))


def _ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """Return the constant and the coefficients (1 + features); the first feature is the sum of the blocks."""
    start = np.zeros(x.shape[1])
    start[0] = 1.0
    rest, weights = y - x @ start, 1 / y**2
    mean_x, mean_rest = np.average(x, axis=0, weights=weights), np.average(rest, weights=weights)
    change = np.zeros_like(start)
    scale = np.sqrt(np.average((x - mean_x) ** 2, axis=0, weights=weights))
    varied = scale > 1e-9 * np.abs(mean_x)  # others belong to the constant
    if math.isfinite(penalty) and varied.any():
        a = (x - mean_x)[:, varied] / scale[varied] / y[:, None]
        gram = a.T @ a + penalty * np.average(1 / y**2) * np.eye(a.shape[1])
        change[varied] = np.linalg.solve(gram, a.T @ ((rest - mean_rest) / y)) / scale[varied]
    coefficients = start + change
    return np.array([mean_rest - mean_x @ change, *coefficients])


def _left_out(x: np.ndarray, y: np.ndarray, penalty: float) -> float:
    """Return the mean squared relative error of leave-one-out predictions."""
    errors = []
    for i in range(len(y)):
        kept = np.arange(len(y)) != i
        constant, *coefficients = _ridge(x[kept], y[kept], penalty)
        errors.append(((constant + x[i] @ coefficients) / y[i] - 1) ** 2)
    return float(np.mean(errors))
