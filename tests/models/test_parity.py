"""Every net equals timm's: feature maps, gradients, and both again after a step, with the same weights."""

import pytest
import timm
import torch
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.mobilenetv3 import MobileNetV3Features
from torch import nn

from mnv4_mm.models import MobileNetV4
from mnv4_mm.models.arch import TIMM_NAMES

every_net = pytest.mark.parametrize('arch', TIMM_NAMES)
# Backward passes of larger nets run the same code.
SMALL = ('conv_s', 'hybrid_m', 'conv_aa_m', 'conv_blur_m')


def pair(arch, dtype):
    """Return our net and timm's with the same weights; statistics and affine parameters of norms are random."""
    torch.manual_seed(0)
    theirs = timm.create_model(TIMM_NAMES[arch], features_only=True, out_indices=(1, 2, 3, 4))
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5), (module.bias, -0.2, 0.2),
            ):  # fmt: skip
                nn.init.uniform_(tensor, low, high)
        elif hasattr(module, 'gamma'):
            nn.init.uniform_(module.gamma, 0.2, 0.8)  # with 1e-5 the branch would hardly count
    ours = MobileNetV4(arch, out_indices=(0, 1, 2, 4))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.to(dtype), theirs.to(dtype)


def largest_difference(ours, theirs):
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@every_net
def test_maps_in_float64_are_equal_to_the_last_bit(arch):
    ours, theirs = (net.eval() for net in pair(arch, torch.float64))
    x = torch.randn(2, 3, 97, 161, dtype=torch.float64)
    with torch.no_grad():
        assert largest_difference(ours(x), theirs(x)) == 0.0


@every_net
def test_maps_in_float32(arch):
    ours, theirs = (net.eval() for net in pair(arch, torch.float32))
    x = torch.randn(2, 3, 128, 160)
    with torch.no_grad():
        for a, b in zip(ours(x), theirs(x), strict=True):
            # Kernels may sum in another order: float32's 1.2e-7 times the root of 100 layers, with a margin of 8.
            assert float((a - b).abs().max() / b.abs().max()) < 1e-5


@pytest.mark.parametrize(
    'arch', [name if name in SMALL else pytest.param(name, marks=pytest.mark.long) for name in TIMM_NAMES]
)
def test_gradients_and_the_net_after_a_step(arch):
    nets = [net.train() for net in pair(arch, torch.float64)]
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for net in nets:
        optimiser = torch.optim.SGD(net.parameters(), 0.01)
        sum(m.square().mean() for m in net(x)).backward()
        optimiser.step()
    ours, theirs = nets
    gradients = [{name: p.grad for name, p in net.named_parameters()} for net in nets]
    assert gradients[0].keys() == gradients[1].keys()
    # In float64, of the largest value: attention is summed in another order, and not every CPU has the same kernels. A
    # gradient that lacks a term is off by more than a hundredth.
    allowed = 1e-9
    for name, gradient in gradients[1].items():
        assert float((gradients[0][name] - gradient).abs().max()) <= allowed * float(gradient.abs().max()), name
    after = theirs.state_dict()
    for name, a in ours.state_dict().items():
        b = after[name]
        assert float((a - b).abs().max()) <= allowed * max(1.0, float(b.abs().max())), name
    with torch.no_grad():
        for a, b in zip(ours.eval()(x), theirs.eval()(x), strict=True):
            assert float((a - b).abs().max()) <= allowed * float(b.abs().max())


# TF's _mnv4_conv_medium_seg_block_specs in timm's notation: a start and k middle DW, s stride, e expansion, c channels.
SEG = [
    ['er_r1_k3_s2_e4_c48'],
    ['uir_r1_a3_k5_s2_e4_c80', 'uir_r1_a3_k3_s1_e2_c80'],
    ['uir_r1_a3_k5_s2_e6_c160', 'uir_r2_a3_k3_s1_e4_c160', 'uir_r1_a3_k5_s1_e4_c160', 'uir_r1_a3_k3_s1_e4_c160',
     'uir_r2_a3_k0_s1_e4_c160'],
    ['uir_r1_a5_k5_s2_e6_c256', 'uir_r1_a5_k5_s1_e4_c128', 'uir_r2_a3_k5_s1_e4_c128', 'uir_r1_a3_k0_s1_e4_c128',
     'uir_r1_a3_k5_s1_e2_c128', 'uir_r1_a5_k5_s1_e4_c128', 'uir_r1_a5_k0_s1_e2_c128', 'cn_r1_k1_s1_c448'],
]  # fmt: skip


def test_the_segmentation_net_of_tf_built_by_timm():
    torch.manual_seed(0)
    theirs = MobileNetV3Features(
        decode_arch_def(SEG), out_indices=(1, 2, 3, 4), stem_size=32, act_layer=nn.ReLU6, layer_scale_init_value=None
    ).double().eval()  # fmt: skip
    ours = MobileNetV4('conv_m_seg', out_indices=(0, 1, 2, 3)).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 97, 161, dtype=torch.float64)
    with torch.no_grad():
        maps = theirs(x)
        assert [m.shape[1] for m in maps] == [48, 80, 160, 448]
        assert largest_difference(ours(x), maps) == 0.0
