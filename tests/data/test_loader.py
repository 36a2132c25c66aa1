"""The loader: exact passes, the same pixels for any number of ranks, no thread left behind."""

import threading
from pathlib import Path

import numpy as np
import pytest

from landmark.config import AugmentConfig, LoaderConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.loader import Batch, Loader
from tests.packed import write_packed

CONFIG = LoaderConfig(image_size=16, batch_size=10, stream="thread", decode_threads=2, shuffle_row_groups=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [37, 20, 9], "val": [13]})


def passes(dataset: PackedDataset, split: str = "train", epochs: int = 1, **options) -> list[list[Batch]]:
    span = range(1, epochs + 1)
    with Loader(dataset, split, CONFIG, epochs=span, **options) as loader:
        return [list(loader.epoch(epoch)) for epoch in span]


def by_sample(batches: list[Batch]) -> dict[int, tuple]:
    return {
        int(sample): (image.tobytes(), int(label), bool(flip))
        for batch in batches
        for sample, image, label, flip in zip(batch.samples, batch.images, batch.labels, batch.flip, strict=True)
    }


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_sample_once_with_the_same_pixels_for_any_number_of_ranks(dataset, world):
    alone = by_sample(passes(dataset, augment=AugmentConfig(), seed=4)[0])
    ranks = [passes(dataset, augment=AugmentConfig(), seed=4, rank=rank, world_size=world)[0] for rank in range(world)]
    assert sum(len(batch.samples) for batches in ranks for batch in batches) == 66
    assert {k: v for batches in ranks for k, v in by_sample(batches).items()} == alone
    assert len({len(batches) for batches in ranks}) == 1
    for step in zip(*ranks, strict=True):
        assert sum(batch.share for batch in step) == pytest.approx(world)


def test_labels_belong_to_their_samples(dataset):
    for batch in passes(dataset, augment=AugmentConfig())[0]:
        assert np.array_equal(batch.labels, batch.samples % 4)


def test_epochs_are_shuffled_each_its_own_way_and_repeat_exactly(dataset):
    first, second = passes(dataset, epochs=2, augment=AugmentConfig())
    order = [int(s) for batch in first for s in batch.samples]
    assert order != [int(s) for batch in second for s in batch.samples]
    assert sorted(order) == list(range(66))
    again = passes(dataset, epochs=2, augment=AugmentConfig())
    for one, other in zip([*first, *second], [*again[0], *again[1]], strict=True):
        assert np.array_equal(one.samples, other.samples)
        assert np.array_equal(one.images, other.images)


def test_validation_is_in_order_and_has_no_dropped_tail(dataset):
    batches = passes(dataset, "val")[0]
    assert [int(s) for batch in batches for s in batch.samples] == list(range(13))
    assert not any(batch.flip.any() for batch in batches)


def test_closing_in_the_middle_of_an_epoch_ends_the_threads(dataset):
    before = threading.active_count()
    loader = Loader(dataset, "train", CONFIG, augment=AugmentConfig(), epochs=range(1, 100))
    next(iter(loader.epoch(1)))
    loader.close()
    assert threading.active_count() == before


def test_a_damaged_shard_is_named(tmp_path: Path):
    broken = write_packed(tmp_path, {"train": [20]})
    path = tmp_path / "train" / "00000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"train/00000\.parquet"):
        passes(broken, augment=AugmentConfig())
