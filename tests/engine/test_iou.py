"""mIoU equals that of numpy to 1e-9, and that of mmseg to its rounding to a hundredth of a percent."""

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric
from PIL import Image

from mnv4_mm.engine.iou import ExactIoUMetric, class_areas

CLASSES = 12


@pytest.fixture(scope='module')
def pairs():
    """20 predictions and ground truths of several sizes; 10 is in neither, 11 only predicted, 255 unlabelled."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(20):
        shape = (40 + i, 50 + 2 * i)
        ground_truth = rng.integers(0, 10, shape)
        predicted = np.where(rng.random(shape) < 0.6, ground_truth, rng.integers(0, 10, shape))
        predicted[:2, :3] = 11
        ground_truth[-3:] = 255
        made.append((predicted, ground_truth))
    return made


def compute_metrics(metric, pairs):
    metric.dataset_meta = dict(classes=[f'c{i}' for i in range(CLASSES)], palette=[[i, 0, 0] for i in range(CLASSES)])
    for predicted, ground_truth in pairs:
        sample = {
            'pred_sem_seg': dict(data=torch.tensor(predicted)[None]),
            'gt_sem_seg': dict(data=torch.tensor(ground_truth)[None]),
            'img_path': '',
        }
        metric.process(None, [sample])
    return metric.evaluate(len(pairs))


def run_numpy(pairs):
    """Compute intersection and union per class, directly from the definition."""
    intersection, union, ground_truths = (np.zeros(CLASSES, int) for _ in range(3))
    for predicted, ground_truth in pairs:
        counted = ground_truth != 255
        for c in range(CLASSES):
            p, t = (predicted == c) & counted, (ground_truth == c) & counted
            intersection[c] += (p & t).sum()
            union[c] += (p | t).sum()
            ground_truths[c] += t.sum()
    return intersection, union, ground_truths


def test_metrics_equal_numpy(pairs):
    metrics = compute_metrics(ExactIoUMetric(per_class=True), pairs)
    intersection, union, ground_truths = run_numpy(pairs)
    here = union > 0
    assert list(here) == [True] * 10 + [False, True]
    assert metrics['mIoU'] == pytest.approx((intersection[here] / union[here]).mean(), abs=1e-9)
    assert metrics['mAcc'] == pytest.approx((intersection[:10] / ground_truths[:10]).mean(), abs=1e-9)
    assert metrics['aAcc'] == pytest.approx(intersection.sum() / ground_truths.sum(), abs=1e-9)
    for c in range(CLASSES):
        if here[c]:
            assert metrics[f'c{c}_IoU'] == pytest.approx(intersection[c] / union[c], abs=1e-9)
        else:
            assert f'c{c}_IoU' not in metrics
    assert next(iter(metrics)) == 'mIoU'  # the best checkpoint is selected by the first metric


def test_metrics_equal_mmseg(pairs):
    ours, theirs = compute_metrics(ExactIoUMetric(), pairs), compute_metrics(IoUMetric(), pairs)
    for name in ('mIoU', 'mAcc', 'aAcc'):
        assert 100 * ours[name] == pytest.approx(theirs[name], abs=0.0051)


def test_counts_are_exact_beyond_float32():
    """float32 counts 2^24 + 1 as 2^24."""
    ground_truth = torch.zeros(2**12, 2**12 + 1, dtype=torch.uint8)
    counted = class_areas(ground_truth, ground_truth, 2)
    assert counted.intersection.tolist() == [2**24 + 2**12, 0]
    metric = ExactIoUMetric()
    metric.dataset_meta = dict(classes=['a', 'b'])
    metric.results = [counted, class_areas(torch.tensor([[0]]), torch.tensor([[1]]), 2)]
    assert metric.evaluate(2)['aAcc'] == (2**24 + 2**12) / (2**24 + 2**12 + 1)


def test_absent_classes_are_marked(pairs, tmp_path):
    from mmengine.logging import MMLogger

    log = tmp_path / 'log'
    logger = MMLogger.get_instance('iou', log_file=str(log))
    compute_metrics(ExactIoUMetric(per_class=True), pairs)
    for handler in logger.handlers:
        handler.flush()
    lines = [line.split('|')[1:-1] for line in log.read_text().splitlines() if line.startswith('| c')]
    table = {cells[0].strip(): [c.strip() for c in cells[1:]] for cells in lines}
    assert table['c10'][:2] == ['absent', 'absent']  # occurs in neither: left out of the means
    assert table['c11'][:2] == ['0.0000', 'absent']  # only predicted: IoU 0
    assert 0.3 < float(table['c0'][0]) < 0.9


def test_metrics_without_labels_are_nan():
    metrics = compute_metrics(ExactIoUMetric(), [(np.zeros((2, 2), int), np.full((2, 2), 255))])
    assert all(np.isnan(value) for value in metrics.values())


@pytest.mark.parametrize('reduced', [True, False])
def test_class_maps_have_the_values_of_the_masks(tmp_path, reduced):
    metric = ExactIoUMetric(out_dir=str(tmp_path / 'out'), image_dir='/data')
    metric.dataset_meta = dict(classes=['a', 'b'], palette=[[1, 2, 3], [4, 5, 6]])
    labels = torch.tensor([[[0, 1, 1]]])
    sample = dict(pred_sem_seg=dict(data=labels), gt_sem_seg=dict(data=labels), img_path='/data/sub/x.jpg')
    metric.process(None, [dict(sample, reduce_zero_label=reduced)])
    with Image.open(tmp_path / 'out/sub/x.png') as image:
        assert image.mode == 'P'
        assert np.array(image).tolist() == [[1, 2, 2] if reduced else [0, 1, 1]]
        assert np.array(image.convert('RGB')).tolist() == [[[1, 2, 3], [4, 5, 6], [4, 5, 6]]]


@pytest.mark.parametrize('label', [3, 4, 200])
def test_labels_out_of_range_are_refused(label):
    for predicted in range(3):
        with pytest.raises(ValueError, match='not below the 3 classes'):
            class_areas(torch.tensor([0, 1, predicted]), torch.tensor([0, 1, label]), 3)
