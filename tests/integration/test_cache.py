"""The cache with several processes: its limit, killed processes, and no bytes from the bucket in a second epoch."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from landmark.config import AugmentConfig, LoaderConfig
from landmark.data.cache.disk_cache import DiskCache
from landmark.data.dataset import PackedDataset
from landmark.data.loading.loader import Loader
from landmark.storage import locate
from tests.support import cache_users
from tests.support.packed import write_packed
from tests.support.proxy import Proxy
from tests.support.seaweed import ROOT, Seaweed

LIMIT = 2_000_000
"""Bytes, about 13 of 40 tables."""


@contextlib.contextmanager
def users(folder: Path, count: int, seconds: float) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that use a cache with LIMIT."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.cache_users", str(folder), str(LIMIT), str(seed), "40", str(seconds)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(count)
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def used(folder: Path) -> int:
    """Return the bytes of all files of a cache, including those that are being written."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.suffix in (".arrow", ".tmp") else 0
    return total


def test_four_processes_keep_the_limit_and_read_correct_tables(tmp_path):
    with users(tmp_path, 4, 5.0) as processes:
        seen = []
        while any(process.poll() is None for process in processes):
            # Two files may be counted that did not exist at the same time: one that was removed after it was counted,
            # and the one that replaced it. Repeat to find a true excess.
            seen.append(min(used(tmp_path) for _ in range(3)))
        outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert LIMIT * 0.7 < max(seen) <= LIMIT
    assert all(err == "" for _, err in outputs)


def test_killed_processes_leave_a_correct_cache_within_its_limit(tmp_path):
    for number in range(6):
        with users(tmp_path, 2, 60.0) as processes:
            time.sleep(0.3 + 0.11 * number)
            for process in processes:
                os.kill(process.pid, signal.SIGKILL)
    cache = DiskCache(str(tmp_path), LIMIT)
    for _ in range(2):
        for number in range(40):
            table = cache.fetch(f"{number:02d}-key", lambda number=number: cache_users.table(number))
            assert table.equals(cache_users.table(number))
            assert used(tmp_path) <= LIMIT
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_process_that_dies_while_it_loads_an_entry_is_not_waited_for(tmp_path):
    code = (
        "import sys, time\nfrom landmark.data.cache.disk_cache import DiskCache\n"
        "def load():\n    print('loading', flush=True)\n    time.sleep(600)\n"
        "DiskCache(sys.argv[1], 10**7).fetch('00-key', load)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "loading\n"
        process.kill()
    start = time.monotonic()
    cache = DiskCache(str(tmp_path), 10**7)
    assert cache.fetch("00-key", lambda: cache_users.table(0)).equals(cache_users.table(0))
    assert time.monotonic() - start < 5
    assert cache.get("00-key") is not None


@pytest.mark.parametrize("kind", ["jpeg", "yuv420"])
def test_a_second_epoch_and_a_second_run_read_no_byte_from_the_bucket(s3: Seaweed, tmp_path, monkeypatch, kind):
    local = write_packed(tmp_path / "data", {"train": [64, 40], "val": [16]})
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            name = str(path.relative_to(tmp_path / "data"))
            (locate(s3.uri(f"cache-{kind}")) / name).write_bytes(path.read_bytes())
    config = LoaderConfig(
        image_size=16, batch_size=8, stream="thread", cache=str(tmp_path / "cache"), cache_gib=0.1, cache_format=kind
    )
    with Proxy(s3.ports[3]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        epochs = []
        for seed in (0, 1):
            dataset = PackedDataset.open(s3.uri(f"cache-{kind}"))
            with Loader(dataset, "train", config, augment=AugmentConfig(), seed=seed, epochs=range(1, 3)) as loader:
                before = proxy.bytes_down
                epochs.append([list(loader.epoch(number)) for number in (1, 2)])
                if seed == 0:
                    assert proxy.bytes_down - before > sum(shard.bytes for shard in dataset.split("train").shards) * 0.8
                    continue
                assert proxy.bytes_down == before
    plain = dataclasses.replace(config, cache=None, cache_gib=None, cache_format="jpeg")
    with Loader(local, "train", plain, augment=AugmentConfig(), seed=1, epochs=range(1, 3)) as loader:
        for number, batches in zip((1, 2), epochs[1], strict=True):
            for batch, other in zip(batches, loader.epoch(number), strict=True):
                assert np.array_equal(batch.samples, other.samples)
                assert kind == "yuv420" or np.array_equal(batch.images, other.images)
