"""The bottleneck of training: real slow storage, slow decoding and slow training are named as such."""

import dataclasses
import functools
import time
from collections.abc import Iterator

import pyarrow as pa
import pytest

from landmark.config import AugmentConfig, LoaderConfig
from landmark.data.dataset import PackedDataset
from landmark.data.loading.bottleneck import DATA_WAIT, STAGES, StageClock, StageSeconds, bottleneck, stage_metric
from landmark.data.loading.loader import Loader
from landmark.data.loading.plan import ReadTask
from landmark.data.loading.reader import RowGroupReader
from landmark.storage import locate
from tests.support.packed import write_packed
from tests.support.proxy import Proxy

CONFIG = LoaderConfig(image_size=16, batch_size=8, decode_threads=1, prefetch_batches=2)
DECODERS = {"decode": "data", "decoders": 1, "data_cpus": 0.5, "reader_cpus": 0.25}


class SlowReader(RowGroupReader):
    """A reader of a slow disk."""

    def read_all(self, read_tasks: list[ReadTask]) -> list[pa.Table]:
        time.sleep(0.05 * len(read_tasks))
        return super().read_all(read_tasks)


def waits(loader: Loader, step_s: float = 0.0) -> tuple[StageSeconds, StageSeconds]:
    """Consume three epochs with a pause per batch. Returns how long the loader waited for each stage: in the first epoch,
    in which processes start, and in the others."""
    found = []
    with loader:
        for epoch in (1, 2, 3):
            for _ in loader.epoch(epoch):
                time.sleep(step_s)
            found.append(loader.stage_seconds())
    return found[0], found[2].since(found[0])


def loader_of(dataset: PackedDataset, **options) -> Loader:
    config = dataclasses.replace(CONFIG, **options)
    return Loader(dataset, "train", config, augment=AugmentConfig(), epochs=range(1, 4))


@pytest.fixture
def heavy(tmp_path) -> PackedDataset:
    """A dataset of images that take long to decode, on the disk."""
    return write_packed(tmp_path, {"train": [64]}, row_group_rows=8, size=1200)


def test_a_distant_bucket_is_storage(s3, tmp_path, monkeypatch):
    write_packed(tmp_path, {"train": [64]}, row_group_rows=8)
    uri = s3.uri(f"bottleneck/{tmp_path.name}")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            (locate(uri) / str(path.relative_to(tmp_path))).upload(path)
    with Proxy(s3.ports[3]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        loader = loader_of(PackedDataset.open(uri), stream="thread")
        proxy.delay_s = 0.5
        found, _ = waits(loader)
    assert found.storage > 2 * (found.decoding + found.transfer), found


def test_a_slow_reader_of_ray_data_is_storage(ray_cluster, tmp_path):
    dataset = write_packed(tmp_path, {"train": [256]}, row_group_rows=8)
    loader = loader_of(dataset, stream="ray")
    loader._make_reader = functools.partial(SlowReader, dataset.location, dataset.split("train").shards)
    _, found = waits(loader)
    assert found.storage > 2 * (found.decoding + found.transfer), found


@pytest.mark.parametrize("options", [{"stream": "thread"}, {"stream": "ray"}, {"stream": "ray", **DECODERS}])
def test_large_images_are_decoding(ray_cluster, heavy, options):
    _, found = waits(loader_of(heavy, **options))
    assert found.decoding > 2 * found.storage, found
    assert found.decoding > found.transfer, found


def test_a_loader_that_is_faster_than_training_hardly_waits(tmp_path):
    dataset = write_packed(tmp_path, {"train": [160]}, row_group_rows=8)
    _, found = waits(loader_of(dataset, stream="thread"), step_s=0.05)
    assert sum(found.values()) < 0.75 * 40 * 0.05, found


def test_the_parts_of_the_wait_add_up():
    own = StageSeconds(storage=6.0, decoding=2.0)
    assert own.within(4.0) == StageSeconds(storage=3.0, decoding=1.0)
    assert own.within(9.0) == StageSeconds(storage=6.0, decoding=2.0, transfer=1.0)
    assert StageSeconds().within(0.0) == StageSeconds()
    assert StageSeconds(storage=1.0, transfer=1.0).since(StageSeconds(transfer=2.0)) == StageSeconds(storage=1.0)


def test_time_for_rows_is_not_time_for_decoding():
    clock = StageClock()

    def slow(count: int, seconds: float) -> Iterator[int]:
        for number in range(count):
            time.sleep(seconds)
            yield number

    def decoded(rows: Iterator[int]) -> Iterator[int]:
        for row in rows:
            time.sleep(0.01)
            yield row

    assert list(clock.decoding(decoded(clock.reading(slow(5, 0.04))))) == [0, 1, 2, 3, 4]
    assert clock.reading_s >= 0.2 and 0.05 <= clock.decoding_s < clock.reading_s


def test_the_bottleneck_is_the_largest_part_unless_training_hardly_waits():
    parts = dict(zip(map(stage_metric, STAGES), (0.1, 0.3, 0.05), strict=True))
    assert bottleneck({DATA_WAIT: 0.45, **parts}) == "decoding"
    assert bottleneck({DATA_WAIT: "0.45", **{name: str(value) for name, value in parts.items()}}) == "decoding"
    assert bottleneck({DATA_WAIT: 0.0, **dict.fromkeys(parts, 0.0)}) == "compute"
    assert bottleneck({DATA_WAIT: 0.45}) is None
    assert bottleneck({DATA_WAIT: "", **parts}) is None
