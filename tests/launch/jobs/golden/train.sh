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
module load cuda
set +eE
trap - ERR
setup_done=1
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0
export NCCL_DEBUG=WARN
export OMP_PLACES='{0:4}'
export NCCL_IB_TIMEOUT=22
at_limit() { (trap '' TERM; exec PYTHON -Pm launch.in_allocation.on_failure ROOT/big/logs limit); }
limit=
trap 'stop=TERM; [ -z "$ranks" ] || { kill -TERM $ranks; [ -n "$limit" ] || { at_limit & limit=$!; }; }' TERM
MASTER_PORT=$(PYTHON -Pm launch.in_allocation.preflight ROOT/big/logs) || { code=$?; [ $code != 2 ] || exit $code; [ "$stop" != TERM ] || at_limit; exec PYTHON -Pm launch.in_allocation.on_failure ROOT/big/logs $code; }
export MASTER_PORT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output ROOT/big/logs/%j_%t_log.out --export=ALL --cpus-per-task=8 --kill-on-bad-exit=1 --cpu-bind=verbose,cores --gpu-bind=closest PYTHON -u -Pm launch.jobs.start ROOT/big/logs auto &


# teardown
ranks=$!
[ -z "$stop" ] || { sleep 5; kill -$stop $ranks; }
while kill -0 $ranks 2>/dev/null; do wait $ranks; done
wait $ranks; code=$?
[ -z "$limit" ] || wait $limit
[ $code = 0 ] || exec PYTHON -Pm launch.in_allocation.on_failure ROOT/big/logs $code