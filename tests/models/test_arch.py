"""The tables say what their comments say; the nets are timm's."""

import re
from pathlib import Path

import pytest
import timm
import torch

from mnv4_mm.models import MobileNetV4, arch
from mnv4_mm.models.arch import ARCHS, UIB

TIMM = {
    'conv_s': 'mobilenetv4_conv_small',
    'conv_m': 'mobilenetv4_conv_medium',
    'conv_l': 'mobilenetv4_conv_large',
    'hybrid_m': 'mobilenetv4_hybrid_medium',
    'hybrid_l': 'mobilenetv4_hybrid_large',
}
# M parameters of the trunk up to C5, from the published tables.
TRUNK = {'conv_s': 1.137, 'conv_m': 6.955, 'conv_l': 29.585, 'hybrid_m': 8.315, 'hybrid_l': 34.759}


def paper_name(row: UIB) -> str:
    return {(True, True): 'ExtraDW', (False, True): 'IB', (True, False): 'ConvNext', (False, False): 'FFN'}[
        bool(row.start_dw), bool(row.middle_dw)
    ]


def test_comments_name_the_block_that_the_numbers_make():
    rows = re.findall(r'UIB\((\d), (\d), (\d), (\d), (\d+)\),  # (\w+)', Path(arch.__file__).read_text())
    assert len(rows) == sum(isinstance(row, UIB) for net in ARCHS.values() for stage in net.stages for row in stage)
    for *numbers, comment in rows:
        assert paper_name(UIB(*map(int, numbers))) == comment


@pytest.mark.parametrize('name', ARCHS)
def test_trunk_has_the_published_number_of_parameters(name):
    assert sum(p.numel() for p in MobileNetV4(name, (3,)).parameters()) / 1e6 == pytest.approx(TRUNK[name], abs=5e-4)


@pytest.mark.parametrize('name', ARCHS)
def test_maps_equal_timm(name):
    torch.manual_seed(0)
    reference = timm.create_model(TIMM[name], features_only=True, out_indices=(1, 2, 3, 4)).double().eval()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    net = MobileNetV4(name, out_indices=(0, 1, 2, 4)).double().eval()
    net.load_state_dict(reference.state_dict(), strict=True)
    x = torch.randn(2, 3, 97, 161, dtype=torch.float64)
    for ours, theirs in zip(net(x), reference(x), strict=True):
        # Exact without attention; with it, the order of sums inside the fused attention kernel.
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0 if name.startswith('conv') else 1e-12)
