"""The parity table. The runtimes themselves are tested in tests/deploy."""

import pytest

from mnv4_mm.config.data import innermost_dataset
from mnv4_mm.config.index import config_index
from mnv4_mm.config.load import load_config
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.errors import UserError
from mnv4_mm.models.model_config import dicts
from mnv4_mm.report import parity as report
from mnv4_mm.report.parity import MODELS, parity, training_config


def test_the_table_has_every_headline_config():
    assert set(MODELS) == {name for name in config_index() if not name.endswith(('-mini', '_bccd'))}


@pytest.mark.parametrize('name', MODELS)
def test_headline_models_are_trained_on_small_data(name):
    cfg, headline = training_config(name, 'hybrid_m'), load_config(name)
    head = next(key for key in ('bbox_head', 'decode_head') if key in cfg.model)
    assert cfg.model[head].type == headline.model[head].type
    assert cfg.model.backbone.arch == 'hybrid_m'
    assert not cfg.model.backbone.get('init_cfg')
    assert not cfg.model.backbone.norm_eval
    momenta = {part['momentum'] for part in dicts(cfg.model) if part.get('type') in ('BN', 'SyncBN')}
    assert momenta <= {0.1}
    assert innermost_dataset(cfg.train_dataloader.dataset).data_root.startswith('data/mini/')


@pytest.mark.long
def test_a_model_is_trained_exported_and_compared_once(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, 'mnv4_lraspp_ade20k', MODELS['mnv4_lraspp_ade20k']._replace(length=4))
    lines: list[str] = []
    assert parity(['mnv4_lraspp_ade20k'], ['conv_s'], ['onnx'], folder=tmp_path, log=lines.append) == []
    assert lines[0] == '| model | net | AP or mIoU | onnx |'
    assert lines[2].startswith('| mnv4_lraspp_ade20k | conv_s | 0.')
    assert {path.name for path in (tmp_path / 'mnv4_lraspp_ade20k-conv_s/exported').glob('*.onnx')} == {
        'iter_4_logits_fp32.onnx',
        'iter_4_class_map_fp32.onnx',
    }
    monkeypatch.setattr(report, 'train', None)
    again: list[str] = []
    parity(['mnv4_lraspp_ade20k'], ['conv_s'], ['onnx'], folder=tmp_path, log=again.append)
    assert again == lines


def test_the_cell_of_a_file_has_its_verdict_or_its_differences():
    row = dict(name='a.onnx', raw=None, passes=False, verdict='outputs differ by 0.5, over 0.001')
    assert report._cell([row]) == 'outputs differ by 0.5, over 0.001'
    run = dict(name='a.onnx', raw=dict(largest=2.4e-6, kind='raw'), to_pytorch=-1e-5, passes=True, verdict='ok')
    assert report._cell([run, dict(run, raw=dict(largest=0.1, kind='pixels'), to_pytorch=4e-4)]) == '2e-06, +0.0004'
    stored = dict(run, raw=dict(largest=2.4e-6, of='raw', vacuous=''))  # by an earlier version
    assert report._cell([stored]) == '2e-06, +0.0000'


def test_the_metric_of_the_model_is_shown_where_no_file_runs():
    rows = [dict(name='PyTorch, as mnv4 test', metric=0.25, megabytes=9.0, raw=None, passes=True)]
    rows.append(dict(name='a.mlpackage', metric=None, megabytes=9.0, raw=None, passes=True))
    assert report._line('m', 'n', [TARGETS['coreml']], rows) == '| m | n | 0.250 | description |'


@pytest.mark.parametrize('arguments', [(['nothing'],), ([], ['conv_xl']), ([], [], ['mnn'])])
def test_mistakes_are_one_line(arguments):
    with pytest.raises(UserError, match=r'there are .*(conv_s|mnv4_ssdlite_coco|openvino)'):
        parity(*arguments)
