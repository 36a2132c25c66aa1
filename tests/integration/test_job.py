"""Tests `ray job submit` on a head node that requires token authentication."""

import json
import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from landmark.config import STOPPED
from tests.support.packed import write_packed
from tests.support.seaweed import free_ports

ROOT = Path(__file__).parent.parent.parent
RAY = str(Path(sysconfig.get_path("scripts")) / "ray")
TOKEN = "a-token-only-for-this-test-0123456789abcdef"
SPACE = """
metric: val_top1
recipe:
  model: {backbone: reference_mlp}
  optimizer: {name: adam}
  loader: {image_size: 16, batch_size: 16, decode_threads: 1}
parameters:
  optimizer.lr: {grid: [0.003, 0.001]}
  epochs: {grid: [2]}
"""


@dataclass
class Head:
    """Addresses of a head node, and environments of clients with and without the token."""

    address: str
    gcs: str
    folder: Path
    """Folder of Ray's sessions."""
    allowed: dict[str, str]
    unauthenticated: dict[str, str]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    # A separate home, so that no token file of this machine's user grants access.
    home = tmp_path_factory.mktemp("home")
    gcs, dashboard, client, agent, metrics = free_ports(5)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {"HOME": str(home)}
    plain |= {
        "RAY_AUTH_MODE": "token",
        "RAY_worker_niceness": "0",
        "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}",
    }
    allowed = plain | {"RAY_AUTH_TOKEN": TOKEN}
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=2"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
    # Short, because paths of sockets may have at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="landmark-ray-"))
    command += ["--object-store-memory=200000000", "--disable-usage-stats", f"--temp-dir={folder}"]
    log = home / "head.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(command, env=allowed, stdout=out, stderr=out, start_new_session=True) as node,
    ):
        try:
            _wait_ready(f"http://127.0.0.1:{dashboard}", node, log)
            yield Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", folder, allowed, plain)
        finally:
            os.killpg(node.pid, signal.SIGTERM)
            try:
                node.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


def _wait_ready(address: str, node: subprocess.Popen, log: Path) -> None:
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    deadline = time.monotonic() + 90
    while True:
        assert node.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            time.sleep(0.3)


def submit(head: Head, environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    runtime = json.dumps({"env_vars": {"OMP_NUM_THREADS": "1"}})
    submission = [RAY, "job", "submit", "--address", head.address, "--working-dir", ".", "--runtime-env-json", runtime]
    return subprocess.run(
        [*submission, "--", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )


def test_a_submitted_study_runs_on_the_cluster_and_stores_its_result(head, tmp_path):
    dataset = write_packed(tmp_path / "dataset", {"train": [64, 40], "val": [32], "test": [24]}, classes=4)
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    options = ["--dataset", dataset.location.uri, "--output", str(tmp_path), "--name", "job"]
    done = submit(head, head.allowed, "python", "-m", "landmark.tune", "--space", str(space), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout and "rank" in done.stdout
    study = json.loads((tmp_path / "job" / "study.json").read_text())
    assert (study["finished"], study["failed"], study["epochs_run"]) == (2, 0, 4)
    assert set(study["best"]["test"]) == {"1", "5", "10"}
    assert (tmp_path / "job" / "leaderboard.csv").exists()


def test_a_failing_study_is_a_failed_job_with_a_one_line_error(head, tmp_path):
    done = submit(head, head.allowed, "python", "-m", "landmark.tune", str(tmp_path / "none"), "--space", "demo")
    assert done.returncode != 0
    assert "landmark tune: error: " in done.stdout and "no manifest.json" in done.stdout
    assert "Traceback" not in done.stdout


def test_without_the_token_a_submission_is_refused(head, tmp_path):
    marker = tmp_path / "ran"
    done = submit(head, head.unauthenticated, "touch", str(marker))
    assert done.returncode != 0
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{head.address}/api/jobs/", timeout=10)
    assert refused.value.code == 401
    wrong = submit(head, head.unauthenticated | {"RAY_AUTH_TOKEN": "wrong" * 8}, "touch", str(marker))
    assert wrong.returncode != 0
    time.sleep(2)
    assert not marker.exists()


def test_cluster_status_shows_a_running_study(head, tmp_path):
    dataset = write_packed(tmp_path / "dataset", {"train": [64, 40], "val": [32], "test": [24]}, classes=4)
    space = tmp_path / "space.yaml"
    space.write_text(SPACE.replace("[2]", "[4000]"))
    options = ["--dataset", dataset.location.uri, "--output", str(tmp_path), "--name", "shown"]
    job = tmp_path.name
    submission = [RAY, "job", "submit", "--no-wait", "--submission-id", job, "--address", head.address]
    command = ["python", "-m", "landmark.tune", "--space", str(space), "--max-concurrent", "1", *options]
    subprocess.run(
        [*submission, "--", *command], cwd=ROOT, env=head.allowed, check=True, capture_output=True, timeout=60
    )
    try:
        text, deadline = "", time.monotonic() + 200
        while not all(part in text for part in ("images/s", "1 running", " 1/2 ")):
            assert time.monotonic() < deadline, text
            text = subprocess.run(
                ["python", "-m", "landmark", "cluster", "status", "--cluster.address", head.gcs],
                cwd=ROOT,
                env=head.allowed,
                capture_output=True,
                text=True,
                timeout=100,
            ).stdout
    finally:
        subprocess.run([RAY, "job", "stop", "--address", head.address, job], env=head.allowed, check=True, timeout=60)
    logs = [RAY, "job", "logs", "--address", head.address, job]
    job_log = subprocess.run(logs, env=head.allowed, capture_output=True, text=True, timeout=60).stdout
    # Ray sends SIGTERM, and SIGKILL three seconds later.
    assert any(line.startswith(f"landmark tune: error: {STOPPED}") for line in job_log.splitlines())
    assert "Traceback" not in job_log and "SIGTERM received at" not in job_log
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert "running" in rows[job]
    runs = [line.split() for line in text.splitlines() if line.split()[:1] == ["shown"] and " 001-" in line]
    assert len(runs) == 1, text
    run = runs[0]
    assert run[2] == "1" and int(run[3]) >= 1 and float(run[4].replace(",", "")) > 0
    assert "shown: " in text and "1 running" in text and "1 pending" in text
    logged = [json.loads(line) for line in _log_lines(head.folder) if '"run": "shown"' in line and '"epoch"' in line]
    assert {(line["trial"][:4], line["rank"]) for line in logged} == {("001-", 0)}
    assert any(line["event"] == "epoch" and "val_top1" in line for line in logged)


def _log_lines(session: Path) -> list[str]:
    return [
        line
        for file in (session / "session_latest" / "logs").glob("worker-*.err")
        for line in file.read_text().splitlines()
        if line.startswith("{")
    ]
