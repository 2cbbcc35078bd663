"""Two processes of a training, started in every way of docs/many-machines.md, killed and replaced: the same weights.

Machines are network namespaces. A run on two machines is compared with one process, in float64; all others are
compared, bit by bit, with a run on two machines that nobody disturbs.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import kills
import pytest
from end_to_end import draw_few
from machines import two_machines
from processes import check_share_of_batches, train, write_configs

BACKGROUNDS = Path(__file__).parents[2] / 'data/mini/coco/train2017'
STEPS = 24
KILLS = 4
# Smaller images than the config's, for speed.
SMALL = ['train_dataloader.dataset.pipeline.2.scale=(96,96)', 'model.data_preprocessor.size=(96,96)']
WAIT = 600  # seconds, for a run on a busy machine
OPTIONS = {
    **kills.segmenter_options(STEPS),
    'randomness.seed': 7,
    'visualizer.vis_backends': [{'type': 'LocalVisBackend'}],
    'train_dataloader.num_workers': 1,
    **{f'{split}_dataloader.{key}': 0 for split in ('val', 'test') for key in ('num_workers', 'persistent_workers')},
}
CFG_OPTIONS = [f'{key}={value}'.replace(' ', '') for key, value in OPTIONS.items()]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return draw_few(tmp_path_factory.mktemp('data') / 'shapes', BACKGROUNDS, count=6, size=160)


@pytest.fixture
def start(repository, data):
    """Start a run on a machine, which resumes the run of its work directory if there is one."""

    def begin(machine, work_dir, restarts=0, options=()):
        return machine.train(
            repository, kills.SEGMENTER, work_dir, '--data', data, '--no-report', '--resume',
            restarts=restarts, options=[*CFG_OPTIONS, *options], batch=2,
        )  # fmt: skip

    return begin


@pytest.fixture(scope='module')
def whole(repository, data, tmp_path_factory):
    """The run that nobody disturbs."""
    folder = tmp_path_factory.mktemp('whole')
    with two_machines(folder) as machines:
        runs = [
            machine.train(
                repository, kills.SEGMENTER, folder / 'w', '--data', data, '--no-report', options=CFG_OPTIONS, batch=2
            )
            for machine in machines
        ]
        codes = [run.wait(timeout=WAIT) for run in runs]
        assert codes == [0, 0], outputs(machines)
    # Predictions are handed over by messages: the machines have no current folder in common.
    assert not list(folder.glob('*/.dist_test'))
    return folder / 'w'


def outputs(machines):
    return '\n'.join((machine.files / machine.name / 'output.txt').read_text()[-6000:] for machine in machines)


def check_same(whole, work_dir):
    assert kills.differences(whole / f'iter_{STEPS}.pth', work_dir / f'iter_{STEPS}.pth') == []
    assert {path.name for path in work_dir.glob('best_*')} >= {path.name for path in whole.glob('best_*')}
    assert not list(work_dir.glob('.*.part'))


def wait_for(condition, runs=()):
    """Wait until a condition is true, and return its value. A run must not end before."""
    deadline = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < deadline
        assert all(run.poll() is None for run in runs), 'a run has ended too early'
        time.sleep(0.002)
    return found


def step(work_dir):
    """Return the number of steps in the last checkpoint; 0 if there is none."""
    pointer = work_dir / 'last_checkpoint'
    return int(Path(pointer.read_text()).stem.partition('_')[2]) if pointer.is_file() else 0


def worker(marker, **environment):
    """Return the process with this text in its command and these environment variables; its children have them, too."""
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            variables = (folder / 'environ').read_bytes().split(b'\0')
            matches = marker.encode() in (folder / 'cmdline').read_bytes()
            parent = (folder / 'stat').read_text().rpartition(')')[2].split()[1]
        except OSError:  # it has ended
            continue
        if matches and {f'{name}={value}'.encode() for name, value in environment.items()} <= set(variables):
            found.append((int(folder.name), int(parent)))
    ids = {process for process, _ in found}
    return next((process for process, parent in found if parent not in ids), None)


def test_two_machines_train_as_one_process(repository, tmp_path):
    """They find each other as docs/many-machines.md says, and share the folder of the configs, not the current one."""
    folder = write_configs(repository, tmp_path)
    with two_machines(tmp_path) as machines:
        started = [
            machine.train(repository, folder / 'segmenter.py', folder / 'two', '--iters', 8, options=SMALL)
            for machine in machines
        ]
        codes = [process.wait(timeout=WAIT) for process in started]
        assert codes == [0, 0], outputs(machines)
    train(repository, folder, 'one', 1, folder / 'segmenter.py', '--iters', 8, options=SMALL)
    check_share_of_batches(folder, 'one', 'two', 8, 1e-6)


def test_killed_processes_are_replaced_by_an_elastic_restart(start, whole, tmp_path):
    """SIGKILL for processes of both machines at random moments; the first while a checkpoint is written."""
    rng, work_dir, killed = random.Random(0), tmp_path / 'w', []
    with two_machines(tmp_path) as machines:
        runs = [start(machine, work_dir, restarts=2 * KILLS) for machine in machines]
        for number in range(KILLS):
            wait_for(lambda number=number: step(work_dir) >= 4 * (number + 1), runs)
            if number == 0:
                wait_for(lambda: list(work_dir.glob('.*.part')), runs)
            else:
                time.sleep(rng.uniform(0, 0.2))
            victim = wait_for(lambda number=number: worker(str(work_dir), RANK=number % 2), runs)
            os.kill(victim, signal.SIGKILL)
            killed.append((victim, sorted(path.name for path in work_dir.glob('*.pth'))))
            wait_for(lambda victim=victim: not Path(f'/proc/{victim}').exists(), runs)
        codes = [run.wait(timeout=WAIT) for run in runs]
        print(*killed, sep='\n')
        assert codes == [0, 0], outputs(machines)
    assert len({victim for victim, _ in killed}) == KILLS
    check_same(whole, work_dir)


def test_a_machine_that_loses_power_is_replaced(start, whole, tmp_path):
    work_dir = tmp_path / 'w'
    with two_machines(tmp_path) as machines:
        first, second = [start(machine, work_dir, restarts=3) for machine in machines]
        wait_for(lambda: step(work_dir) >= 8, [first, second])
        second.kill()
        second.wait()
        third = machines[1].replacement()
        replacement = start(third, work_dir, restarts=3)
        codes = [run.wait(timeout=WAIT) for run in (first, replacement)]
        assert codes == [0, 0], outputs([machines[0], third])
    check_same(whole, work_dir)


@pytest.mark.parametrize('how', ['a process is killed', 'the cable is cut'])
def test_without_a_restart_no_process_hangs_and_the_run_is_resumed_by_hand(start, whole, tmp_path, how):
    work_dir = tmp_path / 'w'
    with two_machines(tmp_path) as machines:
        runs = [start(machine, work_dir, options=['env_cfg.dist_cfg.timeout=20']) for machine in machines]
        wait_for(lambda: step(work_dir) >= 8, runs)
        began = time.monotonic()
        if how == 'a process is killed':
            os.kill(worker(str(work_dir), RANK=1), signal.SIGKILL)
        else:
            machines[1].unplug()
        wait_for(lambda: not any(worker(str(work_dir), RANK=rank) for rank in (0, 1)))
        print(f'{how}: both ended after {time.monotonic() - began:.0f} seconds')
        # Without a cable, torchrun of the second machine does not end by itself (pytorch/pytorch#76287).
        codes = [run.wait(timeout=WAIT) for run in runs[: 1 if how == 'the cable is cut' else 2]]
        assert 0 not in codes
        assert 'error: process 0 lost its connection to another process' in outputs(machines)
    again = tmp_path / 'again'
    again.mkdir()
    with two_machines(again) as machines:
        codes = [run.wait(timeout=WAIT) for run in [start(machine, work_dir) for machine in machines]]
        assert codes == [0, 0], outputs(machines)
    check_same(whole, work_dir)


def test_machines_with_work_directories_of_their_own_are_told(start, whole, tmp_path):
    """Otherwise one would resume and the other start anew."""
    with two_machines(tmp_path) as machines:
        shutil.copytree(whole, tmp_path / 'first/w')
        codes = [run.wait(timeout=WAIT) for run in [start(machine, Path('w')) for machine in machines]]
        assert 0 not in codes
        message = 'process 0 starts from iter_24.pth, step 24, and process 1 from no checkpoint: w must be one folder'
        assert f'error: {message}' in outputs(machines)
        assert '(exitcode: 2)' in outputs(machines) or 'exitcode  : 2' in outputs(machines)


def arguments(work_dir, data):
    options = ['train_dataloader.batch_size=2', *CFG_OPTIONS]
    return [
        kills.SEGMENTER, '--work-dir', str(work_dir), '--data', str(data), '--cfg-options', *options,
    ]  # fmt: skip


def environment(repository, **more):
    path = os.pathsep.join([str(repository), *filter(None, [os.environ.get('PYTHONPATH')])])
    return dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=path, **more)


def test_slurm(repository, data, whole, tmp_path):
    """Two tasks, with the variables that srun sets."""
    command = [sys.executable, str(repository / 'tools/train.py'), *arguments(tmp_path / 'w', data)]
    slurm = dict(SLURM_NTASKS='2', SLURM_NODELIST='localhost', MASTER_ADDR='localhost', MASTER_PORT='29517')
    tasks = [
        subprocess.Popen(
            [*command, '--launcher', 'slurm', '--no-report', '--resume'], cwd=tmp_path,
            env=environment(repository, **slurm, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
        )
        for rank in (0, 1)
    ]  # fmt: skip
    assert [task.wait(timeout=WAIT) for task in tasks] == [0, 0]
    check_same(whole, tmp_path / 'w')


def test_submitit(repository, data, whole, tmp_path):
    """Its signal before a preemption reaches the first task, which submits the training again."""
    pytest.importorskip('submitit', reason='submitit is not installed: pip install submitit')
    work_dir = tmp_path / 'w'
    command = [sys.executable, repository / 'examples/train_with_submitit.py', *arguments(work_dir, data)]
    command += ['--cluster', 'local', '--tasks-per-node', '2', '--gpus-per-node', '0', '--hours', '1']
    with (tmp_path / 'output.txt').open('w') as output:
        run = subprocess.Popen(
            list(map(str, command)), cwd=tmp_path, stdout=output, stderr=output, env=environment(repository)
        )
    wait_for(lambda: step(work_dir) >= 8, [run])
    os.kill(worker('submitit.core._submit', SUBMITIT_LOCAL_GLOBALID=0), signal.SIGUSR2)
    assert run.wait(timeout=WAIT) == 0, (tmp_path / 'output.txt').read_text()
    logs = ''.join(path.read_text() for path in (work_dir / 'submitit').glob('*_log.*'))
    assert 'Requeued job' in logs, logs[-3000:]
    assert str(work_dir) in (tmp_path / 'output.txt').read_text()
    check_same(whole, work_dir)


def test_ray(repository, data, whole, tmp_path):
    """A worker is killed; Ray Train starts both again."""
    for package in ('ray', 'pydantic'):
        pytest.importorskip(package, reason='Ray Train is not installed: pip install "ray[train]"')
    work_dir = tmp_path / 'w'
    command = [sys.executable, repository / 'examples/train_with_ray.py', *arguments(work_dir, data)]
    with (tmp_path / 'output.txt').open('w') as output:
        run = subprocess.Popen(
            list(map(str, [*command, '--workers', '2', '--cpus-per-worker', '1'])),
            cwd=tmp_path, stdout=output, stderr=output, env=environment(repository),
        )  # fmt: skip
    wait_for(lambda: step(work_dir) >= 8, [run])
    os.kill(worker('ray::RayTrainWorker', MNV4_CACHE=os.environ['MNV4_CACHE']), signal.SIGKILL)
    assert run.wait(timeout=WAIT) == 0, (tmp_path / 'output.txt').read_text()[-5000:]
    check_same(whole, work_dir)
