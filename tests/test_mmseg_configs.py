"""Our segmentation configs against mmseg's for the same head, so that mIoU is comparable.

mmseg ships its configs with the package. Ours get the backbone of mmseg's, so that weights and batch can be the same in
both; other differences are listed here with their reasons.
"""

from pathlib import Path

import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mnv4_mm.config.data import innermost_dataset
from mnv4_mm.config.load import load_config
from mnv4_mm.tasks import build_model

MMSEG = Path(mmseg.__file__).parent / '.mim/configs'
THEIRS = {
    'mnv4_lraspp_ade20k': 'mobilenet_v3/mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024.py',
    'mnv4_fpn_ade20k': 'poolformer/fpn_poolformer_s12_8xb4-40k_ade20k-512x512.py',
    'mnv4_deeplabv3plus_ade20k': 'mobilenet_v2/mobilenet-v2-d8_deeplabv3plus_4xb4-160k_ade20k-512x512.py',
    'mnv4_segformer_ade20k': 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
}
# mmseg has LR-ASPP on Cityscapes only.
ADE20K = [name for name in THEIRS if name != 'mnv4_lraspp_ade20k']
# PoolFormer's backbone is mmpretrain's, which need not be installed: ResNet-18, the same in both.
RESNET = dict(type='ResNetV1c', depth=18, out_indices=(0, 1, 2, 3))
WIDTHS = [64, 128, 256, 512]


def pair(name: str) -> tuple[Config, Config]:
    """Return our config with mmseg's backbone, and mmseg's; plain batch norm in both, as SyncBN is on one CPU."""
    ours, theirs = load_config(name), Config.fromfile(MMSEG / THEIRS[name], import_custom_modules=False)
    theirs.model.pop('pretrained', None)
    theirs.model.backbone.pop('init_cfg', None)
    if name == 'mnv4_fpn_ade20k':
        theirs.model.backbone, theirs.model.neck.in_channels = RESNET, WIDTHS
    plain(theirs.model)
    ours.model.backbone = theirs.model.backbone
    return ours, theirs


def plain(part):
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ():
        if isinstance(value, dict) and value.get('type') == 'SyncBN':
            value['type'] = 'BN'
        plain(value)


def take_maps(ours, theirs, name):
    """Take widths and feature maps of the other backbone, which --backbone sets in our configs."""
    if name == 'mnv4_fpn_ade20k':
        ours.neck.in_channels = theirs.neck.in_channels
        return
    for head in ('decode_head', 'auxiliary_head'):
        for key in ('in_channels', 'in_index', 'c1_in_channels'):
            if head in ours and key in ours[head]:
                ours[head][key] = theirs[head][key]


@pytest.mark.filterwarnings('ignore:In MMCV v1.4.4:UserWarning')  # of mmseg's MobileNetV3
@pytest.mark.parametrize('name', THEIRS)
def test_the_same_weights_and_batch_give_the_same_loss(name, segmentation_batch):
    ours, theirs = pair(name)
    take_maps(ours.model, theirs.model, name)
    height, width = 128, 128
    if name == 'mnv4_deeplabv3plus_ade20k':
        # Output stride 8 there, 16 here: half the dilation spans the same pixels. The backbone here has theirs.
        assert [d if d == 1 else 2 * d for d in ours.model.decode_head.dilations] == [1, 12, 24, 36]
        ours.model.decode_head.dilations = theirs.model.decode_head.dilations
    if name == 'mnv4_lraspp_ade20k':
        # 19 classes there. Its pool of 49x49 covers the whole map, as ours does, at 392 pixels and stride 8.
        theirs.model.decode_head.num_classes = 150
        height, width = 392, 392
    losses = []
    with DefaultScope.overwrite_default_scope('mmseg'):
        torch.manual_seed(0)
        models = [build_model(cfg) for cfg in (theirs, ours)]
        models[0].init_weights()
        models[1].load_state_dict(models[0].state_dict())  # strict: the same parameters by name and shape
        for model, cfg in zip(models, (theirs, ours), strict=True):
            model.data_preprocessor.size = (height, width)
            assert cfg.model.train_cfg == {}
            data = model.data_preprocessor(segmentation_batch(height, width), training=True)
            torch.manual_seed(1)  # of dropout
            losses.append(model.train()(**data, mode='loss'))
    assert losses[0].keys() == losses[1].keys()
    for key, value in losses[0].items():
        torch.testing.assert_close(losses[1][key], value, rtol=1e-5, atol=0, msg=key)
    assert losses[0]['decode.loss_ce'] > 1


def steps(pipeline):
    """Return the steps of a pipeline without `reduce_zero_label`, which the data set may have instead."""
    return [{k: v for k, v in step.items() if k not in ('reduce_zero_label', 'backend_args')} for step in pipeline]


def with_multiples_of_32(pipeline):
    """Return mmseg's test pipeline with the step that only its Semantic FPN has, and all of our configs."""
    multiple = dict(type='ResizeToMultiple', size_divisor=32)
    return pipeline if multiple in pipeline else [*pipeline[:2], multiple, *pipeline[2:]]


def augmentation(pipeline):
    """Return mmseg's augmentation as the one step of ours."""
    types = ['LoadImageFromFile', 'LoadAnnotations', 'RandomResize', 'RandomCrop', 'RandomFlip']
    assert [step.type for step in pipeline] == [*types, 'PhotoMetricDistortion', 'PackSegInputs']
    resize, crop, flip, colour, pack = pipeline[2:]
    assert resize.keep_ratio
    assert colour == dict(type='PhotoMetricDistortion')  # its own ranges, which are SegAugmentation's too
    settings = dict(scale=resize.scale, ratio_range=resize.ratio_range, flip_prob=flip.prob)
    crop = {key: value for key, value in crop.items() if key != 'type'}
    return [dict(type='SegAugmentation', **settings, **crop), pack]


@pytest.mark.parametrize('name', ADE20K)
def test_data_preparation_and_recipe_are_mmsegs(name):
    ours, theirs = load_config(name), Config.fromfile(MMSEG / THEIRS[name], import_custom_modules=False)
    for loader in ('train_dataloader', 'val_dataloader'):
        mine, its = (innermost_dataset(cfg[loader].dataset) for cfg in (ours, theirs))
        expected = augmentation(its.pipeline) if 'train' in loader else with_multiples_of_32(steps(its.pipeline))
        assert steps(mine.pipeline) == expected
        assert (mine.type, mine.data_prefix) == (its.type, its.data_prefix)
        assert ours[loader].batch_size == theirs[loader].batch_size
    assert ours.train_cfg.max_iters == theirs.train_cfg.max_iters
    assert ours.optim_wrapper.optimizer == theirs.optim_wrapper.optimizer
    defaults = dict(begin=0, by_epoch=False)
    assert [defaults | s for s in ours.param_scheduler] == [defaults | s for s in theirs.param_scheduler]
    given = {key: value for key, value in ours.model.data_preprocessor.items() if key != 'size'}
    assert given == {key: value for key, value in theirs.model.data_preprocessor.items() if key != 'size'}
    assert ours.model.data_preprocessor.size == theirs.crop_size
    assert ours.model.test_cfg == theirs.model.test_cfg
    if name == 'mnv4_segformer_ade20k':
        assert theirs.optim_wrapper.paramwise_cfg.custom_keys['head'].lr_mult == 10
        assert ours.optim_wrapper.paramwise_cfg.custom_keys['decode_head'].lr_mult == 10
