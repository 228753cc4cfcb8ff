#!/bin/bash
# Train on Slurm:  sbatch [sbatch options] slurm/train.sh key=value ...
#
#   sbatch slurm/train.sh model=segresmamba data=custom data.store=/data/mine.zarr
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 --account=a1 slurm/train.sh train.batch_size=32
#
# The values below are defaults; options of sbatch win over them. The body runs the job that
# `python -m launch train cluster=slurm` queues, in the allocation that sbatch made: same ranks,
# logs (<run folder>/logs), preemption and requeue. Submit from the repository or any folder whose
# .venv or active environment has this package installed.
#
#SBATCH --job-name=segresmamba
# Ranks: one task per GPU.
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=2
# Cores per rank, data readers included.
#SBATCH --cpus-per-task=8
# Limit of one start; a run that reaches it is saved and queued again.
#SBATCH --time=24:00:00
# Ranks are warned two minutes before the limit, and of preemption where the cluster does so.
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

set -euo pipefail

python=python
if [[ -x .venv/bin/python ]]; then
    python=.venv/bin/python
fi
exec "$python" -Pm launch train --in-allocation "$@"
