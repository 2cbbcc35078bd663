"""Ranges of least error, and adaptive rounding of weights."""

import numpy as np
import pytest

from mnv4_mm.deploy.ranges import BINS, Range
from mnv4_mm.deploy.rounding import round_rows


def rounding_error(values, low, high):
    step = (high - low) / 255
    return ((np.round(np.clip(values, low, high) / step) * step - values) ** 2).mean()


@pytest.mark.parametrize('signed', [False, True])
def test_the_range_of_least_error(signed):
    """An outlier is clipped if the finer steps of all other values are worth it."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 200_000) if signed else np.abs(rng.normal(0, 1, 200_000))
    values[0] = 12.0
    full = Range(min(values.min(), 0), values.max())
    found = full.least_error(np.histogram(values, BINS, full)[0])
    shares = np.linspace(0.2, 1, 81)
    best = min(rounding_error(values, share * full.low, share * full.high) for share in shares)
    assert rounding_error(values, *found) == pytest.approx(best, rel=0.02)
    assert rounding_error(values, *found) < 0.85 * rounding_error(values, *full)


def test_values_that_are_spread_evenly_are_not_clipped():
    values = np.random.default_rng(0).uniform(-1, 3, 100_000)
    full = Range(values.min(), values.max())
    assert full.least_error(np.histogram(values, BINS, full)[0]) == full
    assert Range(0.0, 0.0).least_error(np.zeros(BINS)) == Range(0.0, 0.0)


@pytest.mark.parametrize('own_inputs', [False, True])
def test_adaptive_rounding_has_less_error_at_the_output(own_inputs):
    rng = np.random.default_rng(0)
    inputs = (rng.normal(size=(20, 12)) @ rng.normal(size=(12, 500)) / 4 + 0.3).astype(np.float32)  # correlated
    weights = rng.normal(size=(6, 20))
    scales = np.abs(weights).max(1) / 63
    moments = inputs @ inputs.T / 500
    levels = round_rows(weights, scales, np.stack([moments] * 6) if own_inputs else moments, 64)
    assert np.array_equal(levels, np.round(levels))
    assert np.abs(levels).max() <= 64
    assert np.abs(levels - weights / scales[:, None]).max() < 5  # close to the nearest
    nearest = np.round(weights / scales[:, None])

    def error(rows):
        return (((rows * scales[:, None] - weights) @ inputs) ** 2).mean()

    assert error(levels) < 0.5 * error(nearest)


def test_the_largest_weight_can_be_kept():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(20, 12)) @ rng.normal(size=(12, 500)) / 4 + 0.3  # correlated
    weights = rng.normal(size=(200, 20))
    scales = np.abs(weights).max(1) / 127
    free, kept = (
        round_rows(weights, scales, inputs @ inputs.T / 500, 127, keep_largest=keep) for keep in (False, True)
    )
    assert (np.abs(free).max(1) < 127).any()
    assert (np.abs(kept).max(1) == 127).all()
    assert not np.array_equal(kept, np.round(weights / scales[:, None]))


def test_inputs_without_correlation_are_rounded_to_the_nearest():
    weights = np.random.default_rng(0).normal(size=(4, 9))
    scales = np.full(4, 0.1)
    assert np.array_equal(round_rows(weights, scales, np.eye(9), 64), np.round(weights / 0.1))
