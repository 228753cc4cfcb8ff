#!/bin/bash
# Submit a sweep from a small job of its own:  sbatch [sbatch options] slurm/sweep.sh [options] key=a,b ...
#
#   sbatch slurm/sweep.sh --name lr --max-parallel 4 train.lr=1e-4,3e-4 seed=0,1,2
#   sbatch slurm/sweep.sh --name folds train.fold=all
#   sbatch slurm/sweep.sh --search optuna --trials 50 'train.lr=tag(log,interval(1e-5,1e-2))'
#
# It queues what has not finished as one array, each trial a job with the resources that cluster.*
# asks for, and ends: the trials of a search choose what they try themselves. The same command goes
# on with what is missing; `python -m launch status` shows how far it is.
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
