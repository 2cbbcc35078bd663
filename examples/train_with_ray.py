"""Train on a Ray cluster by Ray Train.

    pip install "ray[train]"
    python examples/train_with_ray.py CONFIG --work-dir DIR --workers 16 --address auto [options of `mnv4 train`]

A script to copy. Each worker trains on one GPU, or on CPU cores with ``--cpus-per-worker``. If a worker is lost, Ray
Train starts all of them again, and they continue from the last checkpoint in the work directory.
"""

import argparse
import os
import sys
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from mnv4_mm.config.check import check_config
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.errors import UserError


def train_worker(settings):
    import mnv4_mm

    mnv4_mm.train(**settings)


def main():
    parser = argparse.ArgumentParser(description='Train on a Ray cluster.')
    parser.add_argument('config', help='path, or name of a shipped config')
    parser.add_argument('--address', default='local', help='auto, HOST:PORT, or local for this machine only (default)')
    parser.add_argument('--workers', type=int, default=1, help='number of workers (default: 1)')
    parser.add_argument('--cpus-per-worker', type=int, help='train on this many CPU cores instead of a GPU')
    parser.add_argument('--max-failures', type=int, default=3, help='how often to start again (default: 3)')
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

    # Workers have another current folder.
    work_dir = Path(options.work_dir).resolve()
    settings = {**options.as_arguments(), 'work_dir': str(work_dir), 'launcher': 'pytorch', 'resume': True}
    settings['config'] = str(Path(args.config).resolve()) if Path(args.config).is_file() else args.config
    if options.data:
        settings['data'] = str(Path(options.data).resolve())
    resources = {'CPU': args.cpus_per_worker} if args.cpus_per_worker else {'GPU': 1}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=args.workers, use_gpu=args.cpus_per_worker is None, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name='ray',
            storage_path=str(work_dir),
            failure_config=FailureConfig(max_failures=args.max_failures),
            worker_runtime_env={'env_vars': {'OMP_NUM_THREADS': str(args.cpus_per_worker or 1)}},
        ),
    )
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    try:
        ray.init(address=args.address)
    except (OSError, ValueError, RuntimeError) as error:
        print(f'error: --address {args.address}: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failures = getattr(error, 'worker_failures', {}) or {0: error}
        rank, failure = min(failures.items())
        print(f'error: worker {rank}: {str(failure).strip().splitlines()[-1]}', file=sys.stderr)
        return 1
    finally:
        ray.shutdown()
    print(work_dir)
    return 0


if __name__ == '__main__':
    sys.exit(main())
