#!/bin/bash
# Submit a sweep from a small job of its own:  sbatch [sbatch options] slurm/sweep.sh [options] key=a,b ...
#
#   sbatch slurm/sweep.sh --name lr --max-parallel 4 train.lr=1e-4,3e-4 seed=0,1,2
#   sbatch slurm/sweep.sh --name folds train.fold=all
#   sbatch slurm/sweep.sh --search optuna --trials 50 'train.lr=tag(log,interval(1e-5,1e-2))'
#
# It queues what has not finished as one array and ends. Each trial is a job with the resources that
# cluster.* asks for, and the trials of a search choose their own settings. The same command goes on
# with what is missing; `python -m launch status` shows where the sweep stands.
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
exec "$python" -Pm launch sweep cluster=slurm "$@"
