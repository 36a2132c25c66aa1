"""The loader: complete epochs, the same pixels for any number of ranks, and no threads left running."""

import contextlib
import dataclasses
import os
import re
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from landmark.config import AugmentConfig, LoaderConfig, SamplingConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.loading.loader import Batch, Loader
from landmark.data.loading.progress import EpochProgress
from landmark.storage.tables import read_table, write_table
from tests.support.packed import picture, write_packed

CONFIG = LoaderConfig(image_size=16, batch_size=10, stream="thread", decode_threads=2, shuffle_row_groups=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [37, 20, 9], "val": [13]})


def passes(dataset: PackedDataset, split: str = "train", epochs: int = 1, **options) -> list[list[Batch]]:
    span = range(1, epochs + 1)
    with Loader(dataset, split, CONFIG, epochs=span, **options) as loader:
        return [list(loader.epoch(epoch)) for epoch in span]


def by_sample(batches: list[Batch]) -> dict[int, tuple]:
    """Return the counted rows by sample. An image that only fills a batch has a negative visit and is not counted."""
    columns = ("samples", "visits", "images", "labels", "flip")
    return {
        int(sample): (image.tobytes(), int(label), bool(flip))
        for batch in batches
        for sample, visit, image, label, flip in zip(*(getattr(batch, name) for name in columns), strict=True)
        if visit >= 0
    }


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_each_sample_occurs_once_with_the_same_pixels_for_any_rank_count(dataset, world):
    single_rank = by_sample(passes(dataset, augment=AugmentConfig(), seed=4)[0])
    ranks = [passes(dataset, augment=AugmentConfig(), seed=4, rank=rank, world_size=world)[0] for rank in range(world)]
    assert sum(len(batch.samples) for batches in ranks for batch in batches) == 66
    assert {k: v for batches in ranks for k, v in by_sample(batches).items()} == single_rank
    assert len({len(batches) for batches in ranks}) == 1
    for step in zip(*ranks, strict=True):
        assert sum(batch.weight for batch in step) == pytest.approx(world)


def test_labels_belong_to_their_samples(dataset):
    for batch in passes(dataset, augment=AugmentConfig())[0]:
        assert np.array_equal(batch.labels, batch.samples % 4)


def test_epochs_are_shuffled_differently_and_are_reproducible(dataset):
    first, second = passes(dataset, epochs=2, augment=AugmentConfig())
    order = [int(s) for batch in first for s in batch.samples]
    assert order != [int(s) for batch in second for s in batch.samples]
    assert sorted(order) == list(range(66))
    repeated = passes(dataset, epochs=2, augment=AugmentConfig())
    for one, other in zip([*first, *second], [*repeated[0], *repeated[1]], strict=True):
        assert np.array_equal(one.samples, other.samples)
        assert np.array_equal(one.images, other.images)


def flattened(batches: list[Batch]) -> list[tuple]:
    return [(batch.visits.tolist(), batch.images.tobytes(), batch.labels.tolist(), batch.weight) for batch in batches]


@pytest.mark.parametrize(("world", "done"), [(1, 3), (2, 0), (2, 5), (3, 7)])
def test_a_resumed_epoch_has_the_same_batches_and_pixels(dataset, world, done):
    for rank in range(world):
        options = {"augment": AugmentConfig(), "rank": rank, "world_size": world}
        complete = passes(dataset, epochs=2, **options)
        position = EpochProgress(epoch=1, partitioning=(world,), length=66, step=done)
        resumed = passes(dataset, epochs=2, position=position, **options)
        assert flattened(resumed[0]) == flattened(complete[0][done:])
        assert flattened(resumed[1]) == flattened(complete[1])


def test_another_number_of_workers_yields_the_remaining_images(dataset):
    single_rank = by_sample(passes(dataset, augment=AugmentConfig())[0])
    before = np.zeros(66, dtype=bool)
    before[:64] = True
    loaded, steps = {}, set()
    for rank in range(3):
        position = EpochProgress(epoch=1, partitioning=(3,), length=66, before=before, consumed=before)
        batches = passes(dataset, augment=AugmentConfig(), rank=rank, world_size=3, position=position)[0]
        steps.add(len(batches))
        # A rank without remaining rows stays in step with rows that are not counted.
        assert all(len(batch.visits) == 2 for batch in batches)
        assert all((batch.visits < 0).all() == (batch.weight == 0) for batch in batches)
        loaded |= by_sample([batch for batch in batches if batch.weight])
    assert steps == {1}
    assert loaded == {sample: single_rank[sample] for sample in (64, 65)}


@pytest.mark.parametrize("name", ["sqrt", "balanced"])
def test_repeated_images_differ_in_pixels_and_add_up_to_an_epoch(tmp_path, name):
    dataset = write_packed(tmp_path, {"train": [40]}, classes=4)
    sampling = SamplingConfig(name=name)
    catalog = dataset.location / "catalog.parquet"
    table = read_table(catalog)
    # A long tail: three images of class 0, the others of class 1.
    labels = pa.array([0] * 3 + [1] * 37, pa.int32())
    write_table(catalog, table.set_column(table.schema.get_field_index("label"), "label", labels))
    batches = passes(dataset, augment=AugmentConfig(), sampling=sampling)[0]
    visits = np.concatenate([batch.visits for batch in batches])
    samples = np.concatenate([batch.samples for batch in batches])
    assert sorted(visits.tolist()) == list(range(40))
    rare = int((samples < 3).sum())
    assert abs(rare - (20 if name == "balanced" else 8.9)) < 3
    images = {
        image.tobytes() for batch in batches for image, s in zip(batch.images, batch.samples, strict=True) if s < 3
    }
    assert len(images) == rare


def test_image_and_batch_sizes_follow_the_epoch(dataset):
    found = passes(dataset, epochs=2, augment=AugmentConfig(), shape=lambda epoch: (16 * epoch, 33 // epoch))
    assert [len(batches) for batches in found] == [2, 5]
    assert [batches[0].images.shape[1] for batches in found] == [16, 32]


def test_validation_is_in_order_and_drops_no_last_batch(dataset):
    batches = passes(dataset, "val")[0]
    assert [int(s) for batch in batches for s in batch.samples] == list(range(13))
    assert not any(batch.flip.any() for batch in batches)


def test_closing_during_an_epoch_ends_the_threads(dataset):
    before = threading.active_count()
    loader = Loader(dataset, "train", CONFIG, augment=AugmentConfig(), epochs=range(1, 100))
    next(iter(loader.epoch(1)))
    loader.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("stream", ["thread", "ray"])
def test_closing_does_not_wait_for_a_hung_read(tmp_path, stream, request):
    """A pipe without a writer: opening it hangs, like storage that does not respond."""
    before = set()
    if stream == "ray":
        request.getfixturevalue("ray_cluster")
        before = actor_pids()
    dataset = write_packed(tmp_path, {"train": [80, 8]})
    shards = [tmp_path / "train" / f"{number:05d}.parquet" for number in (0, 1)]
    for shard in shards:
        shard.unlink()
        os.mkfifo(shard)
    loader = Loader(dataset, "train", dataclasses.replace(CONFIG, stream=stream, readers=2), augment=AugmentConfig())
    consumer = threading.Thread(target=lambda: list(loader.epoch(1)), daemon=True)
    consumer.start()
    while not (actor_pids() - before if stream == "ray" else reader_threads()):
        time.sleep(0.05)
    closer = threading.Thread(target=loader.close, daemon=True)
    closer.start()
    closer.join(60)
    assert not closer.is_alive()
    if stream == "ray":
        for pid in actor_pids() - before:
            psutil.wait_procs([psutil.Process(pid)], timeout=60)
        assert not actor_pids() - before
    while reader_threads():  # release the threads
        for shard in shards:
            with contextlib.suppress(OSError):
                os.close(os.open(shard, os.O_WRONLY | os.O_NONBLOCK))
        time.sleep(0.05)


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("landmark-read")]


def actor_pids() -> set[int]:
    """Return the process IDs of the reader actors that run on this machine."""
    return {
        process.pid for process in psutil.process_iter(["cmdline"]) if "(PartReader)" in str(process.info["cmdline"])
    }


def flip_a_byte(path: Path, content: bytes) -> None:
    """Change one byte in the middle of the part of a file that equals `content`."""
    data = bytearray(path.read_bytes())
    data[data.index(content) + len(content) // 2] ^= 0x10
    path.write_bytes(data)


def damage(dataset: PackedDataset, fault: str, shard: str = "train/00001.parquet") -> None:
    path = Path(dataset.location.uri) / shard
    if fault == "deleted":
        path.unlink()
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif fault == "flipped byte":
        first = int(shard.startswith("train")) * 40
        flip_a_byte(path, picture(first % 4, first, 32))


FAULTS = {"deleted": (24, "missing"), "truncated": (24, "corrupt"), "flipped byte": (8, "corrupt .*checksum")}


@pytest.fixture(params=FAULTS)
def corrupt(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PackedDataset, int, str]:
    """A dataset of 72 training images whose second shard is damaged, the number of lost images, and the message."""
    dataset = write_packed(tmp_path, {"train": [40, 24, 8], "val": [13]})
    damage(dataset, request.param)
    return dataset, *FAULTS[request.param]


@pytest.mark.parametrize("stream", ["thread", "ray"])
def test_a_damaged_shard_stops_training_and_is_named(corrupt, stream, request):
    if stream == "ray":
        request.getfixturevalue("ray_cluster")
    dataset, _, message = corrupt
    config = dataclasses.replace(CONFIG, stream=stream)
    with (
        Loader(dataset, "train", config, augment=AugmentConfig()) as loader,
        pytest.raises(UserError, match=rf"train/00001\.parquet: {message}.*corrupt: skip") as error,
    ):
        list(loader.epoch(1))
    assert "\n" not in str(error.value)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("landmark-")]


@pytest.mark.parametrize(("stream", "world"), [("thread", 1), ("thread", 3), ("ray", 1)])
def test_a_skipped_shard_keeps_the_steps_and_lost_images_are_counted(corrupt, world, stream, request):
    if stream == "ray":
        request.getfixturevalue("ray_cluster")
    dataset, lost, message = corrupt
    config = dataclasses.replace(CONFIG, stream=stream, corrupt="skip")
    steps, loaded, counted, messages = set(), [], [0, 0], []
    for rank in range(world):
        options = {"augment": AugmentConfig(), "rank": rank, "world_size": world, "epochs": range(1, 3)}
        with Loader(dataset, "train", config, tell=messages.append, **options) as loader:
            for epoch in (1, 2):
                batches = list(loader.epoch(epoch))
                steps.add(len(batches))
                assert [len(batch.labels) for batch in batches] == loader.plan(epoch).batch_rows.tolist()
                loaded += [int(s) for batch in batches for s in batch.samples] if epoch == 1 else []
                counted[epoch - 1] += loader.lost[epoch]
                assert all(np.array_equal(batch.labels, batch.samples % 4) for batch in batches)
    assert counted == [lost, lost]
    assert len(steps) == 1
    assert len(loaded) == 72 and set(loaded) == set(range(72)) - set(range(40, 40 + lost))
    assert 1 <= len(messages) <= world
    assert all(re.search(rf"train/00001\.parquet: {message}.*counted as lost_images", line) for line in messages)


@pytest.mark.parametrize("world", [1, 2])
def test_evaluation_omits_lost_rows_and_repeats_none(tmp_path, world):
    dataset = write_packed(tmp_path, {"train": [8], "val": [24, 16]})
    damage(dataset, "flipped byte", "val/00000.parquet")
    config = dataclasses.replace(CONFIG, corrupt="skip")
    loaded, lost = [], 0
    for rank in range(world):
        with Loader(dataset, "val", config, rank=rank, world_size=world) as loader:
            loaded += [int(s) for batch in loader.epoch(1) for s in batch.samples]
            lost += loader.lost[1]
    assert loaded == list(range(8, 40)) and lost == 8


def test_a_dataset_without_readable_images_is_an_error(tmp_path):
    dataset = write_packed(tmp_path, {"train": [16]})
    damage(dataset, "deleted", "train/00000.parquet")
    config = dataclasses.replace(CONFIG, corrupt="skip")
    with (
        Loader(dataset, "train", config, augment=AugmentConfig()) as loader,
        pytest.raises(UserError, match=r"train/00000\.parquet: missing; no other image"),
    ):
        list(loader.epoch(1))


def break_images(dataset: PackedDataset, shard: str, rows: list[int]) -> None:
    """Write invalid JPEG bytes into rows of a shard whose pages are intact."""
    path = Path(dataset.location.uri) / shard
    table = pq.read_table(path)
    images = [image if row not in rows else image[:300] for row, image in enumerate(table["image"].to_pylist())]
    table = table.set_column(table.schema.get_field_index("image"), table.schema.field("image"), [images])
    pq.write_table(table, path, row_group_size=8, compression="none", use_dictionary=False, write_page_checksum=True)


MODES = {
    "thread": CONFIG,
    "ray": dataclasses.replace(CONFIG, stream="ray"),
    "data": dataclasses.replace(CONFIG, stream="ray", decode="data", data_cpus=0.5),
}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> LoaderConfig:
    """A config for each mode of reading and decoding."""
    if request.param != "thread":
        request.getfixturevalue("ray_cluster")
    return MODES[request.param]


def test_all_modes_yield_the_same_batches_in_the_same_order(dataset, mode):
    augment = AugmentConfig(randaugment_ops=1)
    expected = [batch for batches in passes(dataset, epochs=3, augment=augment) for batch in batches]
    with Loader(dataset, "train", mode, augment=augment, epochs=range(1, 4)) as loader:
        found = [batch for epoch in (1, 2, 3) for batch in loader.epoch(epoch)]
    for one, other in zip(expected, found, strict=True):
        assert one.epoch == other.epoch and one.weight == other.weight
        for name in ("samples", "visits", "labels", "flip", "images"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_an_undecodable_image_stops_training_and_is_named(tmp_path, mode):
    dataset = write_packed(tmp_path, {"train": [40, 24]})
    break_images(dataset, "train/00001.parquet", [3])
    with (
        Loader(dataset, "train", mode, augment=AugmentConfig()) as loader,
        pytest.raises(UserError, match=r"/train: sample 43 cannot be decoded \(.+\); prepare .*corrupt: skip") as error,
    ):
        list(loader.epoch(1))
    assert "\n" not in str(error.value)


def test_an_undecodable_image_is_replaced_in_training_and_skipped_in_eval(tmp_path, mode):
    dataset = write_packed(tmp_path, {"train": [40, 24], "val": [10, 15]})
    break_images(dataset, "train/00001.parquet", [3, 20])
    break_images(dataset, "val/00000.parquet", list(range(10)))
    config = dataclasses.replace(mode, corrupt="skip")
    messages: list[str] = []
    with Loader(dataset, "train", config, augment=AugmentConfig(), epochs=range(1, 3), tell=messages.append) as loader:
        for epoch in (1, 2):
            batches = list(loader.epoch(epoch))
            assert [len(batch.labels) for batch in batches] == loader.plan(epoch).batch_rows.tolist()
            loaded = [int(sample) for batch in batches for sample in batch.samples]
            assert len(loaded) == 64 and set(loaded) == set(range(64)) - {43, 60}
            assert loader.lost[epoch] == 2
            assert sorted(int(visit) for batch in batches for visit in batch.visits) == list(range(64))
            for batch in batches:
                assert np.array_equal(batch.labels, batch.samples % 4)
                lost = np.isin(batch.visits, [43, 60])
                assert batch.lost == lost.sum() and np.array_equal(batch.visits[~lost], batch.samples[~lost])
                assert batch.images.any(axis=(1, 2, 3)).all()
    assert len(messages) == 1 and re.search(
        r"/train: sample (43|60) cannot be decoded .*counted as lost_images", messages[0]
    )
    with Loader(dataset, "val", config) as loader:
        assert [int(sample) for batch in loader.epoch(1) for sample in batch.samples] == list(range(10, 25))
        assert loader.lost[1] == 10


def test_a_training_batch_without_decodable_images_is_an_error(tmp_path):
    dataset = write_packed(tmp_path, {"train": [8]})
    break_images(dataset, "train/00000.parquet", list(range(8)))
    with (
        Loader(dataset, "train", dataclasses.replace(CONFIG, corrupt="skip"), augment=AugmentConfig()) as loader,
        pytest.raises(
            UserError, match=r"sample \d cannot be decoded .*none of the images tried as a replacement can be decoded"
        ),
    ):
        list(loader.epoch(1))


def test_memory_does_not_grow_with_epochs(dataset):
    process = psutil.Process()
    config = dataclasses.replace(CONFIG, image_size=128)
    with Loader(dataset, "train", config, augment=AugmentConfig(), epochs=range(1, 121)) as loader:
        sizes = []
        for epoch in range(1, 121):
            for _ in loader.epoch(epoch):
                pass
            sizes.append(process.memory_info().rss)
    assert max(sizes[60:]) < max(sizes[20:60]) + (8 << 20)
