"""The settings of fine-tuning for int8."""

import pytest
from mmengine.config import Config

from mnv4_mm.config.input_size import set_size
from mnv4_mm.config.load import load_config
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.qat import set_qat, set_qat_schedule
from mnv4_mm.errors import UserError
from mnv4_mm.weights.checkpoint import write_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    """Write a checkpoint with the config of a name, changed by a function; return its path."""

    def write(name, change=lambda cfg: None):
        cfg = load_config(name)
        change(cfg)
        path = tmp_path / 'trained.pth'
        write_checkpoint(dict(meta=dict(cfg=cfg.pretty_text, epoch=6, iter=600), state_dict={}), path)
        return str(path)

    return write


def test_the_input_has_the_size_of_the_checkpoint(checkpoint):
    path = checkpoint('mnv4_ssdlite_bccd', lambda cfg: set_size(cfg, (192, 256)))
    cfg = set_qat(load_config('mnv4_ssdlite_bccd'), TrainOptions(qat=path))
    assert tuple(cfg.input_size) == (256, 192)
    resize = next(step for step in cfg.test_dataloader.dataset.pipeline if step.type == 'Resize')
    assert tuple(resize.scale) == (256, 192)


def test_another_head_is_refused(checkpoint):
    with pytest.raises(UserError, match='has the head SSDLiteHead, and this config has'):
        set_qat(load_config('mnv4_rtmdet_coco'), TrainOptions(qat=checkpoint('mnv4_ssdlite_bccd')))


def test_the_head_keeps_its_learning_rate(checkpoint):
    path = checkpoint('mnv4_segformer_ade20k')
    cfg = set_qat(load_config('mnv4_segformer_ade20k'), TrainOptions(qat=path))
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert keys['net.head'].lr_mult == 10
    assert 'decode_head' not in keys


@pytest.mark.parametrize(
    ('given', 'length', 'last'),
    [
        ({}, 60, 60),
        ({'train_cfg.val_interval': 5}, 60, 60),
        ({'train_cfg.max_epochs': 2}, 2, 2),
    ],
)
def test_the_length(checkpoint, given, length, last):
    options = TrainOptions(qat=checkpoint('mnv4_ssdlite_bccd'), cfg_options=given)
    cfg = set_qat(load_config('mnv4_ssdlite_bccd'), options)
    lines: list[str] = []
    set_qat_schedule(cfg, options, lines.append)
    assert isinstance(cfg, Config)
    assert cfg.train_cfg.get('max_iters', cfg.train_cfg.get('max_epochs')) == length
    assert cfg.param_scheduler[-1].end == last
    assert str(length) in lines[0]
