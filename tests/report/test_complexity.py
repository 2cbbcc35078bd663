"""Parameters and multiply-accumulates: hand-counted examples, and the table of shipped configs."""

import pytest
from torch import nn

from mnv4_mm.config.backbone import with_backbone
from mnv4_mm.config.index import config_index
from mnv4_mm.config.load import load_config
from mnv4_mm.config.standalone import standalone
from mnv4_mm.errors import UserError
from mnv4_mm.report.complexity import count, count_config, table


def test_counts_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.Conv2d(8, 8, 5, padding=2, groups=8))
    # 3*8*3*3 weights at 16x16 places, then 8 channels of 5x5 at the same places.
    assert count(net, (32, 32)) == (216 + 208, 216 * 256 + 200 * 256)


def test_the_table_has_every_shipped_config():
    text = table([])
    for name in config_index():
        assert f'| {name} |' in text
    # Trunk of Conv-S as published: 1.137 M parameters, 0.18 GMACs at 224.
    assert '| mnv4_conv_s | 32, 64, 96, 128 | 1.137 | 0.18 |' in text


@pytest.mark.parametrize('name', ['mnv4_ssdlite_coco-mini', 'mnv4_lraspp_ade20k'])
def test_a_copied_config_counts_as_its_original(name, tmp_path):
    copied = tmp_path / 'copied.py'
    copied.write_text(standalone(config_index()[name]))
    assert count_config(str(copied)) == count_config(name)


def test_backbones_of_others_are_named(tmp_path):
    path = tmp_path / 'other.py'
    with_backbone(load_config('mnv4_lraspp_ade20k'), 'timm:resnet18').dump(path)
    assert '| timm:resnet18 |' in table([str(path)])


@pytest.mark.parametrize(
    ('text', 'message'), [('x = 1', 'it has no model'), ('model = dict()', 'has no input_size = ')]
)
def test_a_config_that_cannot_be_counted_is_one_line(text, message, tmp_path):
    (tmp_path / 'config.py').write_text(text)
    with pytest.raises(UserError, match=message):
        count_config(str(tmp_path / 'config.py'))
