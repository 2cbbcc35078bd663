"""Resampled metrics against a plain computation, and the comparisons made of them."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import stats

from mnv4_mm.pareto import pareto_front
from mnv4_mm.transfer.bootstrap import (
    RESAMPLES,
    average_precision,
    draw_samples,
    mean_iou,
    resampled_ap,
    resampled_iou,
)
from mnv4_mm.transfer.statistics import (
    Scores,
    equal_variances_p,
    estimate_difference,
    estimate_mean,
    indistinguishable,
    pooled_variance,
    rank_agreement,
)


def test_mean_iou_by_hand():
    confusion = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])  # the third class is absent
    assert mean_iou(confusion) == pytest.approx((3 / 6 + 4 / 7) / 2)


def test_resampled_iou_is_that_of_the_repeated_images():
    random = np.random.default_rng(1)
    confusion = random.integers(0, 50, (7, 4, 4))
    expected = [mean_iou(np.repeat(confusion, counts, axis=0).sum(0)) for counts in draw_samples(7)]
    assert resampled_iou(confusion) == pytest.approx(expected)
    assert len(expected) == RESAMPLES


def test_resampled_ap_is_that_of_the_repeated_images(tmp_path, repository, capsys):
    """Computed by pycocotools, which takes each id of an image once: copies get ids of their own there as well."""
    truth = json.loads((repository / 'data/mini/coco/annotations/instances_val2017.json').read_text())
    random = np.random.default_rng(0)
    found = [
        dict(image_id=box['image_id'], category_id=box['category_id'], score=float(random.random()),
             bbox=[v + float(random.normal(0, 4)) for v in box['bbox'][:2]] + box['bbox'][2:])
        for box in truth['annotations']
    ]  # fmt: skip
    (tmp_path / 'gt.json').write_text(json.dumps(truth))
    (tmp_path / 'dt.json').write_text(json.dumps(found))
    values = resampled_ap(tmp_path / 'gt.json', tmp_path / 'dt.json')
    assert len(values) == RESAMPLES
    assert np.std(values) > 0
    assert average_precision(tmp_path / 'gt.json', tmp_path / 'dt.json') == pytest.approx(np.mean(values), abs=0.1)
    numbers = sorted(image['id'] for image in truth['images'])
    for sample in (0, 1):
        copies = [
            (number, 1000 * copy + i)
            for i, (number, count) in enumerate(zip(numbers, draw_samples(len(numbers))[sample], strict=True))
            for copy in range(1, count + 1)
        ]
        by_id = {image['id']: image for image in truth['images']}
        content = dict(truth, images=[dict(by_id[number], id=new) for number, new in copies])
        boxes = [
            dict(box, image_id=new)
            for number, new in copies
            for box in truth['annotations']
            if box['image_id'] == number
        ]
        content['annotations'] = [dict(box, id=i) for i, box in enumerate(boxes, 1)]
        detections = [dict(box, image_id=new) for number, new in copies for box in found if box['image_id'] == number]
        api = COCO()
        api.dataset = content
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(detections), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert values[sample] == pytest.approx(evaluation.stats[0], abs=1e-6)


@pytest.mark.parametrize('block', [1, 3])
def test_samples_are_blocks_of_successive_images(block):
    samples = draw_samples(12, block)
    assert (samples.sum(1) == 12).all()
    assert len({tuple(sample) for sample in samples}) > RESAMPLES / 2
    # Every image is drawn as often as any other.
    assert samples.mean(0) == pytest.approx(np.ones(12), abs=0.5)
    neighbours = np.mean([np.corrcoef(samples[:, i], samples[:, (i + 1) % 12])[0, 1] for i in range(12)])
    assert neighbours == pytest.approx(-1 / 11 if block == 1 else 2 / 3, abs=0.2)


def nets(*rows: Sequence[float], images: float = 0.05) -> dict[str, Scores]:
    random = np.random.default_rng(0)
    shared = random.normal(0, images, RESAMPLES)  # images that are difficult for all nets alike
    return {
        name: Scores(np.array(row), np.array([score + shared + random.normal(0, 0.002, RESAMPLES) for score in row]))
        for name, row in zip('abcdefghijklmn', rows, strict=False)
    }


def test_nets_that_differ_less_than_their_seeds_are_not_told_apart():
    some = nets([0.50, 0.51, 0.52], [0.505, 0.515, 0.52], [0.60, 0.61, 0.62])
    spread = pooled_variance(some.values())
    assert indistinguishable(some, spread) == {'a': ['b'], 'b': ['a'], 'c': []}
    assert spread.freedom == 6
    assert spread.variance == pytest.approx(np.mean([np.var(scores.seeds, ddof=1) for scores in some.values()]))
    mean = estimate_mean(some['a'], spread)
    assert mean.value == pytest.approx(0.51)
    assert mean.half_width > 0.09  # the images' share of the uncertainty: 1.96 x 0.05
    assert estimate_difference(some['c'], some['a'], spread).half_width < 0.03  # which is the same for both


def test_few_images_have_the_interval_of_students_t():
    """One net whose seeds agree, on ten images: the interval of the mean of ten values, by scipy."""
    random = np.random.default_rng(0)
    images = random.normal(0.5, 0.1, 10)
    samples = draw_samples(10, resamples=20_000) @ images / 10
    seeds = images.mean() + np.array([-1e-9, 0, 1e-9])
    scores = Scores(seeds, np.tile(samples, (3, 1)), blocks=10)
    expected = stats.t.ppf(0.975, 9) * stats.sem(images)
    assert estimate_mean(scores, pooled_variance([scores])).half_width == pytest.approx(expected, rel=0.03)
    assert np.isnan(estimate_mean(scores._replace(blocks=1), pooled_variance([scores])).half_width)


def test_unequal_variances_are_noticed():
    random = np.random.default_rng(0)
    equal = [equal_variances_p(nets(*random.normal(0.5, 0.01, (14, 3))).values()) for _ in range(200)]
    assert 0.01 < np.mean(np.array(equal) < 0.05) < 0.1
    factors = np.array([[8]] * 2 + [[1]] * 12)
    unequal = list(nets(*(random.normal(0, 0.01, (14, 3)) * factors)).values())
    assert equal_variances_p(unequal) < 0.01
    assert equal_variances_p([*unequal, *nets([0.5, 0.5, 0.5]).values()]) == equal_variances_p(unequal)
    assert np.isnan(equal_variances_p(nets([0.5, 0.6]).values()))
    assert np.isnan(equal_variances_p(nets([0.5, 0.6], [0.5, 0.5]).values()))


def test_a_difference_has_the_p_value_of_students_test():
    """With the same images for all, and two nets, the pooled test is the one of scipy."""
    some = nets([0.50, 0.51, 0.54], [0.57, 0.53, 0.54], images=0)  # of equal variance
    some = {name: Scores(seeds, np.repeat(seeds[:, None], RESAMPLES, 1)) for name, (seeds, *_) in some.items()}
    found = estimate_difference(some['a'], some['b'], pooled_variance(some.values()))
    assert found.p_value == pytest.approx(stats.ttest_ind(some['a'].seeds, some['b'].seeds).pvalue, abs=1e-9)


def test_equal_nets_are_seldom_told_apart():
    """14 nets of the same expected score: 91 pairs, of which simple tests would tell some apart in every table."""
    random = np.random.default_rng(0)
    mistakes = 0
    for _ in range(60):
        some = nets(*random.normal(0.5, 0.01, (14, 3)))
        equal = indistinguishable(some, pooled_variance(some.values()))
        mistakes += any(len(others) < 13 for others in equal.values())
    assert mistakes <= 7  # 3 expected; more than 7 of 60 has a probability of 1 %


def test_a_net_whose_seeds_vary_more_has_a_wider_interval():
    some = nets([0.50, 0.51, 0.52], [0.40, 0.41, 0.42], [0.30, 0.31, 0.32], [0.2, 0.3, 0.4], images=0)
    spread = pooled_variance(some.values())
    assert spread.of(some['d']) == pytest.approx(0.01)
    assert spread.of(some['a']) == spread.variance < 0.003
    assert 'c' in indistinguishable(some, spread)['d']
    assert estimate_mean(some['d'], spread).half_width > 1.5 * estimate_mean(some['a'], spread).half_width


@pytest.mark.parametrize(('factor', 'low', 'high'), [(1, 0.03, 0.06), (3, 0.13, 0.18), (8, 0.15, 0.19)])
def test_intervals_of_nets_that_vary_more(factor, low, high):
    """As often as the documentation says, intervals of 95 % miss the scores of two nets that vary more than twelve."""
    random = np.random.default_rng(0)
    missed = []
    for _ in range(300):
        some = nets(*(random.normal(0, 1, (14, 3)) * np.array([[factor]] * 2 + [[1]] * 12)), images=0)
        spread = pooled_variance(some.values())
        found = [estimate_mean(one, spread) for one in some.values()]
        missed.append([abs(mean.value) > mean.half_width for mean in found])
    rates = np.mean(missed, axis=0)
    assert rates[2:].mean() < 0.06
    assert low < rates[:2].mean() < high


def test_one_seed_tells_nothing_apart():
    some = nets([0.5], [0.6])
    spread = pooled_variance(some.values())
    assert indistinguishable(some, spread) == {'a': ['b'], 'b': ['a']}
    assert np.isnan(estimate_mean(some['a'], spread).half_width)


def test_agreement_of_rankings():
    assert rank_agreement({'a': [0.1, 0.11, 0.1], 'b': [0.2, 0.2, 0.21], 'c': [0.3, 0.3, 0.3]}) == 1
    assert rank_agreement({'a': [0.1, 0.3], 'b': [0.2, 0.2], 'c': [0.3, 0.1]}) == -1
    assert np.isnan(rank_agreement({'a': [0.1], 'b': [0.2]}))


def test_the_front_has_the_points_that_no_other_beats():
    points = [(1.0, 0.3), (2.0, 0.2), (2.0, 0.5), (3.0, 0.5), (4.0, 0.6)]
    assert pareto_front(points) == [0, 2, 4]
