"""Two machines on one: network namespaces that a cable joins, each with a host name and processes of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

FILES = ('hosts', 'resolv.conf')  # in /etc


class Machine:
    """A network namespace. Its processes have a host name and a process namespace of their own.

    Args:
        name: The host name, which both machines can resolve.
        namespace: The network namespace.
        files: Folder with the machine's ``FILES``.
    """

    def __init__(self, name: str, namespace: str, files: Path) -> None:
        self.name = name
        self.namespace = namespace
        self.files = files
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, command: list[str], output: Path, environment: Mapping[str, str]) -> 'subprocess.Popen[bytes]':
        """Start a command in the folder of its output.

        Killing the returned process kills everything that it has started, as if power was cut.
        """
        files = ''.join(f'mount --bind {self.files / name} /etc/{name} && ' for name in FILES)
        prepare = f'hostname {self.name} && {files}exec "$@"'
        inside = ['unshare', '--uts', '--pid', '--fork', '--kill-child=KILL', '--mount-proc', 'sh', '-c', prepare, 'sh']
        with output.open('ab') as file:
            process = subprocess.Popen(
                ['ip', 'netns', 'exec', self.namespace, *inside, *command],
                cwd=output.parent,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self.started.append(process)
        return process

    def train(
        self, repository: Path, config: Path | str, work_dir: Path, *arguments: object, restarts: int = 0,
        options: Sequence[str] = (), batch: int = 4,
    ) -> 'subprocess.Popen[bytes]':  # fmt: skip
        """Start one process of two by torchrun in the current folder ``<files>/<name>``, as docs/many-machines.md says.

        Args:
            repository: The repository.
            config: Path or name of a config.
            work_dir: Work directory of the run.
            *arguments: Further arguments of ``tools/train.py``.
            restarts: Number of elastic restarts.
            options: Further ``--cfg-options``.
            batch: Images of a step in each process.
        """
        folder = self.files / self.name
        folder.mkdir(exist_ok=True)
        command = [
            sys.executable, '-m', 'torch.distributed.run', '--nnodes=2', '--nproc-per-node=1', '--rdzv-backend=c10d',
            '--rdzv-endpoint=first:29400', '--rdzv-id=1', f'--max-restarts={restarts}',
            repository / 'tools/train.py', config, '--work-dir', work_dir, '--launcher', 'pytorch', *arguments,
            '--cfg-options', f'train_dataloader.batch_size={batch}', *options,
        ]  # fmt: skip
        path = os.pathsep.join([str(repository), str(repository / 'tests/helpers')])
        environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=path, TORCH_DISABLE_SHARE_RDZV_TCP_STORE='1')
        return self.start(list(map(str, command)), folder / 'output.txt', environment)

    def replacement(self) -> 'Machine':
        """Return a machine of another name, ``third``, to be started at this end of the cable."""
        machine = Machine('third', self.namespace, self.files)
        machine.started = self.started
        return machine

    def unplug(self) -> None:
        """Cut the cable: nothing that is sent arrives, and nobody is told."""
        _ip('-n', self.namespace, 'link', 'set', 'cable', 'down')


@contextmanager
def two_machines(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Provide machines ``first`` and ``second``. The test is skipped where namespaces are not permitted."""
    suffix = uuid4().hex[:6]
    names = ('first', 'second')
    addresses = ['10.213.77.1', '10.213.77.2']
    (folder / 'hosts').write_text('127.0.0.1 localhost\n10.213.77.1 first\n10.213.77.2 second third\n')
    (folder / 'resolv.conf').write_text('')  # torch asks for names of addresses, too: nobody is there to ask
    machines = [Machine(name, f'{name}-{suffix}', folder) for name in names]
    made = []
    try:
        try:
            for machine in machines:
                _ip('netns', 'add', machine.namespace)
                made.append(machine)
            ends = ['name', 'cable', 'netns', machines[0].namespace], ['name', 'cable', 'netns', machines[1].namespace]
            _ip('link', 'add', *ends[0], 'type', 'veth', 'peer', *ends[1])
            for machine, address in zip(machines, addresses, strict=True):
                _ip('-n', machine.namespace, 'address', 'add', f'{address}/24', 'dev', 'cable')
                for device in ('lo', 'cable'):
                    _ip('-n', machine.namespace, 'link', 'set', device, 'up')
            probe = machines[0].start(['true'], folder / 'probe.txt', {})
            if probe.wait(timeout=60):
                raise OSError((folder / 'probe.txt').read_text())
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, 'stderr', None) or str(error)
            pytest.skip(f'no network namespaces are permitted here: {" ".join(reason.split())}')
        yield machines[0], machines[1]
    finally:
        for machine in made:
            for process in machine.started:
                process.kill()
                process.wait()
            _ip('netns', 'delete', machine.namespace)


def _ip(*arguments: str) -> None:
    subprocess.run(['ip', *arguments], check=True, capture_output=True, text=True)
