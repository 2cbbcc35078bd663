"""COCO metrics equal pycocotools to 1e-12; names and files equal mmdet's CocoMetric."""

import copy
import json

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mnv4_mm.apis.evaluate import evaluate
from mnv4_mm.bench.evaluation import synthetic_detections
from mnv4_mm.config.data import with_data_roots
from mnv4_mm.config.load import load_config
from mnv4_mm.engine.coco_metric import STATISTICS, FastCocoMetric
from mnv4_mm.errors import UserError

EXACT = dict(abs=1e-12, rel=0)


def make_predictions(ground_truth, seed=0):
    """Make predictions: each object three times, shifted, and as many wrong ones; half of the scores are rounded."""
    rng = np.random.default_rng(seed)
    label = {category['id']: i for i, category in enumerate(ground_truth['categories'])}
    predictions = []
    for image in ground_truth['images']:
        here = [a for a in ground_truth['annotations'] if a['image_id'] == image['id']]
        boxes = np.array([a['bbox'] for a in here]).reshape(-1, 4).repeat(3, axis=0)
        boxes[:, 2:] += boxes[:, :2]
        boxes += 0.08 * np.tile(boxes[:, 2:] - boxes[:, :2], 2) * rng.standard_normal(boxes.shape)
        wrong = rng.random((len(boxes) + 5, 2, 2)) * [image['width'], image['height']]
        wrong.sort(axis=1)
        labels = np.array([label[a['category_id']] for a in here], int).repeat(3)
        scores = rng.random(len(boxes) + len(wrong))
        scores[::2] = scores[::2].round(1)
        predictions.append(
            dict(
                img_id=image['id'],
                bboxes=np.concatenate([boxes, wrong.reshape(-1, 4)]).astype(np.float32),
                labels=np.concatenate([labels, rng.integers(0, len(label), len(wrong))]),
                scores=scores.astype(np.float32),
            )
        )
    return predictions


def write_json(tmp_path, ground_truth):
    path = tmp_path / 'ground_truth.json'
    path.write_text(json.dumps(ground_truth))
    return str(path)


@pytest.fixture(scope='module')
def ground_truth(repository):
    """Validation split of the small real data set, with crowds and absent classes, and an image without objects."""
    ground_truth = json.loads((repository / 'data/mini/coco/annotations/instances_val2017.json').read_text())
    ground_truth['images'].append(dict(id=99, width=100, height=100, file_name=''))
    assert sum(annotation['iscrowd'] for annotation in ground_truth['annotations']) == 3
    return ground_truth


@pytest.fixture(scope='module')
def predictions(ground_truth):
    return make_predictions(ground_truth)


def compute_metrics(metric, ground_truth, predictions, instances=None):
    metric.dataset_meta = dict(classes=[category['name'] for category in ground_truth['categories']])
    for one in predictions:
        predicted = {
            key: value if key == 'masks' else torch.as_tensor(value) for key, value in one.items() if key != 'img_id'
        }
        sample = dict(img_id=one['img_id'], ori_shape=(480, 640), pred_instances=predicted)
        if instances is not None:
            sample['instances'] = instances[one['img_id']]
        metric.process({}, [sample])
    return metric.evaluate(len(predictions))


def run_pycocotools(ground_truth, predictions, iou_type='bbox', **params):
    """Run COCOeval with mmdet's limits of detections."""
    api = COCO()
    api.dataset = copy.deepcopy(ground_truth)
    api.createIndex()
    ids = [category['id'] for category in ground_truth['categories']]
    detections = []
    for one in predictions:
        for i, (x1, y1, x2, y2) in enumerate(one['bboxes'].tolist()):
            detection = dict(image_id=one['img_id'], category_id=ids[one['labels'][i]], score=float(one['scores'][i]))
            if iou_type == 'segm':
                detection['segmentation'] = one['masks'][i]
            else:
                detection['bbox'] = [x1, y1, x2 - x1, y2 - y1]
            detections.append(detection)
    evaluation = COCOeval(api, api.loadRes(detections), iou_type)
    for name, value in (dict(maxDets=[100, 300, 1000]) | params).items():
        setattr(evaluation.params, name, value)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def check_statistics(metrics, evaluation, iou_type='bbox'):
    """Compare all twelve statistics; AP50 must not be trivial."""
    for name, expected in zip(STATISTICS, evaluation.stats, strict=True):
        assert metrics[f'coco/{iou_type}_{name}'] == pytest.approx(expected, **EXACT), name
    assert 0.01 < evaluation.stats[1] < 0.99


def check_classes(metrics, evaluation, ground_truth):
    """Compare AP of all classes by name, NaN for those without objects; return the number of the others."""
    names = {category['id']: category['name'] for category in ground_truth['categories']}
    present = 0
    for k, category in enumerate(evaluation.params.catIds):
        precision = evaluation.eval['precision'][:, :, k, 0, 2]
        got = metrics[f'coco/{names[category]}_precision']
        if (precision > -1).any():
            assert got == pytest.approx(precision[precision > -1].mean(), **EXACT)
            present += 1
        else:
            assert np.isnan(got)
    return present


def test_statistics_and_classes_equal_pycocotools(tmp_path, ground_truth, predictions):
    metric = FastCocoMetric(write_json(tmp_path, ground_truth), classwise=True, metric_items=list(STATISTICS))
    metrics = compute_metrics(metric, ground_truth, predictions)
    evaluation = run_pycocotools(ground_truth, predictions)
    check_statistics(metrics, evaluation)
    assert check_classes(metrics, evaluation, ground_truth) == 57
    again = compute_metrics(metric, ground_truth, predictions)  # as in the next epoch
    assert list(again.values()) == pytest.approx(list(metrics.values()), nan_ok=True, **EXACT)


@pytest.mark.long
def test_statistics_and_classes_equal_pycocotools_on_5000_images(tmp_path):
    """Takes about two minutes, most of them in pycocotools."""
    ground_truth, predictions = synthetic_detections(5000, 100)
    assert {len(one['scores']) for one in predictions} == {100}
    metric = FastCocoMetric(write_json(tmp_path, ground_truth), classwise=True, metric_items=list(STATISTICS))
    metrics = compute_metrics(metric, ground_truth, predictions)
    evaluation = run_pycocotools(ground_truth, predictions)
    check_statistics(metrics, evaluation)
    assert check_classes(metrics, evaluation, ground_truth) == 67


@pytest.mark.parametrize('ties', [1, 4])
def test_equal_scores_are_ordered_as_in_pycocotools(tmp_path, ground_truth, predictions, ties):
    """With few distinct scores, AP depends on the order of detections with equal scores."""
    tied = [dict(one, scores=np.ceil(one['scores'] * ties).astype(np.float32) / ties) for one in predictions]
    metrics = compute_metrics(
        FastCocoMetric(write_json(tmp_path, ground_truth), metric_items=list(STATISTICS)), ground_truth, tied
    )
    check_statistics(metrics, run_pycocotools(ground_truth, tied))
    turned = [
        dict(one, **{key: one[key][::-1] for key in ('bboxes', 'labels', 'scores')}) for one in tied
    ]  # another order must change the result
    assert run_pycocotools(ground_truth, turned).stats[0] != pytest.approx(metrics['coco/bbox_mAP'], abs=1e-6)


@pytest.mark.parametrize('limits', [(1, 3, 100), (2, 100, 150), (1, 5, 10)])
def test_limits_equal_pycocotools(tmp_path, ground_truth, predictions, limits):
    """mAP is computed at 100 detections, the others at the last limit; without a limit of 100, mAP is -1."""
    crowded = []
    for one in predictions:  # more than 100 persons in most images, some duplicated
        extra = np.resize(np.arange(len(one['scores'])), 120)
        crowded.append(
            dict(
                img_id=one['img_id'],
                bboxes=np.concatenate([one['bboxes'], one['bboxes'][extra]]),
                scores=np.concatenate([one['scores'], one['scores'][extra]]),
                labels=np.concatenate([one['labels'], np.zeros(120, int)]),
            )
        )
    for detected in (predictions, crowded):
        metric = FastCocoMetric(write_json(tmp_path, ground_truth), proposal_nums=limits, metric_items=list(STATISTICS))
        evaluation = run_pycocotools(ground_truth, detected, maxDets=list(limits))
        check_statistics(compute_metrics(metric, ground_truth, detected), evaluation)
        assert (evaluation.stats[0] == -1) == (100 not in limits)
    if limits == (2, 100, 150):
        last = evaluation.eval['precision'][..., 0, 2]
        assert last[last > -1].mean() != pytest.approx(evaluation.stats[0], abs=1e-6)


def test_iou_thresholds_equal_pycocotools(tmp_path, ground_truth, predictions):
    thresholds = [0.3, 0.5]
    metric = FastCocoMetric(write_json(tmp_path, ground_truth), iou_thrs=thresholds, metric_items=list(STATISTICS))
    metrics = compute_metrics(metric, ground_truth, predictions)
    check_statistics(metrics, run_pycocotools(ground_truth, predictions, iouThrs=np.array(thresholds)))
    assert metrics['coco/bbox_mAP_75'] == -1
    only = compute_metrics(FastCocoMetric(write_json(tmp_path, ground_truth), iou_thrs=0.5), ground_truth, predictions)
    assert only['coco/bbox_mAP'] == only['coco/bbox_mAP_50'] == metrics['coco/bbox_mAP_50']


def test_proposals_equal_pycocotools(tmp_path, ground_truth, predictions):
    metrics = compute_metrics(
        FastCocoMetric(write_json(tmp_path, ground_truth), metric='proposal'), ground_truth, predictions
    )
    evaluation = run_pycocotools(ground_truth, predictions, useCats=0)
    assert list(metrics) == [f'coco/{name}' for name in list(STATISTICS)[6:]]
    assert list(metrics.values()) == pytest.approx(list(evaluation.stats[6:]), **EXACT)
    assert 0.1 < metrics['coco/AR@100'] < 1


@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')  # pycocotools' decode
@pytest.mark.parametrize('counts', [bytes, str])
def test_masks_equal_pycocotools(tmp_path, ground_truth, counts):
    """Areas are those of masks, not of boxes; crowds are RLE; masks have scores of their own."""
    api = COCO()
    api.dataset = copy.deepcopy(ground_truth)
    api.createIndex()
    label = {category['id']: i for i, category in enumerate(ground_truth['categories'])}
    rng = np.random.default_rng(0)
    predictions = []
    for image in ground_truth['images'][:12]:
        here = api.imgToAnns[image['id']]
        masks = [
            rle.encode(np.asfortranarray(np.roll(api.annToMask(annotation), rng.integers(-4, 5), axis=1)))
            for annotation in here
        ]
        if counts is str:
            masks = [dict(mask, counts=mask['counts'].decode()) for mask in masks]
        predictions.append(
            dict(
                img_id=image['id'],
                bboxes=np.array([[0, 0, 9, 9]] * len(here), np.float32),
                labels=np.array([label[annotation['category_id']] for annotation in here]),
                scores=rng.random(len(here)),
                mask_scores=rng.random(len(here)).round(1),
                masks=masks,
            )
        )
    metric = FastCocoMetric(write_json(tmp_path, ground_truth), metric=['segm', 'bbox'], metric_items=list(STATISTICS))
    metrics = compute_metrics(metric, ground_truth, predictions)
    assert len(metrics) == 24
    by_mask = [dict(one, scores=one['mask_scores']) for one in predictions]
    check_statistics(metrics, run_pycocotools(ground_truth, by_mask, 'segm'), 'segm')


def test_classes_follow_their_ids_if_categories_are_not_sorted(tmp_path, ground_truth, predictions):
    """mmdet confuses the first class of the file with the class of the lowest id."""
    shuffled = dict(ground_truth, categories=ground_truth['categories'][40:] + ground_truth['categories'][:40])
    predictions = [dict(one, labels=(one['labels'] + 40) % 80) for one in predictions]
    expected = run_pycocotools(shuffled, predictions)
    path = write_json(tmp_path, shuffled)
    metrics = compute_metrics(
        FastCocoMetric(path, classwise=True, metric_items=list(STATISTICS)), shuffled, predictions
    )
    check_statistics(metrics, expected)
    check_classes(metrics, expected, shuffled)
    theirs = compute_metrics(CocoMetric(path, classwise=True), shuffled, predictions)
    with pytest.raises(AssertionError):
        check_classes({name: metrics[name] if np.isnan(ap) else ap for name, ap in theirs.items()}, expected, shuffled)
    # With sorted categories, labels are in the order of the ids.
    metric = FastCocoMetric(path, sort_categories=True)
    again = compute_metrics(metric, ground_truth, [dict(one, labels=(one['labels'] + 40) % 80) for one in predictions])
    assert again['coco/bbox_mAP'] == metrics['coco/bbox_mAP']


@pytest.mark.parametrize('metric', ['bbox', ['bbox', 'proposal']])
def test_names_and_rounded_values_equal_mmdet(tmp_path, ground_truth, predictions, metric):
    options = dict(ann_file=write_json(tmp_path, ground_truth), metric=metric, classwise=True, prefix='x')
    ours = compute_metrics(FastCocoMetric(**options), ground_truth, predictions)
    theirs = compute_metrics(CocoMetric(**options), ground_truth, predictions)
    assert list(ours) == list(theirs)
    assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=5.1e-4, nan_ok=True)


def test_fast_proposals_equal_mmdet(tmp_path, ground_truth, predictions):
    """On one image: for several, mmdet creates an array of unequal rows, which numpy 1.24 and later refuses."""
    one = dict(ground_truth, images=ground_truth['images'][:1])
    one['annotations'] = [a for a in ground_truth['annotations'] if a['image_id'] == one['images'][0]['id']]
    options = dict(ann_file=write_json(tmp_path, one), metric=['proposal_fast', 'bbox'], proposal_nums=(2, 10, 100))
    ours = compute_metrics(FastCocoMetric(**options), one, predictions[:1])
    theirs = compute_metrics(CocoMetric(**options), one, predictions[:1])
    assert list(ours) == list(theirs)
    assert list(ours)[:3] == ['coco/AR@2', 'coco/AR@10', 'coco/AR@100']
    assert ours == pytest.approx(theirs, abs=5.1e-4)
    assert ours['coco/AR@100'] > 0


def test_ground_truth_may_come_from_the_data_set(ground_truth, predictions):
    label = {category['id']: i for i, category in enumerate(ground_truth['categories'])}
    instances = {image['id']: [] for image in ground_truth['images']}
    for annotation in ground_truth['annotations']:
        x, y, w, h = annotation['bbox']
        instances[annotation['image_id']].append(
            dict(
                bbox=[x, y, x + w, y + h],
                bbox_label=label[annotation['category_id']],
                ignore_flag=annotation['iscrowd'],
            )
        )
    ours = compute_metrics(FastCocoMetric(), ground_truth, predictions, instances)
    theirs = compute_metrics(CocoMetric(), ground_truth, predictions, instances)
    assert ours == pytest.approx(theirs, abs=5.1e-4)
    assert 0.1 < ours['coco/bbox_mAP'] < 0.9


@pytest.mark.parametrize('format_only', [False, True])
def test_files_equal_mmdet(tmp_path, ground_truth, predictions, format_only):
    path = write_json(tmp_path, ground_truth)
    metrics = [
        compute_metrics(
            metric(path, outfile_prefix=str(tmp_path / metric.__name__), format_only=format_only),
            ground_truth,
            predictions,
        )
        for metric in (FastCocoMetric, CocoMetric)
    ]
    ours, theirs = (tmp_path / f'{name}.bbox.json' for name in ('FastCocoMetric', 'CocoMetric'))
    assert ours.read_bytes() == theirs.read_bytes()
    if format_only:
        assert metrics == [{}, {}]
    else:
        api = COCO(path)
        evaluation = COCOeval(api, api.loadRes(str(ours)), 'bbox')
        evaluation.params.maxDets = [100, 300, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert metrics[0]['coco/bbox_mAP'] == pytest.approx(evaluation.stats[0], **EXACT)


def test_it_prints_nothing(tmp_path, ground_truth, predictions, capfd):
    """Only log lines, which have a date, are written."""
    compute_metrics(FastCocoMetric(write_json(tmp_path, ground_truth)), ground_truth, predictions)
    printed = capfd.readouterr()
    assert [line for line in (printed.out + printed.err).splitlines() if ' - mmengine - ' not in line] == []


def test_no_detections_have_an_ap_of_zero(tmp_path, ground_truth):
    """mmdet returns no metrics then, so that a test without any score ends well. Sizes without boxes stay -1."""
    empty = [
        dict(img_id=image['id'], bboxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, int), scores=np.zeros(0))
        for image in ground_truth['images']
    ]
    log = tmp_path / 'log'
    logger = MMLogger.get_instance('no detections', log_file=str(log))
    metrics = compute_metrics(FastCocoMetric(write_json(tmp_path, ground_truth)), ground_truth, empty)
    for handler in logger.handlers:
        handler.flush()
    assert {metrics[f'coco/bbox_{name}'] for name in ('mAP', 'mAP_50', 'mAP_75')} == {0}
    assert set(metrics.values()) <= {0, -1}
    assert 'bbox: no detections in any image' in log.read_text()
    unlabelled = dict(ground_truth, annotations=[])
    metrics = compute_metrics(FastCocoMetric(write_json(tmp_path, unlabelled)), unlabelled, empty)
    assert set(metrics.values()) == {-1}


def test_wrong_options_are_refused_before_the_first_image(tmp_path, ground_truth, predictions):
    with pytest.raises(UserError, match='unknown metric_items mAP_42'):
        FastCocoMetric(metric_items=['mAP', 'mAP_42'])
    with pytest.raises(UserError, match='three numbers'):
        FastCocoMetric(proposal_nums=(1, 100))
    FastCocoMetric(metric='proposal_fast', proposal_nums=(1, 100))
    with pytest.raises(UserError, match='predicts none'):
        compute_metrics(FastCocoMetric(write_json(tmp_path, ground_truth), metric='segm'), ground_truth, predictions)


@MODELS.register_module()
class FixedPredictions(BaseModel):
    """Return the prepared predictions of an image."""

    predictions: dict

    def __init__(self, data_preprocessor):
        super().__init__(data_preprocessor)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs, data_samples, mode):
        for sample in data_samples:
            one = self.predictions[sample.img_id]
            sample.pred_instances = InstanceData(
                **{key: torch.as_tensor(one[key]) for key in ('bboxes', 'labels', 'scores')}
            )
        return data_samples


@pytest.mark.parametrize(
    'ids', [lambda i: i, lambda i: -i, lambda i: i // 2, str], ids=['0', 'negative', 'twice', 'text']
)
def test_ids_of_annotations_do_not_matter(tmp_path, ground_truth, predictions, ids):
    """pycocotools, and faster-coco-eval with a warning, take the box with the id 0 for missed."""
    numbered = dict(
        ground_truth, annotations=[dict(one, id=ids(i)) for i, one in enumerate(ground_truth['annotations'])]
    )
    metric = FastCocoMetric(write_json(tmp_path, numbered), metric_items=list(STATISTICS))
    check_statistics(compute_metrics(metric, numbered, predictions), run_pycocotools(ground_truth, predictions))


def test_perfect_detections_score_1_with_ids_from_0_and_crowds_of_null(tmp_path):
    boxes = [[10.0, 10.0, 20.0, 20.0], [40.0, 40.0, 90.0, 90.0]]
    ground_truth = dict(
        images=[dict(id=number, file_name='', width=100, height=100) for number in range(2)],
        categories=[dict(id=0, name='cat')],
        annotations=[
            dict(id=i, image_id=i, category_id=0, bbox=[x, y, r - x, b - y], area=(r - x) * (b - y), iscrowd=None)
            for i, (x, y, r, b) in enumerate(boxes)
        ],
    )
    predictions = [
        dict(img_id=number, bboxes=np.array([box]), labels=np.zeros(1, int), scores=np.ones(1))
        for number, box in enumerate(boxes)
    ]
    metrics = compute_metrics(FastCocoMetric(write_json(tmp_path, ground_truth)), ground_truth, predictions)
    assert metrics['coco/bbox_mAP'] == 1


@pytest.mark.parametrize(('metric_type', 'tolerance'), [(None, 1e-12), ('CocoMetric', 5.1e-4)])
def test_evaluation_equals_pycocotools_on_the_written_file(
    tmp_path, predictions, repository, monkeypatch, metric_type, tolerance
):
    """A shipped config, from the data loader to --out, and a user's config with mmdet's metric."""
    monkeypatch.setattr(FixedPredictions, 'predictions', {one['img_id']: one for one in predictions}, raising=False)
    cfg = with_data_roots(load_config('mnv4_ssdlite_coco-mini'))
    assert cfg.test_evaluator.type == 'FastCocoMetric'
    cfg.model = dict(type='FixedPredictions', data_preprocessor=cfg.model.data_preprocessor)
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))), tmp_path / 'c.pth')
    cfg.test_evaluator.update(dict(type=metric_type or 'FastCocoMetric', metric_items=list(STATISTICS)))
    out = tmp_path / 'detections.json'
    metrics = evaluate(cfg, str(tmp_path / 'c.pth'), out=str(out), work_dir=tmp_path)
    api = COCO(str(repository / 'data/mini/coco/annotations/instances_val2017.json'))
    evaluation = COCOeval(api, api.loadRes(str(out)), 'bbox')
    evaluation.params.maxDets = [100, 300, 1000]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    got = [metrics[f'coco-mini/bbox_{name}'] for name in STATISTICS]
    assert got == pytest.approx(list(evaluation.stats), abs=tolerance, rel=0)
    assert 0.1 < got[0] < 0.9
