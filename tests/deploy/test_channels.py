"""Nets made hard to quantise have the same outputs in float, and lose more in int8."""

import numpy as np
import pytest
import torch

from mnv4_mm.apis.model import load_model
from mnv4_mm.deploy.channels import spread_channels
from mnv4_mm.errors import UserError


@pytest.mark.parametrize('name', ['ssdlite', 'lraspp'])
def test_outputs_stay_and_ranges_do_not(name, request, tmp_path):
    checkpoint = str(request.getfixturevalue(name))
    lines: list[str] = []
    out = tmp_path / 'spread.pth'
    count = spread_channels(checkpoint, str(out), octaves=2, seed=3, log=lines.append)
    assert count > 15
    assert 'equal to the last bit' in lines[0]
    before, after = (load_model(path, device='cpu') for path in (checkpoint, str(out)))
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for a, b in zip(before.backbone(image), after.backbone(image), strict=True):
            # Maps that the neck or head reads are rescaled, too: by powers of two.
            factors = (b / a)[a.abs() > 1e-3].log2()
            assert torch.equal(factors, factors.round())
    spreads = []
    for model in (before, after):
        norms = [one.weight for one in model.backbone.modules() if isinstance(one, torch.nn.BatchNorm2d)]
        spreads.append(np.mean([float(one.detach().abs().clamp(min=1e-6).log2().std()) for one in norms]))
    assert spreads[1] > spreads[0] + 1


def test_a_net_that_was_fine_tuned_for_int8_is_refused(lraspp, tmp_path, monkeypatch):
    monkeypatch.setattr('mnv4_mm.deploy.channels.qat_settings', lambda checkpoint: dict(checkpoint='start.pth'))
    with pytest.raises(UserError, match=r'has been fine-tuned for int8: spread .*, start\.pth'):
        spread_channels(str(lraspp), str(tmp_path / 'out.pth'), log=lambda line: None)


def test_factors_that_change_the_outputs_are_refused(ssdlite, tmp_path, monkeypatch):
    monkeypatch.setattr('mnv4_mm.deploy.channels.MAX_DIFFERENCE', -1.0)
    with pytest.raises(UserError, match='outputs differ by'):
        spread_channels(str(ssdlite), str(tmp_path / 'out.pth'), log=lambda line: None)
    assert not list(tmp_path.iterdir())
