"""Cost of faults: processes, workers, drivers and nodes end at random steps. Counts samples used twice or never.

Run: python benchmarks/faults.py [--only NAME …]. Each run trains the same small model on synthetic images for three
epochs, with a checkpoint every 10 steps. Every process records the samples of every step. `repeated`: samples that were
used again; `skipped`: samples that were never used, over all attempts; `lost`: time beyond that of the undisturbed run.
Weights are compared bit for bit with the undisturbed run on the same number of workers. The last line is JSON, saved to
benchmarks/results/faults.json.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))

import ray
import torch

from landmark.checkpoints.format import read_weights
from landmark.commands.prepare import prepare
from landmark.config import PackingConfig, PrepareConfig, SyntheticConfig
from landmark.data.dataset import PackedDataset
from tests.support.nodes import Nodes
from tests.support.witness import consumed, steps_seen

EPOCHS, BATCH, EVERY = 3, 16, 10
Fault = Callable[["Run"], None]


class Run:
    """A run of `landmark train` in its own process, into which faults are injected."""

    def __init__(self, folder: Path, dataset: str, name: str, workers: str, address: str | None) -> None:
        self.folder = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        plain = folder / "plain.yaml"  # a recipe of defaults; without one, the command selects one for the dataset
        plain.write_text(f"epochs: {EPOCHS}\n")
        self.command = [
            *(sys.executable, "-m", "tests.support.witness", "train", "--dataset", dataset, "--output", str(folder)),
            *(
                "--name",
                name,
                "--resume",
                "--recipe",
                str(plain),
                "--model.backbone",
                "resnet18",
                "--loader.image-size",
                "32",
            ),
            *(
                "--loader.batch-size",
                str(BATCH),
                "--loader.decode-threads",
                "1",
                "--no-tensorboard",
                "--compute.deterministic",
            ),
            *("--checkpoint.steps", str(EVERY), "--workers.cpus", "1", "--workers.stall-s", "8"),
        ]
        if workers != "1":
            self.command += ["--workers.count", workers, "--loader.stream", "thread", "--cluster.address", str(address)]
        self.job: subprocess.Popen | None = None
        self.output = ""

    def start(self) -> None:
        """Start it, or start it again."""
        self.job = subprocess.Popen(self.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def wait_for_step(self, step: int) -> None:
        """Wait until this number of steps is reached, over all processes and attempts."""
        assert self.job is not None
        deadline = time.monotonic() + 180
        while steps_seen(self.folder) < step:
            if self.job.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.folder.name}: ended before step {step}: {self.job.communicate()[0]}")
            time.sleep(0.01)

    def workers(self) -> list[int]:
        """Return the processes that executed steps, the newest last."""
        logs = sorted(self.folder.glob("witness/*.log"), key=lambda path: path.stat().st_mtime)
        return [int(path.stem) for path in logs if path.stat().st_size]

    def end(self) -> None:
        """Wait until it exits successfully."""
        assert self.job is not None
        out, _ = self.job.communicate(timeout=400)
        self.output += out
        if self.job.returncode:
            raise SystemExit(f"{self.folder.name}: {out}")

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the last checkpoint's weights."""
        return read_weights(self.folder / "checkpoints" / f"epoch-{EPOCHS:04d}")


def kill_driver(run: Run) -> None:
    """Kill the process that the user started, and start it again."""
    assert run.job is not None
    run.job.kill()
    run.job.communicate()
    run.start()


def kill_worker(run: Run) -> None:
    """Kill one worker's process."""
    os.kill(run.workers()[-1], signal.SIGKILL)


def stop_worker(run: Run) -> None:
    """Suspend one worker's process, so that it hangs."""
    os.kill(run.workers()[-1], signal.SIGSTOP)


def measure(run: Run, steps: list[int], fault: Fault | None, undisturbed: Run | None, seconds: float) -> dict:
    """Run to the end with a fault at each of the steps. Returns the row of the table."""
    start = time.perf_counter()
    run.start()
    for step in steps:
        run.wait_for_step(step)
        assert fault is not None
        fault(run)
    run.end()
    seconds_total = time.perf_counter() - start
    counts = consumed(run.folder)
    total = PackedDataset.open(run.command[run.command.index("--dataset") + 1]).split("train").rows
    repeated = sum(count - 1 for epoch in counts.values() for count in epoch.values())
    skipped = sum(total - len(epoch) for epoch in counts.values()) + total * (EPOCHS - len(counts))
    equal = None
    if undisturbed is not None:
        before = undisturbed.weights()
        equal = all(torch.equal(tensor, before[name]) for name, tensor in run.weights().items())
    return {
        "at": steps,
        "repeated": repeated,
        "skipped": skipped,
        "seconds": seconds_total,
        "lost_s": seconds_total - seconds,
        "equal": equal,
    }


def scenarios(nodes: Nodes, steps_per_epoch: int) -> list[tuple[str, str, list[int], Fault | None]]:
    """Return the scenarios: name, number of workers, steps over all processes, fault."""

    def kills(workers: int, count: int = 2) -> list[int]:
        random_steps = [
            random.randint(EVERY, steps_per_epoch - 1),
            random.randint(steps_per_epoch + EVERY, 2 * steps_per_epoch),
        ]
        return [workers * step for step in random_steps[:count]]

    return [
        ("nothing, 1 worker", "1", [], None),
        ("process, 1 worker", "1", kills(1), kill_driver),
        ("nothing, 2 workers", "2", [], None),
        ("worker, 2 workers", "2", kills(2), kill_worker),
        ("driver, 2 workers", "2", kills(2), kill_driver),
        ("hung worker, 2 workers", "2", kills(2, 1), stop_worker),
        ("notice of preemption, 2 workers", "2", kills(2, 1), lambda run: nodes.drain(run.workers()[-1])),
        ("node, 2 workers", "2", kills(2, 1), lambda run: nodes.remove(run.workers()[-1])),
        ("node leaves, elastic 1:2", "1:2", kills(2, 1), lambda run: nodes.remove(run.workers()[-1])),
        ("node joins, elastic 1:2", "1:2", [steps_per_epoch // 2], lambda run: nodes.add()),
    ]


def main() -> None:
    """Print the table and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    rows: dict[str, dict] = {}
    references: dict[str, tuple[Run, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = str(folder / "dataset")
        synthetic = SyntheticConfig(images=1200, classes=6, image_size=48)
        prepare(
            PrepareConfig(
                output=dataset, source="synthetic", synthetic=synthetic, packing=PackingConfig(row_group_rows=32)
            )
        )
        ray.shutdown()
        # One node is drained, two are removed. This leaves two nodes for the elastic run, and one for the last run.
        nodes = Nodes(4)
        steps_per_epoch = -(-PackedDataset.open(dataset).split("train").rows // BATCH)
        for scenario, workers, steps, fault in scenarios(nodes, steps_per_epoch):
            if arguments.only and fault is not None and not any(word in scenario for word in arguments.only):
                continue
            label = re.sub(r"[ ,:]+", "-", scenario)
            run = Run(folder / "runs", dataset, label, workers, nodes.cluster.address)
            reference, seconds = references.get(workers, (None, 0.0))
            rows[scenario] = measure(run, steps, fault, reference, seconds)
            if fault is None:
                references[workers] = (run, rows[scenario]["seconds"])
            print(f"{scenario:32} {rows[scenario]}", flush=True)
            print(
                "".join(f"    {line}\n" for line in run.output.splitlines() if line.startswith(("warning", "note"))),
                end="",
            )
        nodes.cluster.shutdown()
    line = json.dumps(
        {
            scenario: {k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()}
            for scenario, row in rows.items()
        }
    )
    Path(__file__).with_name("results").joinpath("faults.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
