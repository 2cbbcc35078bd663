"""COCO's numbers are pycocotools', to 1e-12, and their names and files are those of mmdet's CocoMetric."""

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
from mnv4_mm.bench.evaluation import made_detections
from mnv4_mm.config.data import resolve_data_roots
from mnv4_mm.config.load import load_config
from mnv4_mm.engine import FastCocoMetric
from mnv4_mm.engine.coco_metric import NUMBERS
from mnv4_mm.errors import UserError

EXACT = dict(abs=1e-12, rel=0)


def detections_on(truth, seed=0):
    """What a model may find: each object three times, moved, and as much beside it; half of the scores are equal."""
    rng = np.random.default_rng(seed)
    label = {category['id']: i for i, category in enumerate(truth['categories'])}
    found = []
    for image in truth['images']:
        here = [a for a in truth['annotations'] if a['image_id'] == image['id']]
        boxes = np.array([a['bbox'] for a in here]).reshape(-1, 4).repeat(3, axis=0)
        boxes[:, 2:] += boxes[:, :2]
        boxes += 0.08 * np.tile(boxes[:, 2:] - boxes[:, :2], 2) * rng.standard_normal(boxes.shape)
        wrong = rng.random((len(boxes) + 5, 2, 2)) * [image['width'], image['height']]
        wrong.sort(axis=1)
        labels = np.array([label[a['category_id']] for a in here], int).repeat(3)
        scores = rng.random(len(boxes) + len(wrong))
        scores[::2] = scores[::2].round(1)
        found.append(
            dict(
                img_id=image['id'],
                bboxes=np.concatenate([boxes, wrong.reshape(-1, 4)]).astype(np.float32),
                labels=np.concatenate([labels, rng.integers(0, len(label), len(wrong))]),
                scores=scores.astype(np.float32),
            )
        )
    return found


def written(tmp_path, truth):
    path = tmp_path / 'truth.json'
    path.write_text(json.dumps(truth))
    return str(path)


@pytest.fixture(scope='module')
def truth(repository):
    """The mini set's validation split, crowds and absent classes among it, and a picture with nothing on it."""
    truth = json.loads((repository / 'data/mini/coco/annotations/instances_val2017.json').read_text())
    truth['images'].append(dict(id=99, width=100, height=100, file_name=''))
    assert sum(annotation['iscrowd'] for annotation in truth['annotations']) == 3
    return truth


@pytest.fixture(scope='module')
def found(truth):
    return detections_on(truth)


def measured(metric, truth, found, instances=None):
    metric.dataset_meta = dict(classes=[category['name'] for category in truth['categories']])
    for one in found:
        predicted = {
            key: value if key == 'masks' else torch.as_tensor(value) for key, value in one.items() if key != 'img_id'
        }
        sample = dict(img_id=one['img_id'], ori_shape=(480, 640), pred_instances=predicted)
        if instances is not None:
            sample['instances'] = instances[one['img_id']]
        metric.process({}, [sample])
    return metric.evaluate(len(found))


def by_pycocotools(truth, found, kind='bbox', **params):
    """COCOeval with mmdet's limits."""
    api = COCO()
    api.dataset = copy.deepcopy(truth)
    api.createIndex()
    ids = [category['id'] for category in truth['categories']]
    detections = []
    for one in found:
        for i, (x1, y1, x2, y2) in enumerate(one['bboxes'].tolist()):
            detection = dict(image_id=one['img_id'], category_id=ids[one['labels'][i]], score=float(one['scores'][i]))
            if kind == 'segm':
                detection['segmentation'] = one['masks'][i]
            else:
                detection['bbox'] = [x1, y1, x2 - x1, y2 - y1]
            detections.append(detection)
    evaluation = COCOeval(api, api.loadRes(detections), kind)
    for name, value in (dict(maxDets=[100, 300, 1000]) | params).items():
        setattr(evaluation.params, name, value)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def check_numbers(metrics, evaluation, kind='bbox'):
    """All twelve; a score that is not trivial."""
    for name, expected in zip(NUMBERS, evaluation.stats, strict=True):
        assert metrics[f'coco/{kind}_{name}'] == pytest.approx(expected, **EXACT), name
    assert 0.01 < evaluation.stats[1] < 0.99


def check_classes(metrics, evaluation, truth):
    """AP of all classes, by name; NaN for those with no object."""
    names = {category['id']: category['name'] for category in truth['categories']}
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


def test_all_numbers_and_every_class_are_pycocotools(tmp_path, truth, found):
    metric = FastCocoMetric(written(tmp_path, truth), classwise=True, metric_items=list(NUMBERS))
    metrics = measured(metric, truth, found)
    evaluation = by_pycocotools(truth, found)
    check_numbers(metrics, evaluation)
    assert check_classes(metrics, evaluation, truth) == 57
    again = measured(metric, truth, found)  # as after each epoch
    assert list(again.values()) == pytest.approx(list(metrics.values()), nan_ok=True, **EXACT)


@pytest.mark.long
def test_they_are_on_5000_pictures(tmp_path):
    """About two minutes, most of them pycocotools'."""
    truth, found = made_detections(5000, 100)
    assert {len(one['scores']) for one in found} == {100}
    metric = FastCocoMetric(written(tmp_path, truth), classwise=True, metric_items=list(NUMBERS))
    metrics = measured(metric, truth, found)
    evaluation = by_pycocotools(truth, found)
    check_numbers(metrics, evaluation)
    assert check_classes(metrics, evaluation, truth) == 67


@pytest.mark.parametrize('ties', [1, 4])
def test_order_of_equal_scores_is_pycocotools(tmp_path, truth, found, ties):
    """With few different scores, AP depends on the order among equals."""
    tied = [dict(one, scores=np.ceil(one['scores'] * ties).astype(np.float32) / ties) for one in found]
    metrics = measured(FastCocoMetric(written(tmp_path, truth), metric_items=list(NUMBERS)), truth, tied)
    check_numbers(metrics, by_pycocotools(truth, tied))
    turned = [
        dict(one, **{key: one[key][::-1] for key in ('bboxes', 'labels', 'scores')}) for one in tied
    ]  # or the test would show nothing
    assert by_pycocotools(truth, turned).stats[0] != pytest.approx(metrics['coco/bbox_mAP'], abs=1e-6)


@pytest.mark.parametrize('limits', [(1, 3, 100), (2, 100, 150), (1, 5, 10)])
def test_limits_are_pycocotools(tmp_path, truth, found, limits):
    """Its mAP is at 100 detections, the others at the last limit; without a limit of 100 it has none, and says -1."""
    crowded = []
    for one in found:  # persons: in most pictures more than 100, some twice
        extra = np.resize(np.arange(len(one['scores'])), 120)
        crowded.append(
            dict(
                img_id=one['img_id'],
                bboxes=np.concatenate([one['bboxes'], one['bboxes'][extra]]),
                scores=np.concatenate([one['scores'], one['scores'][extra]]),
                labels=np.concatenate([one['labels'], np.zeros(120, int)]),
            )
        )
    for some in (found, crowded):
        metric = FastCocoMetric(written(tmp_path, truth), proposal_nums=limits, metric_items=list(NUMBERS))
        evaluation = by_pycocotools(truth, some, maxDets=list(limits))
        check_numbers(measured(metric, truth, some), evaluation)
        assert (evaluation.stats[0] == -1) == (100 not in limits)
    if limits == (2, 100, 150):
        last = evaluation.eval['precision'][..., 0, 2]
        assert last[last > -1].mean() != pytest.approx(evaluation.stats[0], abs=1e-6)


def test_iou_thresholds_are_pycocotools(tmp_path, truth, found):
    thresholds = [0.3, 0.5]
    metric = FastCocoMetric(written(tmp_path, truth), iou_thrs=thresholds, metric_items=list(NUMBERS))
    metrics = measured(metric, truth, found)
    check_numbers(metrics, by_pycocotools(truth, found, iouThrs=np.array(thresholds)))
    assert metrics['coco/bbox_mAP_75'] == -1
    only = measured(FastCocoMetric(written(tmp_path, truth), iou_thrs=0.5), truth, found)
    assert only['coco/bbox_mAP'] == only['coco/bbox_mAP_50'] == metrics['coco/bbox_mAP_50']


def test_proposals_are_pycocotools(tmp_path, truth, found):
    metrics = measured(FastCocoMetric(written(tmp_path, truth), metric='proposal'), truth, found)
    evaluation = by_pycocotools(truth, found, useCats=0)
    assert list(metrics) == [f'coco/{name}' for name in list(NUMBERS)[6:]]
    assert list(metrics.values()) == pytest.approx(list(evaluation.stats[6:]), **EXACT)
    assert 0.1 < metrics['coco/AR@100'] < 1


@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')  # pycocotools' decode
@pytest.mark.parametrize('counts', [bytes, str])
def test_masks_are_pycocotools(tmp_path, truth, counts):
    """Areas of masks, not of boxes, and crowds as RLE. Scores of masks are their own."""
    api = COCO()
    api.dataset = copy.deepcopy(truth)
    api.createIndex()
    label = {category['id']: i for i, category in enumerate(truth['categories'])}
    rng = np.random.default_rng(0)
    found = []
    for image in truth['images'][:12]:
        here = api.imgToAnns[image['id']]
        masks = [
            rle.encode(np.asfortranarray(np.roll(api.annToMask(annotation), rng.integers(-4, 5), axis=1)))
            for annotation in here
        ]
        if counts is str:
            masks = [dict(mask, counts=mask['counts'].decode()) for mask in masks]
        found.append(
            dict(
                img_id=image['id'],
                bboxes=np.array([[0, 0, 9, 9]] * len(here), np.float32),
                labels=np.array([label[annotation['category_id']] for annotation in here]),
                scores=rng.random(len(here)),
                mask_scores=rng.random(len(here)).round(1),
                masks=masks,
            )
        )
    metric = FastCocoMetric(written(tmp_path, truth), metric=['segm', 'bbox'], metric_items=list(NUMBERS))
    metrics = measured(metric, truth, found)
    assert len(metrics) == 24
    by_mask = [dict(one, scores=one['mask_scores']) for one in found]
    check_numbers(metrics, by_pycocotools(truth, by_mask, 'segm'), 'segm')


def test_classes_are_those_of_their_ids_where_categories_are_not_sorted(tmp_path, truth, found):
    """mmdet takes the first class of the file for the one with the lowest id."""
    shuffled = dict(truth, categories=truth['categories'][40:] + truth['categories'][:40])
    found = [dict(one, labels=(one['labels'] + 40) % 80) for one in found]
    expected = by_pycocotools(shuffled, found)
    path = written(tmp_path, shuffled)
    metrics = measured(FastCocoMetric(path, classwise=True, metric_items=list(NUMBERS)), shuffled, found)
    check_numbers(metrics, expected)
    check_classes(metrics, expected, shuffled)
    theirs = measured(CocoMetric(path, classwise=True), shuffled, found)
    with pytest.raises(AssertionError):
        check_classes({name: metrics[name] if np.isnan(ap) else ap for name, ap in theirs.items()}, expected, shuffled)
    # Sorted, labels are in the order of ids.
    metric = FastCocoMetric(path, sort_categories=True)
    again = measured(metric, truth, [dict(one, labels=(one['labels'] + 40) % 80) for one in found])
    assert again['coco/bbox_mAP'] == metrics['coco/bbox_mAP']


@pytest.mark.parametrize('metric', ['bbox', ['bbox', 'proposal']])
def test_names_and_rounded_numbers_are_mmdets(tmp_path, truth, found, metric):
    options = dict(ann_file=written(tmp_path, truth), metric=metric, classwise=True, prefix='x')
    ours = measured(FastCocoMetric(**options), truth, found)
    theirs = measured(CocoMetric(**options), truth, found)
    assert list(ours) == list(theirs)
    assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=5.1e-4, nan_ok=True)


def test_fast_proposals_are_mmdets(tmp_path, truth, found):
    """Of one picture: on several, mmdet makes an array of unequal rows, which numpy 1.24 and later refuse."""
    one = dict(truth, images=truth['images'][:1])
    one['annotations'] = [a for a in truth['annotations'] if a['image_id'] == one['images'][0]['id']]
    options = dict(ann_file=written(tmp_path, one), metric=['proposal_fast', 'bbox'], proposal_nums=(2, 10, 100))
    ours = measured(FastCocoMetric(**options), one, found[:1])
    theirs = measured(CocoMetric(**options), one, found[:1])
    assert list(ours) == list(theirs)
    assert list(ours)[:3] == ['coco/AR@2', 'coco/AR@10', 'coco/AR@100']
    assert ours == pytest.approx(theirs, abs=5.1e-4)
    assert ours['coco/AR@100'] > 0


def test_truth_may_come_from_the_data_set(truth, found):
    label = {category['id']: i for i, category in enumerate(truth['categories'])}
    instances = {image['id']: [] for image in truth['images']}
    for annotation in truth['annotations']:
        x, y, w, h = annotation['bbox']
        instances[annotation['image_id']].append(
            dict(
                bbox=[x, y, x + w, y + h],
                bbox_label=label[annotation['category_id']],
                ignore_flag=annotation['iscrowd'],
            )
        )
    ours = measured(FastCocoMetric(), truth, found, instances)
    theirs = measured(CocoMetric(), truth, found, instances)
    assert ours == pytest.approx(theirs, abs=5.1e-4)
    assert 0.1 < ours['coco/bbox_mAP'] < 0.9


@pytest.mark.parametrize('format_only', [False, True])
def test_files_are_mmdets(tmp_path, truth, found, format_only):
    path = written(tmp_path, truth)
    metrics = [
        measured(kind(path, outfile_prefix=str(tmp_path / kind.__name__), format_only=format_only), truth, found)
        for kind in (FastCocoMetric, CocoMetric)
    ]
    ours, theirs = (tmp_path / f'{kind}.bbox.json' for kind in ('FastCocoMetric', 'CocoMetric'))
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


def test_it_prints_nothing(tmp_path, truth, found, capfd):
    """The log is another matter: its lines have a date."""
    measured(FastCocoMetric(written(tmp_path, truth)), truth, found)
    printed = capfd.readouterr()
    assert [line for line in (printed.out + printed.err).splitlines() if ' - mmengine - ' not in line] == []


def test_nothing_found_is_said(tmp_path, truth):
    """As mmdet does: no numbers, and a line in the log."""
    empty = [
        dict(img_id=image['id'], bboxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, int), scores=np.zeros(0))
        for image in truth['images']
    ]
    log = tmp_path / 'log'
    logger = MMLogger.get_instance('nothing found', log_file=str(log))
    metrics = measured(FastCocoMetric(written(tmp_path, truth)), truth, empty)
    for handler in logger.handlers:
        handler.flush()
    assert metrics == measured(CocoMetric(written(tmp_path, truth)), truth, empty) == {}
    assert 'testing results of the whole dataset is empty' in log.read_text()


def test_mistakes_are_said_before_the_first_picture(tmp_path, truth, found):
    with pytest.raises(UserError, match='mAP_42 unknown'):
        FastCocoMetric(metric_items=['mAP', 'mAP_42'])
    with pytest.raises(UserError, match='needs three'):
        FastCocoMetric(proposal_nums=(1, 100))
    FastCocoMetric(metric='proposal_fast', proposal_nums=(1, 100))
    with pytest.raises(UserError, match='predicts none'):
        measured(FastCocoMetric(written(tmp_path, truth), metric='segm'), truth, found)


@MODELS.register_module()
class Remembered(BaseModel):
    """Predicts what was made for the picture."""

    found: dict

    def __init__(self, data_preprocessor):
        super().__init__(data_preprocessor)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs, data_samples, mode):
        for sample in data_samples:
            one = self.found[sample.img_id]
            sample.pred_instances = InstanceData(
                **{key: torch.as_tensor(one[key]) for key in ('bboxes', 'labels', 'scores')}
            )
        return data_samples


@pytest.mark.parametrize(('kind', 'tolerance'), [(None, 1e-12), ('CocoMetric', 5.1e-4)])
def test_tools_give_what_pycocotools_gives_on_their_file(tmp_path, found, repository, monkeypatch, kind, tolerance):
    """A shipped config, from the data loader to --out; and one with mmdet's own metric, which a user may have."""
    monkeypatch.setattr(Remembered, 'found', {one['img_id']: one for one in found}, raising=False)
    cfg = resolve_data_roots(load_config('mnv4_ssdlite_coco-mini'))
    assert cfg.test_evaluator.type == 'FastCocoMetric'
    cfg.model = dict(type='Remembered', data_preprocessor=cfg.model.data_preprocessor)
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))), tmp_path / 'c.pth')
    cfg.test_evaluator.update(dict(type=kind or 'FastCocoMetric', metric_items=list(NUMBERS)))
    out = tmp_path / 'detections.json'
    metrics = evaluate(cfg, str(tmp_path / 'c.pth'), out=str(out), work_dir=tmp_path)
    api = COCO(str(repository / 'data/mini/coco/annotations/instances_val2017.json'))
    evaluation = COCOeval(api, api.loadRes(str(out)), 'bbox')
    evaluation.params.maxDets = [100, 300, 1000]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    got = [metrics[f'coco-mini/bbox_{name}'] for name in NUMBERS]
    assert got == pytest.approx(list(evaluation.stats), abs=tolerance, rel=0)
    assert 0.1 < got[0] < 0.9
