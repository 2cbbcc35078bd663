"""Every shipped config is built and runs, without network: loss, predict and tensor; and its pictures go through."""

import ast

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS

from mnv4_mm.apis import config as configs

NAMES = sorted(configs.config_index())


@pytest.fixture(autouse=True)
def scope():
    register_all_modules(init_default_scope=True)


@pytest.mark.parametrize('name', NAMES)
def test_it_says_what_it_costs_and_how_to_run_it(name):
    docstring = ast.get_docstring(ast.parse(configs.config_index()[name].read_text()))
    assert f'tools/train.py configs/{name}.py' in docstring
    assert name.endswith('-mini') or ('Cost:' in docstring and 'AP:' in docstring)


@pytest.mark.parametrize('name', NAMES)
def test_it_runs(name):
    torch.manual_seed(0)
    cfg = configs.load_config(name)
    cfg.model.backbone.pop('init_cfg', None)  # weights from the hub
    model = MODELS.build(cfg.model)
    model.init_weights()
    inputs = demo_mm_inputs(2, [[3, 128, 160], [3, 96, 128]], num_classes=80)
    data = model.data_preprocessor(inputs, training=True)
    model.train()
    losses = model(**data, mode='loss')
    total = sum(value if torch.is_tensor(value) else sum(value) for key, value in losses.items() if 'loss' in key)
    assert torch.isfinite(total)
    total.backward()
    unused = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    model.eval()
    with torch.no_grad():
        assert len(model.forward(**data, mode='predict')) == 2
        assert torch.is_tensor(model.forward(data['inputs'], mode='tensor')[0][0])


@pytest.mark.parametrize('name', NAMES)
def test_its_optimiser_takes_every_parameter_once(name):
    cfg = configs.load_config(name)
    model = MODELS.build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    taken = [id(p) for group in groups for p in group['params']]
    assert sorted(taken) == sorted({id(p) for p in model.parameters()})


@pytest.mark.parametrize('name', NAMES)
def test_its_pipelines_take_real_pictures(name, repository):
    cfg = configs.load_config(name)
    root = repository / 'data/mini/coco'
    from mnv4_mm.data.coco import find_coco

    cfg = configs.fit_data(cfg, find_coco(root))
    train, val = (DATASETS.build(cfg[f'{split}_dataloader'].dataset) for split in ('train', 'val'))
    sample = train[0]
    assert sample['inputs'].dtype in (torch.uint8, torch.float32)  # SSD's colour augmentation computes in float
    if name != 'mnv4_retinanet-1x_coco':  # which keeps the picture's shape
        assert tuple(sample['inputs'].shape) == (3, *cfg.input_size[::-1])
    boxes = sample['data_samples'].gt_instances.bboxes.tensor
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor(sample['inputs'].shape[1:]).flip(0).repeat(2)).all()
    # Ground truth of the test set is in pixels of the original picture, where it is drawn.
    truth = val[0]['data_samples']
    height, width = truth.ori_shape
    whole = val.get_data_info(0)['instances']
    kept = truth.gt_instances.bboxes.tensor
    expected = torch.tensor([i['bbox'] for i in whole if not i['ignore_flag']])
    torch.testing.assert_close(kept, expected)
    assert (kept[:, 2] <= width + 1).all()
    assert (kept[:, 3] <= height + 1).all()
