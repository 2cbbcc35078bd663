"""The backbone's contract, over all nets."""

import copy

import pytest
import torch
from mmengine.registry import MODELS
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from mnv4_mm.models import MobileNetV4
from mnv4_mm.models.arch import ARCHS, MQA, make_divisible
from mnv4_mm.models.layers import LayerScale, MultiQueryAttention, matmul_attention, repeated_attention

PUBLISHED = ['conv_s', 'conv_m', 'conv_l', 'hybrid_m', 'hybrid_l']
# One net of each kind: plain, with attention, with either antialiasing, without the wide last convolution. The others
# run the same code on larger tables, which test_parity.py compares with timm's.
KINDS = ('conv_s', 'hybrid_m', 'conv_aa_m', 'conv_blur_m', 'conv_m_seg')
FOUR = (0, 1, 2, 3)


def mark_others_long(names, short):
    return [name if name in short else pytest.param(name, marks=pytest.mark.long) for name in names]


every_arch = pytest.mark.parametrize('arch', mark_others_long(ARCHS, KINDS))


def all_maps(arch):
    return FOUR if ARCHS[arch].head_conv is None else (*FOUR, 4)


def expected_sizes(arch, height, width, output_stride=32):
    """Return the size of each feature map, stride by stride: half, rounded up; a 2x2 mean rounds down."""
    spec = ARCHS[arch]
    size, stride, sizes = [-(-side // 2) for side in (height, width)], 2, []
    for stage in spec.stages:
        for row in stage:
            if not isinstance(row, MQA) and row.stride == 2 and stride < output_stride:
                size = [side // 2 if spec.antialias == 'avg' else -(-side // 2) for side in size]
                stride *= 2
        sizes.append(tuple(size))
    return [*sizes, sizes[-1]]


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_the_bare_name_is_found_from_other_scopes(scope):
    registry = __import__(f'{scope}.registry').registry.MODELS
    assert isinstance(registry.build(dict(type='MobileNetV4')), MobileNetV4)


@pytest.mark.parametrize('output_stride', [32, 16, 8])
@every_arch
def test_feature_maps_have_the_promised_shapes(arch, output_stride):
    indices = all_maps(arch)
    net = MobileNetV4(arch, indices, output_stride=output_stride).eval()
    height, width = 193, 223
    with torch.no_grad():
        maps = net(torch.randn(1, 3, height, width))
    sizes = expected_sizes(arch, height, width, output_stride)
    assert [tuple(m.shape) for m in maps] == [(1, c, *sizes[i]) for i, c in zip(indices, net.out_channels, strict=True)]
    assert net.out_strides == tuple(min(4 * 2 ** min(i, 3), output_stride) for i in indices)


@pytest.mark.parametrize('out_indices', [(0,), (1, 2, 3), (2, 4), (0, 1, 2, 3, 4)])
@every_arch
def test_every_parameter_that_is_built_learns(arch, out_indices):
    out_indices = tuple(i for i in out_indices if i in all_maps(arch))
    net = MobileNetV4(arch, out_indices).train()
    sum(m.square().mean() for m in net(torch.randn(2, 3, 65, 97))).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('arch', mark_others_long(['conv_s', 'conv_m', 'conv_l', 'conv_m_seg', 'conv_s_050'], KINDS))
@pytest.mark.parametrize('output_stride', [16, 8])
def test_a_dilated_net_equals_the_strided_one(arch, output_stride):
    """With the same weights, the dilated feature map sampled at the stride is the strided one, except for rounding.

    CPUs with other kernels sum in another order. In float64 the difference was up to 2e-10 of a value; a convolution
    that reads one pixel too far changes the map by more than a hundredth of its largest value.
    """
    strided = MobileNetV4(arch, FOUR).double().eval()
    dilated = MobileNetV4(arch, FOUR, output_stride=output_stride).double().eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 128, 192, dtype=torch.float64)
    with torch.no_grad():
        for a, b, wide, narrow in zip(strided(x), dilated(x), strided.out_strides, dilated.out_strides, strict=True):
            step, largest = wide // narrow, float(a.abs().max())
            torch.testing.assert_close(b[:, :, ::step, ::step], a, rtol=0, atol=1e-8 * largest)
            if step > 1:
                assert float((b[:, :, 1::step, 1::step] - a).abs().max()) > 1e-2 * largest


@pytest.mark.parametrize('arch', ['hybrid_m', 'hybrid_l', 'conv_aa_m', 'conv_blur_m'])
def test_dilation_keeps_the_weights(arch):
    state = MobileNetV4(arch, FOUR).state_dict()
    MobileNetV4(arch, FOUR, output_stride=8).load_state_dict(state, strict=True)


@every_arch
@pytest.mark.parametrize('stages', [-1, 0, 2, 4])
def test_frozen_stages_do_not_move(arch, stages):
    net = MobileNetV4(arch, FOUR, frozen_stages=stages).train()
    before = copy.deepcopy(net.state_dict())
    sum(m.mean() for m in net(torch.randn(2, 3, 64, 64, requires_grad=True))).backward()
    learning = [p for p in net.parameters() if p.requires_grad]
    if learning:
        torch.optim.SGD(learning, 0.1, weight_decay=0.1).step()
    frozen = ('conv_stem', 'bn1', *(f'blocks.{i}.' for i in range(stages))) if stages >= 0 else ()
    for name, value in net.state_dict().items():
        if frozen and name.startswith(frozen):
            assert torch.equal(value, before[name]), name
        elif name.endswith(('running_mean', 'conv.weight')):
            assert not torch.equal(value, before[name]), name
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == bool(frozen and name.startswith(frozen)), name


@every_arch
def test_norm_eval_keeps_statistics_and_trains_weights(arch):
    net = MobileNetV4(arch, norm_eval=True).train()
    before = {name: value.clone() for name, value in net.named_buffers()}
    sum(m.mean() for m in net(torch.randn(2, 3, 64, 64))).backward()
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert all(p.grad is not None for p in net.parameters())


@every_arch
def test_sync_bn_is_batch_norm_on_one_device(arch):
    plain = MobileNetV4(arch, (3,)).eval()
    synced = MobileNetV4(arch, (3,), norm_cfg=dict(type='SyncBN', requires_grad=True)).eval()
    synced.load_state_dict(plain.state_dict())
    assert all(isinstance(m, torch.nn.SyncBatchNorm) for m in synced.modules() if isinstance(m, _BatchNorm))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(plain(x)[0], synced(x)[0])


@every_arch
def test_recomputing_saves_memory_and_changes_no_number(arch):
    torch.manual_seed(0)
    plain = MobileNetV4(arch, (1, 2, 3)).double().train()
    saving = MobileNetV4(arch, (1, 2, 3), with_cp=True).double().train()
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    kept = []
    for net in (plain, saving):
        bytes_kept = 0

        def pack(tensor):
            nonlocal bytes_kept
            bytes_kept += tensor.numel() * tensor.element_size()
            return tensor

        def block_input(_, inputs):
            nonlocal bytes_kept
            bytes_kept += inputs[0].numel() * inputs[0].element_size()

        # A recomputed block keeps its input, which the hooks on saved tensors do not see.
        blocks = [block for stage in net.blocks for block in stage] if net.with_cp else []
        handles = [block.register_forward_pre_hook(block_input) for block in blocks]
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = sum(m.square().mean() for m in net(x))
        kept.append(bytes_kept)
        for handle in handles:
            handle.remove()
        loss.backward()
    assert kept[1] < 0.6 * kept[0]
    # The same sums, in float64. Statistics that are updated twice differ by a tenth.
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=1e-9 * float(a.grad.abs().max()), msg=name)
    for (name, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9, msg=name)


@every_arch
def test_channels_last_and_bfloat16(arch):
    torch.manual_seed(0)
    net = MobileNetV4(arch, (1, 2, 3)).eval()
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        plain = net(x)
        net = net.to(memory_format=torch.channels_last)
        last = net(x.contiguous(memory_format=torch.channels_last))
        with torch.autocast('cpu', torch.bfloat16):
            half = net(x)
    for a, b, c in zip(plain, last, half, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4 * float(a.abs().max()))
        assert b.is_contiguous(memory_format=torch.channels_last)
        assert float((c.float() - a).norm() / a.norm()) < 0.2  # untrained nets amplify rounding


@every_arch
def test_copies_and_state_round_trip(arch):
    net = MobileNetV4(arch).eval()
    x = torch.randn(1, 3, 64, 64)
    copied, loaded = copy.deepcopy(net), MobileNetV4(arch).eval()
    loaded.load_state_dict(net.state_dict())
    before = net(x)
    for other in (copied, loaded):
        assert all(torch.equal(a, b) for a, b in zip(before, other(x), strict=True))
    # The copy shares no tensor with the original.
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, copied(x), strict=True))
    copied.train()
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize('arch', mark_others_long(PUBLISHED, KINDS))
def test_export_gives_the_same_graph(arch):
    net = MobileNetV4(arch).eval()
    x = torch.randn(1, 3, 64, 96)
    exported = torch.export.export(net, (x,)).module()
    with torch.no_grad():
        for a, b in zip(net(x), exported(x), strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=1e-5 * float(a.abs().max()))


@pytest.mark.long
@pytest.mark.parametrize('arch', PUBLISHED)
def test_compile_takes_the_whole_net(arch):
    net = MobileNetV4(arch).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(net(x), torch.compile(net, fullgraph=True)(x), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


def test_drop_path_grows_over_the_blocks_and_is_off_in_evaluation():
    net = MobileNetV4('conv_m', (3,), drop_path_rate=0.5)
    rates = [
        block.drop_path.drop_prob for block in net.modules() if hasattr(getattr(block, 'drop_path', 0), 'drop_prob')
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


@pytest.mark.parametrize('attend', [matmul_attention, repeated_attention])
@pytest.mark.parametrize('arch', mark_others_long(['hybrid_m', 'hybrid_l'], KINDS))
def test_all_forms_of_attention_agree(arch, attend):
    net = MobileNetV4(arch, (2, 3)).double().eval()
    for module in net.modules():
        if isinstance(module, LayerScale):
            torch.nn.init.ones_(module.gamma)  # its initial 1e-5 would hide what attention computes
    x = torch.randn(1, 3, 80, 112, dtype=torch.float64)
    with torch.no_grad():
        fused = net(x)
        for module in net.modules():
            if isinstance(module, MultiQueryAttention):
                module.attend = attend
        products = net(x)
    # Both sum in another order, in float64; heads in the wrong order change the map by more than a hundredth.
    for a, b in zip(fused, products, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * float(b.abs().max()))


@pytest.mark.parametrize(
    'wrong',
    [
        dict(arch='conv_xl'),
        dict(out_indices=(3, 2)),
        dict(out_indices=()),
        dict(out_indices=(5,)),
        dict(out_indices=(4,), arch='conv_m_seg'),
        dict(output_stride=4),
        dict(frozen_stages=5),
        dict(drop_path_rate=1.0),
    ],
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MobileNetV4(**wrong)


@pytest.mark.parametrize(('channels', 'expected'), [(32 * 0.35, 16), (32 * 3, 96), (11, 16), (96 * 0.5, 48)])
def test_make_divisible(channels, expected):
    assert make_divisible(channels) == expected
