"""The text of a config is formatted once for a run, and again when the config changes."""

import copy

import mmengine.config.config
import mmengine.runner
import pytest
from yapf.yapflib import yapf_api

from mnv4_mm.config.load import load_config
from mnv4_mm.engine.formatted import FormattedConfig


@pytest.fixture
def formatted(monkeypatch):
    """Texts that yapf formats, from here on."""
    texts, format_code = [], yapf_api.FormatCode

    def counted(text, *args, **kwargs):
        texts.append(text)
        return format_code(text, *args, **kwargs)

    monkeypatch.setattr(yapf_api, 'FormatCode', counted)
    # Where mmengine 0.10.7 has its own name for it.
    monkeypatch.setattr(mmengine.config.config, 'FormatCode', counted, raising=False)
    return texts


def test_text_is_mmengines_and_is_formatted_once(formatted):
    cfg = load_config('mnv4_lraspp_ade20k-mini')
    expected = cfg.pretty_text
    ours = FormattedConfig.of(cfg)
    formatted.clear()
    assert [ours.pretty_text, ours.pretty_text] == [expected] * 2
    assert len(formatted) == 1
    ours.model.backbone.arch = 'conv_m'
    assert ours.pretty_text == expected.replace("arch='conv_s'", "arch='conv_m'") != expected
    assert ours.to_dict() == copy.deepcopy(ours).to_dict()
    assert '_formatted' not in ours


def test_a_run_formats_its_config_once(formatted, tmp_path, monkeypatch):
    """mmengine formats it for the log, for the file in the work directory and for each checkpoint."""
    from mnv4_mm.apis.train import train

    asked = []
    monkeypatch.setattr(mmengine.runner.Runner, '_log_env', lambda self, _: asked.append(self.cfg.pretty_text))
    options = {
        'train_dataloader.batch_size': 2,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'val_dataloader.dataset.indices': 2,
        'default_hooks.checkpoint.interval': 1,
        'report_on_training_images': False,
    }
    folder = train('mnv4_lraspp_ade20k-mini', work_dir=str(tmp_path), iters=3, cfg_options=options)
    assert len(list(folder.glob('iter_*.pth'))) > 1
    assert len(asked) == 1
    assert formatted.count(formatted[-1]) == 1
