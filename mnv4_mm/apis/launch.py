"""Join the processes that torchrun, Slurm or MPI started."""

import os

import torch
from mmengine.dist import is_distributed

from mnv4_mm.config.options import LAUNCHERS, check_launcher
from mnv4_mm.errors import UserError


def join_processes(launcher: str) -> None:
    """Join the processes that a launcher started, on CPUs (gloo); on GPUs, mmengine's Runner joins them.

    Does nothing for the launcher ``none``, or if the processes are joined already.

    Args:
        launcher: none, pytorch, slurm or mpi.

    Raises:
        UserError: The launcher's command did not start this process; or torchrun did, without a launcher; or mmengine
            supports the launcher on GPUs only.
    """
    if launcher == 'none':
        if 'TORCHELASTIC_RUN_ID' in os.environ and os.environ.get('WORLD_SIZE') != '1' and not is_distributed():
            raise UserError(
                'torchrun started several processes, and each would do the whole work alone: add --launcher pytorch'
            )
        return
    check_launcher(launcher)
    # mmengine selects the GPU by it, and does not set it for mpi.
    os.environ['LOCAL_RANK'] = os.environ[LAUNCHERS[launcher][1]]
    if torch.cuda.is_available() or is_distributed():
        return
    if launcher != 'pytorch':
        raise UserError(
            f'--launcher {launcher} needs GPUs, and there is none here; on CPUs use torchrun and --launcher pytorch'
        )
    # mmengine's own function selects GPU LOCAL_RANK for every backend; it does not change an existing group.
    torch.distributed.init_process_group('gloo')


def is_first_of_machine(launcher: str) -> bool:
    """Return True for the one process of each machine that does the work needed once a machine."""
    return launcher == 'none' or os.environ.get('LOCAL_RANK') == '0'
