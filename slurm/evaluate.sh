#!/bin/bash
# Score a run's best weights on Slurm:  sbatch [sbatch options] slurm/evaluate.sh RUN
#
#   sbatch slurm/evaluate.sh runs/segresmamba-1a2b3c4d
#   sbatch --partition=gpu --account=a1 slurm/evaluate.sh runs/sample
#
# RUN is a run folder; results.json and overlays/ are written there, and to its MLflow run. The
# values below are defaults; options of sbatch win over them.
#
#SBATCH --job-name=segresmamba-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

set -euo pipefail

bin=$([[ -x .venv/bin/segresmamba ]] && echo .venv/bin/ || true)
# Sizes of both kinds are left of a job that called sbatch, and srun refuses to choose between them.
[[ -z ${SLURM_MEM_PER_CPU:-} || -z ${SLURM_MEM_PER_NODE:-} ]] || unset SLURM_MEM_PER_{CPU,NODE}
exec srun --export=ALL --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${bin}segresmamba" evaluate "$@"
