"""Training on several machines: what a user sees if they do not find each other.

Trainings on two machines, kills and replaced machines: tests/long/test_many_machines.py.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mnv4_mm.apis import launch
from mnv4_mm.apis.launch import join_processes, lost_process_errors, prepare_processes
from mnv4_mm.apis.train import _check_same_start
from mnv4_mm.errors import UserError
from mnv4_mm.weights.checkpoint import Checkpoint

VARIABLES = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
SLURM = dict(SLURM_LOCALID='1', SLURM_PROCID='3', SLURM_NTASKS='4', SLURM_NODELIST='node[7-8]')
TORCHRUN = dict(RANK='1', WORLD_SIZE='2', LOCAL_RANK='1', MASTER_ADDR='127.0.0.1', MASTER_PORT='29400')


@pytest.fixture
def environment(monkeypatch):
    """Set environment variables for a test; those of launchers that are not given are not set."""

    def set_variables(values):
        for name in (*VARIABLES, *SLURM, 'TORCHELASTIC_RUN_ID'):
            monkeypatch.setenv(name, '')  # so that it is put back as it was
            monkeypatch.delenv(name)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    return set_variables


@pytest.mark.parametrize(
    ('launcher', 'values', 'message'),
    [
        ('pytorch', {**TORCHRUN, 'MASTER_ADDR': 'first.invalid'}, 'MASTER_ADDR=first.invalid is not the name'),
        ('pytorch', {**TORCHRUN, 'MASTER_ADDR': ''}, 'MASTER_ADDR must be the name or address .*; it is not set'),
        ('pytorch', {**TORCHRUN, 'MASTER_PORT': 'abc'}, "MASTER_PORT must be a number; got 'abc'"),
        ('pytorch', {**TORCHRUN, 'MASTER_PORT': '99999'}, 'MASTER_PORT must be at most 65535'),
        ('pytorch', {**TORCHRUN, 'MASTER_ADDR': 'a..b'}, r'MASTER_ADDR=a\.\.b is not the name'),
        ('pytorch', {**TORCHRUN, 'RANK': ''}, 'RANK must be a number; it is not set'),
        ('slurm', {**SLURM, 'MASTER_ADDR': 'first.invalid'}, 'MASTER_ADDR=first.invalid is not the name'),
        ('slurm', {'SLURM_LOCALID': '0'}, 'SLURM_PROCID is not set; is this process started by srun'),
        ('slurm', {**SLURM, 'PATH': ''}, r'`scontrol show hostnames node\[7-8\]` failed .*: set MASTER_ADDR'),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_environment_is_one_line(environment, launcher, values, message):
    environment(values)
    with pytest.raises(UserError, match=message):
        prepare_processes(launcher)


def test_slurm_s_variables_become_torch_s(environment, monkeypatch, tmp_path):
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[7-8]" ] && printf "localhost\\nnode8\\n"\n')
    scontrol.chmod(0o755)
    environment({**SLURM, 'PATH': f'{tmp_path}:{os.environ["PATH"]}'})
    prepare_processes('slurm')
    expected = dict(RANK='3', WORLD_SIZE='4', LOCAL_RANK='1', MASTER_ADDR='localhost', MASTER_PORT='29500')
    assert {name: os.environ[name] for name in VARIABLES} == expected
    environment({**SLURM, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29501'})
    prepare_processes('slurm')
    assert (os.environ['MASTER_ADDR'], os.environ['MASTER_PORT']) == ('127.0.0.1', '29501')


def test_the_machines_of_a_step_may_be_fewer_than_those_of_its_job(environment, tmp_path):
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node8" ] && printf "localhost\\n"\n')
    scontrol.chmod(0o755)
    environment({**SLURM, 'SLURM_STEP_NODELIST': 'node8', 'PATH': f'{tmp_path}:{os.environ["PATH"]}'})
    prepare_processes('slurm')
    assert os.environ['MASTER_ADDR'] == 'localhost'


def test_more_processes_than_gpus_are_refused(environment, monkeypatch):
    environment({**SLURM, 'MASTER_ADDR': '127.0.0.1'})
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(UserError, match=r'process 1 of this machine sees 1 GPU and needs one for each process'):
        prepare_processes('slurm')


def test_several_processes_without_a_launcher_are_refused(environment, monkeypatch):
    environment({})
    monkeypatch.setattr(launch, 'get_world_size', lambda: 2)  # that of a worker of Ray Train
    with pytest.raises(UserError, match=r"each would do the whole work alone: .*launcher='pytorch'"):
        prepare_processes('none')


def config(**dist_cfg):
    return Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=dict(backend='gloo', **dist_cfg)), work_dir='w'))


@pytest.mark.parametrize('timeout', [0, -1, 'soon', True, float('nan')])
def test_a_timeout_is_a_positive_number(environment, timeout):
    environment(TORCHRUN)
    with pytest.raises(UserError, match=r'env_cfg\.dist_cfg\.timeout must be a positive number'):
        join_processes(config(timeout=timeout))


def test_on_gpus_mmengine_makes_the_group_with_the_config_s_settings(environment, monkeypatch):
    calls = []
    environment(TORCHRUN)
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr(launch, 'set_multi_processing', lambda **settings: calls.append(settings))
    monkeypatch.setattr(launch, 'init_dist', lambda launcher, **settings: calls.append((launcher, settings)))
    join_processes(config(timeout=1200))
    assert calls == [dict(distributed=True), ('pytorch', dict(backend='gloo', timeout=1200))]


def test_a_machine_that_does_not_answer_is_one_line(environment):
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        environment({**TORCHRUN, 'MASTER_PORT': str(unused.getsockname()[1])})
        with pytest.raises(
            UserError, match=r'process 1 does not find the others by MASTER_ADDR=127\.0\.0\.1'
        ) as caught:
            join_processes(config(timeout=1))
    assert '\n' not in str(caught.value)
    assert not torch.distributed.is_initialized()


def test_a_wrong_address_is_one_line_and_exit_code_2(environment, repository, tmp_path, run_tool):
    environment({**TORCHRUN, 'LOCAL_RANK': '0', 'MASTER_ADDR': 'first.invalid'})
    config = 'mnv4_lraspp_ade20k-mini'
    run = run_tool('train.py', config, '--work-dir', tmp_path / 'w', '--launcher', 'pytorch')
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert 'MASTER_ADDR=first.invalid is not the name' in line
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('others', [None, 'iter_4.pth, step 4'])
def test_all_processes_start_from_one_checkpoint(monkeypatch, others):
    own = Checkpoint(Path('w/iter_8.pth'), dict(meta=dict(iter=8)))
    monkeypatch.setattr('mnv4_mm.apis.train.all_gather_object', lambda own: [own, own])
    _check_same_start(config(), own)
    _check_same_start(config(), None)
    monkeypatch.setattr('mnv4_mm.apis.train.all_gather_object', lambda own: [own, (others, own[1])])
    with pytest.raises(UserError, match=r'process 0 starts from iter_8\.pth, step 8.*, and process 1 from (no|iter_4)'):
        _check_same_start(config(), own)


def test_all_processes_have_one_recipe(monkeypatch):
    """Each makes its own step: with another learning rate on one machine, weights would drift apart silently."""
    cfg = config()
    cfg.optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
    other = config()
    other.optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.2))
    gathered = []
    monkeypatch.setattr('mnv4_mm.apis.train.all_gather_object', lambda own: gathered.append(own) or [own])
    for one in (cfg, other):
        _check_same_start(one, None)
    monkeypatch.setattr('mnv4_mm.apis.train.all_gather_object', lambda own: gathered)
    with pytest.raises(UserError, match='process 1 was started with another config than process 0: optim_wrapper'):
        _check_same_start(cfg, None)


def test_only_errors_of_connections_are_told_as_lost_processes():
    with pytest.raises(UserError, match='lost its connection to another process'), lost_process_errors():
        raise RuntimeError('[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:1\nframe')
    with pytest.raises(RuntimeError, match='shape'), lost_process_errors():
        raise RuntimeError('shape')


class Terminated(torch.utils.data.Dataset):
    """Data whose reading ends the process, as a user or a machine without memory would."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_lost_process_of_a_data_loader_is_one_line():
    loader = torch.utils.data.DataLoader(Terminated(), num_workers=1)
    message = r'loads images has ended \(DataLoader worker .* --resume'
    with pytest.raises(UserError, match=message), lost_process_errors():
        list(loader)


@pytest.mark.parametrize(
    ('example', 'needs', 'arguments', 'message'),
    [
        ('submitit', ['submitit'], ['mnv4_ssdlight', '--work-dir', 'w'], 'error: no config mnv4_ssdlight'),
        ('submitit', ['submitit'], ['mnv4_ssdlite_coco'], 'error: --work-dir must name a folder'),
        ('submitit', ['submitit'], ['mnv4_ssdlite_coco', '--work-dir', 'w'], 'error: --cluster slurm: Could not'),
        ('ray', ['ray', 'pydantic'], ['mnv4_ssdlite_coco'], 'error: --work-dir must name a folder'),
    ],
)
def test_mistakes_with_the_examples_are_one_line(repository, tmp_path, example, needs, arguments, message):
    for package in needs:
        pytest.importorskip(package)
    path = os.pathsep.join([str(repository), os.environ.get('PYTHONPATH', '')])
    run = subprocess.run(
        [sys.executable, repository / f'examples/train_with_{example}.py', *arguments], cwd=tmp_path,
        capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=path, PATH=''),
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.startswith(message)
    assert run.stderr.count('\n') == 1
