"""A cluster of several hosts: jobs from outside with a token, nothing else let in, a host that is cut off is replaced."""

import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Host, Hosts, missing
from tests.packed import write_packed
from tests.witness import consumed, steps_seen

pytestmark = pytest.mark.timeout(600)
TRAIN, BATCH, EVERY, EPOCHS = 160, 16, 4, 2
DATASET, RUNS = "s3://landmark/dataset", "s3://landmark/runs"
SPACE = f"""
metric: val_top1
recipe:
  model: {{backbone: deck_mlp}}
  optimizer: {{name: adam}}
  loader: {{image_size: 16, batch_size: {BATCH}, decode_threads: 1, stream: thread}}
parameters:
  optimizer.lr: {{grid: [0.003, 0.001]}}
  epochs: {{grid: [{EPOCHS}]}}
"""
TRIALS = ["001-0.003-2", "002-0.001-2"]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if (reason := missing()) is not None:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with Hosts(workers=3) as made:
        folder = tmp_path_factory.mktemp("packed")
        write_packed(folder, {"train": [100, 60], "val": [20], "test": [9]}, classes=4)
        made.put(folder, DATASET)
        yield made


@dataclasses.dataclass
class Cut:
    """A host that was cut off while a run was training."""

    host: Host
    before: list[Host]
    """Hosts of the run's workers until then."""
    after: list[Host]
    """Hosts of those that went on."""
    seconds: float
    """From the cut to the next step."""


def cut_during(hosts: Hosts, run: str, steps: int, job: subprocess.Popen[bytes], said: Path) -> Cut:
    """Cut one of a run's hosts off when that many steps were taken, over all processes; returns when the run goes on."""

    def wait_until(come) -> None:
        deadline = time.monotonic() + 200
        while not come():
            assert job.poll() is None and time.monotonic() < deadline, said.read_text()
            time.sleep(0.02)

    wait_until(lambda: steps_seen(*hosts.folders(run)) >= steps)
    before = hosts.witnesses(run)
    lost = list(before.values())[-1]
    hosts.cut(lost)
    start = time.monotonic()
    wait_until(lambda: len(hosts.witnesses(run)) > len(before))
    seconds = time.monotonic() - start
    assert job.wait(timeout=200) == 0, said.read_text()
    after = [host for path, host in hosts.witnesses(run).items() if path not in before]
    return Cut(host=lost, before=list(before.values()), after=after, seconds=seconds)


def names(found: list[Host]) -> set[str]:
    return {host.name for host in found}


def skipped(hosts: Hosts, run: str, epochs: int) -> int:
    counts = consumed(*hosts.folders(run))
    return sum(TRAIN - len(counts[epoch]) for epoch in range(1, epochs + 1))


def repeated(hosts: Hosts, run: str) -> int:
    return sum(count - 1 for epoch in consumed(*hosts.folders(run)).values() for count in epoch.values())


def test_a_study_trains_across_hosts_and_goes_on_when_one_is_cut_off(hosts, tmp_path):
    (hosts.code / "space.yaml").write_text(SPACE)
    where = ["--space", "space.yaml", "--dataset", DATASET, "--output", RUNS, "--name", "study"]
    said = tmp_path / "said.txt"
    job = hosts.desk.start(
        *hosts.submission("python", "-m", "landmark.tune", *where, "--workers.count", "2"), said=said
    )
    each = TRAIN // BATCH
    cut = cut_during(hosts, TRIALS[1], 2 * (each + 2), job, said)
    study = json.loads(hosts.get(f"{RUNS}/study/study.json"))
    assert (study["finished"], study["failed"], study["best"]["test"]["5"]) == (2, 0, 1.0)
    assert len(names(list(hosts.witnesses(TRIALS[0]).values()))) == 2
    assert len(names(cut.before)) == len(names(cut.after)) == 2
    assert cut.host.name not in names(cut.after)
    assert [skipped(hosts, trial, EPOCHS) for trial in TRIALS] == [0, 0]
    assert repeated(hosts, TRIALS[0]) == 0 and repeated(hosts, TRIALS[1]) <= TRAIN
    hosts.mend(cut.host)


def test_a_run_goes_on_inside_the_epoch_when_a_host_is_cut_off(hosts, tmp_path):
    command = [
        *("python", "-m", "landmark.train", "--dataset", DATASET, "--output", RUNS, "--name", "cut"),
        *("--epochs", str(EPOCHS), "--model.backbone", "deck_mlp", "--loader.image-size", "16", "--no-tensorboard"),
        *("--loader.batch-size", str(BATCH), "--loader.decode-threads", "1", "--loader.stream", "thread"),
        *("--checkpoint.steps", str(EVERY), "--workers.count", "2"),
    ]
    said = tmp_path / "said.txt"
    job = hosts.desk.start(*hosts.submission(*command), said=said)
    cut = cut_during(hosts, "cut", 2 * (TRAIN // BATCH + 8), job, said)
    assert names(cut.after) == names(hosts.workers) - {cut.host.name}
    assert skipped(hosts, "cut", EPOCHS) == 0
    assert repeated(hosts, "cut") <= 2 * EVERY * BATCH
    hosts.mend(cut.host)
