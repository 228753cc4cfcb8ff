#!/bin/bash

# Parameters
#SBATCH --account=a1
#SBATCH --constraint=h100
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=8
#SBATCH --job-name=big
#SBATCH --mem=900G
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=ROOT/big/logs/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=600

# setup
module load cuda
export NCCL_DEBUG=WARN

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output ROOT/big/logs/%j_%t_log.out --cpus-per-task=8 --kill-on-bad-exit=1 PYTHON -u -m submitit.core._submit ROOT/big/logs
