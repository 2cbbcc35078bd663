"""The comments of the architecture tables are correct, and the nets have the published sizes."""

import re
from pathlib import Path

import pytest

from mnv4_mm.models import MobileNetV4, arch
from mnv4_mm.models.arch import ARCHS, UIB
from mnv4_mm.models.classifier import classifier

# Million parameters up to C5, from the published tables.
TRUNK = {'conv_s': 1.137, 'conv_m': 6.955, 'conv_l': 29.585, 'hybrid_m': 8.315, 'hybrid_l': 34.759}


def paper_name(row: UIB) -> str:
    return {(True, True): 'ExtraDW', (False, True): 'IB', (True, False): 'ConvNext', (False, False): 'FFN'}[
        bool(row.start_dw), bool(row.middle_dw)
    ]


def test_comments_name_the_block_type():
    rows = re.findall(r'UIB\((\d), (\d), (\d), (\d), (\d+)\),  # (\w+)', Path(arch.__file__).read_text())
    tables = {id(net.stages): net.stages for net in ARCHS.values()}.values()
    assert len(rows) == sum(isinstance(row, UIB) for stages in tables for stage in stages for row in stage)
    for *numbers, comment in rows:
        assert paper_name(UIB(*map(int, numbers))) == comment


@pytest.mark.parametrize('name', TRUNK)
def test_backbone_has_the_published_number_of_parameters(name):
    assert sum(p.numel() for p in MobileNetV4(name, (3,)).parameters()) / 1e6 == pytest.approx(TRUNK[name], abs=5e-4)


# Million parameters of the classification net, from timm.
WHOLE = {'conv_s': 3.774, 'conv_m': 9.716, 'hybrid_m': 11.075, 'conv_l': 32.591, 'hybrid_l': 37.765}


@pytest.mark.parametrize('name', WHOLE)
def test_classification_net_has_the_published_number_of_parameters(name):
    assert sum(p.numel() for p in classifier(name).parameters()) / 1e6 == pytest.approx(WHOLE[name], abs=5e-4)
