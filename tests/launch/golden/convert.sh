#!/bin/bash

# Parameters
#SBATCH --array=0-3%4
#SBATCH --cpus-per-task=1
#SBATCH --job-name=convert-store
#SBATCH --mem=16G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=ROOT/store.logs/%A_%a_0_log.out
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60

# setup
module load x

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output ROOT/store.logs/%A_%a_%t_log.out --cpus-per-task=1 --cpu-bind=cores PYTHON -u -Pm launch.jobs.start ROOT/store.logs

#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=1
#SBATCH --dependency=afterany:ARRAY
#SBATCH --job-name=convert-store-end
#SBATCH --mem=16G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=ROOT/store.logs/%j_0_log.out
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60

# setup
module load x

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output ROOT/store.logs/%j_%t_log.out --cpus-per-task=1 --cpu-bind=cores PYTHON -u -Pm launch.jobs.start ROOT/store.logs
