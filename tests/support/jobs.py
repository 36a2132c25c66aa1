"""Run jobs on several hosts and make one host unreachable meanwhile, for tests and benchmarks."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.hosts import Host, Hosts
from tests.support.packed import write_packed
from tests.support.witness import STEPS_FOLDER, consumed, steps_seen

TRAIN, BATCH, CHECKPOINT_STEPS, EPOCHS = 160, 16, 4, 2
EPOCH_STEPS = TRAIN // BATCH
"""Steps per epoch."""
DATASET = "s3://landmark/dataset"
SPACE = f"""
metric: val_top1
recipe:
  model: {{backbone: reference_mlp}}
  optimizer: {{name: adam}}
  loader: {{image_size: 16, batch_size: {BATCH}, decode_threads: 1, stream: thread}}
parameters:
  optimizer.lr: {{grid: [0.003]}}
  epochs: {{grid: [{EPOCHS}]}}
"""
TRIAL = "001-0.003-2"
TIMEOUT_S = 280


@dataclass(kw_only=True)
class Disconnection:
    """A host that became unreachable while a run was training, and how the run recovered."""

    host: Host
    before: list[Host]
    """Hosts of the workers before the host was unreachable."""
    after: list[Host]
    """Hosts of the workers after the run resumed."""
    seconds: float
    """Time from the disconnection to the next step."""


def put_dataset(hosts: Hosts, folder: Path) -> None:
    """Put a small dataset into the bucket."""
    write_packed(folder, {"train": [100, TRAIN - 100], "val": [20], "test": [9]}, classes=4)
    hosts.put(folder, DATASET)


def disconnect_in_study(hosts: Hosts, place: str, output: Path) -> Disconnection:
    """Run a study with one trial of two workers, and disconnect a host in the second epoch.

    place: folder in the bucket in which `study` is stored. output: file for the output of the job.
    """
    (hosts.code / "space.yaml").write_text(SPACE)
    options = ["--space", "space.yaml", "--dataset", DATASET, "--output", f"s3://{place}", "--name", "study"]
    command = ["python", "-m", "landmark.tune", *options, "--workers.count", "2"]
    return _disconnect(hosts, command, trial_path(place, TRIAL), 2 * (EPOCH_STEPS + 2), output)


def trial_path(place: str, trial: str) -> str:
    """Return a trial's path in the bucket."""
    return f"{place}/study/trials/{trial}"


def disconnect_in_run(hosts: Hosts, place: str, output: Path) -> Disconnection:
    """Train with two workers and frequent checkpoints, and disconnect a host late in the second epoch."""
    command = train_command(place, "--loader.stream", "thread", "--checkpoint.steps", str(CHECKPOINT_STEPS))
    return _disconnect(hosts, command, f"{place}/run", 2 * (EPOCH_STEPS + 8), output)


def train_command(place: str, *options: str) -> list[str]:
    """Return the command that trains with two workers. place: folder in the bucket in which `run` is stored."""
    return [
        *("python", "-m", "landmark.train", "--dataset", DATASET, "--output", f"s3://{place}", "--name", "run"),
        *(
            "--epochs",
            str(EPOCHS),
            "--model.backbone",
            "reference_mlp",
            "--loader.image-size",
            "16",
            "--no-tensorboard",
        ),
        *("--loader.batch-size", str(BATCH), "--loader.decode-threads", "1", "--workers.count", "2"),
        *options,
    ]


def _disconnect(hosts: Hosts, command: list[str], run: str, steps: int, output: Path) -> Disconnection:
    job = hosts.client.start(*hosts.submission(*command), output=output)
    try:
        _wait_until(lambda: steps_seen(*folders(hosts, run)) >= steps, job, output)
        before = step_files(hosts, run)
        unreachable = list(before.values())[-1]
        hosts.disconnect(unreachable)
        start = time.monotonic()
        _wait_until(lambda: len(step_files(hosts, run)) > len(before), job, output)
        seconds = time.monotonic() - start
        assert job.wait(TIMEOUT_S) == 0, output.read_text()
    finally:
        job.kill()
        job.wait()
    after = [host for path, host in step_files(hosts, run).items() if path not in before]
    return Disconnection(host=unreachable, before=list(before.values()), after=after, seconds=seconds)


def _wait_until(condition: Callable[[], bool], job: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert job.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)


def folders(hosts: Hosts, run: str) -> list[Path]:
    """Return the folders in which the workers of a run recorded their steps, one per host."""
    return [host.folder / STEPS_FOLDER / run for host in hosts.workers]


def step_files(hosts: Hosts, run: str) -> dict[Path, Host]:
    """Return the step file of each process of a run, and its host."""
    return {path: host for host in hosts.workers for path in host.folder.glob(f"{STEPS_FOLDER}/{run}/witness/*.log")}


def skipped(hosts: Hosts, run: str) -> int:
    """Return how many samples of all epochs were never used."""
    counts = consumed(*folders(hosts, run))
    return sum(TRAIN - len(counts[epoch]) for epoch in range(1, EPOCHS + 1))


def repeated(hosts: Hosts, run: str) -> int:
    """Return how often samples were used again."""
    return sum(count - 1 for epoch in consumed(*folders(hosts, run)).values() for count in epoch.values())
