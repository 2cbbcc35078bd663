"""Wrong values of a config are refused before torch is imported, and no valid value is."""

import inspect

import pytest
from mmengine.dataset import ClassBalancedDataset, RepeatDataset
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from stub_checkpoint import write_stub_checkpoint
from torch.utils.data import DataLoader

from mnv4_mm.cli import main
from mnv4_mm.config import values
from mnv4_mm.config.check import check_config
from mnv4_mm.config.evaluation import evaluation_config
from mnv4_mm.config.index import config_index
from mnv4_mm.config.load import load_config, with_options
from mnv4_mm.config.options import EvaluateOptions, TrainOptions, read_value
from mnv4_mm.config.source import read_source
from mnv4_mm.config.training import training_config
from mnv4_mm.config.values import check_values
from mnv4_mm.errors import UserError
from mnv4_mm.models.arch import ARCHS, arch_to_dict
from mnv4_mm.models.mobilenetv4 import MobileNetV4

BCCD = 'mnv4_ssdlite_bccd'
# KEY=VALUE -> a part of the message.
REFUSED = {
    'train_cfg.max_epochs=abc': 'must be an integer of at least 1',
    'train_cfg.max_epochs=0': 'must be an integer of at least 1',
    'train_cfg.max_epochs=1.5': 'must be an integer of at least 1',
    'train_cfg.max_epochs=True': 'must be an integer of at least 1',
    'train_cfg.max_epochs=None': 'must be an integer of at least 1',
    'train_cfg.max_epochz=3': "EpochBasedTrainLoop has no 'max_epochz'; near: max_epochs",
    'train_cfg.max_iters=3': "EpochBasedTrainLoop has no 'max_iters'",
    'train_cfg.val_interval=0': 'must be a number of at least 1',
    'train_cfg=3': 'must be a dict; set one of its values, train_cfg.KEY=VALUE',
    'model.backbone.out_indices=9': 'out_indices must be a list, ascending, from 0 (C2) to 4, got 9',
    'model.backbone.out_indices=[2,1]': 'ascending, from 0 (C2) to 4, got [2, 1]',
    'model.backbone.out_indices=abc': 'ascending, from 0 (C2) to 4, got abc',
    'model.backbone.out_indices=[]': 'ascending, from 0 (C2) to 4, got []',
    'model.backbone.archh=conv_s': "MobileNetV4 has no 'archh'; near: arch",
    'model.backbone.arch=conv_q': "arch must be one of conv_s, conv_m, conv_l, hybrid_m, hybrid_l, conv_s_035",
    'model.backbone.arch=3': 'arch must be one of conv_s',
    'model.backbone=conv_s': 'must be a dict',
    'train_dataloader.batch_size=0': 'must be an integer of at least 1',
    'val_dataloader.batch_size=1.0': 'must be an integer of at least 1',
    'train_dataloader.num_workers=-1': 'must be an integer of at least 0',
    'train_dataloader.batchsize=2': "a data loader has no 'batchsize'; near: batch_size",
    'train_dataloader.dataset.ann_file=foo.json': (
        "RepeatDataset has no 'ann_file'; there are dataset, lazy_init, times; the data set inside it is "
        'train_dataloader.dataset.dataset'
    ),
    'optim_wrapper.optimizer.lr=-1': 'must be a number of at least 0, or None',
    'optim_wrapper.optimizer.lr=nan': 'must be a number of at least 0, or None',
    'optim_wrapper.optimizer.lr=fast': 'must be a number of at least 0, or None',
    'optim_wrapper.optimizer=AdamW': 'must be a dict',
    'val_evaluator.metric=foo': 'must be one of bbox, segm, proposal, proposal_fast, or a list of them',
    'optim_wrapper.optimizer.weight_decay=x': 'must be a number of at least 0, or None',
    'optim_wrapper.clip_grad.max_norm=x': 'must be a number of at least 0',
    'optim_wrapper.accumulative_counts=0': 'must be an integer of at least 1',
    'train_cfg.val_begin=x': 'must be a number',
    'default_hooks.checkpoint.interval=x': 'must be an integer',
    'default_hooks.checkpoint.interval=2.5': 'must be an integer',
    'default_hooks.checkpoint.max_keep_ckpts=all': 'must be an integer',
    'default_hooks.logger.interval=0': 'must be an integer of at least 1',
    'model.bbox_head.num_classes=x': 'must be an integer of at least 1',
    'param_scheduler.0.end=x': 'must be a number',
    'param_scheduler=5': 'must be a list of dicts, one dict, or None',
    'param_scheduler.0=LinearLR': 'must be a list of dicts, one dict, or None',
    'randomness.seed=abc': 'must be an integer from 0 to 4294967295, or None',
    'randomness.seed=-1': 'must be an integer from 0 to 4294967295, or None',
    'randomness.sed=1': "randomness has no 'sed'; near: seed",
    'custom_imports.imports=nosuchmodule': 'modules are imported while the config file is read',
}  # fmt: skip
ALLOWED = [
    'train_cfg.max_epochs=3', 'train_cfg.max_epochs=1e2', 'train_cfg.val_interval=1000000000',
    'train_cfg.val_interval=inf', 'train_cfg.val_begin=1000000000', 'train_cfg.dynamic_intervals=[(2, 1)]',
    'model.backbone.out_indices=[1,2,4]', 'model.backbone.out_indices=(0, 3)', 'model.backbone.out_indices=1,2',
    'model.backbone.out_indices=2,', 'model.backbone.arch=conv_m',
    'model.backbone.norm_eval=True', 'model.backbone.init_cfg=None', 'train_dataloader.batch_size=64',
    'val_dataloader.num_workers=0', 'train_dataloader.prefetch_factor=4', 'train_dataloader.num_batch_per_epoch=3',
    'train_dataloader.dataset.times=1', 'train_dataloader.dataset.dataset.ann_file=a.json',
    'val_dataloader.dataset.ann_file=a.json', 'test_dataloader.dataset.indices=17', 'optim_wrapper.optimizer.lr=1e-3',
    'optim_wrapper.optimizer.lr=0', 'optim_wrapper.optimizer.betas=(0.9, 0.99)', 'optim_wrapper.clip_grad=None',
    'val_evaluator.metric=bbox', 'val_evaluator.metric=[bbox, proposal]', 'param_scheduler=None', 'param_scheduler=[]',
    'param_scheduler.0.end=7', 'randomness.seed=0', 'randomness.seed=4294967295', 'randomness.deterministic=True',
    'default_hooks.checkpoint.interval=2', 'default_hooks.checkpoint.interval=-1',
    'default_hooks.checkpoint.interval=0', 'default_hooks.checkpoint.interval=1e3',
    'default_hooks.checkpoint.max_keep_ckpts=-1', 'param_scheduler.0.end=inf',
    'default_hooks.logger.interval=1', 'default_hooks.checkpoint=None', 'model.bbox_head.num_classes=2',
    'optim_wrapper.clip_grad.max_norm=inf', 'optim_wrapper.optimizer.weight_decay=0', 'custom_hooks=[]',
    'load_from=None',
]  # fmt: skip


def options_of(pair):
    key, _, text = pair.partition('=')
    return {key: read_value(text)}


@pytest.mark.parametrize('pair', REFUSED)
def test_a_wrong_value_is_one_line_and_writes_nothing(pair, tmp_path, capsys, repository):
    work_dir = tmp_path / 'w'
    data = str(repository / 'data/mini/bccd')
    assert main(['train', BCCD, '--data', data, '--work-dir', str(work_dir), '--cfg-options', pair]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: --cfg-options {pair.partition("=")[0]}')
    assert REFUSED[pair] in error
    assert error.count('\n') == 1
    assert not work_dir.exists()


@pytest.mark.parametrize('pair', REFUSED)
def test_the_python_api_refuses_the_same_values(pair):
    with pytest.raises(UserError, match='--cfg-options'):
        with_options(load_config(BCCD), options_of(pair))


@pytest.mark.parametrize('pair', ALLOWED)
def test_a_valid_value_passes(pair):
    check_config(BCCD, TrainOptions(cfg_options=options_of(pair)))
    with_options(load_config(BCCD), options_of(pair))


@pytest.mark.parametrize('name', config_index())
def test_shipped_configs_pass(name):
    check_values(read_source(config_index()[name]), {})
    check_values(load_config(name), {})


@pytest.mark.parametrize('arch', ARCHS)
def test_every_net_passes(arch):
    highest = 3 if ARCHS[arch].head_conv is None else 4
    for indices in ([0], [0, 1, 2, highest], (highest,)):
        check_config(
            BCCD, TrainOptions(cfg_options={'model.backbone.arch': arch, 'model.backbone.out_indices': indices})
        )


def test_a_table_of_rows_passes():
    table = {**arch_to_dict(ARCHS['conv_m_seg']), '_delete_': True}  # instead of the name
    three = {'model.backbone.out_indices': [1, 2, 3]}
    check_config(BCCD, TrainOptions(cfg_options={'model.backbone.arch': table, **three}))
    with pytest.raises(UserError, match=r'arch has the keys .*; unknown: stam$') as failure:
        check_config(BCCD, TrainOptions(cfg_options={'model.backbone.arch': {**table, 'stam': 32}}))
    assert len(str(failure.value)) < 400  # not the whole table


def test_a_config_of_the_user_is_checked_as_well(tmp_path, repository, capsys):
    path = tmp_path / 'own.py'
    path.write_text(f"_base_ = ['{repository}/configs/{BCCD}.py']\ntrain_cfg = dict(max_epochs=0)")
    assert main(['train', str(path), '--work-dir', str(tmp_path / 'w')]) == 2
    line = 'this config has train_cfg.max_epochs=0: must be an integer of at least 1'
    assert capsys.readouterr().err == f'error: {line}\n'
    with pytest.raises(UserError, match=line):
        training_config(path, TrainOptions())
    # An option may correct it, and an evaluation does not train.
    check_config(str(path), TrainOptions(cfg_options={'train_cfg.max_epochs': 1}))
    check_config(str(path), EvaluateOptions())
    evaluation_config(path, EvaluateOptions())


def test_test_refuses_wrong_values(tmp_path, capsys):
    write_stub_checkpoint(tmp_path / 'net.pth')
    assert main(['test', BCCD, str(tmp_path / 'net.pth'), '--cfg-options', 'test_dataloader.batch_size=0']) == 2
    line = 'error: --cfg-options test_dataloader.batch_size=0: must be an integer of at least 1\n'
    assert capsys.readouterr().err == line


def test_an_option_may_set_the_dict_around_a_value():
    with pytest.raises(UserError, match=r'--cfg-options randomness=\{.*\}: randomness.seed: must be an integer from 0'):
        check_config(BCCD, TrainOptions(cfg_options={'randomness': {'seed': 'x'}}))


def test_the_backbone_is_that_of_the_option():
    four = {'model.backbone.out_indices': [1, 2, 4]}
    check_config(BCCD, TrainOptions(backbone='mnv4_conv_m', cfg_options=four))
    with pytest.raises(UserError, match=r'from 0 \(C2\) to 3, got \[1, 2, 4\]'):
        check_config(BCCD, TrainOptions(backbone='mnv4_conv_m_seg', cfg_options=four))
    # The arguments of TimmFeatures are not checked here.
    check_config(BCCD, TrainOptions(backbone='timm:resnet18', cfg_options={'model.backbone.drop_rate': 0.1}))


def test_other_types_are_left_to_their_owners():
    options = {'train_cfg.type': 'MyLoop', 'train_cfg.anything': 1, 'val_evaluator.type': 'MyMetric'}
    check_config(BCCD, TrainOptions(cfg_options={**options, 'val_evaluator.metric': 'mine'}))


def parameters(function, *left_out):
    return set(inspect.signature(function).parameters) - {'self', *left_out}


def test_keys_are_the_parameters_of_the_classes():
    loop = ('runner', 'dataloader')
    # Other versions of mmengine and torch lack some of them.
    assert parameters(EpochBasedTrainLoop.__init__, *loop) <= values.LOOP_KEYS['EpochBasedTrainLoop']
    assert parameters(IterBasedTrainLoop.__init__, *loop) <= values.LOOP_KEYS['IterBasedTrainLoop']
    assert parameters(DataLoader.__init__) <= values.LOADER_KEYS
    assert parameters(MobileNetV4.__init__) == values.BACKBONE_KEYS['MobileNetV4']
    assert parameters(RepeatDataset.__init__) == values.DATASET_KEYS['RepeatDataset']
    assert parameters(ClassBalancedDataset.__init__) == values.DATASET_KEYS['ClassBalancedDataset']
    assert parameters(Runner.set_randomness) == values.RANDOMNESS_KEYS
