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
[ -z "$SLURM_MEM_PER_CPU" ] || [ -z "$SLURM_MEM_PER_NODE" ] || unset SLURM_MEM_PER_CPU SLURM_MEM_PER_NODE
ranks= stop=
trap 'stop=USR2; [ -z "$ranks" ] || kill -USR2 $ranks' USR1 USR2 HUP INT
trap 'stop=TERM; [ -z "$ranks" ] || kill -TERM $ranks' TERM
setup_failed() {
  [ $BASH_SUBSHELL = 0 ] || return
  case "${BASH_SOURCE[1]}" in "" | "$0") what=$2;; *) what="${BASH_SOURCE[1]}, line $3"; esac
  setup_ended $1
}
setup_ended() {
  [ -z "$setup_done" ] || return
  setup_done=1
  printf "%s\n" "error: a line of cluster.setup failed" "  where:  cluster.setup" \
    "  got:    ${hidden:-${what:-it has ended the script}}: exit code $1" \
    "  remedy: see its output above, then correct it; add || true if it may fail" >&2
  exit 2
}
what= setup_done=
trap 'setup_ended $?' EXIT
trap 'setup_failed $? "$BASH_COMMAND" $LINENO' ERR
set -eE
module load x
set +eE
trap - ERR
setup_done=1

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output ROOT/store.logs/%A_%a_%t_log.out --export=ALL --cpus-per-task=1 --cpu-bind=cores PYTHON -u -Pm launch.jobs.start ROOT/store.logs auto &


# teardown
ranks=$!
[ -z "$stop" ] || { sleep 5; kill -$stop $ranks; }
while kill -0 $ranks 2>/dev/null; do wait $ranks; done
wait $ranks; code=$?
exit $code
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
[ -z "$SLURM_MEM_PER_CPU" ] || [ -z "$SLURM_MEM_PER_NODE" ] || unset SLURM_MEM_PER_CPU SLURM_MEM_PER_NODE
ranks= stop=
trap 'stop=USR2; [ -z "$ranks" ] || kill -USR2 $ranks' USR1 USR2 HUP INT
trap 'stop=TERM; [ -z "$ranks" ] || kill -TERM $ranks' TERM
setup_failed() {
  [ $BASH_SUBSHELL = 0 ] || return
  case "${BASH_SOURCE[1]}" in "" | "$0") what=$2;; *) what="${BASH_SOURCE[1]}, line $3"; esac
  setup_ended $1
}
setup_ended() {
  [ -z "$setup_done" ] || return
  setup_done=1
  printf "%s\n" "error: a line of cluster.setup failed" "  where:  cluster.setup" \
    "  got:    ${hidden:-${what:-it has ended the script}}: exit code $1" \
    "  remedy: see its output above, then correct it; add || true if it may fail" >&2
  exit 2
}
what= setup_done=
trap 'setup_ended $?' EXIT
trap 'setup_failed $? "$BASH_COMMAND" $LINENO' ERR
set -eE
module load x
set +eE
trap - ERR
setup_done=1

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output ROOT/store.logs/%j_%t_log.out --export=ALL --cpus-per-task=1 --cpu-bind=cores PYTHON -u -Pm launch.jobs.start ROOT/store.logs auto &


# teardown
ranks=$!
[ -z "$stop" ] || { sleep 5; kill -$stop $ranks; }
while kill -0 $ranks 2>/dev/null; do wait $ranks; done
wait $ranks; code=$?
exit $code