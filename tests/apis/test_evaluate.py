"""Metrics are COCO's own, and the training pictures are reported apart."""

import json

import pytest
import torch
from mmengine.registry import MODELS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mnv4_mm.apis import config as configs
from mnv4_mm.apis.evaluate import evaluate_files
from mnv4_mm.errors import UserError

NAME = 'mnv4_ssdlite_coco-mini'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Random weights whose classifier is scaled up, so that detections have distinct scores over the threshold."""
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    model = MODELS.build(configs.load_config(NAME).model)
    for convs in model.bbox_head.cls_convs:
        torch.nn.init.normal_(convs[-1].weight, std=0.5)
    path = tmp_path_factory.mktemp('c') / 'random.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


@pytest.mark.parametrize('on', ['val', 'train'])
def test_metrics_are_pycocotools_and_named_for_their_pictures(checkpoint, tmp_path, on, repository):
    out = tmp_path / 'sub' / 'detections.json'
    metrics = evaluate_files(NAME, checkpoint, out=str(out), on=on, work_dir=str(tmp_path))
    assert json.loads((tmp_path / 'metrics.json').read_text()) == metrics
    prefix = {'val': 'coco-mini', 'train': 'trained_on'}[on]
    assert all(key.startswith(f'{prefix}/') for key in metrics)
    truth = COCO(str(repository / f'data/mini/coco/annotations/instances_{on}2017.json'))
    evaluation = COCOeval(truth, truth.loadRes(str(out)), 'bbox')
    evaluation.params.maxDets = [100, 300, 1000]  # mmdet's
    evaluation.evaluate()
    evaluation.accumulate()
    expected = evaluation.eval['precision'][:, :, :, 0, 2]
    assert metrics[f'{prefix}/bbox_mAP'] == pytest.approx(expected[expected > -1].mean(), abs=1e-3)
    assert len(json.loads(out.read_text())) > 1000


def test_pictures_have_ground_truth_left_and_predictions_right(checkpoint, tmp_path):
    import cv2

    evaluate_files(NAME, checkpoint, show_dir=str(tmp_path / 'shown'), work_dir=str(tmp_path))
    pictures = sorted((tmp_path / 'shown').iterdir())
    assert len(pictures) == 32
    original = cv2.imread(f'data/mini/coco/val2017/{pictures[0].name}')
    shown = cv2.imread(str(pictures[0]))
    assert shown.shape == (original.shape[0], 2 * original.shape[1], 3)


def test_a_checkpoint_of_another_net_is_refused(checkpoint, tmp_path):
    with pytest.raises(UserError, match='does not fit'):
        evaluate_files(NAME, checkpoint, backbone='mnv4_conv_m', work_dir=str(tmp_path))
