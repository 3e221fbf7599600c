#!/bin/bash
# One run on several hosts of a SLURM cluster, one process for each host: sbatch experiments/launch/slurm.sh --method seatrans --preset paper
# A job that is to be preempted, or to reach its time limit, gets SIGTERM a minute before; the run saves, exits with code 75, and the
# job is queued again to go on from there.
# Options for scale (README, "Scale out"): --train.model-parallel N, --train.accumulate N, --method.dtype bfloat16; --dry-run tells the memory.
# Code 2 is not queued again: a mistake, or a process that was lost (start the job again with --resume).
#SBATCH --job-name=ophjax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

# One process has all GPUs of its host. JAX would take one for each SLURM task if it were not told.
export JAX_LOCAL_DEVICE_IDS="${JAX_LOCAL_DEVICE_IDS:-$(seq -s, 0 $((${SLURM_GPUS_ON_NODE:-1} - 1)))}"
# The runs' folder must be one that all hosts see.
resume=()
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && resume=(--resume)
srun --kill-on-bad-exit=0 "${PYTHON:-python}" experiments/run.py --distributed "$@" ${resume[@]+"${resume[@]}"}
code=$?
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
