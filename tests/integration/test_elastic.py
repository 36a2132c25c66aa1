"""A node that joins the cluster of an elastic run: the run has one more worker, and repeats almost no step.

For nodes that are lost see tests/integration/test_hosts.py, where a host becomes unreachable.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.nodes import Nodes
from tests.support.packed import write_packed
from tests.support.witness import consumed, steps_seen


def test_a_node_that_joins_an_elastic_run_repeats_almost_no_step(tmp_path):
    nodes, epochs = Nodes(1), 6
    dataset = write_packed(tmp_path, {"train": [400, 240], "val": [20], "test": [9]}, classes=4).location.uri
    run = tmp_path / "runs" / "train"
    command = [
        *(sys.executable, "-m", "tests.support.witness", "train", "--dataset", dataset, "--output", str(run.parent)),
        *("--name", "train", "--epochs", str(epochs), "--model.backbone", "deck_mlp", "--loader.image-size", "16"),
        *("--loader.batch-size", "4", "--loader.decode-threads", "1", "--loader.stream", "thread", "--no-tensorboard"),
        *("--checkpoint.minutes", "None", "--workers.count", "1:2", "--workers.cpus", "1"),
        *("--cluster.address", nodes.address),
    ]
    said = tmp_path / "said.txt"
    with said.open("w") as out:
        job = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: steps_seen(run) >= 20, job, said)
            nodes.add()
            assert job.wait(timeout=400) == 0, said.read_text()
        finally:
            job.kill()
            job.wait()
            nodes.cluster.shutdown()
    assert "note: the number of workers is about to change; saving a checkpoint first" in said.read_text()
    counts = consumed(run)
    assert all(set(counts[epoch]) == set(range(640)) for epoch in range(1, epochs + 1))
    # Without a checkpoint for it, the steps since the epoch's beginning would come again.
    assert sum(count - 1 for epoch in counts.values() for count in epoch.values()) < 2 * 64


def wait_for(come: Callable[[], bool], job: subprocess.Popen, said: Path) -> None:
    """Wait until something has come, while the job runs."""
    deadline = time.monotonic() + 150
    while not come():
        assert job.poll() is None and time.monotonic() < deadline, said.read_text()
        time.sleep(0.02)
