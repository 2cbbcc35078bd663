"""Heads that work around errors of mmdet and mmseg, and the size of the paper's detector."""

import pytest
import torch
from mmdet.models.dense_heads import SSDHead
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mnv4_mm.config.load import load_config
from mnv4_mm.models import SeparableConv2d, SSDLiteHead
from mnv4_mm.report.complexity import count_config


@pytest.fixture(autouse=True)
def scope(request):
    with DefaultScope.overwrite_default_scope('mmseg' if 'lraspp' in request.node.name else 'mmdet'):
        yield


def test_mmdets_ssd_head_is_still_broken():
    """When this fails, mmdet's SSDHead can predict again, and SSDLiteHead can be removed."""
    settings = load_config('mnv4_ssdlite_coco').model.bbox_head
    settings.pop('type')
    assert not hasattr(SSDHead(**settings), 'loss_cls')
    assert hasattr(SSDLiteHead(**settings), 'loss_cls')


# From section 7.2 of the paper, without the classifier's layers of 960 and 1280 channels, which the paper counts but
# the detector does not use, and with COCO's 80 classes instead of 91 ids.
@pytest.mark.parametrize(('backbone', 'params', 'gmacs'), [(None, 8.19, 4.95), ('mnv4_hybrid_m', 9.55, 5.50)])
def test_the_detector_has_the_size_of_the_paper(backbone, params, gmacs):
    counted = count_config('mnv4_retinanet_coco', backbone)
    assert counted.params / 1e6 == pytest.approx(params, rel=0.01)
    assert counted.macs / 1e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize(('kernel', 'stride'), [(3, 1), (3, 2), (5, 1), (1, 1)])
def test_separable_convolution_is_a_depthwise_and_a_pointwise_one(kernel, stride):
    torch.manual_seed(0)
    conv = SeparableConv2d(8, 12, kernel, stride=stride, padding=kernel // 2)
    x = torch.randn(2, 8, 9, 11)
    # Equal to one dense convolution whose kernel is the outer product of the two.
    spatial = conv.depthwise.weight if kernel > 1 else torch.ones(8, 1, 1, 1)
    dense = conv.pointwise.weight * spatial.transpose(0, 1)
    expected = nn.functional.conv2d(x, dense, conv.pointwise.bias, stride, kernel // 2)
    torch.testing.assert_close(conv(x), expected)


def test_separable_convolution_is_built_by_conv_cfg():
    from mmcv.cnn import ConvModule

    module = ConvModule(8, 12, 3, padding=1, conv_cfg=dict(type='SeparableConv2d'), norm_cfg=dict(type='BN'))
    assert isinstance(module.conv, SeparableConv2d)
    assert module.conv.bias is None  # mmcv omits it before a norm
    with pytest.raises(ValueError, match='groups'):
        SeparableConv2d(8, 8, 3, groups=2)


def test_levels_share_towers_but_not_norms():
    head = MODELS.build(
        dict(type='SeparableRetinaHead', num_classes=3, num_ins=5, in_channels=16, feat_channels=16,
             conv_cfg=dict(type='SeparableConv2d'), norm_cfg=dict(type='BN'),
             anchor_generator=dict(type='mmdet.AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
                                   ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]))
    )  # fmt: skip
    assert head.cls_convs[0][0].conv is head.cls_convs[4][0].conv
    assert head.cls_convs[0][0].norm is not head.cls_convs[4][0].norm
    assert isinstance(head.retina_cls, SeparableConv2d)
    head.init_weights()
    # Initial probability of an object for the focal loss: sigmoid(bias) = 0.01.
    assert torch.sigmoid(head.retina_cls.bias).mean().item() == pytest.approx(0.01)


def lraspp(kind: str, **more):
    norm = dict(type='BN')
    return MODELS.build(
        dict(
            type=kind,
            in_channels=(8, 12, 16),
            in_index=(0, 1, 2),
            channels=8,
            input_transform='multiple_select',
            num_classes=5,
            norm_cfg=norm,
            **more,
        )
    )


def maps(size: int) -> list[torch.Tensor]:
    return [torch.randn(2, c, size * f, size * f) for c, f in ((8, 4), (12, 2), (16, 1))]


def test_mmsegs_lraspp_head_still_fails_on_small_feature_maps():
    """When this fails, mmseg has fixed its issue 973, and GlobalLRASPPHead can be removed."""
    with pytest.raises(RuntimeError, match='too small'):
        lraspp('mmseg.LRASPPHead').eval()(maps(20))


@pytest.mark.parametrize('size', [1, 20, 60])
def test_our_lraspp_head_accepts_feature_maps_of_any_size(size):
    assert lraspp('GlobalLRASPPHead').eval()(maps(size)).shape == (2, 5, 4 * size, 4 * size)


def test_our_lraspp_head_equals_mmsegs_on_feature_maps_of_49x49():
    theirs, ours = lraspp('mmseg.LRASPPHead').eval(), lraspp('GlobalLRASPPHead').eval()
    ours.load_state_dict(theirs.state_dict())
    features = maps(49)
    torch.testing.assert_close(ours(features), theirs(features), rtol=1e-5, atol=1e-6)
