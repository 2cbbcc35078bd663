"""Join the processes that torchrun, Slurm or MPI started."""

import os

import torch
from mmengine.dist import is_distributed

from mnv4_mm.config.options import LAUNCHERS, check_launcher
from mnv4_mm.errors import UserError


def join_processes(launcher: str) -> None:
    """Join the processes that a launcher started on CPUs into a process group of torch.distributed (gloo).

    On GPUs, mmengine's Runner creates the process group. Nothing is joined for the launcher ``none``, or if there is a
    process group already. For all launchers except ``none``, the environment variable ``LOCAL_RANK`` is set, by which
    mmengine selects the GPU.

    Args:
        launcher: none, pytorch, slurm or mpi.

    Raises:
        UserError: The launcher's command did not start this process, torchrun started several processes and
            ``launcher`` is none, or the launcher is slurm or mpi and there is no GPU.
    """
    if launcher == 'none':
        if 'TORCHELASTIC_RUN_ID' in os.environ and os.environ.get('WORLD_SIZE') != '1' and not is_distributed():
            raise UserError(
                'torchrun started several processes, and each would do the whole work alone: add --launcher pytorch'
            )
        return
    check_launcher(launcher)
    # mmengine selects the GPU by LOCAL_RANK, but does not set it for mpi.
    os.environ['LOCAL_RANK'] = os.environ[LAUNCHERS[launcher][1]]
    if torch.cuda.is_available() or is_distributed():
        return
    if launcher != 'pytorch':
        raise UserError(
            f'--launcher {launcher} needs GPUs, and there is none here; on CPUs use torchrun and --launcher pytorch'
        )
    # Not mmengine's function, which selects a GPU for every backend. It leaves an existing group as it is.
    torch.distributed.init_process_group('gloo')


def is_first_of_machine(launcher: str) -> bool:
    """Return True for the first process of each machine, and for every process of the launcher ``none``.

    Work that is needed once per machine, such as checking the data, is done by these processes only.
    """
    return launcher == 'none' or os.environ.get('LOCAL_RANK') == '0'
