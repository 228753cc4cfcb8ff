#!/bin/bash
# Segment images on Slurm, on one GPU:  sbatch [sbatch options] slurm/predict.sh MODEL... INPUT OUTPUT
#
#   sbatch slurm/predict.sh runs/segresmamba-1a2b3c4d /data/imagesTs /data/labelsTs
#   sbatch --partition=gpu --account=a1 slurm/predict.sh runs/fold0 runs/fold1 /data/imagesTs out --tta
#
# On many nodes:  python -m launch predict MODEL... INPUT OUTPUT cluster=slurm --tasks 16
#
# Finished cases are not segmented again: after preemption or the time limit, submit the same line to
# go on. The values below are defaults; options of sbatch win over them.
#
#SBATCH --job-name=segresmamba-predict
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
exec srun --export=ALL --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${bin}segresmamba" predict "$@"
