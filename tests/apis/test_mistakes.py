"""Errors of OpenMMLab about settings of the user are one line; other errors keep their traceback."""

import re

import pytest
import torch

from mnv4_mm.apis.evaluate import evaluate_files
from mnv4_mm.apis.mistakes import telling_wrong_settings
from mnv4_mm.cli import exit_codes, main
from mnv4_mm.engine.building import BuildError, building
from mnv4_mm.errors import UserError

BCCD = 'mnv4_ssdlite_bccd'


@pytest.mark.parametrize(
    ('pair', 'message'),
    [
        ('optim_wrapper.optimizer.type=AdamV', 'optimizer; near: Adam'),
        ('model.neck.type=SSDNek', 'model; near: SSDNeck'),
        ('param_scheduler.0.type=LinearLr', 'parameter scheduler; near: LinearLR'),
        ('train_dataloader.dataset.dataset.pipeline.2.type=Resise', 'transform; near: '),
        ('train_dataloader.sampler.type=NoSampler', 'data sampler; near: '),
        ('val_evaluator.type=CocoMetrik', 'metric; near: '),
        ('default_hooks.timer.type=mmengine.NoHook', 'hook; '),
    ],
)
def test_an_unknown_class_is_found_before_data_is_read_and_writes_nothing(pair, message, tmp_path, capsys):
    work_dir = tmp_path / 'w'
    assert main(['train', BCCD, '--work-dir', str(work_dir), '--cfg-options', pair]) == 2
    out, error = capsys.readouterr()
    assert error.startswith(f'error: {pair}: there is no such {message}')
    assert (out, error.count('\n')) == ('', 1)
    assert len(error) < 320
    assert not work_dir.exists()


@pytest.mark.parametrize(
    ('pair', 'message'),
    [
        ('model.neck.typo=1', r"error: model cannot be built: TypeError: .*'typo'"),
        ('optim_wrapper.optimizer.typo=3', r"error: optim_wrapper cannot be built: TypeError: .*'typo'"),
        ('param_scheduler.0.typo=3', r"error: param_scheduler cannot be built: TypeError: .*'typo'"),
        ('train_dataloader.sampler.typo=3', r'error: train_dataloader cannot be built: TypeError: '),
        ('val_evaluator.typo=3', r"error: val_evaluator cannot be built: TypeError: .*'typo'"),
        ('default_hooks.timer.typo=3', r"error: default_hooks cannot be built: TypeError: "),
    ],
)  # fmt: skip
# Two runs within a second have the same name, at which mmengine warns.
@pytest.mark.filterwarnings('ignore:.*instance named of')
def test_a_component_that_cannot_be_built_is_named(pair, message, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv('MNV4_DEBUG', raising=False)
    assert main(['train', BCCD, '--work-dir', str(tmp_path / 'w'), '--cfg-options', pair]) == 2
    error = capsys.readouterr().err
    assert 'Traceback' not in error
    line = error.splitlines()[-1]
    assert re.match(message, line)
    assert line.endswith(f' (MNV4_DEBUG=1 shows the traceback); check --cfg-options {pair}')


@pytest.fixture
def wrong():
    def build():
        with building('model'), building('neck'):
            dict(size=3)['missing key']

    return build


def test_the_innermost_component_is_named(wrong):
    with pytest.raises(BuildError, match=r'^neck cannot be built: KeyError: missing key \(MNV4_DEBUG') as failure:
        wrong()
    assert isinstance(failure.value.__cause__, KeyError)


def test_mistakes_that_have_been_explained_are_passed_on():
    with pytest.raises(UserError, match=r'^no image$'), building('train_dataloader'):
        raise UserError('no image')
    with pytest.raises(RuntimeError, match=r'^CUDA'), building('model'):
        raise RuntimeError('CUDA error')


def test_without_settings_of_the_user_it_is_our_bug(wrong):
    with pytest.raises(KeyError, match='missing key'), telling_wrong_settings(BCCD, {}, checkpoint='own.pth'):
        wrong()


def test_a_config_of_the_user_is_named(wrong, tmp_path):
    path = tmp_path / 'own.py'
    path.touch()
    with pytest.raises(UserError, match=f'; check config {path} and --cfg-options a=1$') as failure:  # noqa: SIM117
        with telling_wrong_settings(path, {'a': 1}):
            wrong()
    assert isinstance(failure.value.__cause__, KeyError)


def test_advice_of_mmengine_is_left_out():
    with (
        pytest.raises(BuildError, match=r'KeyError: X is not in the mmdet::hook registry\. \(MNV4_DEBUG'),
        building('a'),
    ):
        raise KeyError(
            'X is not in the mmdet::hook registry. Please check whether it is correct. More details at https'
        )


@pytest.fixture(scope='module')
def wrong_key(tmp_path_factory, repository):
    """A config whose head gets an argument that it does not know, and a checkpoint that carries such a config."""
    folder = tmp_path_factory.mktemp('wrong_key')
    config, checkpoint = folder / 'own.py', folder / 'old.pth'
    config.write_text(f"_base_ = '{repository}/configs/{BCCD}.py'\nmodel = dict(bbox_head=dict(nokey=1))\n")
    content = torch.load(repository / 'examples/bccd.pth', weights_only=True)
    content['meta']['cfg'] = content['meta']['cfg'].replace('bbox_head=dict(', 'bbox_head=dict(nokey=1, ', 1)
    torch.save(content, checkpoint)
    return str(config), str(checkpoint)


@pytest.mark.parametrize('command', ['infer', 'export', 'demo', 'complexity', 'test', 'report'])
def test_every_command_names_the_config_with_a_wrong_key(command, wrong_key, tmp_path, capsys, repository):
    config, checkpoint = wrong_key
    given, data = str(repository / 'examples/bccd.pth'), str(repository / 'data/mini/bccd')
    arguments = {
        'infer': [str(repository / 'docs/example.jpg'), given, '--config', config, '--out-dir', str(tmp_path)],
        'export': [given, '--config', config, '--out-dir', str(tmp_path)],
        'demo': [checkpoint],
        'complexity': [config],
        'test': [checkpoint, '--data', data, '--work-dir', str(tmp_path / 'w')],
        'report': [checkpoint, '--data', data, '--out', str(tmp_path / 'w')],
    }[command]
    assert main([command, *arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith('error: model cannot be built: TypeError: ')
    assert "'nokey'" in line
    named = f'the config in {checkpoint}' if command in ('demo', 'test', 'report') else f'config {config}'
    assert line.endswith(f'; check {named}')


def test_an_error_in_the_middle_of_training_stays_as_it_is():
    with pytest.raises(TypeError, match=r'^step$'), telling_wrong_settings(BCCD, {'a': 1}):
        raise TypeError('step')


def test_a_long_message_is_shortened():
    with pytest.raises(UserError) as failure, telling_wrong_settings(BCCD, {'a': 1}), building('model'):
        raise KeyError('type is missing in\n' + 'config ' * 1000)
    assert len(str(failure.value)) < 800
    assert '\n' not in str(failure.value)


def test_the_traceback_is_shown_on_request(wrong, capsys, monkeypatch):
    def call():
        with telling_wrong_settings(BCCD, {'a': 1}):
            wrong()

    monkeypatch.setenv('MNV4_DEBUG', '1')
    assert exit_codes.run(call) == 2
    error = capsys.readouterr().err
    assert "dict(size=3)['missing key']" in error
    assert error.splitlines()[-1].startswith('error: neck cannot be built')


def test_an_evaluation_names_its_component(tmp_path, repository):
    checkpoint = str(repository / 'examples/bccd.pth')
    with pytest.raises(UserError, match=r"^test_evaluator cannot be built: TypeError: .*'typo'.*; check --cfg-options"):
        evaluate_files(BCCD, checkpoint, work_dir=str(tmp_path), cfg_options={'test_evaluator.typo': 3})
