"""The whole parity table: every headline model with three nets, trained, exported to every runtime and compared."""

import pytest

from mnv4_mm.report.parity import parity
from mnv4_mm.report.recipes import MODELS, NETS


@pytest.mark.parametrize('net', NETS)
@pytest.mark.parametrize('model', MODELS)
def test_every_file_is_within_the_tolerance(model, net, tmp_path):
    lines: list[str] = []
    assert parity([model], [net], folder=tmp_path, log=lines.append) == []
    row = lines[-1].split('|')
    assert [cell.strip() for cell in row[1:3]] == [model, net]
    assert float(row[3]) > 0
