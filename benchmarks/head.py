"""Training step cost of a classifier of 203,094 classes: all classes compared with sampled ones, time, memory, traffic.

Run: python benchmarks/head.py [--quick]. Each kind runs in its own process and executes `TrainStep`, the step of
`landmark train` (forward, loss, gradient, SGD with momentum, fp32), on 64 synthetic images. The backbone is one linear
layer to an embedding of 512, so that the classifier dominates the cost:
- linear, all classes: a standard classifier;
- sub-center ArcFace, k = 3, all classes: three centers per class, cosines, a margin;
- the same with `--model.head.sample` 1, 0.1 and 0.01.
Seconds are the median of the steps after two warm-up steps. CPU seconds, over all threads, show how much other
processes interfered. Memory is the maximum private memory of the process (peak.py), with the optimizer's state for
every class, as in a run that has used all classes. With two workers, each has half of the images and of the CPUs.
`sent` is the amount of data that each worker passes to all-reduce per step for the classifier (a ring sends 2 (W - 1) /
W times as much). The full sub-center head needs more memory than two workers have here. Its gradient, which DDP would
reduce, is computed, not measured. The last line is JSON, saved to benchmarks/results/head.json.

python benchmarks/head.py --scaling also measures one worker at 100, 10,000 and 81,313 classes. Its last line is saved
to benchmarks/results/head_scaling.json.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
# Waiting threads sleep. Spinning would count as CPU time and block a core.
os.environ.update(PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="", OMP_WAIT_POLICY="PASSIVE")

from peak import Peak

CLASSES, WIDTH, BATCH, SUBCENTERS = 203_094, 512, 64, 3
SIZE = 16
KINDS: dict[str, tuple[str, float | None]] = {
    "linear": ("linear", None),
    "arcface": ("arcface", None),
    "full": ("subcenter", None),
    "sampled100": ("subcenter", 1.0),
    "sampled10": ("subcenter", 0.1),
    "sampled1": ("subcenter", 0.01),
}
TITLES = {
    "linear": "linear, all classes",
    "full": "sub-center ArcFace k=3, all",
    "sampled100": "  sample 1 (all, in chunks)",
    "sampled10": "  sample 0.1",
    "sampled1": "  sample 0.01",
}
STEPS = {"linear": 8, "full": 4, "sampled100": 1, "sampled10": 12, "sampled1": 20}
EVERY_S = 0.05
"""Seconds between two samples of a process's memory."""


def measure(kind: str, classes: int, steps: int, rank: int, ranks: int, port: int) -> None:
    """Execute steps in this process, and print their seconds and the bytes passed to all-reduce."""
    import torch
    import torch.distributed

    from landmark.config import (
        ComputeConfig,
        HeadConfig,
        LoaderConfig,
        ModelConfig,
        OptimizerConfig,
        Recipe,
        ScheduleConfig,
    )
    from landmark.models import ModelInfo
    from landmark.models.heads import Classifier
    from landmark.training.compute.optim import Schedule
    from landmark.training.loop.step import TrainStep

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    if ranks > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    name, sample = KINDS[kind]
    head = HeadConfig(name=name, sample=sample, subcenters=SUBCENTERS)
    recipe = Recipe(
        model=ModelConfig(head=head),
        optimizer=OptimizerConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig(name="constant"),
        compute=ComputeConfig(amp="off"),
        loader=LoaderConfig(image_size=SIZE, batch_size=BATCH),
    )
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(3 * SIZE**2, WIDTH), Classifier(head, WIDTH, classes)]
    info = ModelInfo(name="embedding", source="reference", image_size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3)
    session = make_session(rank, ranks)
    step = TrainStep(torch.nn.Sequential(*layers), recipe, info, session)
    schedule = Schedule(
        step.optimizer, recipe.schedule, optimizer_config=recipe.optimizer, steps_per_epoch=steps, epochs=1, mode="max"
    )
    step_seconds, cpu_seconds = [], []
    for number in range(steps + 2):
        batch = make_batch(number, classes, rank, ranks)
        session.sent = 0
        start, cpu = time.perf_counter(), time.process_time()
        step.run(batch, schedule, number, BATCH)
        step_seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu)
    step.check_finite()
    backbone_bytes = 4 * WIDTH * (3 * SIZE**2 + 1) if ranks > 1 else 0  # gradient of the layer before the classifier
    figures = {
        "step_s": statistics.median(step_seconds[2:]),
        "cpu_s": statistics.median(cpu_seconds[2:]),
        "sent": session.sent - backbone_bytes,
    }
    print(json.dumps(figures), flush=True)
    if ranks > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def make_session(rank: int, ranks: int) -> Any:
    """Return one rank's session, which counts the bytes passed to collectives."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from landmark.training.distributed.backends import Ddp

    class Counted:
        device = torch.device("cpu")

        def __init__(self) -> None:
            self.rank, self.world_size, self.sent = rank, ranks, 0

        def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
            if ranks == 1:
                return model
            wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
            wrapped.register_comm_hook(None, self._reduce)
            return wrapped

        def _reduce(self, _: object, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
            self.sent += bucket.buffer().nbytes
            work = torch.distributed.all_reduce(bucket.buffer().div_(ranks), async_op=True)
            return work.get_future().then(lambda future: future.value()[0])

        def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
            if ranks == 1:
                return values
            total = values.clone()
            self.sent += total.nbytes
            torch.distributed.all_reduce(total)
            return total

        def all_gather(self, values: torch.Tensor) -> torch.Tensor:
            self.sent += values.nbytes * (ranks - 1)
            return Ddp().all_gather(values)

        def reduce_scatter(self, values: torch.Tensor) -> torch.Tensor:
            self.sent += values.nbytes
            return Ddp().reduce_scatter(values)

    return Counted()


def make_batch(number: int, classes: int, rank: int, ranks: int) -> Any:
    """Return a rank's part of a step's images: noise with random classes."""
    import numpy as np

    from landmark.data.loading.loader import Batch

    random = np.random.default_rng(number)
    labels, images = random.integers(0, classes, BATCH), random.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)
    part = slice(BATCH * rank // ranks, BATCH * (rank + 1) // ranks)
    samples = np.arange(BATCH)[part]
    flip = np.zeros(len(samples), dtype=bool)
    return Batch(
        images=images[part], labels=labels[part], samples=samples, visits=samples, flip=flip, weight=1.0, epoch=1
    )


def run(kind: str, classes: int, steps: int, ranks: int = 1) -> dict[str, float]:
    """Return seconds and bytes per step of a kind, and the peak memory, MiB, of the first of `ranks` workers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        values = json.dumps([kind, classes, steps, rank, ranks, port])
        command = [sys.executable, __file__, "--measure", values]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    peak = Peak(processes[0].pid, every=EVERY_S)
    outputs = [process.communicate()[0] for process in processes]
    memory = peak.stop()
    if any(process.returncode for process in processes):
        raise SystemExit(f"{kind} with {ranks} workers failed")
    return {**json.loads(outputs[0].splitlines()[-1]), "peak_mib": memory}


def scaling() -> dict[str, float]:
    """Print and return seconds and memory of every kind with fewer classes."""
    found = {}
    print(f"{'classes':>8} {'kind':12}{'s/step':>10}{'peak MiB':>10}")
    for classes in (100, 10_000, 81_313):
        for kind in ("linear", "arcface", "full", "sampled10", "sampled1"):
            values = run(kind, classes, 3 if classes > 10_000 else 10)
            print(f"{classes:>8,} {kind:12}{values['step_s']:>10.4f}{values['peak_mib']:>10,.0f}", flush=True)
            found |= {f"{kind}_{classes}_step_s": values["step_s"], f"{kind}_{classes}_peak_mib": values["peak_mib"]}
    return found


def save_figures(figures: dict[str, float], path: Path) -> None:
    """Write the figures and print them as the last line."""
    line = json.dumps({key: round(value, 4) for key, value in figures.items()})
    path.write_text(line + "\n")
    print(line)


def main() -> None:
    """Print the table and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the classes and half of the steps")
    parser.add_argument("--scaling", action="store_true", help="one worker at 100, 10,000 and 81,313 classes")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "head.json")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*json.loads(arguments.measure))
        return
    if arguments.scaling:
        save_figures(scaling(), arguments.output.with_name("head_scaling.json"))
        return
    classes = CLASSES // 10 if arguments.quick else CLASSES
    print(f"{classes:,} classes x {WIDTH}, batch {BATCH}, {os.cpu_count()} CPUs")
    print(f"{'one worker':32}{'s/step':>10}{'CPU s':>8}{'peak MiB':>10}{'speedup':>8}{'mem x':>8}")
    found = {}
    for kind, title in TITLES.items():
        steps = STEPS[kind] // (2 if arguments.quick else 1)
        found[kind] = run(kind, classes, steps)
        full = found.get("full")
        next_to = (
            ""
            if full is None
            else f"{full['step_s'] / found[kind]['step_s']:>8.1f}{full['peak_mib'] / found[kind]['peak_mib']:>8.2f}"
        )
        print(
            f"{title:32}{found[kind]['step_s']:>10.3f}{found[kind]['cpu_s']:>8.3f}{found[kind]['peak_mib']:>10,.0f}{next_to}",
            flush=True,
        )
    print(f"{'two workers':32}{'s/step':>10}{'peak MiB':>10}{'sent, MB/worker and step':>28}")
    two = {kind: run(kind, classes, STEPS[kind] // 2, ranks=2) for kind in ("linear", "sampled10", "sampled1")}
    for kind, values in two.items():
        print(
            f"{TITLES[kind].strip():32}{values['step_s']:>10.3f}{values['peak_mib']:>10,.0f}{values['sent'] / 1e6:>28.2f}"
        )
    cpu_seconds = classes * SUBCENTERS * WIDTH * 4
    print(f"{TITLES['full']:32}{'':>10}{'':>10}{cpu_seconds / 1e6:>28.2f} (computed)")
    full = found["full"]
    figures = {
        "classes": classes,
        **{f"{kind}_step_s": values["step_s"] for kind, values in found.items()},
        **{f"{kind}_cpu_s": values["cpu_s"] for kind, values in found.items()},
        **{f"{kind}_peak_mib": values["peak_mib"] for kind, values in found.items()},
        **{f"two_workers_{kind}_step_s": values["step_s"] for kind, values in two.items()},
        **{f"two_workers_{kind}_peak_mib": values["peak_mib"] for kind, values in two.items()},
        **{f"two_workers_{kind}_mb_a_step": values["sent"] / 1e6 for kind, values in two.items()},
        "two_workers_full_mb_a_step_computed": cpu_seconds / 1e6,
        "sampled10_speedup": full["step_s"] / found["sampled10"]["step_s"],
        "sampled10_memory_ratio": full["peak_mib"] / found["sampled10"]["peak_mib"],
        "sampled10_cpu_speedup": full["cpu_s"] / found["sampled10"]["cpu_s"],
        "sampled1_speedup": full["step_s"] / found["sampled1"]["step_s"],
    }
    save_figures(figures, arguments.output)


if __name__ == "__main__":
    main()
