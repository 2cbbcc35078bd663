"""A checkpoint and data are joined by class names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import InstanceData
from mmseg.datasets import ADE20KDataset

from mnv4_mm.config.classes import checkpoint_classes, set_classes_of, set_label_order
from mnv4_mm.config.load import load_config
from mnv4_mm.data.coco_dataset import NamedCocoDataset
from mnv4_mm.engine.coco_metric import FastCocoMetric
from mnv4_mm.errors import UserError
from mnv4_mm.weights.checkpoint import Checkpoint


def write_coco(path: Path, names: list[str]) -> Path:
    """Write one image with a box of each class; ids are the places in ``names`` plus 10."""
    images = [dict(id=1, file_name='a.jpg', width=100, height=100)]
    boxes = [
        dict(id=place + 1, image_id=1, category_id=10 + place, bbox=[10.0 * place, 0.0, 8.0, 8.0], area=64.0, iscrowd=0)
        for place in range(len(names))
    ]
    categories = [dict(id=10 + place, name=name) for place, name in enumerate(names)]
    path.write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    return path


def detection(tmp_path: Path, names: list[str], classes: tuple[str, ...]) -> Config:
    cfg = load_config('mnv4_ssdlite_coco-mini')
    file = write_coco(tmp_path / 'x.json', names)
    (tmp_path / 'a.jpg').write_bytes(b'')
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = cfg[loader].dataset.get('dataset', cfg[loader].dataset)
        dataset.update(data_root='', ann_file=str(file), data_prefix=dict(img=str(tmp_path)), pipeline=[])
        dataset.update(metainfo=dict(classes=classes), filter_cfg=None)
    for evaluator in ('val_evaluator', 'test_evaluator'):
        cfg[evaluator].ann_file = str(file)
    return cfg


def checkpoint(*classes: str) -> Checkpoint:
    return Checkpoint(Path('x.pth'), dict(meta=dict(dataset_meta=dict(classes=list(classes)))))


@pytest.fixture(autouse=True)
def without_check(monkeypatch):
    """The images are not real."""
    monkeypatch.setattr(
        'mnv4_mm.tasks.detection.check_split', lambda split: json.loads(split.annotations.read_text())['categories']
    )


def labels(cfg: Config) -> dict[str, int]:
    """Return class name -> label of the box that the JSON gives this name, of the test set."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
    names = [category['name'] for category in json.loads(Path(dataset.ann_file).read_text())['categories']]
    return {names[int(one['bbox'][0] // 10)]: one['bbox_label'] for one in dataset.get_data_info(0)['instances']}


@pytest.mark.parametrize(
    ('names', 'classes', 'trained_on', 'is_matched'),
    [
        (['a', 'b', 'c'], ('a', 'b', 'c'), ('a', 'b', 'c'), False),
        (['b', 'c', 'a'], ('b', 'c', 'a'), ('a', 'b', 'c'), True),  # --data with other ids: test-other-order
        (['b', 'c', 'a'], ('a', 'b', 'c'), ('a', 'b', 'c'), False),  # a config whose JSON has another order
        (['b', 'c', 'a'], ('c', 'b', 'a'), ('a', 'c', 'b'), True),
    ],
)
def test_another_order_is_matched(tmp_path, names, classes, trained_on, is_matched):
    cfg = set_label_order(detection(tmp_path, names, classes))
    line = set_classes_of(cfg, checkpoint(*trained_on))
    assert (line is not None) == is_matched
    if line is not None:
        assert 'matched by name' in line
    assert labels(cfg) == {name: place for place, name in enumerate(trained_on)}
    # A detector that finds everything scores 1, and one that exchanges two classes does not.
    for exchanged, expected in ((False, 1.0), (True, 1 / 3)):
        score = ap(cfg, trained_on, names, exchanged)
        assert score == pytest.approx(expected)


def ap(cfg: Config, classes: tuple[str, ...], names: list[str], exchanged: bool) -> float:
    settings = {key: value for key, value in cfg.test_evaluator.items() if key not in ('type', 'prefix')}
    metric = FastCocoMetric(**settings)
    metric.dataset_meta = dict(classes=classes)
    left = np.array([10.0 * place for place in range(len(names))])
    found = [classes.index(name) for name in names]
    if exchanged:
        found = [{0: 1, 1: 0}.get(label, label) for label in found]
    instances = InstanceData(
        bboxes=torch.tensor(np.stack([left, 0 * left, left + 8, 0 * left + 8], 1), dtype=torch.float32),
        scores=torch.ones(len(names)),
        labels=torch.tensor(found),
    )
    metric.process({}, [dict(img_id=1, ori_shape=(100, 100), pred_instances=instances)])
    return metric.evaluate(1)['coco/bbox_mAP']


def test_other_classes_are_refused_and_both_sets_named(tmp_path):
    """resume-other-classes."""
    cfg = detection(tmp_path, ['a', 'b', 'c'], ('a', 'b', 'c'))
    before = cfg.copy()
    with pytest.raises(UserError, match=r'd, a, b there, c, a, b here') as error:
        set_classes_of(cfg, checkpoint('a', 'b', 'd'))
    assert 'load_from=x.pth' in str(error.value)
    with pytest.raises(UserError, match='trained on other classes'):
        set_classes_of(cfg, checkpoint('a', 'b'))
    assert set_classes_of(cfg, checkpoint('a', 'b', 'd'), fine_tuning=True) is None
    assert cfg.to_dict() == before.to_dict()


def test_a_class_without_a_category_is_refused(tmp_path):
    """mmdet would number the classes after it wrongly."""
    cfg = detection(tmp_path, ['a', 'c'], ('a', 'b', 'c'))
    with pytest.raises(UserError, match=r'has no category b, which the config names as a class; it has a, c'):
        set_label_order(cfg)


def test_a_checkpoint_without_classes_is_taken_as_it_is(tmp_path):
    cfg = detection(tmp_path, ['a'], ('a',))
    assert set_classes_of(cfg, Checkpoint(Path('x.pth'), dict(meta={}))) is None
    old = Checkpoint(Path('x.pth'), dict(meta=dict(dataset_meta=dict(CLASSES=('a', 'b')))))
    assert checkpoint_classes(old) == ('a', 'b')


def test_another_class_of_data_set_cannot_be_reordered(tmp_path):
    cfg = detection(tmp_path, ['a', 'b'], ('a', 'b'))
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[loader].dataset.get('dataset', cfg[loader].dataset).type = 'XMLDataset'
    with pytest.raises(UserError, match='are in different orders, and a XMLDataset cannot be reordered'):
        set_classes_of(cfg, checkpoint('b', 'a'))


def test_mmdets_labels_ignore_the_order_of_names(tmp_path):
    """Fails when mmdet follows ``metainfo`` (open-mmlab/mmdetection#2916): NamedCocoDataset may go then."""
    from mmdet.datasets import CocoDataset

    file = write_coco(tmp_path / 'x.json', ['a', 'b'])
    options = dict(ann_file=str(file), metainfo=dict(classes=('b', 'a')), data_prefix=dict(img=''))
    assert CocoDataset(**options).cat_ids == [10, 11]
    assert NamedCocoDataset(**options).cat_ids == [11, 10]


def test_a_segmenters_masks_are_relabelled(tmp_path):
    import cv2

    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / 'images/a.png'), np.zeros((2, 2, 3), np.uint8))
    cv2.imwrite(str(tmp_path / 'masks/a.png'), np.array([[0, 1], [2, 3]], np.uint8))
    cfg = load_config('mnv4_lraspp_ade20k-mini')
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = cfg[loader].dataset
        dataset.update(type='BaseSegDataset', data_root='', img_suffix='.png', reduce_zero_label=True)
        dataset.data_prefix = dict(img_path=str(tmp_path / 'images'), seg_map_path=str(tmp_path / 'masks'))
        dataset.metainfo = dict(classes=('a', 'b', 'c'), palette=[(1, 1, 1), (2, 2, 2), (3, 3, 3)])
        dataset.pipeline = [dict(type='LoadAnnotations')]
    assert set_classes_of(cfg, checkpoint('c', 'a', 'b'))
    assert cfg.test_dataloader.dataset.metainfo.palette == [(3, 3, 3), (1, 1, 1), (2, 2, 2)]
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
    assert dataset[0]['gt_seg_map'].tolist() == [[255, 1], [2, 0]]
    assert dataset.metainfo['classes'] == ('c', 'a', 'b')


def test_published_classes_are_relabelled_by_mmseg():
    cfg = load_config('mnv4_lraspp_ade20k-mini')
    names = ADE20KDataset.METAINFO['classes']
    assert set_classes_of(cfg, checkpoint(*names[::-1]))
    assert cfg.val_dataloader.dataset.type == 'ADE20KDataset'
    assert cfg.val_dataloader.dataset.metainfo.classes == names[::-1]
