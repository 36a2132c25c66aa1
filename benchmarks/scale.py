"""64 workers on the full Google Landmarks dataset: plan, account, checkpoint and restore, on one machine.

Run: python benchmarks/scale.py [--quick]. 4,132,914 training images, 203,094 classes, sub-center ArcFace with three
centers per class on embeddings of 512, AdamW, 8 workers per node. No pixel is read and no step is computed. All other
code is that of a training run. Each part runs in its own process, which acts as one or two of the 64 ranks. The other
ranks send nothing:
- plan: a rank's epoch, and the rest of an epoch that was half done; the account of used images, gathered over 64 ranks.
- save: the data that rank 0 gathers, copies, and stores on the local disk.
- restore: two ranks of one node, over Gloo. The first downloads and checks the checkpoint, both load it.
Seconds are of one run each. `--quick`: embeddings of 32, nothing saved. Memory is the maximum private memory of a
process (peak.py); pages of mapped files do not count. Bytes read per node are those requested from storage. The last
line is JSON, saved to benchmarks/results/scale.json.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
os.environ.update(PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")

import numpy as np
import torch
import torch.distributed
from peak import Peak

from landmark.data.dataset import PackedDataset
from landmark.data.loading.progress import EpochProgress
from landmark.data.loading.sampling import EpochRows
from landmark.storage import Location
from landmark.training.distributed.restore import restored
from landmark.training.loop.state import RunState
from tests.support.scale import (
    CLASSES,
    PER_NODE,
    RANKS,
    SAMPLES,
    full_recipe,
    new_store,
    plan_of,
    visits_of,
    write_metadata,
)


class OneOf64:
    """A rank whose 63 peers send zeros. With a process group, the ranks of its processes are real."""

    world_size = RANKS
    node_rank = 0
    device = torch.device("cpu")
    saves_within_epochs = True
    reports_probe = False

    def __init__(self, rank: int) -> None:
        self.rank = self.local_rank = rank

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model itself."""
        return model

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the real ranks."""
        total = values.clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        return total

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of all ranks, zeros for those that are not real."""
        all_values = values.new_zeros(RANKS, *values.shape)
        all_values[self.rank] = values
        return all_values


class Figures:
    """Seconds and peak memory of the parts of a process."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.peak = Peak(os.getpid(), every=0.05)

    def timed(self, name: str, call: Callable[[], Any]) -> Any:
        """Return the result of a call and record its seconds."""
        start = time.perf_counter()
        result = call()
        self.values[f"{name}_s"] = round(time.perf_counter() - start, 2)
        return result

    def end(self) -> None:
        """Print the figures."""
        print(json.dumps(self.values | {"peak_mib": round(self.peak.stop())}), flush=True)


def plan(folder: Path, width: int) -> None:
    """Measure a rank's plan and its account of used samples."""
    dataset = PackedDataset.open(str(folder / "dataset"))
    figures = Figures()
    time.sleep(0.2)
    base = figures.peak.peak_mib
    recipe = full_recipe(width)
    rows = EpochRows(dataset, "train", recipe.sampling, recipe.seed)
    position = EpochProgress(epoch=1, partitioning=(RANKS,), length=rows.length)
    visits = visits_of(figures.timed("plan", lambda: plan_of(rows, position, 0, RANKS)))
    for step in visits[: len(visits) // 2]:
        position.advance(step)
    used = sum(len(step) for step in visits[: len(visits) // 2])
    others = [np.broadcast_to(np.uint8(0), rows.length)] * (RANKS - 1)
    figures.timed("gather", lambda: position.gather(lambda local: np.sum([local, *others], axis=0, dtype=np.uint8)))
    assert position.consumed is not None and int(position.consumed.sum()) == used
    rest = position.repartitioned((RANKS - 8,))
    figures.timed("plan_rest", lambda: plan_of(rows, rest, 0, RANKS - 8))
    figures.values["account_bytes_per_rank"] = sum(array.nbytes for array in (position.local, position.consumed))
    figures.values["base_mib"] = round(base)
    figures.end()


def save(folder: Path, width: int) -> None:
    """Measure rank 0's checkpoint."""
    dataset = PackedDataset.open(str(folder / "dataset"))
    figures = Figures()
    state = figures.timed("build", lambda: RunState(full_recipe(width), dataset, OneOf64(0)))
    figures.timed("gather", state.gather)
    snapshot = figures.timed("snapshot", state.snapshot)
    store = new_store(folder / "run")

    def store_snapshot() -> None:
        store.save(snapshot)
        store.close()

    figures.timed("store", store_snapshot)
    checkpoint = folder / "run" / "checkpoints" / snapshot.name
    figures.values["checkpoint_bytes"] = sum(path.stat().st_size for path in checkpoint.iterdir())
    figures.end()


def restore(folder: Path, width: int, rank: int, port: int) -> None:
    """Measure the restore of one of two ranks of a node."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    dataset = PackedDataset.open(str(folder / "dataset"))
    download, read = Location.download, [0]

    def counting_download(self: Location, target: Path) -> None:
        download(self, target)
        read[0] += target.stat().st_size

    Location.download = counting_download  # type: ignore[method-assign]
    figures, member = Figures(), OneOf64(rank)
    state = figures.timed("build", lambda: RunState(full_recipe(width), dataset, member))
    context = restored(new_store(folder / "run"), member, str(folder))
    found, _ = figures.timed("fetch", context.__enter__)
    figures.timed("load", lambda: state.load(found))
    context.__exit__(None, None, None)
    assert sum(path.name.startswith("landmark-restore-") for path in folder.iterdir()) == 0 or rank
    figures.values["bytes_read"] = read[0]
    torch.distributed.destroy_process_group()
    figures.end()


def process(role: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a part in its own process."""
    command = [sys.executable, __file__, "--role", role, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def figures_of(job: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for a part and return its figures."""
    out, _ = job.communicate()
    if job.returncode:
        raise SystemExit(f"{job.args}: exit code {job.returncode}")
    return json.loads(out.splitlines()[-1])


def measure(width: int) -> dict[str, Any]:
    """Run all parts in sequence and return their figures."""
    with tempfile.TemporaryDirectory(prefix="landmark-scale-") as name:
        folder = Path(name)
        write_metadata(folder / "dataset")
        planned = figures_of(process("plan", folder, width))
        saved = figures_of(process("save", folder, width))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        jobs = [process("restore", folder, width, rank, port) for rank in range(2)]
        first, second = (figures_of(job) for job in jobs)
    assert second["bytes_read"] == 0
    return {
        "images": SAMPLES,
        "classes": CLASSES,
        "ranks": RANKS,
        "ranks_per_node": PER_NODE,
        "width": width,
        "cpus": os.cpu_count(),
        "plan": planned,
        "save_rank_0": saved,
        "restore_first_rank_of_node": first,
        "restore_other_rank": second,
        "checkpoint_bytes_read_per_node": first["bytes_read"],
        "checkpoint_bytes_read_if_each_rank_did": PER_NODE * saved["checkpoint_bytes"],
    }


def main() -> None:
    """Print the figures and save them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "scale.json")
    parser.add_argument("--role", choices=["plan", "save", "restore"], help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role is not None:
        folder, width, *ranks = options.arguments
        {"plan": plan, "save": save, "restore": restore}[options.role](Path(folder), int(width), *map(int, ranks))
        return
    figures = measure(32 if options.quick else 512)
    for part in ("plan", "save_rank_0", "restore_first_rank_of_node", "restore_other_rank"):
        print(f"{part}: " + ", ".join(f"{name} {value:,}" for name, value in figures[part].items()))
    line = json.dumps(figures)
    if not options.quick:
        options.output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
