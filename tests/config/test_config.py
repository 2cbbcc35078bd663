"""Config name and options -> the config that runs."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS

from mnv4_mm.config.backbone import lost_weights, with_backbone
from mnv4_mm.config.data import (
    dataset_split,
    innermost_dataset,
    set_data,
    with_data,
    with_data_roots,
    with_training_images,
)
from mnv4_mm.config.index import config_index
from mnv4_mm.config.launcher import set_launcher
from mnv4_mm.config.load import load_config, with_options
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.resume import check_no_run, initial_checkpoint
from mnv4_mm.config.rules import TRAINING_PARTS
from mnv4_mm.config.training import training_config
from mnv4_mm.data.prepare import prepare_detection
from mnv4_mm.errors import UserError
from mnv4_mm.models.arch import ARCHS
from mnv4_mm.tasks import build_model, task_of
from mnv4_mm.weights.tags import DEFAULT_TAGS, TAGS

DETECTORS = ['mnv4_ssdlite_coco', 'mnv4_retinanet_coco', 'mnv4_retinanet-1x_coco', 'mnv4_rtmdet_coco']
SEGMENTERS = ['mnv4_lraspp_ade20k', 'mnv4_fpn_ade20k', 'mnv4_deeplabv3plus_ade20k', 'mnv4_segformer_ade20k']
HEADLINE = [*DETECTORS, *SEGMENTERS]


def merged(name='mnv4_ssdlite_coco', on_gpu=False, **options):
    return training_config(name, TrainOptions(**options), on_gpu=on_gpu)


def test_a_config_is_found_by_name_and_by_path(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # from any folder
    by_name = load_config('mnv4_ssdlite_coco')
    assert by_name.to_dict() == load_config(repository / 'configs/mnv4_ssdlite_coco.py').to_dict()
    assert by_name.to_dict() == load_config('configs/mnv4_ssdlite_coco.py').to_dict()
    assert set(HEADLINE) <= config_index().keys()


def test_a_wrong_name_lists_near_ones():
    with pytest.raises(UserError, match='mnv4_ssdlite_coco'):
        load_config('mnv4_ssdlight_coco')


@pytest.mark.parametrize('text', ['a = (', "_base_ = 'gone.py'", 'a = 1 / 0'])
def test_a_broken_config_is_named(tmp_path, text):
    path = tmp_path / 'broken.py'
    path.write_text(text)
    with pytest.raises(UserError, match=r'broken.py cannot be read'):
        load_config(path)


def test_options_left_out_change_nothing():
    before = with_data_roots(load_config('mnv4_ssdlite_coco'))
    after = merged()
    before.optim_wrapper.optimizer.fused = True  # where the optimiser can
    for key in before.keys() - {'work_dir', 'resume', 'launcher'}:
        assert after[key] == before[key], key
    assert (after.work_dir, after.resume, after.launcher) == ('work_dirs/mnv4_ssdlite_coco', False, 'none')


def test_work_dir_names_what_differs(drawn):
    cfg = merged(backbone='mnv4_conv_l', data=str(drawn))
    assert cfg.work_dir == 'work_dirs/mnv4_ssdlite_coco_mnv4_conv_l_shapes'
    assert merged(work_dir='here').work_dir == merged(work_dir=Path('here')).work_dir == 'here'


def write_run(folder):
    folder.mkdir()
    (folder / 'epoch_3.pth').touch()
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_3.pth'))
    return str(folder / 'epoch_3.pth')


@pytest.mark.parametrize(
    ('resume', 'cfg_options', 'has_run', 'expected'),
    [
        # resume, load_from and the checkpoint that is read first
        (False, {}, False, (False, None, None)),
        (True, {}, False, (False, None, None)),
        (True, {}, True, (True, None, 'last')),
        ('x.pth', {}, False, (True, 'x.pth', 'x.pth')),
        ('x.pth', {}, True, (True, 'x.pth', 'x.pth')),
        (Path('x.pth'), {}, True, (True, 'x.pth', 'x.pth')),
        (False, {'load_from': 'tuned.pth'}, False, (False, 'tuned.pth', 'tuned.pth')),
        (True, {'load_from': 'tuned.pth'}, False, (False, 'tuned.pth', 'tuned.pth')),
        (False, {'resume': True}, True, (True, None, 'last')),
        (False, {'resume': True, 'load_from': 'x.pth'}, False, (True, 'x.pth', 'x.pth')),
        ('x.pth', {'resume': False}, False, (False, 'x.pth', 'x.pth')),
    ],
)
def test_resume(tmp_path, resume, cfg_options, has_run, expected):
    last = write_run(tmp_path / 'w') if has_run else None
    # The work directory may be set by either option.
    for options in (
        dict(work_dir=str(tmp_path / 'w'), cfg_options=cfg_options),
        dict(cfg_options={'work_dir': str(tmp_path / 'w'), **cfg_options}),
    ):
        cfg = merged(resume=resume, **options)
        assert (cfg.resume, cfg.load_from) == expected[:2]
        assert initial_checkpoint(cfg) == (last if expected[2] == 'last' else expected[2])
        check_no_run(cfg)


def test_resuming_ignores_where_the_config_starts_from(tmp_path):
    cfg = load_config('mnv4_ssdlite_coco')
    cfg.load_from = 'tuned.pth'
    write_run(tmp_path / 'w')
    assert training_config(cfg, TrainOptions(resume=True, work_dir=str(tmp_path / 'w'))).load_from is None
    assert training_config(cfg, TrainOptions(resume=True, work_dir=str(tmp_path / 'new'))).load_from == 'tuned.pth'


def test_a_run_is_not_overwritten(tmp_path):
    last = write_run(tmp_path / 'w')
    with pytest.raises(UserError, match=f'holds a run already \\({last}\\)'):
        check_no_run(merged(work_dir=str(tmp_path / 'w')))


def test_amp_by_device():
    assert merged(amp=True, on_gpu=True).optim_wrapper.type == 'AmpOptimWrapper'
    assert merged(amp=True).optim_wrapper.type == 'Bf16OptimWrapper'
    assert merged(amp=True).optim_wrapper.optimizer == merged().optim_wrapper.optimizer


def test_launcher_by_device():
    on_cpu, on_gpu = merged(launcher='pytorch'), merged(launcher='pytorch', on_gpu=True)
    assert (on_cpu.env_cfg.dist_cfg.backend, on_cpu.get('sync_bn')) == ('gloo', None)
    assert on_cpu.model_wrapper_cfg.device_ids is None
    assert (on_gpu.env_cfg.dist_cfg.backend, on_gpu.sync_bn) == ('nccl', 'torch')
    # The config in the work directory of a run on GPUs.
    assert 'sync_bn' not in set_launcher(on_gpu, 'pytorch', on_gpu=False)


def test_auto_scale_lr():
    assert merged().auto_scale_lr.enable is False
    assert merged(auto_scale_lr=True).auto_scale_lr == dict(enable=True, base_batch_size=192)
    with pytest.raises(UserError, match='base_batch_size'):
        training_config(Config({key: {} for key in TRAINING_PARTS}), TrainOptions(auto_scale_lr=True))


def test_epochs_scale_the_whole_schedule():
    cfg = merged('mnv4_rtmdet_coco', epochs=30)
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == (30, 1)
    assert cfg.train_cfg.dynamic_intervals == [(28, 1)]
    assert cfg.param_scheduler[0] == merged('mnv4_rtmdet_coco').param_scheduler[0]  # counted in steps
    assert [cfg.param_scheduler[1][key] for key in ('begin', 'end', 'T_max')] == [15, 30, 15]
    assert cfg.custom_hooks[1].switch_epoch == 28
    short = merged('mnv4_retinanet_coco', epochs=10).param_scheduler
    assert [(s.type, s.get('begin'), s.get('end'), s.get('T_max')) for s in short] == [('CosineAnnealingLR', 0, 10, 10)]
    assert merged('mnv4_retinanet-1x_coco', epochs=24).param_scheduler[1].milestones == [16, 22]
    with pytest.raises(UserError, match='--epochs'):
        merged(epochs=0)


@pytest.mark.parametrize('length', [1, 2, 7, 1000])
@pytest.mark.parametrize('name', sorted(config_index()))
def test_every_schedule_can_be_of_any_length(name, length):
    unit = 'iters' if '_ade20k' in name else 'epochs'
    cfg = merged(name, **{unit: length})
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    for scheduler in cfg.param_scheduler:
        settings = {'end': cfg.train_cfg[f'max_{unit}'], **scheduler}
        if settings.pop('convert_to_iter_based', False):
            PARAM_SCHEDULERS.get(scheduler.type).build_iter_from_epoch(
                optimizer=optimiser, epoch_length=10, **{k: v for k, v in settings.items() if k != 'type'}
            )
        else:
            PARAM_SCHEDULERS.build(dict(optimizer=optimiser, **settings))


def test_options_win_over_arguments():
    cfg = merged(
        auto_scale_lr=True,
        cfg_options={'auto_scale_lr.enable': False, 'param_scheduler.0.end': 7, 'randomness.seed': 1},
    )
    assert cfg.auto_scale_lr.enable is False
    assert cfg.param_scheduler[0].end == 7
    assert cfg.randomness.seed == 1


@pytest.mark.parametrize(
    ('options', 'message'),
    [({'optim_wraper.optimizer.lr': 1}, 'near: optim_wrapper'), ({'param_scheduler.9.end': 7}, '--cfg-options'),
     ({'load_from.x': 1}, '--cfg-options'), ({'batch_size': 8}, 'would do nothing'),
     ({'param_scheduler.0': 1}, 'single items of a list cannot be replaced; set the whole list')],
)  # fmt: skip
def test_mistyped_options_are_errors(options, message):
    with pytest.raises(UserError, match=message):
        merged(cfg_options=options)


# Larger nets run the same code.
@pytest.mark.parametrize('name', HEADLINE)
@pytest.mark.parametrize(
    'backbone',
    [
        pytest.param(f'mnv4_{arch}', marks=() if arch in ('conv_s', 'hybrid_m', 'conv_m_seg') else pytest.mark.long)
        for arch in ARCHS
    ],
)
def test_every_backbone_fits_every_headline_config(name, backbone):
    cfg = load_config(name)
    cfg.model.backbone.pop('init_cfg', None)
    if name == 'mnv4_ssdlite_coco' and backbone == 'mnv4_conv_m_seg':
        with pytest.raises(UserError, match='out_indices'):  # it has no feature map behind C5
            with_backbone(cfg, backbone)
        return
    cfg = with_backbone(cfg, backbone)
    model = build_model(cfg).eval()
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, 128, 192))
    assert all(torch.isfinite(value).all() for part in outputs for value in part)


def test_weights_follow_the_backbone():
    cfg = load_config('mnv4_retinanet-1x_coco')
    assert DEFAULT_TAGS['conv_m'] in cfg.model.backbone.init_cfg.checkpoint
    for name, tag in (('mnv4_hybrid_m', DEFAULT_TAGS['hybrid_m']), ('timm:resnet50', 'resnet50')):
        assert with_backbone(cfg, name).model.backbone.init_cfg == dict(type='Pretrained', checkpoint=f'timm://{tag}')
    with pytest.raises(
        UserError, match='no weights of mnv4_conv_m_seg are published'
    ):  # norm_eval would keep random statistics
        with_backbone(cfg, 'mnv4_conv_m_seg')
    segmenter = load_config('mnv4_fpn_ade20k')
    scratch = with_backbone(segmenter, 'mnv4_conv_m_seg')
    assert 'init_cfg' not in scratch.model.backbone
    assert 'starts from random' in lost_weights(segmenter, scratch)
    assert lost_weights(segmenter, with_backbone(segmenter, 'mnv4_conv_l')) is None
    assert lost_weights(segmenter, with_options(segmenter, {'model.backbone.init_cfg': None})) is None
    for arch, tag in DEFAULT_TAGS.items():
        assert TAGS[tag].arch == arch
        assert TAGS[tag].top1 is not None


def test_a_new_backbone_keeps_the_settings_and_drops_the_weights():
    cfg = load_config('mnv4_retinanet_coco')
    cfg.model.backbone.update(init_cfg=dict(type='Pretrained', checkpoint='x'), frozen_stages=1)
    fitted = with_backbone(cfg, 'mnv4_hybrid_m')
    assert fitted.model.backbone == dict(
        type='MobileNetV4', arch='hybrid_m', out_indices=(1, 2, 3), drop_path_rate=0.2, frozen_stages=1
    )
    assert cfg.model.backbone.arch == 'conv_m'


def test_a_wrong_backbone_lists_near_ones():
    with pytest.raises(UserError, match='near: mnv4_conv_'):
        merged(backbone='mnv4_conv_x')
    with pytest.raises(UserError, match='MobileNetV4'):
        with_backbone(Config(dict(model=dict(backbone=dict(type='ResNet')))), 'mnv4_conv_s')


@pytest.mark.parametrize('name', DETECTORS)
def test_own_data_reaches_loaders_evaluators_and_heads(name, drawn):
    layout = prepare_detection(drawn)
    cfg = with_data(load_config(name), layout)
    for loader, split in (('train_dataloader', 'train'), ('val_dataloader', 'val'), ('test_dataloader', 'val')):
        assert dataset_split(cfg, loader) == (layout.checked.folder / f'instances_{split}.json', drawn)
        assert innermost_dataset(cfg[loader].dataset).metainfo['classes'][0] == 'disc'
        assert len(innermost_dataset(cfg[loader].dataset).metainfo['palette']) == 6
    assert cfg.model.bbox_head.num_classes == 6
    assert cfg.val_evaluator.ann_file == str(layout.val.annotations)
    assert (cfg.own_data.root, cfg.own_data.allow_dropped) == (str(drawn), False)
    assert cfg.val_evaluator.prefix == 'shapes'  # never "coco"


@pytest.mark.parametrize('name', ['mnv4_ssdlite_coco', 'mnv4_lraspp_ade20k'])
@pytest.mark.parametrize(('value', 'message'), [(None, 'is missing'), ([dict(type='IoUMetric')], 'is a list')])
def test_a_config_without_one_evaluator_is_refused(name, value, message, drawn):
    cfg = load_config(name)
    cfg.test_evaluator = value
    layout = task_of(cfg).find(drawn)
    for change in (lambda: set_data(cfg, layout), lambda: with_data_roots(cfg)):
        with pytest.raises(UserError, match=f'test_evaluator of this config {message}'):
            change()


def test_training_images_are_reported_under_a_name_of_their_own():
    cfg = with_training_images(load_config('mnv4_ssdlite_coco-mini'))
    assert cfg.test_evaluator.prefix == 'trained_on'
    assert dataset_split(cfg, 'test_dataloader') == dataset_split(cfg, 'train_dataloader')
    assert cfg.val_evaluator.prefix == 'coco-mini'


def test_data_in_the_repository_is_found_from_any_folder(tmp_path, monkeypatch, repository):
    monkeypatch.chdir(tmp_path)
    cfg = with_data_roots(load_config('mnv4_ssdlite_coco-mini'))
    assert dataset_split(cfg, 'val_dataloader').images == repository / 'data/mini/coco/val2017'
    assert cfg.val_evaluator.ann_file.startswith(str(repository))
    (tmp_path / 'data/mini/coco/val2017').mkdir(parents=True)  # what is here comes first
    cfg = with_data_roots(load_config('mnv4_ssdlite_coco-mini'))
    assert str(dataset_split(cfg, 'val_dataloader').images) == 'data/mini/coco/val2017'
