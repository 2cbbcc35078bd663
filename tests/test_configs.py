"""Every shipped config runs without network (loss, predict, tensor), and its pipelines read real images."""

import ast

import numpy as np
import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from mnv4_mm.config.data import with_data
from mnv4_mm.config.index import config_index
from mnv4_mm.config.load import load_config
from mnv4_mm.tasks import build_model, task_of
from mnv4_mm.tasks.segmentation import Segmentation

NAMES = sorted(config_index())
DETECTORS = [name for name in NAMES if '_coco' in name or '_bccd' in name]
SEGMENTERS = [name for name in NAMES if '_ade20k' in name]


@pytest.fixture(autouse=True)
def scope(request):
    with DefaultScope.overwrite_default_scope(
        'mmseg' if request.node.callspec.params['name'] in SEGMENTERS else 'mmdet'
    ):
        yield


@pytest.mark.parametrize('name', NAMES)
def test_its_docstring_has_command_cost_and_score(name):
    docstring = ast.get_docstring(ast.parse(config_index()[name].read_text()))
    assert f'tools/train.py configs/{name}.py' in docstring
    score = {True: 'AP:', False: 'mIoU:'}[name in DETECTORS]
    assert name.endswith('-mini') or ('Cost:' in docstring and score in docstring)
    assert isinstance(task_of(load_config(name)), Segmentation) == (name in SEGMENTERS)


@pytest.mark.parametrize('name', NAMES)
def test_it_runs(name, segmentation_batch):
    torch.manual_seed(0)
    cfg = load_config(name)
    cfg.model.backbone.pop('init_cfg', None)  # weights from the hub
    if name in DETECTORS:
        inputs = demo_mm_inputs(2, [[3, 128, 160], [3, 96, 128]], num_classes=cfg.model.bbox_head.num_classes)
    else:
        cfg.model.data_preprocessor.size = (128, 160)
        inputs = segmentation_batch(128, 160)
    model = build_model(cfg)
    model.init_weights()
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
    cfg = load_config(name)
    model = build_model(cfg)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    taken = [id(p) for group in groups for p in group['params']]
    assert sorted(taken) == sorted({id(p) for p in model.parameters()})


def data_sets(name: str, root):
    cfg = load_config(name)
    cfg = with_data(cfg, task_of(cfg).find(root))
    return cfg, *(DATASETS.build(cfg[f'{split}_dataloader'].dataset) for split in ('train', 'val'))


@pytest.mark.parametrize('name', DETECTORS)
def test_its_pipelines_take_real_images_and_boxes(name, repository):
    cfg, train, val = data_sets(name, repository / 'data/mini/coco')
    sample = train[0]
    assert sample['inputs'].dtype in (torch.uint8, torch.float32)  # SSD's colour augmentation computes in float
    if name != 'mnv4_retinanet-1x_coco':  # which keeps the aspect ratio
        assert tuple(sample['inputs'].shape) == (3, *cfg.input_size[::-1])
    boxes = sample['data_samples'].gt_instances.bboxes.tensor
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor(sample['inputs'].shape[1:]).flip(0).repeat(2)).all()
    # Ground ground_truth of the test set is in pixels of the original image.
    ground_truth = val[0]['data_samples']
    height, width = ground_truth.ori_shape
    whole = val.get_data_info(0)['instances']
    kept = ground_truth.gt_instances.bboxes.tensor
    expected = torch.tensor([i['bbox'] for i in whole if not i['ignore_flag']])
    torch.testing.assert_close(kept, expected)
    assert (kept[:, 2] <= width + 1).all()
    assert (kept[:, 3] <= height + 1).all()


@pytest.mark.parametrize('name', SEGMENTERS)
def test_its_pipelines_take_real_images_and_masks(name, repository):
    cfg, train, val = data_sets(name, repository / 'data/mini/ade')
    size = cfg.input_size[::-1]
    assert cfg.model.data_preprocessor.size == size  # training pads to the size of a crop
    samples = [train[i] for i in range(4)]
    model = build_model(cfg)
    data = model.data_preprocessor(pseudo_collate(samples), training=True)
    assert tuple(data['inputs'].shape) == (4, 3, *size)
    labels = {int(v) for s in data['data_samples'] for v in s.gt_sem_seg.data.unique()}
    assert labels <= {*range(150), 255}
    # Ground ground_truth of the test set has the size of the original image, and value 1 of a mask is class 0.
    ground_truth = val[0]['data_samples']
    mask = torch.tensor(np.array(Image.open(ground_truth.seg_map_path))).long()
    assert ground_truth.gt_sem_seg.data.shape[1:] == mask.shape == ground_truth.ori_shape
    assert torch.equal(ground_truth.gt_sem_seg.data[0], torch.where(mask == 0, 255, mask - 1))


@pytest.mark.parametrize('name', SEGMENTERS)
def test_its_first_numbers_reach_the_schedule(name):
    """Numbers at the head of a config reach the place where they are used."""
    cfg = load_config(name)
    assert cfg.train_cfg.max_iters == cfg.max_iters == cfg.param_scheduler[-1].end
    gpus = cfg.auto_scale_lr.base_batch_size / cfg.train_dataloader.batch_size
    assert gpus in ((1,) if name.endswith('-mini') else (4, 8))
    assert cfg.custom_imports.imports == ['mnv4_mm']
