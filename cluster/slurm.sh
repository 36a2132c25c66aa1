#!/usr/bin/env bash
# A study on SLURM: Ray starts on the job's nodes, `landmark.tune` runs on it, Ray ends. From the project's folder, which all nodes share:
#   sbatch --nodes 4 --gpus-per-node 1 cluster/slurm.sh --dataset s3://bucket/landmarks --space modern --output s3://bucket/runs --name study --resume --workers.cpus 7
# The same command goes on with the study where the time limit, or anything else, ended it.
#SBATCH --job-name=landmark
#SBATCH --output=landmark-%j.log
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Two minutes before the limit the study is told, and ends in order.
#SBATCH --signal=B:USR1@120
set -euo pipefail
umask 077

cd "${SLURM_SUBMIT_DIR:?is set by sbatch: submit this script, do not run it}"
if [ -f .venv/bin/activate ]; then
    # shellcheck source=/dev/null
    source .venv/bin/activate
fi

# A token a job, in a folder that the nodes share and nobody else reads. It stands in no command and no environment.
secrets=$(mktemp -d "${LANDMARK_SHARED:-$HOME}/.landmark-$SLURM_JOB_ID-XXXXXX")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$secrets/token"
python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH"
export RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=20 OMP_NUM_THREADS=1

# Sockets want short names on a local disk; jobs that share a machine want ports and folders of their own. LANDMARK_ADDRESS is for
# heads of several networks, whose default route is not the one among the nodes.
folder=${LANDMARK_TMP:-/tmp}/landmark-$SLURM_JOB_ID
port=$((20000 + SLURM_JOB_ID % 2000 * 10))
head=${SLURMD_NODENAME:-$(hostname)}
address=${LANDMARK_ADDRESS:-$(python -c 'import ray; print(ray.util.get_node_ip_address())')}
export RAY_ADDRESS="$address:$port"
nodes=$SLURM_JOB_NUM_NODES
cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
# Since SLURM 22.05 srun no longer inherits --cpus-per-task from sbatch: without this each step gets one CPU.
export SRUN_CPUS_PER_TASK="$cpus"
# Ray's fixed ports, by job, so that two jobs on one machine do not collide. Workers take free ports of the system.
ports=(--ray-client-server-port=$((port + 1)) --dashboard-agent-listen-port=$((port + 2))
    --dashboard-agent-grpc-port=$((port + 3)) --runtime-env-agent-port=$((port + 4)) --metrics-export-port=$((port + 5))
    --min-worker-port=0 --max-worker-port=0)

steps=()
trap 'kill "${steps[@]}" 2> /dev/null || true; wait; rm -rf "$secrets"; srun --overlap --ntasks="$nodes" rm -rf "$folder"' EXIT

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --block --node-ip-address="$address" --port="$port" "${ports[@]}" --num-cpus="$cpus" \
    --temp-dir="$folder" --dashboard-host=127.0.0.1 --include-dashboard=false &
steps+=($!)
until ray health-check --address "$RAY_ADDRESS" > /dev/null 2>&1; do
    kill -0 "${steps[0]}" || { echo "cluster/slurm.sh: the head of Ray did not start; see above" >&2 && exit 1; }
    sleep 2
done
if [ "$nodes" -gt 1 ]; then
    srun --overlap --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$head" \
        ray start --block --address="$RAY_ADDRESS" "${ports[@]:1}" --num-cpus="$cpus" --temp-dir="$folder" &
    steps+=($!)
fi

# A study counts its room once, at its start: all nodes have to be there.
python - "$nodes" << 'PY'
import sys
import time

import ray

wanted, deadline = int(sys.argv[1]), time.monotonic() + 300
while True:
    try:
        if not ray.is_initialized():
            ray.init(logging_level="ERROR", log_to_driver=False)
        here = sum(node["Alive"] for node in ray.nodes())
    except (ConnectionError, RuntimeError, ValueError):
        here = 0
    if here >= wanted:
        break
    if time.monotonic() > deadline:
        sys.exit(f"cluster/slurm.sh: {here} of {wanted} nodes joined Ray in 5 minutes; see this job's log above")
    time.sleep(2)
PY

python -m landmark.tune "$@" &
study=$!
# What Ray Tune ends a study at: the driver of Ray aborts at SIGTERM.
trap 'kill -USR1 "$study"' USR1 TERM
code=0
wait "$study" || code=$?
# A signal ends the first wait at once: the study is waited for until it has ended.
while kill -0 "$study" 2> /dev/null; do
    wait "$study" || code=$?
done
exit "$code"
