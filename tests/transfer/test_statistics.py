"""Resampled metrics against a plain computation, and the comparisons made of them."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mnv4_mm.transfer.bootstrap import RESAMPLES, draw_samples, mean_iou, resampled_ap, resampled_iou
from mnv4_mm.transfer.statistics import draw_means, indistinguishable, rank_agreement, summarise
from mnv4_mm.transfer.tables import pareto_front


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


def test_nets_that_differ_less_than_their_seeds_are_not_told_apart():
    random = np.random.default_rng(0)
    images = random.normal(0, 0.05, RESAMPLES)  # difficult for all nets alike

    def net(*scores: float) -> np.ndarray:
        return np.array([score + images + random.normal(0, 0.002, RESAMPLES) for score in scores])

    draws = draw_means({'a': net(0.50, 0.51, 0.52), 'b': net(0.505, 0.515, 0.52), 'c': net(0.60, 0.61, 0.62)})
    assert indistinguishable(draws) == {'a': ['b'], 'b': ['a'], 'c': []}
    summary = summarise([0.50, 0.51, 0.52], draws['a'])
    assert summary.mean == pytest.approx(0.51)
    assert summary.spread == pytest.approx(0.01)
    assert summary.low < 0.47 < 0.55 < summary.high  # the images' share of the uncertainty


def test_agreement_of_rankings():
    assert rank_agreement({'a': [0.1, 0.11, 0.1], 'b': [0.2, 0.2, 0.21], 'c': [0.3, 0.3, 0.3]}) == 1
    assert rank_agreement({'a': [0.1, 0.3], 'b': [0.2, 0.2], 'c': [0.3, 0.1]}) == -1
    assert np.isnan(rank_agreement({'a': [0.1], 'b': [0.2]}))


def test_the_front_has_the_points_that_no_other_beats():
    points = [(1.0, 0.3), (2.0, 0.2), (2.0, 0.5), (3.0, 0.5), (4.0, 0.6)]
    assert pareto_front(points) == [0, 2, 4]
