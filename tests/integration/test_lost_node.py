"""A node of a cluster that is lost for good, with the worker on it: the run goes on inside the epoch on another node."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nodes import Nodes
from tests.packed import write_packed
from tests.witness import consumed, steps_seen

TRAIN, BATCH, EVERY, EPOCHS = 160, 16, 4, 2


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made = Nodes(3)
    yield made
    made.cluster.shutdown()


def test_a_lost_node_is_replaced_inside_the_epoch(nodes, tmp_path):
    dataset = write_packed(tmp_path, {"train": [100, 60], "val": [20], "test": [9]}, classes=4).location.uri
    run = tmp_path / "runs" / "train"
    command = [
        *(sys.executable, "-m", "tests.witness", "train", "--dataset", dataset, "--output", str(run.parent)),
        *("--name", "train", "--epochs", str(EPOCHS), "--model.backbone", "deck_mlp", "--loader.image-size", "16"),
        *("--loader.batch-size", str(BATCH), "--loader.decode-threads", "1", "--loader.stream", "thread"),
        *("--no-tensorboard", "--checkpoint.steps", str(EVERY), "--workers.count", "2", "--workers.cpus", "1"),
        *("--cluster.address", nodes.address),
    ]
    said = tmp_path / "said.txt"
    with said.open("w") as out:
        job = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: steps_seen(run) >= 2 * 6, job, said)
            nodes.remove(newest_worker(run))
            assert job.wait(timeout=200) == 0, said.read_text()
        finally:
            job.kill()
            job.wait()
    counts = consumed(run)
    assert all(set(counts[epoch]) == set(range(TRAIN)) for epoch in range(1, EPOCHS + 1))
    assert sum(count - 1 for epoch in counts.values() for count in epoch.values()) <= 2 * EVERY * BATCH
    assert len(list(run.glob("witness/*.log"))) == 4  # two processes before, two after


def test_a_node_that_joins_an_elastic_run_repeats_almost_no_step(tmp_path):
    nodes, epochs = Nodes(1), 8
    dataset = write_packed(tmp_path, {"train": [400, 240], "val": [20], "test": [9]}, classes=4).location.uri
    run = tmp_path / "runs" / "train"
    command = [
        *(sys.executable, "-m", "tests.witness", "train", "--dataset", dataset, "--output", str(run.parent)),
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
    assert "note: the run will have another number of workers: saving a checkpoint first" in said.read_text()
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


def newest_worker(run: Path) -> int:
    """Return the process that took the last step."""
    logs = [path for path in run.glob("witness/*.log") if path.stat().st_size]
    return int(max(logs, key=lambda path: path.stat().st_mtime).stem)
