"""Train on Slurm, on one machine or several, submitted from Python by submitit.

    pip install submitit
    python examples/train_with_submitit.py CONFIG --work-dir DIR --nodes 2 --tasks-per-node 8 [options of `mnv4 train`]

A script to copy. There is a task for each GPU. If Slurm preempts the job, or its time is up, submitit submits it again,
and it continues from its last checkpoint. ``--cluster local`` runs it on this machine, ``--gpus-per-node 0`` on CPUs.
"""

import argparse
import sys
from pathlib import Path

import submitit

from mnv4_mm.config.check import check_config
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.errors import UserError


class Training(submitit.helpers.Checkpointable):
    """A training that can be submitted again, because its state is in its work directory."""

    def __init__(self, config, options):
        self.config = config
        self.options = options

    def __call__(self):
        import mnv4_mm

        # A process sees all GPUs of its machine, and takes one by LOCAL_RANK.
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        return str(mnv4_mm.train(self.config, **self.options))


def main():
    parser = argparse.ArgumentParser(description='Train on Slurm by submitit.')
    parser.add_argument('config', help='path, or name of a shipped config')
    parser.add_argument('--cluster', choices=('slurm', 'local'), default='slurm', help='default: slurm')
    parser.add_argument('--nodes', type=int, default=1, help='number of machines (default: 1)')
    parser.add_argument('--tasks-per-node', type=int, default=1, help='processes on each machine (default: 1)')
    parser.add_argument('--gpus-per-node', type=int, help='default: one for each process')
    parser.add_argument('--cpus-per-task', type=int, default=8, help='default: 8')
    parser.add_argument('--hours', type=float, default=24, help='time limit of a submission (default: 24)')
    parser.add_argument('--partition', help='partition of Slurm')
    TrainOptions.add_arguments(parser)
    args = parser.parse_args()
    try:
        options = TrainOptions.from_namespace(args)
        if options.work_dir is None:
            raise UserError('--work-dir must name a folder that all machines share')
        check_config(args.config, options)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2

    work_dir = Path(options.work_dir).resolve()
    try:
        executor = submitit.AutoExecutor(folder=work_dir / 'submitit', cluster=args.cluster, slurm_max_num_timeout=10)
    except RuntimeError as error:  # no Slurm
        print(f'error: --cluster {args.cluster}: {error}', file=sys.stderr)
        return 2
    executor.update_parameters(
        name=work_dir.name,
        nodes=args.nodes,
        tasks_per_node=args.tasks_per_node,
        gpus_per_node=args.tasks_per_node if args.gpus_per_node is None else args.gpus_per_node,
        cpus_per_task=args.cpus_per_task,
        timeout_min=int(args.hours * 60),
        slurm_partition=args.partition,
    )
    settings = {**options.as_arguments(), 'work_dir': str(work_dir), 'launcher': 'pytorch', 'resume': True}
    job = executor.submit(Training(args.config, settings))
    print(f'job {job.job_id}; its output is in {job.paths.folder}', flush=True)
    if args.cluster == 'local':  # it would end with this process
        print(job.results()[0])
    return 0


if __name__ == '__main__':
    sys.exit(main())
