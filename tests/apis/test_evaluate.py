"""Metrics are those of pycocotools, and the training images are reported separately."""

import json

import cv2
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mnv4_mm.apis.evaluate import evaluate, evaluate_files
from mnv4_mm.config.data import with_data_roots
from mnv4_mm.config.load import load_config
from mnv4_mm.errors import UserError
from mnv4_mm.tasks import build_model

NAME = 'mnv4_ssdlite_coco-mini'


@MODELS.register_module()
class JitteredTruth(BaseModel):
    """Predict the ground truth, moved and scored at random, so that AP is neither 0 nor 1."""

    def __init__(self, data_preprocessor):
        super().__init__(data_preprocessor)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs, data_samples, mode):
        torch.manual_seed(data_samples[0].img_id)
        for sample in data_samples:
            ground_truth = sample.gt_instances
            boxes = ground_truth.bboxes.repeat(2, 1)
            sizes = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
            sample.pred_instances = InstanceData(
                bboxes=boxes + 0.08 * sizes * torch.randn_like(boxes),
                labels=ground_truth.labels.repeat(2),
                scores=torch.rand(len(boxes)),
            )
        return data_samples


@pytest.fixture
def jittered(tmp_path):
    cfg = with_data_roots(load_config(NAME))
    cfg.model = dict(type='JitteredTruth', data_preprocessor=cfg.model.data_preprocessor)
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))), tmp_path / 'c.pth')
    return cfg, str(tmp_path / 'c.pth')


@pytest.mark.parametrize('on', ['val', 'train'])
def test_metrics_are_those_of_pycocotools_and_named_after_their_images(jittered, tmp_path, on, repository):
    out = tmp_path / 'sub' / 'detections.json'
    metrics = evaluate(*jittered, out=str(out), on=on, work_dir=tmp_path)
    assert json.loads((tmp_path / 'metrics.json').read_text()) == metrics
    prefix = {'val': 'coco-mini', 'train': 'trained_on'}[on]
    assert all(key.startswith(f'{prefix}/') for key in metrics)
    ground_truth = COCO(str(repository / f'data/mini/coco/annotations/instances_{on}2017.json'))
    evaluation = COCOeval(ground_truth, ground_truth.loadRes(str(out)), 'bbox')
    evaluation.params.maxDets = [100, 300, 1000]  # mmdet's
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval['precision'][:, :, :, 0, 2]  # (IoU, recall, class)
    expected = precision[precision > -1].mean()
    assert 0.1 < expected < 0.9
    assert metrics[f'{prefix}/bbox_mAP'] == pytest.approx(expected, abs=1e-12)
    name = ground_truth.loadCats(ground_truth.getCatIds())[0]['name']
    assert metrics[f'{prefix}/{name}_precision'] == pytest.approx(precision[:, :, 0].mean(), abs=1e-12)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """An untrained SSDLite."""
    model = build_model(load_config(NAME))
    path = tmp_path_factory.mktemp('c') / 'random.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


def test_images_have_ground_truth_on_the_left_and_predictions_on_the_right(jittered, tmp_path, repository):
    evaluate(*jittered, show_dir=str(tmp_path / 'shown'), work_dir=tmp_path)
    images = sorted((tmp_path / 'shown').iterdir())
    assert len(images) == 32
    original = cv2.imread(str(repository / 'data/mini/coco/val2017' / images[0].name))
    shown = cv2.imread(str(images[0]))
    assert shown.shape == (original.shape[0], 2 * original.shape[1], 3)


def test_images_are_not_overwritten(jittered, tmp_path, repository):
    with pytest.raises(UserError, match='overwritten'):
        evaluate(*jittered, show_dir=str(repository / 'data/mini/coco/val2017'), work_dir=tmp_path)


def test_a_checkpoint_of_another_net_is_refused(checkpoint, tmp_path):
    with pytest.raises(UserError, match='does not fit'):
        evaluate_files(NAME, checkpoint, backbone='mnv4_conv_m', work_dir=str(tmp_path))
