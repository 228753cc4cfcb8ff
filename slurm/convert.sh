#!/bin/bash
# Convert a dataset on Slurm, on one node:  sbatch [sbatch options] slurm/convert.sh RAW STORE
#
#   sbatch slurm/convert.sh /data/Dataset001 /data/mine.zarr
#   sbatch --cpus-per-task=64 --partition=cpu slurm/convert.sh /data/Dataset001 /data/mine.zarr
#
# On many nodes:  python -m launch convert RAW STORE cluster=slurm --tasks 16
#
# One process per core. Finished cases are not converted again: after preemption or the time limit,
# submit the same line to go on. The values below are defaults; options of sbatch win over them.
#
#SBATCH --job-name=segresmamba-convert
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

set -euo pipefail

bin=$([[ -x .venv/bin/segresmamba ]] && echo .venv/bin/ || true)
cores=${SLURM_CPUS_PER_TASK:-1}
# Sizes of both kinds are left of a job that called sbatch, and srun refuses to choose between them.
[[ -z ${SLURM_MEM_PER_CPU:-} || -z ${SLURM_MEM_PER_NODE:-} ]] || unset SLURM_MEM_PER_{CPU,NODE}
exec srun --export=ALL --cpus-per-task="$cores" "${bin}segresmamba" convert --workers="$cores" "$@"
