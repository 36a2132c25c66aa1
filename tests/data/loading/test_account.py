"""Epoch accounting: each image is used or counted as lost exactly once, despite damage, restarts and rescaling."""

import contextlib
import dataclasses
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmark.config import AugmentConfig, LoaderConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.loading.loader import Batch, Loader
from landmark.data.loading.progress import EpochProgress
from tests.data.loading.test_loader import break_images, damage
from tests.support.packed import write_packed

SHARDS = [24, 16, 9]
TOTAL = sum(SHARDS)
CONFIG = LoaderConfig(image_size=16, batch_size=6, stream="thread", decode_threads=2, corrupt="skip")


class Ranks:
    """The ranks of consecutive attempts. Each rank has its own position and loader, as in a run."""

    def __init__(self, dataset: PackedDataset, config: LoaderConfig = CONFIG) -> None:
        self.dataset = dataset
        self.config = config
        self.position = EpochProgress(epoch=1, partitioning=(1,), length=TOTAL)

    def attempt(self, world: int, steps: int | None, epochs: int = 1) -> list[Batch]:
        """Train each rank for `steps` steps or to the end of the epochs, gather and save. Return the batches."""
        start = EpochProgress.of(self.position.state()).repartitioned((world,))
        positions = [EpochProgress.of(start.state()) for _ in range(world)]
        span = range(start.epoch, start.epoch + epochs)
        batches = []
        with contextlib.ExitStack() as stack:
            loaders = [
                stack.enter_context(
                    Loader(
                        self.dataset,
                        "train",
                        self.config,
                        rank=rank,
                        world_size=world,
                        augment=AugmentConfig(),
                        epochs=span,
                        position=start,
                    )
                )
                for rank in range(world)
            ]
            for epoch in span:
                if epoch != start.epoch:
                    positions = [EpochProgress(epoch=epoch, partitioning=(world,), length=TOTAL) for _ in range(world)]
                for loader, position in zip(loaders, positions, strict=True):
                    for batch in itertools.islice(loader.epoch(epoch), steps):
                        position.advance(batch.visits)
                        batches.append(batch)
        counts = np.sum([position.local for position in positions], axis=0, dtype=np.uint8)
        for position in positions:
            position.gather(lambda local: counts)
        self.position = positions[0]
        return batches


def accounted(batches: list[Batch], epoch: int = 1) -> tuple[list[int], list[int]]:
    """Return the images of an epoch that were used, and those that were replaced by other images."""
    visits = np.concatenate([batch.visits for batch in batches if batch.epoch == epoch])
    samples = np.concatenate([batch.samples for batch in batches if batch.epoch == epoch])
    counted = visits >= 0
    return visits[counted & (visits == samples)].tolist(), visits[counted & (visits != samples)].tolist()


damages = st.fixed_dictionaries(
    {
        "deleted": st.sets(st.sampled_from([1, 2])),
        "flipped": st.booleans(),
        "undecodable": st.sets(st.integers(1, SHARDS[0] - 1), max_size=SHARDS[0] - 1),
    }
)
attempts = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), max_size=4)


def damage_dataset(dataset: PackedDataset, faults: dict) -> set[int]:
    """Damage shards and images and return the lost samples. The first image stays intact."""
    lost = set(faults["undecodable"])
    if lost:
        break_images(dataset, "train/00000.parquet", sorted(lost))
    for shard in faults["deleted"]:
        damage(dataset, "deleted", f"train/{shard:05d}.parquet")
        first = sum(SHARDS[:shard])
        lost |= set(range(first, first + SHARDS[shard]))
    if faults["flipped"] and 1 not in faults["deleted"]:
        path = Path(dataset.location.uri) / "train/00001.parquet"
        data = bytearray(path.read_bytes())
        data[300] ^= 0x10
        path.write_bytes(data)
        lost |= set(range(24, 32))
    return lost


@settings(max_examples=20, deadline=None)
@given(damages, attempts, st.integers(1, 9), st.integers(1, 4))
def test_each_image_is_used_or_counted_as_lost_exactly_once(faults, runs, window, last_world):
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_packed(Path(folder), {"train": SHARDS, "val": [3]})
        lost = damage_dataset(dataset, faults)
        ranks = Ranks(dataset, dataclasses.replace(CONFIG, shuffle_row_groups=window))
        batches = [batch for world, steps in runs for batch in ranks.attempt(world, steps)]
        batches += ranks.attempt(last_world, None)
    used, replaced = accounted(batches)
    assert sorted(used + replaced) == list(range(TOTAL))
    assert set(replaced) == lost
    assert sum(batch.lost for batch in batches) == len(lost)
    assert ranks.position.consumed is not None and ranks.position.consumed.all()


def test_images_of_the_previous_epoch_are_not_counted(tmp_path):
    """A rank whose epoch starts with a lost shard shows images that it read at the end of the previous epoch."""
    dataset = write_packed(tmp_path, {"train": SHARDS, "val": [3]})
    damage(dataset, "deleted", "train/00001.parquet")
    ranks = Ranks(dataset, dataclasses.replace(CONFIG, shuffle_row_groups=1))
    batches = ranks.attempt(3, None, epochs=6)
    for epoch in range(1, 7):
        used, replaced = accounted(batches, epoch)
        assert sorted(used + replaced) == list(range(TOTAL))
        assert sorted(replaced) == list(range(24, 40))


def test_lost_remaining_images_are_replaced_and_count_as_consumed(tmp_path):
    dataset = write_packed(tmp_path, {"train": SHARDS, "val": [3]})
    damage(dataset, "deleted", "train/00002.parquet")
    break_images(dataset, "train/00001.parquet", list(range(16)))
    for remaining in (range(40, 49), range(24, 40)):
        ranks = Ranks(dataset)
        before = ~np.isin(np.arange(TOTAL), remaining)
        ranks.position = EpochProgress(epoch=1, partitioning=(5,), length=TOTAL, before=before, consumed=before)
        batches = ranks.attempt(2, None)
        assert accounted(batches)[1] and sorted(accounted(batches)[1]) == list(remaining)
        assert sum(batch.lost for batch in batches) == len(remaining)
        assert all(np.array_equal(batch.labels, batch.samples % 4) for batch in batches)
        assert all(batch.images.any(axis=(1, 2, 3)).all() for batch in batches)


def test_resuming_inside_a_lost_shard_repeats_and_omits_nothing(tmp_path):
    """After a restart, images read earlier are not available as replacements, but all rows keep their positions."""
    dataset = write_packed(tmp_path, {"train": SHARDS, "val": [3]})
    damage(dataset, "deleted", "train/00001.parquet")
    config = dataclasses.replace(CONFIG, shuffle_row_groups=2)
    uninterrupted = Ranks(dataset, config).attempt(1, None)
    for done in range(1, len(uninterrupted)):
        ranks = Ranks(dataset, config)
        ranks.attempt(1, done)
        resumed = ranks.attempt(1, None)
        assert [batch.visits.tolist() for batch in resumed] == [batch.visits.tolist() for batch in uninterrupted[done:]]


def test_an_image_used_by_two_ranks_is_detected_and_affects_no_other():
    position = EpochProgress(epoch=2, partitioning=(2,), length=20)
    position.advance(np.array([3, 7]))
    other = np.zeros(20, dtype=np.uint8)
    other[[7, 8]] = 1
    with pytest.raises(UserError, match="^1 images of epoch 2 were used by more than one worker; check that all nodes"):
        position.gather(lambda local: local + other)
    other[7] = 0
    assert np.flatnonzero(position.gather(lambda local: local + other)).tolist() == [3, 7, 8]
