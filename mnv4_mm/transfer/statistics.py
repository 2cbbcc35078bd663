"""Significance of the differences between nets, given the variance over seeds and test images."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Scores(NamedTuple):
    """Scores of a net.

    Attributes:
        seeds: (S,), the score of each seed.
        resampled: (S, R), the score of each seed on R samples of the test images, the same samples for all nets.
        blocks: Number of blocks of images in a sample; None if unknown, for a large number.
    """

    seeds: np.ndarray
    resampled: np.ndarray
    blocks: int | None = None


class PooledVariance(NamedTuple):
    """Variance of a score over the seeds, pooled over the nets of a table.

    Three seeds are too few to estimate the variance of one net. Pooled over a dozen nets they are enough, provided that
    the nets have similar variances. For a net whose own variance is larger, its own one is used, see ``of``. If two of
    14 nets vary three to eight times as much as the others, the interval of 95 % of each of these two misses its
    expected score in 15 to 18 % of all tables, as a simulation shows. Degrees of freedom of their own would mend this,
    but make the interval of every net whose variance is the larger by chance twice as wide. Shrinking the variances
    towards a common one (limma) does not do better.

    Attributes:
        variance: The variance; NaN if no net has two seeds.
        freedom: Degrees of freedom of the variance.
    """

    variance: float
    freedom: int

    def of(self, scores: Scores) -> float:
        """Return the variance to use for a net: the pooled one, or that of the net if it is larger."""
        own = float(np.var(scores.seeds, ddof=1)) if len(scores.seeds) > 1 else 0.0
        return max(self.variance, own)


class Estimate(NamedTuple):
    """A mean or a difference of means.

    Attributes:
        value: The estimate.
        error: Its standard error over seeds and test images; NaN if no net has two seeds.
        freedom: Degrees of freedom of the error.
    """

    value: float
    error: float
    freedom: float

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % confidence interval; NaN if the error is unknown."""
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, self.freedom) * self.error) if self.freedom > 0 else math.nan

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the hypothesis that the true value is zero; 1 if the error is unknown or zero."""
        if not self.error > 0:
            return 1.0
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.freedom))


def pooled_variance(nets: Iterable[Scores]) -> PooledVariance:
    """Return the variance of a score over the seeds of a net, pooled over all nets."""
    squares, freedom = 0.0, 0
    for scores in nets:
        squares += float(((scores.seeds - scores.seeds.mean()) ** 2).sum())
        freedom += len(scores.seeds) - 1
    return PooledVariance(squares / freedom if freedom else math.nan, freedom)


def equal_variances_p(nets: Iterable[Scores]) -> float:
    """Return the p-value of the hypothesis that the scores of all nets have the same variance over the seeds.

    This is Bartlett's test. It cannot take nets with one seed or with equal scores of all seeds, which are left out.

    Returns:
        The p-value; NaN if fewer than two nets remain.
    """
    seeds = [scores.seeds for scores in nets if np.var(scores.seeds) > 0]
    if len(seeds) < 2:
        return math.nan
    return float(stats.bartlett(*seeds).pvalue)


def estimate_mean(scores: Scores, spread: PooledVariance) -> Estimate:
    """Estimate the mean score of a net.

    Args:
        scores: Scores of the net.
        spread: Variance of a score over the seeds, pooled over the nets of the table.
    """
    by_seeds = spread.of(scores) / len(scores.seeds)
    return _estimate(float(scores.seeds.mean()), by_seeds, spread.freedom, scores.resampled.mean(0), scores.blocks)


def estimate_difference(a: Scores, b: Scores, spread: PooledVariance) -> Estimate:
    """Estimate the difference of two nets: the mean score of ``a`` minus the mean score of ``b``.

    The scores are subtracted on each sample of the test images. Images that are difficult for both nets therefore do
    not increase the error of the difference.

    Args:
        a: Scores of one net.
        b: Scores of the other net.
        spread: Variance of a score over the seeds, pooled over the nets of the table.
    """
    images = a.resampled.mean(0) - b.resampled.mean(0)
    by_seeds = sum(spread.of(one) / len(one.seeds) for one in (a, b))
    return _estimate(float(a.seeds.mean() - b.seeds.mean()), by_seeds, spread.freedom, images, a.blocks)


def _estimate(value: float, by_seeds: float, freedom: int, resampled: np.ndarray, blocks: int | None) -> Estimate:
    """Return an estimate.

    Args:
        value: The value.
        by_seeds: Its variance over the seeds.
        freedom: Degrees of freedom of this variance.
        resampled: (R,), the value on each sample of the images.
        blocks: Number of blocks of images in a sample; None for a large number.
    """
    by_images, inverse_freedom = float(resampled.var(ddof=1)), 1 / (len(resampled) - 1)
    if blocks == 1:
        return Estimate(value, math.nan, 0)  # all samples are the same
    if blocks:
        # A bootstrap of few blocks underestimates the variance, as a variance divided by n instead of n - 1 does.
        by_images *= blocks / (blocks - 1)
        inverse_freedom += 1 / (blocks - 1)  # the relative errors of both add up
    total = by_seeds + by_images
    if not freedom:
        return Estimate(value, math.nan, 0)
    # Satterthwaite's approximation of the degrees of freedom of a sum.
    squares = by_seeds**2 / freedom + by_images**2 * inverse_freedom
    return Estimate(value, math.sqrt(total), total**2 / squares if squares else freedom)


def indistinguishable(nets: Mapping[str, Scores], spread: PooledVariance) -> dict[str, list[str]]:
    """Return, for each net, the names of the other nets whose scores do not differ significantly from its scores.

    All pairs are compared by t-tests with Holm's correction. If the variances of the nets are equal, the probability
    that any pair with equal expected scores is found to differ is at most 5 %.

    Args:
        nets: Scores by name.
        spread: Variance of a score over the seeds, pooled over the nets of the table.
    """
    pairs = list(itertools.combinations(nets, 2))
    values = {(a, b): estimate_difference(nets[a], nets[b], spread).p_value for a, b in pairs}
    equal: dict[str, list[str]] = {name: [] for name in nets}
    is_over = False
    for number, (a, b) in enumerate(sorted(pairs, key=lambda pair: values[pair])):
        is_over = is_over or values[a, b] * (len(pairs) - number) >= 1 - CONFIDENCE
        if is_over:
            equal[a].append(b)
            equal[b].append(a)
    return {name: [other for other in nets if other in others] for name, others in equal.items()}


def rank_agreement(scores: Mapping[str, Sequence[float]]) -> float:
    """Return Kendall's tau between the rankings of the nets by two halves of their seeds.

    The seeds are divided into two halves in all possible ways, each of them the same for all nets, and the values of
    tau are averaged. With an odd number of seeds, one half has one seed more than the other.

    Args:
        scores: Score of each seed by net. All nets are compared with as many seeds as the net with the fewest has: the
            first ones of each net.

    Returns:
        The mean; NaN if there are fewer than two nets, or a net has fewer than two seeds.
    """
    count = min((len(values) for values in scores.values()), default=0)
    if count < 2 or len(scores) < 2:
        return float('nan')
    table = np.array([list(values)[:count] for values in scores.values()])
    taus = []
    for half in itertools.combinations(range(count), count // 2):
        other = [i for i in range(count) if i not in half]
        taus.append(stats.kendalltau(table[:, half].mean(1), table[:, other].mean(1)).statistic)
    return float(np.mean(taus))
