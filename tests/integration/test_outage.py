"""Tests that packing, training, evaluation and a study survive storage outages that last longer than a retry.

All commands reach the real S3 server through a proxy. User settings shorten outages from minutes to seconds.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from landmark.storage import locate
from tests.integration.test_faults import FAST, started
from tests.support.proxy import Proxy
from tests.support.seaweed import Seaweed

OUTAGE_S = 6
SETTINGS = {"LANDMARK_STORAGE_DEADLINE_S": "2", "LANDMARK_STORAGE_OUTAGE_S": "200"}
"""An operation fails after 2 s, and an outage may last 200 s. The defaults are 90 s and 30 min."""
SPACE = """
metric: val_top1
scheduler: {name: none}
recipe:
  model: {backbone: reference_mlp}
  loader: {image_size: 16, batch_size: 16, decode_threads: 1}
parameters:
  optimizer.lr: {grid: [0.003, 0.001]}
  epochs: {grid: [4]}
"""


@pytest.fixture(scope="module")
def proxy(s3: Seaweed) -> Iterator[Proxy]:
    with Proxy(s3.ports[3]) as found:
        found.delay_s = 0.025
        yield found


def run_with_outage(s3: Seaweed, proxy: Proxy, condition: Callable[[], bool], *command: str) -> str:
    """Run a command in a separate process that reaches the bucket only through the proxy, with an outage meanwhile.

    This process cannot be used: the workers of the shared Ray reach the server directly. Returns the output.
    """
    with started(s3, *command, AWS_ENDPOINT_URL=proxy.url, **SETTINGS) as job:
        outage = outage_when(proxy, condition)
        out, err = job.communicate(timeout=250)
    assert job.returncode == 0, err
    assert not outage.is_alive(), "the command ended before the bucket was back"
    return out + err


def outage_when(proxy: Proxy, condition: Callable[[], bool]) -> threading.Thread:
    """Start an outage when a condition holds. The thread ends with the outage."""

    def work() -> None:
        deadline = time.monotonic() + 120
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        proxy.start_outage()
        time.sleep(OUTAGE_S)
        proxy.end_outage()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def more_requests(proxy: Proxy, count: int) -> Callable[[], bool]:
    start = proxy.requests
    return lambda: proxy.requests >= start + count


@pytest.fixture(scope="module")
def dataset(s3: Seaweed, proxy: Proxy) -> str:
    """Pack a dataset through the proxy with an outage meanwhile. Returns its URI."""
    uri = s3.uri("far/data")
    images = ["--synthetic.images", "240", "--synthetic.classes", "4", "--synthetic.image-size", "32"]
    packing = ["prepare", "--output", uri, "--source", "synthetic", *images, "--cluster.cpus", "1"]
    work = locate(uri) / "_work" / "parts"
    text = run_with_outage(s3, proxy, work.exists, *packing, "--packing.row-group-rows", "16")
    assert "packed 240 images" in text
    return uri


@pytest.fixture(scope="module")
def run(s3: Seaweed) -> str:
    return s3.uri("far/runs/outage")


def test_packing_and_training_survive_an_outage(dataset, run, s3, proxy):
    output, name = run.rsplit("/", 1)
    options = ["--output", output, "--name", name, "--epochs", "6", *FAST]
    run_with_outage(s3, proxy, more_requests(proxy, 60), "train", "--dataset", dataset, *options)
    rows = (locate(run) / "history.csv").read_text().splitlines()
    assert len(rows) == 1 + 6


def test_evaluation_survives_an_outage(dataset, run, s3, proxy):
    run_with_outage(
        s3, proxy, more_requests(proxy, 4), "evaluate", "--run", run, "--dataset", dataset, "--split", "val"
    )


def test_a_study_survives_an_outage_while_trials_start_and_train(dataset, proxy, s3, tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    options = [
        "--space",
        str(tmp_path / "space.yaml"),
        "--output",
        s3.uri("far"),
        "--name",
        "study",
        "--no-tensorboard",
    ]
    study = locate(s3.uri("far/study"))
    command = ["tune", "--dataset", dataset, *options, "--cluster.cpus", "1", "--test", "none"]
    text = run_with_outage(s3, proxy, (study / "trials").exists, *command)
    summary = json.loads((study / "study.json").read_text())
    assert (summary["finished"], summary["failed"], summary["epochs_run"]) == (2, 0, 8), text
