"""mIoU equals numpy's to 1e-9, and mmseg's to the hundredth of a percent that it prints."""

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric
from PIL import Image

from mnv4_mm.engine import ExactIoUMetric
from mnv4_mm.engine.iou import areas

CLASSES = 12


@pytest.fixture(scope='module')
def pairs():
    """Return 20 pairs of different sizes: class 10 in neither map, 11 only predicted, 255 unlabelled."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(20):
        shape = (40 + i, 50 + 2 * i)
        truth = rng.integers(0, 10, shape)
        predicted = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, 10, shape))
        predicted[:2, :3] = 11
        truth[-3:] = 255
        made.append((predicted, truth))
    return made


def measured(metric, pairs):
    metric.dataset_meta = dict(classes=[f'c{i}' for i in range(CLASSES)], palette=[[i, 0, 0] for i in range(CLASSES)])
    for predicted, truth in pairs:
        sample = {
            'pred_sem_seg': dict(data=torch.tensor(predicted)[None]),
            'gt_sem_seg': dict(data=torch.tensor(truth)[None]),
            'img_path': '',
        }
        metric.process(None, [sample])
    return metric.evaluate(len(pairs))


def by_numpy(pairs):
    """Return intersection and union of each class by their definitions."""
    intersection, union, truths = (np.zeros(CLASSES, int) for _ in range(3))
    for predicted, truth in pairs:
        counted = truth != 255
        for c in range(CLASSES):
            p, t = (predicted == c) & counted, (truth == c) & counted
            intersection[c] += (p & t).sum()
            union[c] += (p | t).sum()
            truths[c] += t.sum()
    return intersection, union, truths


def test_it_is_numpys_to_1e_9(pairs):
    metrics = measured(ExactIoUMetric(per_class=True), pairs)
    intersection, union, truths = by_numpy(pairs)
    here = union > 0
    assert list(here) == [True] * 10 + [False, True]
    assert metrics['mIoU'] == pytest.approx((intersection[here] / union[here]).mean(), abs=1e-9)
    assert metrics['mAcc'] == pytest.approx((intersection[:10] / truths[:10]).mean(), abs=1e-9)
    assert metrics['aAcc'] == pytest.approx(intersection.sum() / truths.sum(), abs=1e-9)
    for c in range(CLASSES):
        if here[c]:
            assert metrics[f'c{c}_IoU'] == pytest.approx(intersection[c] / union[c], abs=1e-9)
        else:
            assert f'c{c}_IoU' not in metrics
    assert next(iter(metrics)) == 'mIoU'  # the best checkpoint is chosen by the first


def test_it_is_mmsegs(pairs):
    ours, theirs = measured(ExactIoUMetric(), pairs), measured(IoUMetric(), pairs)
    for name in ('mIoU', 'mAcc', 'aAcc'):
        assert 100 * ours[name] == pytest.approx(theirs[name], abs=0.0051)


def test_counting_stays_exact_beyond_float32():
    """float32 counts 2^24 + 1 as 2^24."""
    truth = torch.zeros(2**12, 2**12 + 1, dtype=torch.uint8)
    counted = areas(truth, truth, 2)
    assert counted.both.tolist() == [2**24 + 2**12, 0]
    metric = ExactIoUMetric()
    metric.dataset_meta = dict(classes=['a', 'b'])
    metric.results = [counted, areas(torch.tensor([[0]]), torch.tensor([[1]]), 2)]
    assert metric.evaluate(2)['aAcc'] == (2**24 + 2**12) / (2**24 + 2**12 + 1)


def test_absent_classes_are_named(pairs, tmp_path):
    from mmengine.logging import MMLogger

    log = tmp_path / 'log'
    logger = MMLogger.get_instance('iou', log_file=str(log))
    measured(ExactIoUMetric(per_class=True), pairs)
    for handler in logger.handlers:
        handler.flush()
    lines = [line.split('|')[1:-1] for line in log.read_text().splitlines() if line.startswith('| c')]
    table = {cells[0].strip(): [c.strip() for c in cells[1:]] for cells in lines}
    assert table['c10'][:2] == ['absent', 'absent']  # in neither: left out of the means
    assert table['c11'][:2] == ['0.0000', 'absent']  # predicted where it is not: counts as 0
    assert 0.3 < float(table['c0'][0]) < 0.9


def test_nothing_labelled_is_no_number():
    metrics = measured(ExactIoUMetric(), [(np.zeros((2, 2), int), np.full((2, 2), 255))])
    assert all(np.isnan(value) for value in metrics.values())


@pytest.mark.parametrize('reduced', [True, False])
def test_class_maps_have_the_values_of_the_masks(tmp_path, reduced):
    metric = ExactIoUMetric(out_dir=str(tmp_path / 'out'), pictures='/data')
    metric.dataset_meta = dict(classes=['a', 'b'], palette=[[1, 2, 3], [4, 5, 6]])
    labels = torch.tensor([[[0, 1, 1]]])
    sample = dict(pred_sem_seg=dict(data=labels), gt_sem_seg=dict(data=labels), img_path='/data/sub/x.jpg')
    metric.process(None, [dict(sample, reduce_zero_label=reduced)])
    with Image.open(tmp_path / 'out/sub/x.png') as image:
        assert image.mode == 'P'
        assert np.array(image).tolist() == [[1, 2, 2] if reduced else [0, 1, 1]]
        assert np.array(image.convert('RGB')).tolist() == [[[1, 2, 3], [4, 5, 6], [4, 5, 6]]]


@pytest.mark.parametrize('label', [3, 4, 200])
def test_a_label_beyond_the_classes_is_refused_whatever_is_predicted(label):
    for predicted in range(3):
        with pytest.raises(ValueError, match='not below the 3 classes'):
            areas(torch.tensor([0, 1, predicted]), torch.tensor([0, 1, label]), 3)
