"""Tests batches on the device: no copy on a CPU, the same values on a GPU."""

import numpy as np
import pytest
import torch

from landmark.data.loading.loader import Batch
from landmark.training.compute.device_prefetch import copy_stream, to_device


def batches(count: int, rows: int = 4, size: int = 8) -> list[Batch]:
    random = np.random.default_rng(0)
    found = []
    for number in range(count):
        samples = np.arange(number * rows, (number + 1) * rows)
        found.append(
            Batch(
                images=random.integers(0, 256, (rows, size, size, 3), dtype=np.uint8),
                labels=random.integers(0, 9, rows),
                samples=samples,
                visits=samples,
                flip=random.random(rows) < 0.5 if number else np.zeros(rows, dtype=bool),
                weight=1.0,
                epoch=1,
            )
        )
    return found


def test_on_a_cpu_nothing_is_copied():
    loaded = batches(3)
    placed = list(to_device(loaded, torch.device("cpu")))
    assert [batch.host for batch in placed] == loaded
    for placed_batch, batch in zip(placed, loaded, strict=True):
        assert placed_batch.images.data_ptr() == batch.images.ctypes.data
        assert placed_batch.labels.data_ptr() == batch.labels.ctypes.data
    assert placed[0].flip is None and placed[1].flip is not None


def test_a_batch_does_not_wait_for_the_next_one():
    loaded = []

    def source():
        for number, batch in enumerate(batches(3)):
            loaded.append(number)
            yield batch

    placed = to_device(source(), torch.device("cpu"))
    next(placed)
    assert loaded == [0]


def test_all_epochs_copy_on_one_stream_per_device(monkeypatch):
    # No GPU is needed: the test counts the created streams.
    created = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: created.append(device) or object())
    copy_stream.cache_clear()
    try:
        devices = [torch.device("cuda", 0), torch.device("cuda", 1)]
        assert len({copy_stream(devices[number % 2]) for number in range(6)}) == 2
        assert created == devices
    finally:
        copy_stream.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_arrive_intact_when_memory_is_reused():
    device = torch.device("cuda")
    loaded = batches(20, rows=64, size=224)
    weight = torch.randn(2048, 2048, device=device)
    for placed_batch, batch in zip(to_device(loaded, device), loaded, strict=True):
        for _ in range(20):
            weight = weight @ weight.softmax(0)  # keeps the GPU busy while the next batch is copied
        assert placed_batch.images.device.type == "cuda"
        total = placed_batch.images.long().sum()
        del placed_batch
        assert int(total) == int(batch.images.astype(np.int64).sum())
