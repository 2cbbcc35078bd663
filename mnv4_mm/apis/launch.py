"""Several processes: joining those that torchrun, Slurm or MPI started."""

import os

import torch
from mmengine.dist import is_distributed

from mnv4_mm.errors import UserError

# Launcher -> the command that starts its processes, and where that says which of a machine's processes one is.
LAUNCHERS = {
    'pytorch': ('torchrun --nproc_per_node=N', 'LOCAL_RANK'),
    'slurm': ('srun', 'SLURM_LOCALID'),
    'mpi': ('mpirun', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def join_processes(launcher: str) -> None:
    """Joins the processes that a launcher started; nothing to do for ``none``, or where it has been done.

    Here that is the group of CPUs (gloo) only. On GPUs mmengine's Runner joins them, as its launchers do.

    Args:
        launcher: none, pytorch, slurm or mpi.

    Raises:
        UserError: the command that starts such processes did not start this one, or it is started by torchrun and
            would train alone, or the launcher is one that mmengine has for GPUs only.
    """
    if launcher == 'none':
        if 'TORCHELASTIC_RUN_ID' in os.environ and os.environ.get('WORLD_SIZE') != '1' and not is_distributed():
            raise UserError(
                'torchrun started several processes, and each would do the whole work alone: add --launcher pytorch'
            )
        return
    if launcher not in LAUNCHERS:
        raise UserError(f'--launcher must be one of none, {", ".join(LAUNCHERS)}, got {launcher!r}')
    command, local_rank = LAUNCHERS[launcher]
    if local_rank not in os.environ:
        raise UserError(f'--launcher {launcher} is for processes started by `{command} tools/...`; see docs/scaling.md')
    os.environ['LOCAL_RANK'] = os.environ[local_rank]  # mmengine reads it to choose the GPU, and sets it but for mpi
    if torch.cuda.is_available() or is_distributed():
        return
    if launcher != 'pytorch':
        raise UserError(
            f'--launcher {launcher} needs GPUs, and there is none here; on CPUs use torchrun and --launcher pytorch'
        )
    # mmengine's own start asks for GPU LOCAL_RANK whatever the backend; it leaves a group that exists alone.
    torch.distributed.init_process_group('gloo')


def is_first_of_machine(launcher: str) -> bool:
    """Whether this process does what is to be done once on each machine."""
    return launcher == 'none' or os.environ.get('LOCAL_RANK') == '0'
