"""The cache behind a loader: the same batches, other entries for other shards, and a size that fits."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from landmark.config import AugmentConfig, CacheOptions, LoaderConfig, SubsetConfig, UserError
from landmark.data.cache.disk_cache import shared_cache
from landmark.data.cache.format import cache_sizes, with_cache_format
from landmark.data.cache.split_cache import GIB, SplitCache, stored_side
from landmark.data.dataset import PackedDataset
from landmark.data.loading.loader import Batch, Loader
from landmark.data.loading.shard_file import ShardFile
from landmark.data.subset_view import open_dataset
from tests.support.packed import write_packed

CONFIG = LoaderConfig(image_size=16, batch_size=10, stream="thread", decode_threads=2, shuffle_row_groups=3)
AUGMENT = AugmentConfig(randaugment_ops=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [37, 20, 9], "val": [13]})


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Shard and row group of each read from storage."""
    found, read = [], ShardFile.read

    def recorded(self: ShardFile, row_groups):
        found.extend((self.location.uri, number) for number in row_groups)
        return read(self, row_groups)

    monkeypatch.setattr(ShardFile, "read", recorded)
    return found


def cached(folder: Path, gib: float = 1.0, **changes) -> LoaderConfig:
    return dataclasses.replace(CONFIG, cache=str(folder), cache_gib=gib, **changes)


def epoch(dataset: PackedDataset, config: LoaderConfig, split: str = "train", **options) -> list[Batch]:
    options = {"augment": AUGMENT if split == "train" else None, "seed": 3, **options}
    with Loader(dataset, split, config, **options) as loader:
        return list(loader.epoch(1))


def are_equal(batches: list[Batch], others: list[Batch]) -> bool:
    return len(batches) == len(others) and all(
        np.array_equal(getattr(batch, field.name), getattr(other, field.name))
        for batch, other in zip(batches, others, strict=True)
        for field in dataclasses.fields(Batch)
    )


def test_batches_with_a_cache_of_jpegs_are_those_without_a_cache(dataset, tmp_path, reads):
    expected = epoch(dataset, CONFIG)
    reads.clear()
    assert are_equal(epoch(dataset, cached(tmp_path)), expected)
    assert len(reads) == len(set(reads)) == 10
    reads.clear()
    assert are_equal(epoch(dataset, cached(tmp_path)), expected)
    assert reads == []
    for split in ("val", "val"):
        assert are_equal(epoch(dataset, cached(tmp_path), split), epoch(dataset, CONFIG, split))


def test_batches_of_planes_are_the_same_in_the_first_and_later_epochs(dataset, tmp_path, reads):
    config = cached(tmp_path, cache_format="yuv420")
    first = epoch(dataset, config)
    reads.clear()
    assert are_equal(epoch(dataset, config), first) and reads == []
    plain = epoch(dataset, CONFIG)
    for batch, other in zip(first, plain, strict=True):
        assert np.array_equal(batch.samples, other.samples) and np.array_equal(batch.labels, other.labels)
    # Without a disk for them, planes are made for each epoch, so that pixels do not depend on the disk's state.
    tiny = dataclasses.replace(config, cache=str(tmp_path / "tiny"), cache_gib=1e-6)
    assert are_equal(epoch(dataset, tiny), first)


@pytest.mark.parametrize("kind", ["jpeg", "yuv420"])
def test_readers_and_decoders_in_other_processes_use_the_cache(ray_cluster, dataset, tmp_path, kind):
    expected = epoch(dataset, cached(tmp_path / "thread", cache_format=kind))
    config = cached(tmp_path / "ray", cache_format=kind, stream="ray", decode="data", data_cpus=0.5)
    for _ in range(2):
        assert are_equal(epoch(dataset, config), expected)
    assert len(list((tmp_path / "ray").rglob("*.arrow"))) == 10


def test_a_filtered_view_shares_the_entries_of_its_dataset(dataset, tmp_path, reads):
    epoch(dataset, cached(tmp_path))
    reads.clear()
    view = open_dataset(dataset.uri, SubsetConfig(classes=2))
    expected = epoch(view, CONFIG)
    reads.clear()
    assert are_equal(epoch(view, cached(tmp_path)), expected) and reads == []


def test_another_location_of_the_same_shards_shares_the_entries(dataset, tmp_path, reads):
    epoch(dataset, cached(tmp_path / "cache"))
    shutil.copytree(str(dataset.location), tmp_path / "moved")
    reads.clear()
    epoch(PackedDataset.open(str(tmp_path / "moved")), cached(tmp_path / "cache"))
    assert reads == []


def test_a_shard_that_was_replaced_has_other_entries(tmp_path, reads):
    before = write_packed(tmp_path / "data", {"train": [16, 16], "val": [8]})
    epoch(before, cached(tmp_path / "cache"))
    shutil.rmtree(tmp_path / "data")
    after = write_packed(tmp_path / "data", {"train": [16, 16], "val": [8]}, classes=3)
    expected = epoch(after, CONFIG)
    reads.clear()
    assert are_equal(epoch(after, cached(tmp_path / "cache")), expected) and len(reads) == 4


def test_a_shard_that_is_replaced_during_a_run_is_not_stored_under_the_old_key(tmp_path):
    """The manifest was read before the dataset was prepared again."""
    old = write_packed(tmp_path / "data", {"train": [16, 16], "val": [8]})
    shutil.copytree(tmp_path / "data", tmp_path / "kept")
    shutil.rmtree(tmp_path / "data")
    write_packed(tmp_path / "data", {"train": [16, 16], "val": [8]}, classes=3, size=40)
    epoch(old, cached(tmp_path / "cache"))
    kept = PackedDataset.open(str(tmp_path / "kept"))
    assert are_equal(epoch(kept, cached(tmp_path / "cache")), epoch(kept, CONFIG))


def test_a_fixed_part_of_a_larger_dataset_is_cached(tmp_path, reads):
    """LRU alone would remove each entry before the next epoch uses it."""
    dataset = write_packed(tmp_path / "data", {"train": [200, 200], "val": [8]})
    total = sum(shard.bytes for split in ("train", "val") for shard in dataset.split(split).shards)
    config = cached(tmp_path / "cache", gib=total / 2 / GIB)
    counts = []
    for _ in range(3):
        reads.clear()
        epoch(dataset, config)
        counts.append(len(reads))
    assert counts[0] == 50 and counts[1] == counts[2] and 15 <= counts[1] <= 35
    used = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.arrow"))
    assert used <= total / 2


def test_corrupt_images_and_shards_are_reported_as_without_a_cache(tmp_path):
    dataset = write_packed(tmp_path / "data", {"train": [24, 16], "val": [8]})
    (tmp_path / "data" / "train" / "00001.parquet").unlink()
    for kind in ("jpeg", "yuv420"):
        config = cached(tmp_path / "cache", cache_format=kind, corrupt="skip")
        for _ in range(2):
            with Loader(dataset, "train", config, augment=AUGMENT, seed=3) as loader:
                batches = list(loader.epoch(1))
            assert loader.lost[1] == 16 and sum(len(batch.samples) for batch in batches) == 40
        with pytest.raises(UserError, match=r"00001\.parquet: missing"):
            epoch(dataset, dataclasses.replace(config, corrupt="stop"))


@pytest.mark.parametrize(
    ("size", "augment", "short_side", "side"),
    [
        (224, AugmentConfig(), 288, 0),
        (64, AugmentConfig(), 288, 128),
        (64, None, 288, 96),
        (64, AugmentConfig(crop_area=(1.0, 1.0)), 288, 96),
        (64, AugmentConfig(crop_area=(0.08, 1.0)), 288, 0),
        (32, AugmentConfig(), 288, 64),
        (112, AugmentConfig(), 288, 0),
        (112, AugmentConfig(), 576, 256),
    ],
)
def test_planes_are_as_small_as_the_crops_allow(size, augment, short_side, side):
    assert stored_side(LoaderConfig(image_size=size), augment, short_side) == side


def test_planes_that_do_not_fit_are_replaced_by_jpegs_with_one_line(dataset, tmp_path):
    splits = {"train": AUGMENT, "val": None}
    sizes = cache_sizes(dataset, LoaderConfig(image_size=16), splits)
    assert sizes.yuv420 > 0 and sizes.jpeg == sum(
        shard.bytes for split in splits for shard in dataset.split(split).shards
    )
    lines: list[str] = []
    fits = cached(tmp_path, gib=1.01 * sizes.yuv420 / GIB, cache_format="yuv420")
    assert with_cache_format(fits, dataset, splits, lines.append) == fits and not lines
    small = cached(tmp_path, gib=0.9 * sizes.yuv420 / GIB, cache_format="yuv420")
    assert with_cache_format(small, dataset, splits, lines.append).cache_format == "jpeg"
    assert len(lines) == 1 and "the cache stores JPEGs instead" in lines[0]


def test_the_estimated_size_is_that_of_the_entries(tmp_path):
    dataset = write_packed(tmp_path / "data", {"train": [200, 56], "val": [16]}, size=96, row_group_rows=32)
    for kind in ("jpeg", "yuv420"):
        folder = tmp_path / kind
        config = cached(folder, cache_format=kind, image_size=48)
        for split in ("train", "val"):
            epoch(dataset, config, split)
        estimate = getattr(cache_sizes(dataset, LoaderConfig(image_size=48), {"train": AUGMENT, "val": None}), kind)
        used = sum(path.stat().st_size for path in folder.rglob("*.arrow"))
        assert used == pytest.approx(estimate, rel=0.1)


def test_other_formats_and_sizes_have_other_keys(dataset, tmp_path):
    keys = {
        SplitCache.of(dataset, "train", cached(tmp_path, **changes), AUGMENT).key(0, 1)
        for changes in ({}, {"cache_format": "yuv420"}, {"cache_format": "yuv420", "image_size": 64})
    }
    assert len(keys) == 2  # no image of 32 pixels can be halved
    assert SplitCache.of(dataset, "train", CONFIG, AUGMENT) is None
    assert shared_cache(str(tmp_path), GIB) is shared_cache(str(tmp_path), GIB)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_gib": 2.0}, "loader.cache_gib is set without loader.cache; add --cache FOLDER"),
        ({"cache_format": "yuv420"}, "loader.cache_format is yuv420 without loader.cache; add --cache FOLDER"),
        ({"cache": "/tmp/a"}, "loader.cache is set without loader.cache_gib; add --cache-gib"),
        ({"cache": "/tmp/a", "cache_gib": 0.0}, "loader.cache_gib is 0.0; expected above 0"),
        ({"cache": "s3://bucket/a", "cache_gib": 1.0}, "expected a folder on the node's own disk, not a URI"),
        ({"cache": "", "cache_gib": 1.0}, "expected a folder on the node's own disk"),
    ],
)
def test_options_that_do_not_apply_are_errors(options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        LoaderConfig(**options)


def test_the_folder_is_absolute_in_other_processes():
    options = LoaderConfig(cache="cache", cache_gib=1.0).cache_options()
    assert options == CacheOptions(cache=str(Path("cache").absolute()), cache_gib=1.0)
