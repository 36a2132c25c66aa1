"""Tests that a node which joins the cluster adds a worker to an elastic run without repeating many steps.

For lost nodes, see tests/integration/test_hosts.py, where a host becomes unreachable.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.nodes import Nodes
from tests.support.packed import write_packed
from tests.support.witness import HOLD, consumed, steps_seen


def test_a_node_joining_an_elastic_run_repeats_almost_no_step(tmp_path):
    nodes, epochs = Nodes(1), 8  # on a fast machine, an epoch takes less time than noticing the node
    dataset = write_packed(tmp_path, {"train": [400, 240], "val": [20], "test": [9]}, classes=4).location.uri
    run = tmp_path / "runs" / "train"
    hold = run.parent / HOLD  # starting a node takes longer than an epoch
    command = [
        *(sys.executable, "-m", "tests.support.witness", "train", "--dataset", dataset, "--output", str(run.parent)),
        *("--name", "train", "--epochs", str(epochs), "--model.backbone", "reference_mlp", "--loader.image-size", "16"),
        *("--loader.batch-size", "4", "--loader.decode-threads", "1", "--loader.stream", "ray", "--no-tensorboard"),
        *("--checkpoint.minutes", "None", "--workers.count", "1:2", "--workers.cpus", "0.6"),
        *("--loader.reader-cpus", "0.1"),
        *("--cluster.address", nodes.address),
    ]
    output = tmp_path / "output.txt"
    with output.open("w") as out:
        job = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: steps_seen(run) >= 60, job, output)
            hold.touch()
            nodes.add()
            hold.unlink()
            assert job.wait(timeout=400) == 0, output.read_text()
        finally:
            job.kill()
            job.wait()
            nodes.cluster.shutdown()
    assert "note: the number of workers is about to change; saving a checkpoint first" in output.read_text()
    counts = consumed(run)
    assert all(set(counts[epoch]) == set(range(640)) for epoch in range(1, epochs + 1))
    # Without a checkpoint before the change, all steps since the start of the epoch would be repeated.
    assert sum(count - 1 for epoch in counts.values() for count in epoch.values()) < 2 * 64


def wait_for(condition: Callable[[], bool], job: subprocess.Popen, output: Path) -> None:
    """Wait until a condition holds while the job runs."""
    deadline = time.monotonic() + 150
    while not condition():
        assert job.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)
