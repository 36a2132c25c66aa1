"""Tests `landmark cluster check` on a real cluster of two nodes: reachability, capacity and errors."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodes import Nodes
from tests.support.packed import write_packed
from tests.support.seaweed import Seaweed

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    nodes = Nodes(2)
    yield nodes
    nodes.cluster.shutdown()


def cluster_command(cluster: Nodes, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "landmark", "cluster", *words, "--cluster.address", cluster.address]
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=200)


def test_every_node_is_checked_and_the_capacity_is_reported(cluster, s3: Seaweed, tmp_path):
    dataset = write_packed(tmp_path / "dataset", {"train": [8], "val": [4], "test": [4]}, classes=2)
    words = ["--dataset", dataset.location.uri, "--output", s3.uri("check"), "--num-workers", "2"]
    done = cluster_command(cluster, "check", *words, "--workers.cpus", "0.5", "--loader.reader-cpus", "0.25")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    rows = [line.split() for line in lines if "reachable" in line]
    assert len(rows) == 3 and sum("(head)" in row for row in rows) == 1
    assert all(row[-1] == "reachable" for row in rows)
    assert "a run or trial requires 2 x 0.5 CPUs for workers + 4 x 0.25 CPUs for data readers" in done.stdout
    assert lines[-1] == "capacity: 1 runs or trials at a time"


def test_unreachable_storage_and_a_run_too_large_print_one_line_each(cluster, tmp_path):
    done = cluster_command(cluster, "check", "--dataset", str(tmp_path / "none"), "--workers.cpus", "3")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert "manifest.json" in line and "credentials" in line
    assert done.stderr.startswith(
        "landmark cluster check: error: not enough resources for a run: it requires 1 x 3 CPUs"
    )
    assert done.stderr.count("\n") == 1


def test_an_unknown_action_suggests_the_closest_one():
    done = subprocess.run(
        [sys.executable, "-m", "landmark", "cluster", "chek"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2
    assert done.stderr.startswith("landmark cluster: error: unknown action 'chek'") and "'check'" in done.stderr
