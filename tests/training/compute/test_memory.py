"""Tests that neither the process nor the object store grows over fifty epochs."""

import ctypes
import gc
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from landmark.config import AugmentConfig, CheckpointConfig, LoaderConfig, ModelConfig, TrainConfig
from landmark.data.dataset import PackedDataset
from landmark.data.loading.loader import Loader
from landmark.training.observe.recorder import Recorder
from landmark.training.run import run_training
from tests.support.packed import write_packed

# Ray frees memory with a delay. On a busy machine it can exceed the wait, in about one of ten runs.
pytestmark = pytest.mark.flaky(reruns=1)
ROOT = Path(__file__).parent.parent.parent.parent
EPOCHS = 50
FIRST, LAST = range(11, 14), range(45, 48)
"""Epochs after which memory is measured. After 10 epochs, buffers, caches and pools have their final size. The last
epochs prefetch nothing."""
PIXELS_MIB = 97 * 64 * 64 * 3 / 2**20
"""Size of an epoch's decoded pixels: the minimum that a leak would keep per epoch."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [60, 37], "val": [21]}, size=64)


MALLINFO2 = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()  # noqa: SIM905


class MallInfo(ctypes.Structure):
    """Result of glibc's mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO2]


def memory_mib() -> tuple[float, float, float]:
    """Return the memory in use by C and Arrow, the minimum size of Python's objects, and the resident memory, MiB."""
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallInfo
    info = libc.mallinfo2()
    used = info.uordblks + info.hblkhd + pa.total_allocated_bytes()
    objects = sys.getallocatedblocks() * 16
    return used / 2**20, objects / 2**20, psutil.Process().memory_info().rss / 2**20


def memory_of_a_run(dataset: str, output: str) -> dict[int, tuple[float, float, float]]:
    """Train, and return the process's memory after the first epochs that count and after the last ones."""
    found: dict[int, tuple[float, float, float]] = {}
    add = Recorder.add

    def added(self: Recorder, metrics: dict[str, float]) -> None:
        add(self, metrics)
        if metrics["epoch"] in (*FIRST, *LAST):
            found[int(metrics["epoch"])] = memory_mib()

    Recorder.add = added  # type: ignore[method-assign]
    run_training(
        TrainConfig(
            dataset=dataset,
            output=output,
            epochs=EPOCHS,
            model=ModelConfig(backbone="reference_mlp"),
            loader=LoaderConfig(image_size=64, batch_size=32, decode_threads=2),
            checkpoint=CheckpointConfig(steps=2),
            tensorboard=False,
        )
    )
    return found


def test_memory_does_not_grow_over_fifty_epochs(dataset, tmp_path):
    # In a separate process: memory of earlier tests could be freed at any time.
    command = [sys.executable, "-m", __name__, dataset.location.uri, str(tmp_path)]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = {int(epoch): memory for epoch, memory in json.loads(output.splitlines()[-1]).items()}
    first, last = (np.array([found[epoch] for epoch in epochs]) for epochs in (FIRST, LAST))
    used, objects, resident = last.min(0) - first.max(0)
    kept = PIXELS_MIB * (LAST.start - FIRST.stop)  # the growth if each epoch's pixels were kept
    assert max(used, objects) < 0.1 * kept, found
    # The allocator's free memory grows in steps of 2 MiB, up to 13 MiB on a busy machine.
    assert resident < 0.5 * kept, found
    assert len(list((Path(tmp_path) / "train" / "checkpoints").iterdir())) <= 4


def store_mib() -> float:
    import ray
    from ray._private.internal_api import memory_summary

    text = memory_summary(address=ray.get_runtime_context().gcs_address, stats_only=True)
    return float(re.search(r"Plasma memory usage (\d+) MiB", text).group(1))


def test_the_object_store_holds_only_prefetched_batches(ray_cluster, dataset):
    config = LoaderConfig(image_size=64, batch_size=32, stream="ray", decode_threads=1)
    before = store_mib()
    with Loader(dataset, "train", config, augment=AugmentConfig(), epochs=range(1, EPOCHS + 1)) as loader:
        for epoch in range(1, EPOCHS + 1):
            assert sum(len(batch.visits) for batch in loader.epoch(epoch)) == 97
            if epoch % 10 == 0:
                assert shrinks_to(before + 4), store_mib() - before


def shrinks_to(max_mib: float) -> bool:
    """Return whether the object store shrinks to a size. Ray deletes unreferenced objects once per second."""
    deadline = time.monotonic() + 20
    while store_mib() > max_mib and time.monotonic() < deadline:
        time.sleep(0.2)
    return store_mib() <= max_mib


if __name__ == "__main__":
    print(json.dumps(memory_of_a_run(*sys.argv[1:])))
