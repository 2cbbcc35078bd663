"""Backbones of timm keep the contract of MobileNetV4."""

import pytest
import timm
import torch
from mmdet.testing import demo_mm_inputs
from torch.nn.modules.batchnorm import _BatchNorm

from mnv4_mm.config.backbone import with_backbone
from mnv4_mm.config.load import load_config
from mnv4_mm.errors import UserError
from mnv4_mm.models import TimmFeatures
from mnv4_mm.models.timm_features import has_fixed_input_size
from mnv4_mm.tasks import build_model

# Nets of the paper's comparison, and nets with published results on COCO and ADE20K.
PEERS = [
    'mobilenetv1_100', 'mobilenetv2_100', 'mobilenetv3_large_100', 'efficientvit_b1', 'fastvit_sa12', 'mobilevit_s',
    'mobilevitv2_100', 'efficientformerv2_s1', 'nextvit_small', 'convnext_tiny', 'pvt_v2_b0', 'repvit_m1_1',
    'mobileone_s1', 'ghostnetv2_100', 'starnet_s2', 'resnet18', 'resnet50',
]  # fmt: skip
HEADLINE = [
    'mnv4_ssdlite_coco', 'mnv4_retinanet_coco', 'mnv4_retinanet-1x_coco', 'mnv4_rtmdet_coco',
    'mnv4_lraspp_ade20k', 'mnv4_fpn_ade20k', 'mnv4_deeplabv3plus_ade20k', 'mnv4_segformer_ade20k',
]  # fmt: skip
SIZE = (128, 192)


@pytest.mark.parametrize('name', PEERS)
def test_maps_parameters_and_norms(name):
    net = TimmFeatures(
        name, (0, 1, 2, 3), img_size=SIZE if has_fixed_input_size(name) else None, norm_eval=True
    ).train()
    maps = net(torch.randn(2, 3, *SIZE))
    expected = [(2, c, SIZE[0] // s, SIZE[1] // s) for c, s in zip(net.out_channels, net.out_strides, strict=True)]
    assert net.out_strides == (4, 8, 16, 32)
    assert [tuple(m.shape) for m in maps] == expected
    sum(m.square().mean() for m in maps).backward()
    assert [key for key, p in net.named_parameters() if p.grad is None] == []
    assert not any(m.training for m in net.modules() if isinstance(m, _BatchNorm))


# Each peer with one head, each head with two peers; all pairs in the long tests.
SHORT_PAIRS = {(name, 'mnv4_fpn_ade20k') for name in PEERS}
SHORT_PAIRS |= {(name, config) for name in ('resnet18', 'efficientformerv2_s1') for config in HEADLINE}


@pytest.mark.parametrize(
    ('name', 'config'),
    [
        pytest.param(name, config, marks=() if (name, config) in SHORT_PAIRS else pytest.mark.long)
        for name in PEERS
        for config in HEADLINE
    ],
)
def test_each_fits_each_headline_config_and_runs(name, config):
    cfg = load_config(config)
    if has_fixed_input_size(name):
        if config == 'mnv4_retinanet-1x_coco':
            with pytest.raises(UserError, match='one image size'):
                with_backbone(cfg, f'timm:{name}')
            return
        cfg.input_size = SIZE[::-1]
    model = build_model(with_backbone(cfg, f'timm:{name}')).eval()
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, *SIZE))
    assert all(torch.isfinite(value).all() for part in outputs for value in part)


@pytest.mark.parametrize('name', PEERS)
def test_each_trains(name):
    cfg = load_config('mnv4_ssdlite_coco')
    cfg.input_size = SIZE[::-1]
    model = build_model(with_backbone(cfg, f'timm:{name}'))
    model.init_weights()
    data = model.data_preprocessor(demo_mm_inputs(2, [[3, *SIZE]] * 2, num_classes=80), training=True)
    losses = model.train()(**data, mode='loss')
    sum(sum(value) if isinstance(value, list) else value for value in losses.values()).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


def test_stochastic_depth_is_used_if_supported():
    assert TimmFeatures('convnext_tiny', drop_path_rate=0.2).options['drop_path_rate'] == 0.2
    fitted = with_backbone(load_config('mnv4_retinanet_coco'), 'timm:resnet18')
    assert fitted.model.backbone.drop_path_rate == 0.2
    cfg = load_config('mnv4_retinanet_coco')
    cfg.model.backbone.with_cp = True
    with pytest.raises(UserError, match='with_cp'):
        with_backbone(cfg, 'timm:resnet18')


def test_missing_network_and_files_are_user_errors(monkeypatch):
    def offline(name, pretrained=False, **options):
        raise OSError('no network')

    for checkpoint, message in (
        ('timm://resnet18.a1_in1k', 'cannot be downloaded'),
        ('w.pth', r'--weights w\.pth: no such file'),
    ):
        net = TimmFeatures('resnet18', init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
        with monkeypatch.context() as patch:
            patch.setattr(timm, 'create_model', offline)
            with pytest.raises(UserError, match=message):
                net.init_weights()


def test_weights_of_a_file(tmp_path):
    source = timm.create_model('resnet18')
    torch.save(source.state_dict(), tmp_path / 'w.pth')
    net = TimmFeatures('resnet18', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'w.pth')))
    net.init_weights()
    assert torch.equal(net.net.conv1.weight, source.conv1.weight)
    assert torch.equal(net.net.layer4[1].bn2.bias, source.layer4[1].bn2.bias)
    torch.save({'conv1.weight': torch.zeros(3, 3)}, tmp_path / 'w.pth')
    with pytest.raises(UserError, match='does not fit timm:resnet18'):
        net.init_weights()


def test_index_4_is_c5():
    net = TimmFeatures('resnet18', (2, 4)).eval()
    assert net.out_channels == (256, 512)
    c4, last = net(torch.randn(1, 3, 64, 64))
    assert (c4.shape[-1], last.shape[-1]) == (4, 2)


@pytest.mark.parametrize('name', ['swin_tiny_patch4_window7_224', 'mambaout_femto'])
def test_feature_maps_that_timm_has_as_nhwc(name):
    net = TimmFeatures(name, (0, 1, 2, 3)).eval()
    images = torch.randn(1, 3, 224, 224)
    maps = net(images)
    sizes = zip(net.out_channels, (4, 8, 16, 32), strict=True)
    assert [m.shape[1:] for m in maps] == [(channels, 224 // stride, 224 // stride) for channels, stride in sizes]
    for ours, theirs in zip(maps, net.net(images), strict=True):
        assert torch.equal(ours, theirs.movedim(-1, 1))


def test_stride_32_of_timms_mobilenetv4_is_the_wide_feature_map():
    theirs = TimmFeatures('mobilenetv4_conv_small', (0, 1, 2, 3)).eval()
    assert theirs.out_channels == (32, 64, 96, 960)


def test_weights_are_loaded_by_timm(monkeypatch):
    source = timm.create_model('resnet18', features_only=True, out_indices=(2, 3, 4))
    create = timm.create_model
    asked = []

    def fake(name, pretrained=False, **options):
        asked.append((name, pretrained))
        return source if pretrained else create(name, **options)

    monkeypatch.setattr(timm, 'create_model', fake)
    net = TimmFeatures('resnet18', init_cfg=dict(type='Pretrained', checkpoint='timm://resnet18.a1_in1k'))
    net.init_weights()
    assert asked[-1] == ('resnet18.a1_in1k', True)
    for key, value in source.state_dict().items():
        assert torch.equal(net.net.state_dict()[key], value)


@pytest.mark.parametrize(
    ('arguments', 'message'), [(dict(name='resnet19'), 'similar names'), (dict(name='vit_tiny_patch16_224'), 'strides')]
)
def test_unknown_and_unsuitable_nets_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        TimmFeatures(**arguments)
