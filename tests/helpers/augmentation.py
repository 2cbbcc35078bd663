"""Comparison of the augmentations with the transforms of mmdet and mmseg: same parameters, same distributions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from mnv4_mm.data.augment.pixels import ColourDistortion

NO_DISTORTION = ColourDistortion(None, None, False, None, None)
SAMPLES = 2_000
P_VALUE = 1e-3  # threshold of each test; samples are seeded, so that a test that passes once passes always


class Scripted:
    """Replacement of numpy's random module that returns given values one after another."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)

    def uniform(self, *_: Any) -> float:
        return self.values.pop(0)

    randint = uniform


def same_distribution(a: np.ndarray, b: np.ndarray) -> float:
    """Return the p-value of the two-sample Kolmogorov-Smirnov test, which is conservative for integers."""
    return stats.ks_2samp(a, b, method='asymp').pvalue


def assert_same_colours(ours: Callable[[], np.ndarray], reference: Callable[[], np.ndarray]) -> None:
    """Compare mean, spread and differences of the channels of (H, W, 3) images, over many samples."""
    rows = []
    for seed, sample in ((8, ours), (9, reference)):
        np.random.seed(seed)
        values = np.array([sample() for _ in range(SAMPLES)], np.float32)
        means = values.mean((1, 2))
        rows.append([*means.T, *values.std((1, 2)).T, means[:, 0] - means[:, 1], means[:, 1] - means[:, 2]])
    for a, b in zip(*rows, strict=True):
        assert same_distribution(a, b) > P_VALUE
