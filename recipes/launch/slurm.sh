#!/bin/bash
# One run as a SLURM job that may be pre-empted, requeued and go on: sbatch recipes/launch/slurm.sh RECIPE [ARGS...]
# srun starts one process per GPU and signals each of them, so no launcher stands between: SIGTERM and SIGUSR1
# make all ranks finish their step, save a checkpoint and end; the requeued job resumes from it. The recipe's
# output folder must be on a file system that all nodes share. To shard the base over all GPUs, as fsdp.yaml does:
# sbatch --export=ALL,ACCELERATE_USE_FSDP=true ...
#SBATCH --job-name=vla_adapt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@300
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: sbatch $0 RECIPE [--set a.b=c ...]" >&2; exit 2; }

# A time limit is not a pre-emption that SLURM requeues by itself: when the ranks have saved and ended because
# of USR1, ask for it. The batch script must outlive the signal, which goes to the steps only (no "B:").
export MASTER_ADDR MASTER_PORT
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
status=0
srun --kill-on-bad-exit=0 bash -c '
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  export LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE NODE_RANK=$SLURM_NODEID
  exec python scripts/finetune.py "$@"
' finetune "$@" || status=$?
saved=$((128 + $(kill -l USR1)))
if [ "$status" -eq "$saved" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
