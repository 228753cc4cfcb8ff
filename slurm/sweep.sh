#!/bin/bash
# Submit a sweep from a small job of its own:  sbatch [sbatch options] slurm/sweep.sh [options] key=a,b ...
#
#   sbatch slurm/sweep.sh --name lr --max-parallel 4 train.lr=1e-4,3e-4 seed=0,1,2
#
# It queues one job per trial that has not finished, each with the resources that cluster.* asks
# for, and ends. The same command goes on with what is missing; `python -m launch status` shows it.
#
#SBATCH --job-name=sweep
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time=00:30:00
#SBATCH --output=slurm-%j.out

set -euo pipefail

python=python
if [[ -x .venv/bin/python ]]; then
    python=.venv/bin/python
fi
# The trials are jobs of their own and must not take this one's size for theirs.
for name in ${!SLURM_@} ${!SBATCH_@}; do
    [[ $name == SLURM_CONF ]] || unset "$name"
done
exec "$python" -m launch sweep cluster=slurm "$@"
