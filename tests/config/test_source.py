"""Reading configs without mmengine, and writing them into one file: both as mmengine reads them."""

import ast
import copy
import gc
import inspect
import warnings

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mnv4_mm.config.check import check_config, check_config_data
from mnv4_mm.config.index import CHECKOUT, CONFIGS, config_index, find_config, find_data
from mnv4_mm.config.load import load_config
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.rules import READ_KEYS, RUNNER_KEYS
from mnv4_mm.config.source import merge_values, read_source
from mnv4_mm.config.standalone import standalone
from mnv4_mm.errors import UserError


@pytest.mark.parametrize('name', config_index())
def test_without_mmengine_a_shipped_config_has_the_same_values(name):
    assert read_source(config_index()[name]) == load_config(name).to_dict()


@pytest.mark.parametrize('name', config_index())
def test_a_standalone_config_has_the_same_values(name, tmp_path):
    path = tmp_path / 'copy.py'
    path.write_text(standalone(config_index()[name]))
    expected = {key: value for key, value in load_config(name).to_dict().items() if key in READ_KEYS | {'input_size'}}
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
        'x = [1, abs]',
        "_base_ = 'base.py'\nx = len(_base_)",
        "_base_ = 'values.json'",
        "_base_ = ['base' + '.py']",
    ],
)
def test_more_than_plain_values_is_left_to_mmengine(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'base.py').write_text('x = 1')
    (tmp_path / 'values.json').write_text('{"x": 1}')
    (tmp_path / 'config.py').write_text(text)
    assert read_source(tmp_path / 'config.py') is None
    assert {path.name for path in tmp_path.iterdir()} == {'base.py', 'config.py', 'values.json'}


def mmengine_refuses(path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it leaves files open
        try:
            Config.fromfile(str(path))
            refuses = False
        except Exception:
            refuses = True
        gc.collect()
    return refuses


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('x = (', r"config \S+config.py cannot be read: SyntaxError: '\(' was never closed"),
        ("_base_ = 'gone.py'", r'config \S+config.py cannot be read: no file \S+gone.py, named by its _base_'),
        ("_base_ = ['good.py', 'broken.py']", r'config \S+broken.py cannot be read: SyntaxError'),
        ('_base_ = 5', r"_base_ must be a path or a list of paths, e\.g\. _base_ = './base\.py', got 5"),
        ("_base_ = ('good.py',)", r"_base_ must be a path or a list of paths, .* got \('good\.py',\)"),
        ("_base_ = ['good.py', None]", 'must be a path or a list of paths, .* got None'),
        ("_base_ = 'mnv4_ssdlite_coco'", r"e\.g\. _base_ = './mnv4_ssdlite_coco\.py', got 'mnv4_ssdlite_coco'"),
        ("_base_ = 'config.py'", r'config \S+config.py cannot be read: it is a base of itself'),
        ("_base_ = ['good.py', 'round.py']", r'config \S+config.py cannot be read: it is a base of itself'),
        ('# \xff', r'config \S+config.py cannot be read: it is not text in UTF-8'),
        ('x = 1\0', r'config \S+config.py cannot be read: \w+: source code string cannot contain null bytes'),
        ('x = unknown', r"config \S+config.py cannot be read: NameError: name 'unknown' is not defined"),
        ('x = dict(a=1, a=2)', r'config \S+config.py cannot be read: SyntaxError: keyword argument repeated: a'),
        ("x = [1]['a']", r'config \S+config.py cannot be read: TypeError'),
    ],
)
@pytest.mark.parametrize('read', [read_source, load_config])
@pytest.mark.filterwarnings('ignore:list indices must be integers:SyntaxWarning')
def test_broken_files_are_reported_with_and_without_mmengine(read, text, message, tmp_path):
    (tmp_path / 'good.py').write_text('x = 1')
    (tmp_path / 'broken.py').write_text('y = 1 +')
    (tmp_path / 'round.py').write_text("_base_ = 'config.py'")
    (tmp_path / 'config.py').write_text(text, encoding='latin-1')
    with pytest.raises(UserError, match=message):
        read(tmp_path / 'config.py')
    if read is read_source:
        assert mmengine_refuses(tmp_path / 'config.py')


@pytest.mark.parametrize(
    'text',
    [
        'import nosuch_module\nmodel = dict()',
        'from nosuch_module import part',
        "custom_imports = dict(imports=['json', 'nosuch_module'])",
        "custom_imports = dict(imports='nosuch_module')",
    ],
)
def test_a_missing_module_is_reported_without_mmengine(text, tmp_path):
    (tmp_path / 'config.py').write_text(text)
    with pytest.raises(
        UserError, match=r'config \S+config.py cannot be read: module nosuch_module cannot be imported$'
    ):
        read_source(tmp_path / 'config.py')


def test_a_missing_part_of_a_package_is_one_line(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text("custom_imports = dict(imports=['json.nosuch'])")
    assert read_source(path) is not None  # packages are not imported to look into them
    with pytest.raises(
        UserError, match=r"config \S+ cannot be read: ModuleNotFoundError: No module named 'json\.nosuch'$"
    ):
        load_config(path)
    path.write_text("custom_imports = dict(imports=['nosuch_module'], allow_failed_imports=True)")
    assert read_source(path) is not None


@pytest.mark.parametrize('text', ['type = 1\nx = type', '_base_: list = [5]', '_base_ = []\nx = max([1, 2])'])
def test_a_valid_config_is_not_refused(text, tmp_path):
    (tmp_path / 'config.py').write_text(text)
    assert read_source(tmp_path / 'config.py') == load_config(tmp_path / 'config.py').to_dict()


def test_keys_of_the_runner_are_mmengines():
    assert set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'} == RUNNER_KEYS


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


@pytest.mark.parametrize('doc', ['A "quoted" word', 'Three """ quotes', 'Ends in "', r'A \n and a \\', 'Ends in \\'])
def test_a_standalone_config_keeps_its_docstring_and_infinities(doc, tmp_path):
    path, copied = tmp_path / 'own.py', tmp_path / 'copy.py'
    path.write_text(f"{doc!r}\nmodel = dict(a=float('inf'), b=[-float('inf')])\ninput_size = (64, 32)\nother = 1\n")
    copied.write_text(standalone(path))
    assert ast.get_docstring(ast.parse(copied.read_text()), clean=False) == doc
    expected = dict(model=dict(a=float('inf'), b=[-float('inf')]), input_size=(64, 32))
    assert load_config(copied).to_dict() == read_source(copied) == expected


def test_a_value_that_is_no_literal_is_refused(tmp_path):
    path = tmp_path / 'own.py'
    path.write_text('import fractions\nmodel = dict(a=fractions.Fraction(1, 3))\ndel fractions\n')
    with pytest.raises(UserError, match='cannot be written to a file'):
        standalone(path)


OPTIONS = [
    {'train_dataloader.dataset.dataset.data_root': '/elsewhere'},
    {'val_evaluator.ann_file': 'x.json', 'train_cfg.max_epochs': 3, 'work_dir': 'w'},
    {'test_dataloader.dataset.pipeline.0.type': 'Other', 'test_dataloader.dataset.pipeline.1': dict(type='Last')},
    {'model.backbone': dict(_delete_=True, type='ResNet')},
    {'model.backbone': dict(arch='conv_l'), 'model.extra.deep': [1]},
]


@pytest.mark.parametrize('options', OPTIONS)
def test_options_are_set_as_in_mmengine(options):
    source = read_source(config_index()['mnv4_ssdlite_coco'])
    expected = load_config('mnv4_ssdlite_coco')
    expected.merge_from_dict(copy.deepcopy(options))
    assert merge_values(source, options) == expected.to_dict()
    assert source == read_source(config_index()['mnv4_ssdlite_coco'])


@pytest.mark.parametrize('options', [{'model.backbone.arch.x': 1}, {'param_scheduler.9.type': 'x'}])
def test_options_that_do_not_fit_are_refused_as_in_mmengine(options):
    with pytest.raises((KeyError, TypeError)):
        load_config('mnv4_ssdlite_coco').merge_from_dict(dict(options))
    with pytest.raises((KeyError, TypeError)):
        merge_values(read_source(config_index()['mnv4_ssdlite_coco']), options)


def test_data_is_looked_for_where_the_options_say(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaders = ('train_dataloader', 'val_dataloader')
    source = check_config('mnv4_ssdlite_coco', TrainOptions())
    with pytest.raises(UserError, match='no data: looked for'):
        check_config_data(source, TrainOptions(), loaders)
    options = {}
    for loader, key, split in (
        ('train_dataloader', 'dataset.dataset', 'train'),
        ('val_dataloader', 'dataset', 'val'),
    ):
        options[f'{loader}.{key}.data_root'] = str(repository / 'data/mini/coco')
        options[f'{loader}.{key}.ann_file'] = f'annotations/instances_{split}2017.json'
    check_config_data(source, TrainOptions(cfg_options=options), loaders)
    options['val_dataloader.dataset.data_root'] = str(tmp_path / 'gone')
    with pytest.raises(UserError, match=f'no data: looked for {tmp_path}/gone/annotations'):
        check_config_data(source, TrainOptions(cfg_options=options), loaders)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('loader', [None, dict(dataset=None), dict(dataset=dict(ann_file='x', data_prefix=None))])
def test_a_loader_without_data_is_left_to_mmengine(scope, loader):
    check_config_data(dict(default_scope=scope, val_dataloader=loader), TrainOptions(), ('val_dataloader',))
