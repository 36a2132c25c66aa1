"""The account of an epoch: over damage, kills and changes of workers each image is shown or counted lost exactly once."""

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
from landmark.data.loading.progress import Position
from tests.data.loading.test_loader import break_images, damage
from tests.support.packed import write_packed

SHARDS = [24, 16, 9]
TOTAL = sum(SHARDS)
CONFIG = LoaderConfig(image_size=16, batch_size=6, stream="thread", decode_threads=2, damaged="skip")


class Ranks:
    """The ranks of one epoch after another: each has its own position and loader, as in a run."""

    def __init__(self, dataset: PackedDataset, config: LoaderConfig = CONFIG) -> None:
        self.dataset = dataset
        self.config = config
        self.position = Position(epoch=1, division=(1,), length=TOTAL)

    def attempt(self, world: int, steps: int | None, epochs: int = 1) -> list[Batch]:
        """Train for so many steps on each rank, or to the end of the epochs, gather, and save; returns what was shown."""
        began = Position.of(self.position.state()).redivided((world,))
        positions = [Position.of(began.state()) for _ in range(world)]
        span = range(began.epoch, began.epoch + epochs)
        shown = []
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
                        position=began,
                    )
                )
                for rank in range(world)
            ]
            for epoch in span:
                if epoch != began.epoch:
                    positions = [Position(epoch=epoch, division=(world,), length=TOTAL) for _ in range(world)]
                for loader, position in zip(loaders, positions, strict=True):
                    for batch in itertools.islice(loader.epoch(epoch), steps):
                        position.advance(batch.draws)
                        shown.append(batch)
        counts = np.sum([position.mine for position in positions], axis=0, dtype=np.uint8)
        for position in positions:
            position.gather(lambda mine: counts)
        self.position = positions[0]
        return shown


def accounted(batches: list[Batch], epoch: int = 1) -> tuple[list[int], list[int]]:
    """The images shown, and those in whose places others were shown, of an epoch."""
    draws = np.concatenate([batch.draws for batch in batches if batch.epoch == epoch])
    samples = np.concatenate([batch.samples for batch in batches if batch.epoch == epoch])
    counted = draws >= 0
    return draws[counted & (draws == samples)].tolist(), draws[counted & (draws != samples)].tolist()


damages = st.fixed_dictionaries(
    {
        "deleted": st.sets(st.sampled_from([1, 2])),
        "flipped": st.booleans(),
        "undecodable": st.sets(st.integers(1, SHARDS[0] - 1), max_size=SHARDS[0] - 1),
    }
)
attempts = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), max_size=4)


def damage_dataset(dataset: PackedDataset, what: dict) -> set[int]:
    """Damage shards and images; returns the lost samples. The first image stays whole."""
    lost = set(what["undecodable"])
    if lost:
        break_images(dataset, "train/00000.parquet", sorted(lost))
    for shard in what["deleted"]:
        damage(dataset, "deleted", f"train/{shard:05d}.parquet")
        first = sum(SHARDS[:shard])
        lost |= set(range(first, first + SHARDS[shard]))
    if what["flipped"] and 1 not in what["deleted"]:
        path = Path(dataset.location.uri) / "train/00001.parquet"
        data = bytearray(path.read_bytes())
        data[300] ^= 0x10
        path.write_bytes(data)
        lost |= set(range(24, 32))
    return lost


@settings(max_examples=20, deadline=None)
@given(damages, attempts, st.integers(1, 9), st.integers(1, 4))
def test_each_image_is_shown_or_counted_lost_exactly_once(what, tries, window, last_world):
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_packed(Path(folder), {"train": SHARDS, "val": [3]})
        lost = damage_dataset(dataset, what)
        ranks = Ranks(dataset, dataclasses.replace(CONFIG, shuffle_row_groups=window))
        batches = [batch for world, steps in tries for batch in ranks.attempt(world, steps)]
        batches += ranks.attempt(last_world, None)
    shown, replaced = accounted(batches)
    assert sorted(shown + replaced) == list(range(TOTAL))
    assert set(replaced) == lost
    assert sum(batch.lost for batch in batches) == len(lost)
    assert ranks.position.known is not None and ranks.position.known.all()


def test_images_of_an_epoch_before_do_not_enter_the_account(tmp_path):
    """A rank whose epoch begins with a lost shard shows images read at the end of the epoch before."""
    dataset = write_packed(tmp_path, {"train": SHARDS, "val": [3]})
    damage(dataset, "deleted", "train/00001.parquet")
    ranks = Ranks(dataset, dataclasses.replace(CONFIG, shuffle_row_groups=1))
    batches = ranks.attempt(3, None, epochs=6)
    for epoch in range(1, 7):
        shown, replaced = accounted(batches, epoch)
        assert sorted(shown + replaced) == list(range(TOTAL))
        assert sorted(replaced) == list(range(24, 40))


def test_a_rest_that_is_lost_is_consumed_with_other_images_in_its_place(tmp_path):
    dataset = write_packed(tmp_path, {"train": SHARDS, "val": [3]})
    damage(dataset, "deleted", "train/00002.parquet")
    break_images(dataset, "train/00001.parquet", list(range(16)))
    for rest in (range(40, 49), range(24, 40)):
        ranks = Ranks(dataset)
        before = ~np.isin(np.arange(TOTAL), rest)
        ranks.position = Position(epoch=1, division=(5,), length=TOTAL, before=before, known=before)
        batches = ranks.attempt(2, None)
        assert accounted(batches)[1] and sorted(accounted(batches)[1]) == list(rest)
        assert sum(batch.lost for batch in batches) == len(rest)
        assert all(np.array_equal(batch.labels, batch.samples % 4) for batch in batches)
        assert all(batch.images.any(axis=(1, 2, 3)).all() for batch in batches)


def test_an_epoch_that_goes_on_inside_a_lost_part_repeats_and_omits_nothing(tmp_path):
    """What was read before is not there after a restart: rows keep their places all the same."""
    dataset = write_packed(tmp_path, {"train": SHARDS, "val": [3]})
    damage(dataset, "deleted", "train/00001.parquet")
    config = dataclasses.replace(CONFIG, shuffle_row_groups=2)
    whole = Ranks(dataset, config).attempt(1, None)
    for done in range(1, len(whole)):
        ranks = Ranks(dataset, config)
        ranks.attempt(1, done)
        rest = ranks.attempt(1, None)
        assert [batch.draws.tolist() for batch in rest] == [batch.draws.tolist() for batch in whole[done:]]


def test_an_image_that_two_ranks_showed_is_found_and_changes_no_other():
    position = Position(epoch=2, division=(2,), length=20)
    position.advance(np.array([3, 7]))
    other = np.zeros(20, dtype=np.uint8)
    other[[7, 8]] = 1
    with pytest.raises(UserError, match="^1 images of epoch 2 were used by more than one worker; check that all nodes"):
        position.gather(lambda mine: mine + other)
    other[7] = 0
    assert np.flatnonzero(position.gather(lambda mine: mine + other)).tolist() == [3, 7, 8]
