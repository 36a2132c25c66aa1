"""Input methods, each run by benchmarks/ingest.py in its own process. Prints its figures as JSON.

Run: python benchmarks/ingest_ways.py METHOD URI SECONDS. The time to the first batch starts with the process. images/s
is measured from the first batch, over as many epochs as fit into the seconds.
"""

import itertools
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

SIZE, BATCH, SEED = 224, 64, 0
SERVERS = "INGEST_SERVER_PIDS"
"""Environment variable: process ids of the S3 server and the proxy, separated by blanks."""
EPOCHS = range(1, 100_000)
PEERS = ("torchvision_loader", "webdataset_loader", "streaming_loader", "spdl_loader", "textbook_ray_data")
"""Functions of benchmarks/ingest_peers.py."""


def measure(batches: Generator[int, None, None], seconds: float, ready: float | None = None) -> dict[str, float]:
    """Consume batches for a time. Returns images/s after the first, and seconds to it from process start or `ready`.

    If processes of an S3 server are in the environment, also returns the CPUs that they used.
    """
    process_start = psutil.Process().create_time() if ready is None else ready
    next(batches)
    servers = [psutil.Process(int(pid)) for pid in os.environ.get(SERVERS, "").split()]
    used = sum(sum(server.cpu_times()[:2]) for server in servers)
    first, start, images = time.time(), time.perf_counter(), 0
    for count in batches:
        images += count
        if time.perf_counter() - start > seconds:
            break
    elapsed = time.perf_counter() - start
    batches.close()
    figures = {"rate": images / elapsed, "first_s": first - process_start}
    if servers:
        figures["server_cpus"] = (sum(sum(server.cpu_times()[:2]) for server in servers) - used) / elapsed
    return figures


def loader_batches(uri: str, **options: Any) -> Generator[int, None, None]:
    """The loader of landmark, without training."""
    from landmark.config import AugmentConfig, LoaderConfig
    from landmark.data.dataset import PackedDataset
    from landmark.data.loading.loader import Loader

    config = LoaderConfig(image_size=SIZE, batch_size=BATCH, **options)
    with Loader(PackedDataset.open(uri), "train", config, augment=AugmentConfig(), seed=SEED, epochs=EPOCHS) as loader:
        for epoch in EPOCHS:
            yield from (len(batch.images) for batch in loader.epoch(epoch))


def thread(uri: str, seconds: float) -> dict[str, float]:
    """landmark, read by a thread, as with one worker."""
    return measure(loader_batches(uri, stream="thread"), seconds)


def ray_data(uri: str, seconds: float) -> dict[str, float]:
    """landmark, read by a Ray Data stream, as with several workers.

    The first batch is timed from when Ray runs, as in a job.
    """
    with Store() as store:
        figures = measure(loader_batches(uri, stream="ray"), seconds, time.time())
    return figures | store.figures


def ray_actors(uri: str, seconds: float) -> dict[str, float]:
    """The same loader, read by an actor that it calls directly."""
    from actor_pool import read_by_actors

    from landmark.data.loading import loader

    loader.read_by_thread = read_by_actors
    with Store() as store:
        figures = measure(loader_batches(uri, stream="thread"), seconds, time.time())
    return figures | store.figures


def ray_decoders(uri: str, seconds: float) -> dict[str, float]:
    """landmark, read and decoded by a Ray Data stream."""
    from landmark.cpus import available_cpus

    options = {"stream": "ray", "decode": "data", "decoders": available_cpus(), "data_cpus": 0.75, "reader_cpus": 0.25}
    with Store() as store:
        figures = measure(loader_batches(uri, **options), seconds, time.time())
    return figures | store.figures


def _plan(uri: str, epoch: int) -> tuple[Any, list[Any]]:
    from landmark.data.dataset import PackedDataset
    from landmark.data.loading.plan import RowGroups, plan_training_epoch
    from landmark.data.loading.reader import RowGroupReader

    dataset = PackedDataset.open(uri)
    plan = plan_training_epoch(
        RowGroups.of(dataset, "train"), rank=0, world_size=1, batch_size=BATCH, seed=SEED, epoch=epoch
    )
    return RowGroupReader(dataset.location, dataset.split("train").shards), plan.read_tasks


def limit_threads(uri: str, seconds: float) -> dict[str, float]:
    """The upper bound: the same decoding of the same images in memory, only with threads."""
    from landmark.cpus import available_cpus

    batches = _in_memory(uri)
    threads = available_cpus()
    deadline = time.perf_counter() + seconds
    with ThreadPoolExecutor(threads) as pool:
        throughput = list(pool.map(_decode_until, [batches[i::threads] for i in range(threads)], [deadline] * threads))
    return {"rate": sum(throughput)}


def limit_processes(uri: str, seconds: float) -> dict[str, float]:
    """The upper bound with processes."""
    from landmark.cpus import available_cpus

    batches = _in_memory(uri)
    processes = available_cpus()
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        deadline = time.perf_counter() + seconds
        parts = [(batches[i::processes], deadline) for i in range(processes)]
        return {"rate": sum(pool.starmap(_decode_until, parts, chunksize=1))}


def _in_memory(uri: str) -> list[Any]:
    reader, read_tasks = _plan(uri, 1)
    tables = [reader.read(task) for task in read_tasks]
    return [table.slice(start, BATCH) for table in tables for start in range(0, len(table), BATCH)]


def _decode_until(batches: list[Any], deadline: float) -> float:
    """Decode batches repeatedly until a time. Returns images/s."""
    from landmark.config import AugmentConfig
    from landmark.data.loading.decoders import TableDecoder

    decoder = TableDecoder(AugmentConfig(), SEED)
    start, images = time.perf_counter(), 0
    for number, table in enumerate(itertools.cycle(batches)):
        decoder.decode(table, 1 + number // len(batches), SIZE)
        images += len(table)
        if time.perf_counter() > deadline:
            break
    return images / (time.perf_counter() - start)


def dataloader(uri: str, seconds: float) -> dict[str, float]:
    """The baseline: torch's DataLoader and Pillow over an image folder, pixels as floats."""
    return measure(_dataloader_batches(uri), seconds)


def _dataloader_batches(folder: str) -> Generator[int, None, None]:
    import torch
    from torchvision import datasets, transforms

    from landmark.cpus import available_cpus

    steps = [
        transforms.RandomResizedCrop(SIZE, scale=(0.35, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(folder, transforms.Compose(steps)),
        batch_size=BATCH,
        shuffle=True,
        num_workers=available_cpus(),
        persistent_workers=True,
    )
    for _ in EPOCHS:
        yield from (len(images) for images, _ in loader)


class Store:
    """A local Ray instance; measures its object store's peak usage and spilled bytes."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self._ended = threading.Event()
        self._peak = 0.0

    def __enter__(self) -> "Store":
        import ray

        from landmark.config import ClusterConfig
        from landmark.runtime import connect

        connect(ClusterConfig(cpus=4))
        self._address = ray.get_runtime_context().gcs_address
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self._peak = max(self._peak, self._stats().object_store_bytes_used / 2**20)

    def _stats(self) -> Any:
        from ray._private.internal_api import get_memory_info_reply, get_state_from_address

        return get_memory_info_reply(get_state_from_address(self._address)).store_stats

    def __exit__(self, *error: object) -> None:
        import ray

        self._ended.set()
        self._thread.join()
        spilled = float(self._stats().spilled_bytes_total)
        self.figures = {"peak_store_mib": self._peak, "spilled_bytes": spilled}
        ray.shutdown()


def peer(name: str) -> Callable[[str, float], dict[str, float]]:
    """A pipeline of another library (benchmarks/ingest_peers.py)."""

    def run(uri: str, seconds: float) -> dict[str, float]:
        import ingest_peers

        if name == "textbook_ray_data":
            with Store() as store:
                figures = measure(ingest_peers.textbook_ray_data(uri), seconds, time.time())
            return figures | store.figures
        return measure(getattr(ingest_peers, name)(uri), seconds)

    return run


METHODS = {
    method.__name__: method
    for method in (thread, ray_data, ray_actors, ray_decoders, limit_threads, limit_processes, dataloader)
} | {name: peer(name) for name in PEERS}

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent.parent))
    print(json.dumps(METHODS[sys.argv[1]](sys.argv[2], float(sys.argv[3]))))
