"""Tests Ray and a study confined like a pod of the manifests: not root, no capabilities, a read-only root file system.

Writable volumes are mounted at the same paths as in k8s/base/cluster.yaml. The test uses namespaces of this machine.
It does not test the seccomp profile, which the container runtime provides.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from tests.support.packed import write_packed
from tests.support.seaweed import free_ports

ROOT = Path(__file__).parent.parent.parent
SPACE = """
metric: val_top1
recipe:
  model: {backbone: reference_mlp}
  loader: {image_size: 16, batch_size: 16, decode_threads: 1}
parameters:
  epochs: {grid: [1]}
"""
# Arguments: data folder, writable paths, paths that must be readable even below a hidden folder, the command.
CONFINE = r"""
set -euo pipefail
data=$1 writable=$2 readable=$3
shift 3
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /mnt
number=0
for path in $readable; do
    number=$((number + 1))
    mkdir "/mnt/$number"
    mount --bind "$path" "/mnt/$number"
done
mkdir /mnt/data
mount --bind "$data" /mnt/data
for path in /root /home; do mount -t tmpfs -o mode=755 tmpfs "$path"; done
for path in $writable; do
    mkdir -p "$path"
    mount -t tmpfs -o mode=1777 tmpfs "$path"
done
number=0
for path in $readable; do
    number=$((number + 1))
    mkdir -p "$path"
    mount --bind "/mnt/$number" "$path"
    mount -o remount,bind,ro "$path"
done
mkdir /home/landmark/data
mount --bind /mnt/data /home/landmark/data
for path in /root /home /mnt /; do mount -o remount,bind,ro "$path"; done
exec setpriv --reuid 1000 --regid 1000 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""
INSIDE = r"""
set -euo pipefail
grep --extended-regexp '^(Uid|NoNewPrivs|CapEff|CapBnd)' /proc/self/status
for path in / /etc /home /usr/bin; do ! touch "$path/written" 2> /dev/null || echo "$path is written"; done
ray start --head --block --node-ip-address=127.0.0.1 --port="$GCS" --dashboard-port="$DASHBOARD" --dashboard-host=127.0.0.1 \
    --ray-client-server-port="$CLIENT" --dashboard-agent-listen-port="$AGENT" --metrics-export-port="$METRICS" \
    --num-cpus=2 --object-store-memory=200000000 > /tmp/head.log 2>&1 &
until ray job list --address "http://127.0.0.1:$DASHBOARD" > /dev/null 2>&1; do
    kill -0 $! || { cat /tmp/head.log; exit 1; }
    sleep 1
done
cd "$ROOT"
ray job submit --address "http://127.0.0.1:$DASHBOARD" -- python -m landmark.tune --dataset ~/data/dataset --space ~/data/space.yaml \
    --output ~/data --name study
"""


def run(command: list[str], environment: dict[str, str]) -> tuple[str, int]:
    """Return the output and exit code of a command. All of its processes are killed."""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=560)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return output, process.returncode


@pytest.fixture
def unshare() -> list[str]:
    """Return the command that runs another one in new mount and process namespaces."""
    command = ["unshare", "--mount", "--pid", "--fork", "--mount-proc"]
    probe = subprocess.run([*command, "true"], capture_output=True) if shutil.which("unshare") else None
    if probe is None or probe.returncode or not shutil.which("setpriv"):
        reason = "namespaces are not allowed here (needs root, and unshare and setpriv of util-linux)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return command


@pytest.mark.timeout(600)
def test_a_study_runs_with_a_read_only_root_and_no_privileges(unshare, tmp_path):
    cluster = yaml.safe_load((ROOT / "k8s" / "base" / "cluster.yaml").read_text())["spec"]
    container = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    writable = sorted(mount["mountPath"] for mount in container["volumeMounts"])
    data = tmp_path / "data"
    data.mkdir()
    write_packed(data / "dataset", {"train": [64, 40], "val": [32], "test": [24]}, classes=4)
    (data / "space.yaml").write_text(SPACE)
    subprocess.run(["chmod", "-R", "a+rwX", str(data)], check=True)
    readable = sorted({str(ROOT), sys.prefix, sys.base_prefix}, key=len)
    names = ("GCS", "DASHBOARD", "CLIENT", "AGENT", "METRICS")
    environment = dict(zip(names, map(str, free_ports(len(names))), strict=True)) | {
        "HOME": "/home/landmark",
        "PATH": f"{sysconfig.get_path('scripts')}:/usr/bin:/bin:/usr/sbin:/sbin",
        "ROOT": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-only-for-this-test-0123456789abcdef",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ignore the memory of other processes. With their default niceness, Ray's workers would starve.
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        "bash",
        "-c",
        CONFINE,
        "confine",
        str(data),
        " ".join(writable),
        " ".join(readable),
        "bash",
        "-c",
        INSIDE,
    ]
    output, code = run([*unshare, *command], environment)
    assert code == 0, output
    assert "Uid:\t1000\t1000\t1000\t1000" in output and "NoNewPrivs:\t1" in output
    assert "CapEff:\t0000000000000000" in output and "CapBnd:\t0000000000000000" in output
    assert "is written" not in output and "succeeded" in output
    study = json.loads((data / "study" / "study.json").read_text())
    assert (study["finished"], study["failed"]) == (1, 0)
