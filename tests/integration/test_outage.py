"""A bucket that is far away and at times gone for longer than a retry: packing, a run, a study and evaluation go on.

All of them talk to the real S3 server through a proxy. Outages of minutes are seconds here, by the settings that users have.
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

GONE_S = 6
SETTINGS = {"LANDMARK_STORAGE_DEADLINE_S": "2", "LANDMARK_STORAGE_OUTAGE_S": "200"}
"""An operation fails after 2 s; an outage may last 200 s: 90 s and 30 min by default."""
SPACE = """
metric: val_top1
scheduler: {name: none}
recipe:
  model: {backbone: deck_mlp}
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


def outlasts(s3: Seaweed, proxy: Proxy, condition: Callable[[], bool], *command: str) -> str:
    """Run a command in a process of its own, which reaches the bucket through the proxy only; the bucket goes away in between.

    Not in this process: the workers of a Ray that other tests share reach the server directly. Returns what was printed.
    """
    with started(s3, *command, AWS_ENDPOINT_URL=proxy.url, **SETTINGS) as job:
        outage = outage_when(proxy, condition)
        out, err = job.communicate(timeout=250)
    assert job.returncode == 0, err
    assert not outage.is_alive(), "the command ended before the bucket was back"
    return out + err


def outage_when(proxy: Proxy, condition: Callable[[], bool]) -> threading.Thread:
    """Let the bucket be gone for a while as soon as a condition holds; the thread ends when it is back."""

    def work() -> None:
        deadline = time.monotonic() + 120
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        proxy.go_away()
        time.sleep(GONE_S)
        proxy.come_back()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def more_requests(proxy: Proxy, count: int) -> Callable[[], bool]:
    start = proxy.requests
    return lambda: proxy.requests >= start + count


@pytest.fixture(scope="module")
def dataset(s3: Seaweed, proxy: Proxy) -> str:
    """A dataset packed through the proxy, the bucket gone in the middle."""
    uri = s3.uri("far/data")
    drawn = ["--synthetic.images", "240", "--synthetic.classes", "4", "--synthetic.image-size", "32"]
    packing = ["prepare", "--output", uri, "--source", "synthetic", *drawn, "--cluster.cpus", "1"]
    work = locate(uri) / "_work" / "parts"
    text = outlasts(s3, proxy, work.exists, *packing, "--packing.row-group-rows", "16")
    assert "packed 240 images" in text
    return uri


@pytest.fixture(scope="module")
def run(s3: Seaweed) -> str:
    return s3.uri("far/runs/outage")


def test_packing_and_a_run(dataset, run, s3, proxy):
    output, name = run.rsplit("/", 1)
    options = ["--output", output, "--name", name, "--epochs", "6", *FAST]
    outlasts(s3, proxy, more_requests(proxy, 60), "train", "--dataset", dataset, *options)
    rows = (locate(run) / "history.csv").read_text().splitlines()
    assert len(rows) == 1 + 6


def test_evaluation(dataset, run, s3, proxy):
    outlasts(s3, proxy, more_requests(proxy, 4), "evaluate", "--run", run, "--dataset", dataset, "--split", "val")


def test_a_study_whose_trials_start_and_train_in_the_outage(dataset, proxy, s3, tmp_path):
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
    text = outlasts(s3, proxy, (study / "trials").exists, *command)
    summary = json.loads((study / "study.json").read_text())
    assert (summary["finished"], summary["failed"], summary["epochs_run"]) == (2, 0, 8), text
