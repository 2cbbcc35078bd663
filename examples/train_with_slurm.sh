#!/bin/sh
# Train on Slurm: one task for each GPU, on one machine or several. Arguments are those of `mnv4 train`.
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 examples/train_with_slurm.sh CONFIG --work-dir /shared/run
#
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

# Two jobs may share a machine.
export MASTER_PORT=$((20000 + ${SLURM_JOB_ID:-0} % 10000))

# If one task fails, all end. After a preemption the job is queued again, and continues from its last checkpoint.
exec srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" python -u -m mnv4_mm train "$@" --launcher slurm --resume
