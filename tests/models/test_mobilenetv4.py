"""The backbone's contract, over all nets."""

import copy
import math

import pytest
import torch
from mmengine.registry import MODELS
from torch.nn.modules.batchnorm import _BatchNorm

from mnv4_mm.models import MobileNetV4
from mnv4_mm.models.arch import ARCHS
from mnv4_mm.models.layers import MultiQueryAttention, make_divisible, matmul_attention

INDICES = [(0,), (1, 2, 3), (2, 4), (0, 1, 2, 3, 4)]


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_the_bare_name_is_found_from_other_scopes(scope):
    registry = __import__(f'{scope}.registry').registry.MODELS
    assert isinstance(registry.build(dict(type='MobileNetV4')), MobileNetV4)


@pytest.mark.parametrize('out_indices', INDICES)
@pytest.mark.parametrize('arch', ARCHS)
def test_maps_have_the_promised_shapes_and_every_parameter_learns(arch, out_indices):
    net = MobileNetV4(arch, out_indices).train()
    height, width = 97, 131
    maps = net(torch.randn(2, 3, height, width))
    expected = [
        (2, channels, math.ceil(height / stride), math.ceil(width / stride))
        for channels, stride in zip(net.out_channels, net.out_strides, strict=True)
    ]
    assert [tuple(m.shape) for m in maps] == expected
    sum(m.square().mean() for m in maps).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('arch', ['conv_s', 'hybrid_m'])
@pytest.mark.parametrize('stages', range(-1, 5))
def test_frozen_stages_do_not_move(arch, stages):
    net = MobileNetV4(arch, (0, 1, 2, 3), frozen_stages=stages).train()
    before = copy.deepcopy(net.state_dict())
    sum(m.mean() for m in net(torch.randn(2, 3, 64, 64, requires_grad=True))).backward()
    torch.optim.SGD([p for p in net.parameters() if p.requires_grad] or [torch.zeros(1)], 0.1, weight_decay=0.1).step()
    frozen = ('conv_stem', 'bn1', *(f'blocks.{i}.' for i in range(stages))) if stages >= 0 else ()
    for name, value in net.state_dict().items():
        if name.startswith(frozen) and frozen:
            assert torch.equal(value, before[name]), name
        elif name.endswith(('running_mean', 'conv.weight')):
            assert not torch.equal(value, before[name]), name


def test_norm_eval_keeps_statistics_and_trains_weights():
    net = MobileNetV4('conv_s', norm_eval=True).train()
    assert not any(m.training for m in net.modules() if isinstance(m, _BatchNorm))
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize('arch', ['conv_s', 'hybrid_m'])
def test_checkpointing_changes_no_number(arch):
    torch.manual_seed(0)
    plain = MobileNetV4(arch, (1, 2, 3)).double().train()
    saving = MobileNetV4(arch, (1, 2, 3), with_cp=True).double().train()
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for net in (plain, saving):
        sum(m.square().mean() for m in net(x)).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_drop_path_grows_over_the_blocks_and_spares_evaluation():
    net = MobileNetV4('conv_m', (3,), drop_path_rate=0.5)
    rates = [
        b.drop_path.drop_prob for stage in net.blocks for b in stage if hasattr(getattr(b, 'drop_path', 0), 'drop_prob')
    ]
    assert rates == sorted(rates)
    assert 0.4 < rates[-1] < 0.5
    net.eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(net(x)[0], net(x)[0])


def test_settings_reach_every_layer():
    net = MODELS.build(
        dict(type='MobileNetV4', arch='hybrid_m', norm_cfg=dict(type='BN', eps=1e-3), act_cfg=dict(type='HSwish'))
    )
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm)]
    assert {m.eps for m in norms} == {1e-3}
    assert not any(isinstance(m, torch.nn.ReLU) for m in net.modules())


def test_both_forms_of_attention_agree():
    net = MobileNetV4('hybrid_m', (2, 3)).double().eval()
    x = torch.randn(1, 3, 80, 112, dtype=torch.float64)
    fused = net(x)
    for module in net.modules():
        if isinstance(module, MultiQueryAttention):
            module.attend = matmul_attention
    for a, b in zip(fused, net(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_copies_and_state_round_trip():
    net = MobileNetV4('hybrid_m').eval()
    x = torch.randn(1, 3, 64, 64)
    other = MobileNetV4('hybrid_m').eval()
    other.load_state_dict(copy.deepcopy(net).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(net(x), other(x), strict=True))


@pytest.mark.parametrize(
    'wrong', [dict(arch='conv_xl'), dict(out_indices=(3, 2)), dict(out_indices=()), dict(out_indices=(5,)),
              dict(frozen_stages=5), dict(drop_path_rate=1.0)]
)  # fmt: skip
def test_wrong_arguments_are_named(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=name):
        MobileNetV4(**wrong)
    assert value is not None


@pytest.mark.parametrize(('channels', 'expected'), [(32 * 0.35, 16), (32 * 3, 96), (11, 16), (96 * 0.5, 48)])
def test_make_divisible(channels, expected):
    assert make_divisible(channels) == expected
