"""Sizes in a config that follow its input size; ``set_size`` itself is tested with the anchors."""

import pytest

from mnv4_mm.config.input_size import set_pipeline_size
from mnv4_mm.config.load import load_config
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.supernet import set_supernet, with_subnet
from mnv4_mm.config.training import training_config
from mnv4_mm.data.formats.configured import innermost_dataset
from mnv4_mm.errors import UserError
from mnv4_mm.models.input_size import scaled_size, set_model_size
from mnv4_mm.models.model_config import dicts
from mnv4_mm.models.space import SMALL, at_scale


def test_sizes_are_multiples_of_32():
    assert scaled_size((320, 256), 0.6) == (192, 160)
    assert scaled_size((1333, 800), 1) == (1333, 800)
    assert scaled_size((1333, 800), 0.8) == (1056, 640)
    assert scaled_size((32, 32), 0.1) == (32, 32)


@pytest.mark.parametrize(
    ('step', 'expected'),
    [
        (dict(type='Resize', scale=(320, 160)), dict(scale=(160, 40))),
        (dict(type='Resize', scale=160), dict(scale=57)),  # the geometric mean of both factors
        (dict(type='RandomChoiceResize', scales=[(320, 160), (640, 320)]), dict(scales=[(160, 40), (320, 80)])),
        (dict(type='RandomAffine', border=(-160, -160)), dict(border=(-80, -40))),
        (dict(type='RandomCrop', crop_size=(160, 320)), dict(crop_size=(40, 160))),  # height, width in mmseg
        (dict(type='RandomMosaic', img_scale=[160, 320]), dict(img_scale=[40, 160])),
        (dict(type='Resize', scale_factor=0.5, scale=None), dict(scale_factor=0.5, scale=None)),
    ],
)
def test_sizes_of_a_pipeline(step, expected):
    cfg = load_config('mnv4_lraspp_ade20k-mini')
    cfg.input_size = (320, 320)
    innermost_dataset(cfg.train_dataloader.dataset).pipeline = [step]
    set_pipeline_size(cfg, (160, 80))
    assert innermost_dataset(cfg.train_dataloader.dataset).pipeline == [{**step, **expected}]
    assert cfg.input_size == (160, 80)


def test_sizes_of_a_model():
    model = dict(
        backbone={}, decode_head={}, test_cfg=dict(mode='slide', crop_size=(160, 320), stride=(100, 200)),
        data_preprocessor=dict(
            size=(160, 320), test_cfg=dict(size=(160, 320)),
            batch_augments=[dict(type='BatchSyncRandomResize', random_size_range=(480, 800), size_divisor=32)],
        ),
    )  # fmt: skip
    set_model_size(model, (320, 160), (160, 40))
    assert model['test_cfg'] == dict(mode='slide', crop_size=(40, 160), stride=(25, 100))
    preprocessor = model['data_preprocessor']
    assert preprocessor['size'] == preprocessor['test_cfg']['size'] == (40, 160)
    assert preprocessor['batch_augments'][0]['random_size_range'] == (120, 400)
    assert preprocessor['batch_augments'][0]['size_divisor'] == 32


def supernet(name):
    return set_supernet(load_config(name), TrainOptions(space='small'))


@pytest.mark.parametrize('name', ['mnv4_retinanet_coco', 'mnv4_ssdlite_coco'])
def test_anchors_of_a_net_shrink_with_its_input(name):
    """So a box keeps its level and anchor."""
    cfg = supernet(name)
    smaller = with_subnet(cfg, at_scale(SMALL.largest(), 0))
    factor = smaller.input_size[0] / cfg.input_size[0]
    assert factor < 0.7
    before, after = (one.model.bbox_head.anchor_generator for one in (cfg, smaller))
    if name == 'mnv4_retinanet_coco':
        assert after.octave_base_scale == pytest.approx(factor * before.octave_base_scale)
    else:
        assert after.min_sizes == pytest.approx([factor * size for size in before.min_sizes], abs=0.06)
    sizes = [part['scale'] for part in dicts(smaller.test_dataloader.dataset.pipeline) if 'scale' in part]
    assert sizes == [smaller.input_size]


def test_a_space_needs_inputs_that_can_be_scaled():
    options = TrainOptions(space='small', size=[96])
    with pytest.raises(UserError, match=r'needs a larger input_size than 96x96: 0\.6, 0\.8, 1\.0 times'):
        training_config('mnv4_ssdlite_coco-mini', options)
    cfg = supernet('mnv4_ssdlite_coco-mini')
    cfg.input_size = 320
    with pytest.raises(UserError, match='needs a config with input_size'):
        training_config(cfg, TrainOptions())
    cfg = supernet('mnv4_ssdlite_coco-mini')
    cfg.model.bbox_head.anchor_generator.pop('min_sizes')
    with pytest.raises(UserError, match='has min_sizes and max_sizes in pixels'):
        training_config(cfg, TrainOptions())
    cfg = supernet('mnv4_ssdlite_coco-mini')
    cfg.supernet.scales = [1.0]
    with pytest.raises(UserError, match='trained for other input sizes'):
        training_config(cfg, TrainOptions())
