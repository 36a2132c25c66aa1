#!/usr/bin/env bash
# Runs a study on SLURM: starts Ray on the job's nodes, runs `landmark.tune`, stops Ray. Run it from the project's folder, which all
# nodes must share:
#   sbatch --nodes 4 --gpus-per-node 1 cluster/slurm.sh --dataset s3://bucket/landmarks --space modern --output s3://bucket/runs --name study --resume --workers.cpus 7
# The same command resumes the study after the time limit or a failure.
#SBATCH --job-name=landmark
#SBATCH --output=landmark-%j.log
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Two minutes before the time limit, SLURM signals the study, which shuts down gracefully.
#SBATCH --signal=B:USR1@120
set -euo pipefail
umask 077

cd "${SLURM_SUBMIT_DIR:?is set by sbatch: submit this script, do not run it}"
if [ -f .venv/bin/activate ]; then
    # shellcheck source=/dev/null
    source .venv/bin/activate
fi

# One token per job, in a private folder that the nodes share. No command line or environment contains the token.
secrets=$(mktemp -d "${LANDMARK_SHARED:-$HOME}/.landmark-$SLURM_JOB_ID-XXXXXX")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$secrets/token"
python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH"
export RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=20 OMP_NUM_THREADS=1

# Sockets need short paths on a local disk; jobs on the same machine need separate ports and folders. Set LANDMARK_ADDRESS if the
# head has several networks and its default route is not the network of the nodes.
folder=${LANDMARK_TMP:-/tmp}/landmark-$SLURM_JOB_ID
port=$((20000 + SLURM_JOB_ID % 2000 * 10))
head=${SLURMD_NODENAME:-$(hostname)}
address=${LANDMARK_ADDRESS:-$(python -c 'import ray; print(ray.util.get_node_ip_address())')}
export RAY_ADDRESS="$address:$port"
nodes=$SLURM_JOB_NUM_NODES
cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
# Since SLURM 22.05, srun does not inherit --cpus-per-task from sbatch: without this, each step gets one CPU.
export SRUN_CPUS_PER_TASK="$cpus"
# Fixed ports of Ray, derived from the job id, so that jobs on one machine do not conflict. Workers use free ports.
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
    kill -0 "${steps[0]}" || { echo "cluster/slurm.sh: the Ray head node did not start; see the log above" >&2 && exit 1; }
    sleep 2
done
if [ "$nodes" -gt 1 ]; then
    srun --overlap --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$head" \
        ray start --block --address="$RAY_ADDRESS" "${ports[@]:1}" --num-cpus="$cpus" --temp-dir="$folder" &
    steps+=($!)
fi

# A study determines its resources once, at its start: wait for all nodes.
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
# Ray Tune ends a study gracefully at SIGUSR1; a Ray driver aborts at SIGTERM.
trap 'kill -USR1 "$study"' USR1 TERM
code=0
wait "$study" || code=$?
# A signal interrupts the first wait: wait again until the study has ended.
while kill -0 "$study" 2> /dev/null; do
    wait "$study" || code=$?
done
exit "$code"
