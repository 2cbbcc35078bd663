"""Reading configs without mmengine, and writing them into one file: both as mmengine reads them."""

import pytest

from mnv4_mm.config.index import CHECKOUT, CONFIGS, config_index, find_config, find_data
from mnv4_mm.config.load import READ_KEYS, load_config
from mnv4_mm.config.source import read_source
from mnv4_mm.config.standalone import standalone
from mnv4_mm.errors import UserError


@pytest.mark.parametrize('name', config_index())
def test_without_mmengine_a_shipped_config_has_the_same_values(name):
    assert read_source(config_index()[name]) == load_config(name).to_dict()


@pytest.mark.parametrize('name', config_index())
def test_a_standalone_config_has_the_same_values(name, tmp_path):
    path = tmp_path / 'copy.py'
    path.write_text(standalone(config_index()[name]))
    expected = {key: value for key, value in load_config(name).to_dict().items() if key in READ_KEYS}
    assert load_config(path).to_dict() == expected
    assert '_base_ = ' not in path.read_text()
    assert max(map(len, path.read_text().splitlines())) <= 120
    assert path.read_text().startswith(config_index()[name].read_text().partition('\n')[0])


@pytest.mark.parametrize(
    'text',
    [
        'import os',
        "_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']",
        "_base_ = ['base.py']\nx = _base_.x",
        "x = open('ran', 'w')",
        "x = __import__('os').getcwd()",
        "x = [].append(1) or 'a'.upper()",
        'x = {{ fileDirname }}',
        'x = (',
        'x = unknown',
    ],
)
def test_more_than_plain_values_is_left_to_mmengine(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'base.py').write_text('x = 1')
    (tmp_path / 'config.py').write_text(text)
    assert read_source(tmp_path / 'config.py') is None
    assert {path.name for path in tmp_path.iterdir()} == {'base.py', 'config.py'}


def test_dicts_are_merged_and_deleted_as_in_mmengine(tmp_path):
    (tmp_path / 'base.py').write_text('a = dict(x=1, y=dict(z=2))\nb = dict(c=dict(d=1))\ne = [1]')
    (tmp_path / 'config.py').write_text(
        "_base_ = 'base.py'\na = dict(y=dict(w=3))\nb = dict(c=dict(_delete_=True, f=2))\ne = [2]"
    )
    expected = dict(a=dict(x=1, y=dict(z=2, w=3)), b=dict(c=dict(f=2)), e=[2])
    assert read_source(tmp_path / 'config.py') == load_config(tmp_path / 'config.py').to_dict() == expected


def test_configs_and_data_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CHECKOUT is not None
    assert find_config('mnv4_ssdlite_coco') == find_config('configs/mnv4_ssdlite_coco.py')
    assert find_config('mnv4_ssdlite_coco') == CONFIGS / 'mnv4_ssdlite_coco.py'
    with pytest.raises(UserError, match='near: mnv4_ssdlite_coco'):
        find_config('mnv4_ssdlit_coco')
    mini = tmp_path / 'data/mini/coco'
    relative = mini.relative_to(tmp_path)
    assert find_data(relative) == CHECKOUT / relative
    mini.mkdir(parents=True)
    assert find_data(relative) == relative
