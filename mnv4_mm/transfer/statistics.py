"""Which differences between nets are larger than what seeds and test images explain."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000
CONFIDENCE = 0.95


class Summary(NamedTuple):
    """The scores of a net over its seeds.

    Attributes:
        mean: Mean score.
        spread: Standard deviation over the seeds; NaN with one seed.
        low: Lower end of the 95 % interval of the mean, over seeds and test images.
        high: Upper end.
        seeds: Number of seeds.
    """

    mean: float
    spread: float
    low: float
    high: float
    seeds: int


def bootstrap(resampled: np.ndarray, random: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Return (draws,) means of a net's score, each over seeds drawn with replacement and on one sample of the images.

    Args:
        resampled: (seeds, resamples), the score of each seed on each sample of the test images.
        random: Draws the seeds.
        images: (draws,) numbers of the samples of images: the same ones for all nets, whose difference then does not
            depend on which images are difficult for all of them.
    """
    seeds = random.integers(len(resampled), size=(len(images), len(resampled)))
    return resampled[seeds, images[:, None]].mean(1)


def draw_means(nets: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return (draws,) means for each net, drawn with the same samples of the images. See ``bootstrap``."""
    resamples = min(scores.shape[1] for scores in nets.values())
    images = np.random.default_rng(0).integers(resamples, size=DRAWS)
    return {
        name: bootstrap(scores, np.random.default_rng(i + 1), images) for i, (name, scores) in enumerate(nets.items())
    }


def summarise(scores: Sequence[float], draws: np.ndarray) -> Summary:
    """Summarise a net.

    Args:
        scores: Score of each seed.
        draws: Means as ``draw_means`` returns them.
    """
    low, high = interval(draws)
    spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else float('nan')
    return Summary(float(np.mean(scores)), spread, low, high, len(scores))


def interval(draws: np.ndarray) -> tuple[float, float]:
    """Return the ends of the 95 % interval of draws."""
    low, high = np.percentile(draws, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)


def indistinguishable(draws: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """Return for each net the others whose difference from it has a 95 % interval with zero in it."""
    equal: dict[str, list[str]] = {name: [] for name in draws}
    for a, b in itertools.combinations(draws, 2):
        low, high = interval(draws[a] - draws[b])
        if low <= 0 <= high:
            equal[a].append(b)
            equal[b].append(a)
    return equal


def rank_agreement(scores: Mapping[str, Sequence[float]]) -> float:
    """Return Kendall's tau between the rankings of the nets by one half of their seeds and by the other.

    The mean over all ways to divide the seeds of each net, in the same order, into halves that differ by one seed at
    most. NaN with fewer than two seeds or nets.
    """
    from scipy.stats import kendalltau

    count = min(len(values) for values in scores.values())
    if count < 2 or len(scores) < 2:
        return float('nan')
    table = np.array([list(values)[:count] for values in scores.values()])
    taus = []
    for half in itertools.combinations(range(count), count // 2):
        other = [i for i in range(count) if i not in half]
        taus.append(kendalltau(table[:, half].mean(1), table[:, other].mean(1)).statistic)
    return float(np.mean(taus))
