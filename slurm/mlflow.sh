#!/bin/bash
# An MLflow server as a job:  sbatch [sbatch options] slurm/mlflow.sh [ROOT]
#
#   sbatch slurm/mlflow.sh               # shows the runs in runs/
#   sbatch slurm/mlflow.sh /data/runs
#
# ROOT is the folder of all runs (run.root). While the server runs, its address is in
# ROOT/mlflow-server.json, where runs without a tracking.uri of their own find it. Without a server
# they write to ROOT/mlflow.db themselves. The server shows the same database, so a run is in the
# same place either way.
#
# The server lets in who has its password. It makes one in ROOT/mlflow-password, which only you can
# read, and your runs find it there by themselves. From your own machine:
#
#   ssh -L 5000:NODE:PORT LOGIN-NODE     # then http://localhost:5000, user segresmamba
#
#SBATCH --job-name=segresmamba-mlflow
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --time=7-00:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

set -euo pipefail

python=python
if [[ -x .venv/bin/python ]]; then
    python=.venv/bin/python
fi
root=$(realpath --canonicalize-missing "${1:-runs}")
mkdir -p "$root"
address=$root/mlflow-server.json
# In a URI a % begins a character, and a ? a query.
escaped=${root//%/%25}
escaped=${escaped//\?/%3F}
node=${SLURMD_NODENAME:-$(hostname)}
port=$("$python" -c 'import sys; from launch.ports import free_port; print(free_port(sys.argv[1]))' "$SLURM_JOB_ID")

# No --serve-artifacts: server and runs share ROOT, and files go there directly.
# The other nodes have to reach it, so it listens on all addresses, behind a login.
"$python" -m segresmamba.tracking.mlflow.server "$root" --app-name segresmamba \
    --host 0.0.0.0 --port "$port" --workers 1 \
    --allowed-hosts "$node:$port,localhost:*,127.0.0.1:*" \
    --backend-store-uri "sqlite:///$escaped/mlflow.db" \
    --default-artifact-root "file://$escaped/mlartifacts" --no-serve-artifacts &
server=$!

finish() {
    # Another server may have written its own address meanwhile.
    if grep -qs "\"job\": \"$SLURM_JOB_ID\"" "$address"; then
        rm -f "$address"
    fi
    kill "$server" 2>/dev/null || true
    wait "$server" || true
}
trap finish EXIT
trap 'exit 0' TERM INT

until "$python" -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1])' \
    "http://127.0.0.1:$port/health" 2>/dev/null; do
    kill -0 "$server"  # ends this job if the server has ended
    sleep 1
done
printf '{"uri": "http://%s:%s", "job": "%s", "user": "segresmamba"}\n' \
    "$node" "$port" "$SLURM_JOB_ID" >"$address.part"
mv "$address.part" "$address"
echo "http://$node:$port shows $root: user segresmamba, password in $root/mlflow-password"
wait "$server"
