#!/bin/bash

# Parameters
#SBATCH --account=a1
#SBATCH --constraint=h100
#SBATCH --cpus-per-task=8
#SBATCH --exclude=gpu13
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
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0
export NCCL_DEBUG=WARN
export OMP_PLACES='{0:4}'
export NCCL_IB_TIMEOUT=22
MASTER_PORT=$(PYTHON -Pm launch.in_allocation.preflight ROOT/big/logs) || { code=$?; [ $code != 2 ] || exit $code; exec PYTHON -Pm launch.in_allocation.on_failure ROOT/big/logs $code; }
export MASTER_PORT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output ROOT/big/logs/%j_%t_log.out --cpus-per-task=8 --kill-on-bad-exit=1 --cpu-bind=verbose,cores --gpu-bind=closest PYTHON -u -Pm launch.jobs.start ROOT/big/logs


# teardown
code=$?
[ $code = 0 ] || exec PYTHON -Pm launch.in_allocation.on_failure ROOT/big/logs $code