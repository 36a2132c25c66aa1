"""Jobs of a cluster of several hosts, one of which is cut off meanwhile, and the account of it: for tests and benchmarks."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.hosts import Host, Hosts
from tests.support.packed import write_packed
from tests.support.witness import BY_RUN, consumed, steps_seen

TRAIN, BATCH, EVERY, EPOCHS = 160, 16, 4, 2
EACH = TRAIN // BATCH
"""Steps of an epoch."""
DATASET = "s3://landmark/dataset"
SPACE = f"""
metric: val_top1
recipe:
  model: {{backbone: deck_mlp}}
  optimizer: {{name: adam}}
  loader: {{image_size: 16, batch_size: {BATCH}, decode_threads: 1, stream: thread}}
parameters:
  optimizer.lr: {{grid: [0.003]}}
  epochs: {{grid: [{EPOCHS}]}}
"""
TRIAL = "001-0.003-2"
LONGEST_S = 280


@dataclass(kw_only=True)
class Cut:
    """A host that was cut off while a run was training, and what came of it."""

    host: Host
    before: list[Host]
    """Hosts of the run's workers until then."""
    after: list[Host]
    """Hosts of those that went on."""
    seconds: float
    """From the cut to the next step."""


def put_dataset(hosts: Hosts, folder: Path) -> None:
    """Put a small dataset into the bucket."""
    write_packed(folder, {"train": [100, TRAIN - 100], "val": [20], "test": [9]}, classes=4)
    hosts.put(folder, DATASET)


def cut_in_study(hosts: Hosts, place: str, said: Path) -> Cut:
    """Search with one trial of two workers, and cut a host off in its second epoch.

    place: folder in the bucket, below which `study` lies. said: file for what the job says.
    """
    (hosts.code / "space.yaml").write_text(SPACE)
    where = ["--space", "space.yaml", "--dataset", DATASET, "--output", f"s3://{place}", "--name", "study"]
    command = ["python", "-m", "landmark.tune", *where, "--workers.count", "2"]
    return _cut(hosts, command, trial_path(place, TRIAL), 2 * (EACH + 2), said)


def trial_path(place: str, trial: str) -> str:
    """Return a trial's path in the bucket."""
    return f"{place}/study/trials/{trial}"


def cut_in_run(hosts: Hosts, place: str, said: Path) -> Cut:
    """Train by two workers with a checkpoint every few steps, and cut a host off late in the second epoch; the run: `run`."""
    command = [
        *("python", "-m", "landmark.train", "--dataset", DATASET, "--output", f"s3://{place}", "--name", "run"),
        *("--epochs", str(EPOCHS), "--model.backbone", "deck_mlp", "--loader.image-size", "16", "--no-tensorboard"),
        *("--loader.batch-size", str(BATCH), "--loader.decode-threads", "1", "--loader.stream", "thread"),
        *("--checkpoint.steps", str(EVERY), "--workers.count", "2"),
    ]
    return _cut(hosts, command, f"{place}/run", 2 * (EACH + 8), said)


def _cut(hosts: Hosts, command: list[str], run: str, steps: int, said: Path) -> Cut:
    job = hosts.desk.start(*hosts.submission(*command), said=said)
    try:
        _wait_until(lambda: steps_seen(*folders(hosts, run)) >= steps, job, said)
        before = witnesses(hosts, run)
        lost = list(before.values())[-1]
        hosts.cut(lost)
        start = time.monotonic()
        _wait_until(lambda: len(witnesses(hosts, run)) > len(before), job, said)
        seconds = time.monotonic() - start
        assert job.wait(LONGEST_S) == 0, said.read_text()
    finally:
        job.kill()
        job.wait()
    after = [host for path, host in witnesses(hosts, run).items() if path not in before]
    return Cut(host=lost, before=list(before.values()), after=after, seconds=seconds)


def _wait_until(come: Callable[[], bool], job: subprocess.Popen[bytes], said: Path) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not come():
        assert job.poll() is None and time.monotonic() < deadline, said.read_text()
        time.sleep(0.02)


def folders(hosts: Hosts, run: str) -> list[Path]:
    """Return where the workers' processes of a run wrote their steps down, one folder for each host."""
    return [host.folder / BY_RUN / run for host in hosts.workers]


def witnesses(hosts: Hosts, run: str) -> dict[Path, Host]:
    """Return what each process of a run wrote down, and its host."""
    return {path: host for host in hosts.workers for path in host.folder.glob(f"{BY_RUN}/{run}/witness/*.log")}


def skipped(hosts: Hosts, run: str) -> int:
    """Return how many samples of all epochs were never shown."""
    counts = consumed(*folders(hosts, run))
    return sum(TRAIN - len(counts[epoch]) for epoch in range(1, EPOCHS + 1))


def repeated(hosts: Hosts, run: str) -> int:
    """Return how often a sample was shown again."""
    return sum(count - 1 for epoch in consumed(*folders(hosts, run)).values() for count in epoch.values())
