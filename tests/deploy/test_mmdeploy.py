"""Predictions of mmdeploy's ONNX files are those of the model, and mistakes are one line each."""

import importlib.util
import inspect
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mmdet.models.dense_heads import RetinaSepBNHead
from mmdet.models.dense_heads.rtmdet_head import RTMDetSepBNHead
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from mnv4_mm.apis.model import load_model
from mnv4_mm.config.backbone import with_backbone
from mnv4_mm.config.data import innermost_dataset, with_data_roots, with_inference
from mnv4_mm.config.load import load_config
from mnv4_mm.deploy import mmdeploy_script
from mnv4_mm.deploy.arguments import INSTALL_MMDEPLOY
from mnv4_mm.errors import UserError
from mnv4_mm.tasks import build_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec('mmdeploy') is None, reason=f'mmdeploy is not installed: {INSTALL_MMDEPLOY}'
)
DETECTORS = ['mnv4_ssdlite_coco-mini', 'mnv4_retinanet_coco-mini', 'mnv4_rtmdet_coco-mini']
SEGMENTERS = [f'mnv4_{head}_ade20k-mini' for head in ('lraspp', 'fpn', 'deeplabv3plus', 'segformer')]
COCO, ADE = Path('data/mini/coco/val2017'), Path('data/mini/ade/images/validation')


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch, repository):
    monkeypatch.chdir(repository)


def image_files(name):
    return [str(path) for path in sorted((COCO if name in DETECTORS else ADE).glob('*.jpg'))[:3]]


def deploy_config(name, shape):
    task = 'detection' if '_coco' in name else 'segmentation'
    return f'configs/deploy/{task}_onnxruntime_{shape}.py'


def lively(model: nn.Module, batches: list) -> None:
    """Give an untrained model distinct scores and many classes: norms that fit the images, and scaled predictors."""
    head = model.bbox_head if hasattr(model, 'bbox_head') else model.decode_head
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None  # the mean of all batches
        norm.reset_running_stats()
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    for conv in (module for module in head.modules() if isinstance(module, nn.Conv2d)):
        nn.init.kaiming_normal_(conv.weight, nonlinearity='relu')
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(**model.data_preprocessor(batch, False), mode='tensor')
        model.eval()
        if isinstance(head, RetinaSepBNHead | RTMDetSepBNHead):
            classes, boxes = model(**model.data_preprocessor(batches[0], False), mode='tensor')
            classes, boxes = (torch.cat([level.flatten() for level in levels]) for levels in (classes, boxes))
            # As a trained net: boxes near their anchors, some hundred pairs of box and class above the threshold.
            point = isinstance(head, RTMDetSepBNHead)
            widen(head.rtm_reg if point else head.retina_reg, 0.3 / boxes.std(), 2.0 * point)
            scale = 2 / classes.std()
            least = (classes * scale).topk(1500 * len(batches[0]['inputs'])).values[-1]
            threshold = torch.logit(torch.tensor(head.test_cfg.score_thr))
            widen(head.rtm_cls if point else head.retina_cls, scale, threshold - least)


def widen(predictor: nn.Module, scale: float, shift: float) -> None:
    """Scale and shift the outputs of the last convolutions of a module."""
    for conv in (module for module in predictor.modules() if isinstance(module, nn.Conv2d) and module.bias is not None):
        conv.weight *= scale
        conv.bias += shift


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory, repository):
    """Return a function that makes a checkpoint of the ``lively`` model of a config, once."""
    made: dict[tuple, str] = {}

    def make(name, backbone=None, classes=None):
        key = (name, backbone, classes)
        if key in made:
            return made[key]
        torch.manual_seed(0)
        cfg = load_config(name)
        cfg = with_data_roots(with_backbone(cfg, backbone) if backbone else cfg)
        if classes:
            cfg.model.bbox_head.num_classes = classes
        model = build_model(cfg)
        model.init_weights()
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            cfg.test_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
            if cfg.default_scope == 'mmseg':
                innermost_dataset(cfg.test_dataloader.dataset).pipeline[1].keep_ratio = False
            loader = Runner.build_dataloader(cfg.test_dataloader, seed=0)
            lively(model, list(loader)[:2])
        meta = dict(loader.dataset.metainfo)
        meta['classes'] = meta['classes'][: classes or None]
        folder = tmp_path_factory.mktemp('checkpoint')
        cfg.dump(folder / f'{name}.py')
        torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=meta)), folder / 'lively.pth')
        made[key] = str(folder / 'lively.pth')
        return made[key]

    return make


def exported(name, shape, checkpoint, folder, config=None, **options):
    """Export, and return the model, the loaded file and the config."""
    deploying, cfg = mmdeploy_script.fit_size(
        mmdeploy_script.load_deploy_config(deploy_config(name, shape), options), load_config(config or name)
    )
    image = mmdeploy_script.read_image(image_files(name)[0])
    mmdeploy_script.export(deploying, cfg, checkpoint, image, folder, 'cpu')
    model = load_model(checkpoint, str(config or name), 'cpu')
    file = mmdeploy_script.load_exported(deploying, cfg, folder / 'end2end.onnx', 'cpu')
    return model, file, cfg


def batches(cfg):
    cfg = with_data_roots(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        cfg.test_dataloader.update(batch_size=1, num_workers=0, persistent_workers=False)
        return Runner.build_dataloader(cfg.test_dataloader, seed=0)


def assert_same_detections(expected, found):
    """Assert that the file has each detection of the model; those of nearly equal scores may be in another order."""
    expected, found = expected.numpy(), found.numpy()
    assert len(expected) > 30
    assert len(np.unique(expected.scores)) > 0.9 * len(expected)
    assert len(np.unique(expected.labels)) > 3
    lost = 0
    for box, score, label in zip(expected.bboxes, expected.scores, expected.labels, strict=True):
        same = found.labels == label
        near = np.abs(found.bboxes[same] - box).max(axis=1, initial=0) < 0.05
        lost += not (np.abs(found.scores[same][near] - score) < 1e-4).any()
    # An overlap may be within rounding of the threshold of NMS.
    assert lost <= 0.01 * len(expected)


# The AP and mIoU of dynamic files of every head are compared in tests/test_end_to_end.py, too.
@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        (DETECTORS[2], 'static'),
        (DETECTORS[0], 'dynamic'),
        *(pytest.param(name, 'static', marks=pytest.mark.long) for name in DETECTORS[:2]),
        *(pytest.param(name, 'dynamic', marks=pytest.mark.long) for name in DETECTORS[1:]),
    ],
)
def test_detections_are_those_of_the_model(name, shape, checkpoint, tmp_path):
    model, file, cfg = exported(name, shape, checkpoint(name), tmp_path)
    for batch, _ in zip(batches(cfg), range(2), strict=False):
        with torch.no_grad():
            expected = model.test_step(batch)[0].clone().pred_instances
            found = file.test_step(batch)[0].pred_instances
        assert_same_detections(expected, found)


@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        (SEGMENTERS[0], 'static'),
        (SEGMENTERS[2], 'dynamic'),
        *(pytest.param(name, 'dynamic', marks=pytest.mark.long) for name in SEGMENTERS if name != SEGMENTERS[2]),
    ],
)
def test_logits_are_those_of_the_model(name, shape, checkpoint, tmp_path):
    options = {'codebase_config.with_argmax': False}
    model, file, cfg = exported(name, shape, checkpoint(name), tmp_path, **options)
    for batch, _ in zip(batches(cfg), range(2), strict=False):
        data = model.data_preprocessor(batch, False)
        with torch.no_grad():
            expected = model.encode_decode(data['inputs'], [sample.metainfo for sample in data['data_samples']])
        found = file.wrapper({'input': data['inputs']})['output']
        assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
        assert len(expected.argmax(1).unique()) > 5
        assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.999


def test_the_class_map_is_that_of_the_logits(checkpoint, tmp_path):
    name = SEGMENTERS[0]
    model, file, cfg = exported(name, 'static', checkpoint(name), tmp_path)
    batch = next(iter(batches(cfg)))
    data = model.data_preprocessor(batch, False)
    with torch.no_grad():
        logits = model.encode_decode(data['inputs'], [sample.metainfo for sample in data['data_samples']])
    found = file.wrapper({'input': data['inputs']})['output']
    assert found.shape == (1, 1, 160, 160)
    assert (found == logits.argmax(1, keepdim=True)).float().mean() > 0.999
    whole = file.test_step(batch)[0]
    assert whole.pred_sem_seg.data.shape[1:] == whole.metainfo['ori_shape']


def test_attention_of_hybrid_nets(checkpoint, tmp_path):
    """At a size other than that of the trace, so that attention has another number of positions."""
    name = 'mnv4_lraspp_ade20k-mini'
    trained = checkpoint(name, 'mnv4_hybrid_m')
    config = Path(trained).with_name(f'{name}.py')
    model, file, _ = exported(name, 'dynamic', trained, tmp_path, config, **{'codebase_config.with_argmax': False})
    images = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.encode_decode(images, [dict(img_shape=(96, 160))] * 2)
    found = file.wrapper({'input': images})['output']
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


def test_one_class_with_softmax(checkpoint, tmp_path):
    """mmdeploy's own rewriter treats the only class as the background (open-mmlab/mmdeploy#2787)."""
    name = 'mnv4_ssdlite_coco-mini'
    trained = checkpoint(name, None, 1)
    model, file, cfg = exported(name, 'static', trained, tmp_path, Path(trained).with_name(f'{name}.py'))
    batch = next(iter(batches(cfg)))
    with torch.no_grad():
        expected = model.test_step(batch)[0].clone().pred_instances
    found = file.test_step(batch)[0].pred_instances
    assert len(expected) > 30
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)


def test_rewriters_are_still_needed():
    """Fails when a rewriter is no longer needed."""
    from mmdeploy.codebase.mmdet.models.dense_heads import base_dense_head, rtmdet_head
    from mmseg.models.utils import Upsample

    assert inspect.signature(torch.onnx.export).parameters['dynamo'].default is True
    dense = inspect.getsource(base_dense_head.base_dense_head__predict_by_feat)
    assert 'softmax(-1)[:, :, :-1]' in dense
    assert 'nms_pre_score[..., :-1].max(-1)' in dense
    assert 'min_bbox_size' not in dense
    assert 'img_shape' not in inspect.getsource(rtmdet_head.rtmdet_head__predict_by_feat)
    assert 'int(t * self.scale_factor)' in inspect.getsource(Upsample.forward)


@pytest.fixture(scope='module')
def deployed(checkpoint, run_tool, tmp_path_factory, repository):
    """A detector exported by the command in the docs."""
    name = 'mnv4_ssdlite_coco-mini'
    folder = tmp_path_factory.mktemp('deployed') / 'out'
    image = sorted((repository / COCO).glob('*.jpg'))[0]
    result = run_tool(
        'deploy.py', deploy_config(name, 'static'), name, checkpoint(name), image, '--work-dir', folder, '--dump-info'
    )
    assert result.returncode == 0, result.stderr
    return folder, result


def test_the_command_writes_the_files_of_the_sdk(deployed):
    folder, result = deployed
    names = [
        'deploy.json',
        'detail.json',
        'end2end.onnx',
        'output_onnxruntime.jpg',
        'output_pytorch.jpg',
        'pipeline.json',
    ]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert result.stdout.splitlines()[-1] == str(folder / 'end2end.onnx')
    model = onnx.load(folder / 'end2end.onnx')
    onnx.checker.check_model(model)
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)  # the SDK's ONNX Runtime is 1.15
    assert [node.name for node in model.graph.output] == ['dets', 'labels']
    prepare, net, finish = json.loads((folder / 'pipeline.json').read_text())['pipeline']['tasks']
    steps = {step['type']: step for step in prepare['transforms']}
    assert steps['Resize']['size'] == [320, 320]
    assert steps['Normalize']['mean'] == [123.675, 116.28, 103.53]
    assert steps['Normalize']['to_rgb'] is True
    assert net['input_map'] == {'img': 'input'}
    assert finish['params']['score_thr'] == 0.02


def test_the_log_holds_no_warnings(deployed):
    text = deployed[1].stdout + deployed[1].stderr
    assert 'Warning' not in text
    assert 'WARNING' not in text


def test_the_sdk_gets_the_normalisation_of_segmenters(checkpoint, tmp_path):
    name = SEGMENTERS[1]
    deploying, cfg = mmdeploy_script.fit_size(
        mmdeploy_script.load_deploy_config(deploy_config(name, 'static'), {}), load_config(name)
    )
    mmdeploy_script.dump(deploying, cfg, checkpoint(name), tmp_path, 'cpu')
    steps = json.loads((tmp_path / 'pipeline.json').read_text())['pipeline']['tasks'][0]['transforms']
    assert steps[1] == dict(type='Resize', keep_ratio=False, size=[160, 160])
    assert steps[2] == dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)


@pytest.mark.parametrize('broken', [False, True])
def test_mmdeploy_leaves_no_global_state(broken, checkpoint, tmp_path):
    name = DETECTORS[0]

    def state():
        scope = DefaultScope.get_current_instance()  # mmengine restores it as a copy
        return torch.onnx.export, scope and scope.scope_name, dict(os.environ)

    before = state()
    if broken:
        options = {'onnx_config.opset_version': 3}
        with pytest.raises(Exception, match=r'3'):
            exported(name, 'static', checkpoint(name), tmp_path, **options)
    else:
        exported(name, 'static', checkpoint(name), tmp_path)
    assert state() == before


@pytest.mark.parametrize(
    ('name', 'size'),
    [
        ('mnv4_ssdlite_coco', None),  # their test pipelines make one size
        ('mnv4_retinanet_coco', None),
        ('mnv4_rtmdet_coco', None),
        ('mnv4_retinanet-1x_coco', [1333, 800]),
        ('mnv4_lraspp_ade20k', [512, 512]),
        ('mnv4_fpn_ade20k', [512, 512]),
        ('mnv4_fpn_ade20k-mini', [160, 160]),
    ],
)
def test_a_static_file_has_the_size_of_the_config(name, size):
    before = load_config(name)
    deploying = mmdeploy_script.load_deploy_config(deploy_config(name, 'static'), {})
    fitted, cfg = mmdeploy_script.fit_size(deploying, before)
    assert fitted.onnx_config.input_shape == size
    resize = cfg.test_pipeline[1]
    if size is None:
        assert cfg.test_pipeline == before.test_dataloader.dataset.pipeline
    else:
        assert (list(resize.scale), resize.keep_ratio) == (size, False)
    dynamic = mmdeploy_script.load_deploy_config(deploy_config(name, 'dynamic'), {})
    fitted, cfg = mmdeploy_script.fit_size(dynamic, before)
    assert fitted.onnx_config.input_shape is None
    assert cfg.test_pipeline == before.test_dataloader.dataset.pipeline
    asked = mmdeploy_script.load_deploy_config(deploy_config(name, 'static'), {'onnx_config.input_shape': [64, 96]})
    assert mmdeploy_script.fit_size(asked, before)[1].test_pipeline[1].scale == (64, 96)


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (dict(quant=True), '--quant is for backends other than onnxruntime'),
        (dict(uri='192.168.1.1:60000'), '--uri is for'),
        (dict(deploy_cfg='configs/mnv4_ssdlite_coco.py'), 'is not a deploy config'),
        (dict(deploy_cfg='gone.py'), 'no deploy config gone.py; there are'),
        (dict(deploy_cfg='configs/deploy/segmentation_onnxruntime_static.py'), 'but the model is of mmdet'),
        (dict(cfg_options={'backend_config.type': 'tensorrt'}), 'is for tensorrt; only onnxruntime'),
        (dict(cfg_options={'codebase_config.module.7': 'x'}), '--cfg-options'),
        (dict(model_cfg='mnv4_retinanet_coco'), 'does not fit this config'),
        (dict(checkpoint='gone.pth'), 'no checkpoint file at gone.pth'),
        (dict(img='README.md'), 'README.md is not a readable image'),
        (dict(test_img=['README.md']), 'README.md is not a readable image'),
        (dict(device='cuda:99'), 'cannot be used'),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_files(change, text, checkpoint, tmp_path):
    name = DETECTORS[0]
    arguments = dict(
        deploy_cfg=deploy_config(name, 'static'), model_cfg=name, checkpoint=checkpoint(name), img=image_files(name)[0]
    )
    with pytest.raises(UserError, match=text) as error:
        mmdeploy_script.deploy(**{**arguments, 'work_dir': str(tmp_path / 'out'), **change})
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'out').exists()


def test_windows_are_refused(checkpoint):
    cfg = with_inference(load_config(SEGMENTERS[0]), 'slide')
    deploying = mmdeploy_script.load_deploy_config(deploy_config(SEGMENTERS[0], 'static'), {})
    with pytest.raises(UserError, match='whole images only'):
        mmdeploy_script.fit_size(deploying, cfg)


def test_a_checkpoint_that_would_run_code_is_refused(payload, tmp_path, call_tool):
    torch.save(dict(state_dict={}, meta=dict(payload=payload)), tmp_path / 'bad.pth')
    name = DETECTORS[0]
    result = call_tool('deploy.py', deploy_config(name, 'static'), name, tmp_path / 'bad.pth', image_files(name)[0])
    assert result.returncode == 2
    assert any(line.startswith('error: ') and 'is refused' in line for line in result.stderr.splitlines())
    assert not (tmp_path / 'ran').exists()
