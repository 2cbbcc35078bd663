"""Join the processes that torchrun, Slurm, MPI or another program started."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from mmengine.config import Config
from mmengine.dist import get_rank, get_world_size, init_dist, is_distributed
from mmengine.utils.dl_utils import set_multi_processing
from torch.distributed import DistError

from mnv4_mm.config.launcher import check_timeout
from mnv4_mm.config.options import LAUNCHERS, check_launcher
from mnv4_mm.errors import UserError

# Part of gloo's messages about a connection that broke or timed out. They are plain RuntimeErrors.
GLOO = 'gloo/transport'
# How torch's message begins if a process of a data loader has ended: killed by a signal, or out of memory.
LOADER = 'DataLoader worker (pid'
DEFAULT_PORT = '29500'  # mmengine's


def prepare_processes(launcher: str) -> None:
    """Check that this process was started by its launcher, and set the environment variables of torch.distributed.

    ``LOCAL_RANK``, by which mmengine selects the GPU, is set for all launchers. For slurm, ``RANK``, ``WORLD_SIZE``,
    ``MASTER_ADDR`` and ``MASTER_PORT`` are, too.

    Args:
        launcher: none, pytorch, slurm or mpi.

    Raises:
        UserError: The launcher did not start this process, several processes were started and ``launcher`` is none,
            environment variables are missing or wrong, the first machine has no address, the launcher is mpi and there
            is no GPU, or the machine has fewer GPUs than processes.
    """
    if launcher == 'none':
        by_torchrun = 'TORCHELASTIC_RUN_ID' in os.environ and os.environ.get('WORLD_SIZE') != '1'
        if get_world_size() > 1 or (by_torchrun and not is_distributed()):
            raise UserError(
                'several processes were started, and each would do the whole work alone: add --launcher pytorch '
                "(in Python: launcher='pytorch')"
            )
        return
    check_launcher(launcher)
    os.environ['LOCAL_RANK'] = os.environ[LAUNCHERS[launcher][1]]
    if is_distributed():
        return
    if launcher == 'mpi' and not torch.cuda.is_available():
        raise UserError(
            '--launcher mpi needs GPUs, and there is none here; on CPUs use torchrun and --launcher pytorch'
        )
    if launcher == 'slurm':
        _set_slurm_variables()
    _check_variables(launcher)
    _check_gpu(launcher)


def join_processes(cfg: Config) -> None:
    """Join the processes of ``cfg.launcher`` into a process group of torch.distributed: NCCL on GPUs, gloo on CPUs.

    Nothing is joined for the launcher ``none``, or if there is a process group already, as in a worker of Ray Train.

    Args:
        cfg: Config of a run. ``env_cfg.dist_cfg.timeout`` is the number of seconds to wait for the others, now and
            later; torch's default is 10 minutes for NCCL and 30 for gloo.

    Raises:
        UserError: The timeout is not a positive number, or the processes do not find each other.
    """
    if cfg.launcher == 'none' or is_distributed():
        return
    timeout = check_timeout(cfg)
    try:
        if torch.cuda.is_available():
            # As the Runner does, but before the checkpoint is chosen, on which all must agree.
            set_multi_processing(**cfg.env_cfg.get('mp_cfg', {}), distributed=True)
            init_dist(cfg.launcher, **cfg.env_cfg.get('dist_cfg', {}))
        else:
            # Not mmengine's function, which selects a GPU for every backend.
            limit = None if timeout is None else timedelta(seconds=timeout)
            torch.distributed.init_process_group('gloo', timeout=limit)
    except RuntimeError as error:
        if not _is_of_processes(error):
            raise
        given = ' '.join(f'{name}={os.environ.get(name)}' for name in ('MASTER_ADDR', 'MASTER_PORT', 'WORLD_SIZE'))
        raise UserError(
            f'process {os.environ.get("RANK")} does not find the others by {given}: {_first_line(error)} Check the '
            'address, and that all processes were started; see docs/many-machines.md'
        ) from error


@contextmanager
def lost_process_errors() -> Iterator[None]:
    """Turn communication errors because of a lost process into a ``LostProcessError``.

    If a process that loads images has ended, the error becomes a ``UserError``.
    """
    try:
        yield
    except RuntimeError as error:
        if str(error).startswith(LOADER):
            raise UserError(
                f'a process that loads images has ended ({_first_line(error)}). If memory was short, load images in '
                'fewer processes: --cfg-options train_dataloader.num_workers=0 val_dataloader.num_workers=0 '
                'test_dataloader.num_workers=0. A training continues with the same command and --resume'
            ) from error
        if not _is_of_processes(error):
            raise
        raise LostProcessError(
            f'process {get_rank()} lost its connection to another process ({_first_line(error)}): '
            'look for the message of that process, and continue with the same command and --resume'
        ) from error


class LostProcessError(UserError):
    """Communication with another process has failed."""


def _is_of_processes(error: RuntimeError) -> bool:
    return isinstance(error, DistError) or GLOO in str(error)


def _first_line(error: Exception) -> str:
    """Return the first line of a message or, of NCCL's, the line with its reason."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reasons = [i + 1 for i, line in enumerate(lines[:-1]) if line.startswith('Last error')]
    return lines[reasons[0] if reasons else 0][:200]


def is_first_of_machine(launcher: str) -> bool:
    """Return True for the first process of each machine, and for every process of the launcher ``none``.

    Work that is needed once per machine, such as checking the data, is done by these processes only.
    """
    return launcher == 'none' or os.environ.get('LOCAL_RANK') == '0'


def _set_slurm_variables() -> None:
    """Set torch's variables from Slurm's; ``MASTER_ADDR`` and ``MASTER_PORT`` only if they are not set."""
    for variable, name in (('RANK', 'SLURM_PROCID'), ('WORLD_SIZE', 'SLURM_NTASKS')):
        if name not in os.environ:
            raise UserError(f'--launcher slurm: {name} is not set; is this process started by srun?')
        os.environ[variable] = os.environ[name]
    os.environ.setdefault('MASTER_PORT', DEFAULT_PORT)
    if 'MASTER_ADDR' in os.environ:
        return
    # mmengine takes the output of this command as the address even if it is an error message.
    # The machines of the step, which may be fewer than those of the job.
    machines = os.environ.get('SLURM_STEP_NODELIST') or os.environ.get('SLURM_NODELIST', '')
    command = ['scontrol', 'show', 'hostnames', machines]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        reason = ' '.join((getattr(error, 'stderr', None) or str(error)).split())
        raise UserError(
            f'--launcher slurm: `{" ".join(command)}` failed ({reason}): set MASTER_ADDR to the name of the first '
            'machine'
        ) from error
    if not names:
        raise UserError('--launcher slurm: SLURM_NODELIST names no machine: set MASTER_ADDR to the name of the first')
    os.environ['MASTER_ADDR'] = names[0]


def _check_gpu(launcher: str) -> None:
    """Check that there is a GPU for this process, which takes the one with the number ``LOCAL_RANK``."""
    rank, count = os.environ['LOCAL_RANK'], torch.cuda.device_count()
    if torch.cuda.is_available() and rank.isdecimal() and int(rank) >= count:
        raise UserError(
            f'--launcher {launcher}: process {rank} of this machine sees {count} GPU{"s" * (count != 1)} and needs one '
            'for each process: start fewer processes, or let each see all GPUs of the machine (Slurm: --gpus-per-node, '
            'not --gpus-per-task)'
        )


def _check_variables(launcher: str) -> None:
    """Check the variables by which torch.distributed finds the other processes.

    Raises:
        UserError: One is missing or is not a number, or the address of the first machine cannot be resolved.
    """
    numbers = () if launcher == 'mpi' else ('RANK', 'WORLD_SIZE', 'MASTER_PORT')  # mmengine sets those of mpi
    for name in (*numbers, 'MASTER_ADDR'):
        value = os.environ.get(name)
        if not value or (name in numbers and not value.isdecimal()):
            allowed = 'a number' if name in numbers else 'the name or address of the first machine'
            given = f'got {value!r}' if value else 'it is not set'
            raise UserError(f'--launcher {launcher}: the environment variable {name} must be {allowed}; {given}')
    if launcher != 'mpi' and int(os.environ['MASTER_PORT']) > 65535:
        raise UserError(f'--launcher {launcher}: MASTER_PORT must be at most 65535, got {os.environ["MASTER_PORT"]}')
    address = os.environ['MASTER_ADDR']
    try:
        socket.getaddrinfo(address, None)
    except (OSError, UnicodeError) as error:  # torch would try until its timeout, half an hour
        reason = getattr(error, 'strerror', None) or error
        raise UserError(
            f'MASTER_ADDR={address} is not the name or address of a machine: {reason}; see docs/many-machines.md'
        ) from error
