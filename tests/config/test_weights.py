"""``--weights``, and the defaults for small data sets."""

import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mnv4_mm.config.backbone import with_backbone
from mnv4_mm.config.load import load_config
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.small_data import set_small_data, set_started_backbone
from mnv4_mm.config.weights import default_tag, is_pretrained, published_tags, with_weights
from mnv4_mm.errors import UserError
from mnv4_mm.weights import hub
from mnv4_mm.weights.checkpoint import Checkpoint

TAG = 'mobilenetv4_conv_small.e2400_r224_in1k'


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)


def test_weights_by_name():
    scratch, pretrained = load_config('mnv4_ssdlite_coco'), load_config('mnv4_lraspp_ade20k')
    assert not is_pretrained(scratch)
    assert with_weights(scratch, 'timm').model.backbone.init_cfg == dict(type='Pretrained', checkpoint=f'timm://{TAG}')
    none = with_weights(pretrained, 'none')
    assert 'init_cfg' not in none.model.backbone
    assert published_tags(none) == []
    assert published_tags(pretrained) == [TAG]
    # Statistics of random weights are not kept.
    frozen = load_config('mnv4_retinanet-1x_coco')
    assert frozen.model.backbone.norm_eval is True
    assert with_weights(frozen, 'none').model.backbone.norm_eval is False


def test_weights_of_a_file(tmp_path):
    cfg = load_config('mnv4_lraspp_ade20k')
    for name, key, expected in (('a.pth', 'conv_stem.weight', {}), ('b.pth', 'backbone.x', dict(prefix='backbone.'))):
        torch.save({key: torch.zeros(1)}, tmp_path / name)
        entry = dict(type='Pretrained', checkpoint=str(tmp_path / name), **expected)
        assert with_weights(cfg, str(tmp_path / name)).model.backbone.init_cfg == entry
    with pytest.raises(UserError, match='no such file; the option takes timm, none, or'):
        with_weights(cfg, str(tmp_path / 'gone.pth'))
    (tmp_path / 'x.onnx').touch()
    with pytest.raises(UserError, match=r'ends in \.safetensors'):
        with_weights(cfg, str(tmp_path / 'x.onnx'))


def test_one_attempt_at_the_hub_and_both_ways_on(monkeypatch):
    import huggingface_hub

    calls = []

    def offline(url, timeout=None, **options):
        calls.append(timeout)
        raise ConnectionError('no network')

    def again(*args, **options):
        raise AssertionError('hf_hub_download tries six times')

    monkeypatch.setattr(huggingface_hub, 'get_hf_file_metadata', offline)
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', again)
    start = time.monotonic()
    with pytest.raises(UserError, match=f'put it at .*{TAG}.safetensors, or .* --weights none'):
        hub.fetch_timm(TAG)
    assert time.monotonic() - start < 2
    assert calls == [hub.HUB_TIMEOUT]


def small(cfg: Config, images: int, **options: object) -> tuple[Config, str]:
    lines: list[str] = []
    cfg = set_small_data(cfg, images, TrainOptions(data='x', **options), lines.append)
    return cfg, '\n'.join(lines)


def test_a_small_data_set_without_a_network():
    cfg, text = small(load_config('mnv4_ssdlite_coco'), 292)
    assert 'random weights' in text
    assert '--weights none' in text
    assert cfg.train_cfg.max_epochs == 21  # 30,000 / (292 x 5)
    assert 'length: 21 epochs of 1460 images, for 292 training images (--epochs N sets another one)' in text
    assert cfg.auto_scale_lr.enable
    assert 'made for 192 images a step, scaled to 24 in each process: 0.015 x 24/192 = 0.001875 (' in text
    _, text = small(load_config('mnv4_ssdlite_coco'), 292, launcher='pytorch')
    assert '= 0.001875, times their number (' in text
    assert 'norm_eval' not in cfg.model.backbone


def test_a_small_data_set_with_weights(monkeypatch):
    monkeypatch.setattr('mnv4_mm.config.small_data.fetch_timm', lambda tag: None)
    cfg, text = small(load_config('mnv4_lraspp_ade20k'), 400)
    assert published_tags(cfg) == [TAG]
    assert cfg.model.backbone.norm_eval
    assert cfg.train_cfg.max_iters == 7500
    assert cfg.param_scheduler[0].end == 7500
    assert len(text.splitlines()) == 4
    cfg, text = small(load_config('mnv4_ssdlite_coco'), 50_000)  # not small: weights and learning rate only
    assert published_tags(cfg) == [TAG]
    assert cfg.train_cfg.max_epochs == 120
    assert 'norm_eval' not in cfg.model.backbone


def test_a_resumed_run_keeps_its_weights_and_norms(monkeypatch):
    """There was a network when it was started, and there is none now."""
    with monkeypatch.context() as patch:
        patch.setattr('mnv4_mm.config.small_data.fetch_timm', lambda tag: None)
        started, _ = small(load_config('mnv4_ssdlite_coco'), 292)
    lines: list[str] = []
    options = TrainOptions(data='x', resume=True)
    cfg = set_small_data(load_config('mnv4_ssdlite_coco'), 292, options, lines.append, resumes=True)
    assert not any('weights' in line for line in lines)
    set_started_backbone(cfg, Checkpoint(Path('x.pth'), dict(meta=dict(cfg=started.pretty_text))), options)
    assert cfg.to_dict() == started.to_dict()


def test_a_net_of_timm_starts_from_random_weights_and_that_is_said():
    cfg = with_backbone(load_config('mnv4_ssdlite_coco'), 'timm:fastvit_sa12')
    cfg, text = small(cfg, 292)
    assert 'weights: random ones (--weights timm starts fastvit_sa12 from ImageNet weights, if timm has any)' in text
    _, text = small(with_weights(cfg, 'timm'), 292)
    assert 'random' not in text


@pytest.mark.parametrize(
    'options',
    [
        dict(weights='none', epochs=3, auto_scale_lr=False),
        dict(
            cfg_options={
                'model.backbone.drop_path_rate': 0.1, 'train_cfg.max_epochs': 3, 'optim_wrapper.optimizer.lr': 1.0
            }
        ),
    ],
)  # fmt: skip
def test_what_a_user_sets_is_left_alone(options):
    before = load_config('mnv4_ssdlite_coco')
    cfg, text = small(before.copy(), 292, **options)
    assert cfg.to_dict() == before.to_dict()
    assert text == ''


def test_the_configs_own_length_is_the_longest():
    cfg, _ = small(load_config('mnv4_ssdlite_coco-mini'), 4, weights='none')
    assert cfg.train_cfg.max_epochs == 36
    assert default_tag(cfg) == TAG
