"""The cached row groups of one split: their keys, their format, and which of them are cached."""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from landmark.config import AugmentConfig, LoaderConfig, UserError
from landmark.cpus import available_cpus
from landmark.data.arrow_binary import values
from landmark.data.cache.disk_cache import KEPT, shared_cache
from landmark.data.cache.planes import to_planes
from landmark.data.dataset import PackedDataset
from landmark.data.loading.plan import RowGroups
from landmark.data.threads import DaemonPool

MIN_AREA = 0.25
"""Crops with a smaller fraction of an image's area may be enlarged."""
GIB = 2**30


@dataclass(kw_only=True, frozen=True)
class SplitCache:
    """The cache of a split's row groups, with the columns label and image. Plain values, for readers in other processes.

    The key of a row group is the SHA-256 of its shard, its number and the format. Datasets with the same shards, such
    as a filtered view, share entries. A shard that changes has other entries.
    """

    folder: str
    max_bytes: int
    digests: tuple[str, ...]
    """SHA-256 of each shard, hexadecimal."""
    file_bytes: tuple[int, ...]
    """Size of each shard's file."""
    side: int | None
    """Minimum short side of the planes, pixels, 0 for the images' own size. None: JPEGs are cached."""
    fraction: float
    """Fraction of the row groups to cache, below 1 if the cache is too small for all."""
    threads: int
    """Threads that decode the images of a row group to planes."""

    @classmethod
    def of(
        cls, dataset: PackedDataset, split: str, config: LoaderConfig, augment: AugmentConfig | None
    ) -> "SplitCache | None":
        """Return the cache that the config of a loader describes. None if it has no cache."""
        if config.cache is None or config.cache_gib is None:
            return None
        shards = dataset.split(split).shards
        limit = int(config.cache_gib * GIB)
        planes = config.cache_format == "yuv420"
        needed = sum(jpeg_bytes(dataset, each) for each in used_together(dataset, split))
        return cls(
            folder=config.cache,
            max_bytes=limit,
            digests=tuple(shard.sha256 for shard in shards),
            file_bytes=tuple(shard.bytes for shard in shards),
            side=stored_side(config, augment, dataset.manifest.short_side) if planes else None,
            fraction=1.0 if planes else min(1.0, KEPT * limit / max(needed, 1)),
            threads=config.decode_threads or available_cpus(),
        )

    def read(
        self, shard: int, row_group: int, load: Callable[[], pa.Table], size: Callable[[], int | None]
    ) -> pa.Table:
        """Return a row group from the cache, or load it from storage with the columns label and image.

        size: returns the size of the shard's file after `load`. A file of another size than the manifest's belongs to
        another version of the dataset, and is not cached.
        """

        def loaded() -> pa.Table:
            return self._converted(load())

        key = self.key(shard, row_group)
        if zlib.crc32(key.encode()) >= self.fraction * 2**32:
            return loaded()
        cache = shared_cache(self.folder, self.max_bytes)
        return cache.fetch(key, loaded, lambda table: size() == self.file_bytes[shard])

    def key(self, shard: int, row_group: int) -> str:
        """Return the key of a row group."""
        name = "jpeg" if self.side is None else "yuv420" if not self.side else f"yuv420-{self.side}"
        return f"{self.digests[shard]}-{row_group:05d}-{name}"

    def _converted(self, table: pa.Table) -> pa.Table:
        """Return a row group in the format of the cache."""
        images = table["image"].cast(pa.large_binary())
        if self.side is not None:
            with DaemonPool(self.threads, "landmark-planes") as pool:
                planes = [pool.submit(to_planes, data, self.side) for data in values(images)]
                images = pa.array([each.result() for each in planes], pa.large_binary())
        return pa.table({"label": table["label"], "image": images})


def stored_side(config: LoaderConfig, augment: AugmentConfig | None, short_side: int) -> int:
    """Return the minimum short side of cached planes, pixels, so that no crop down to MIN_AREA is enlarged.

    augment: None for the center crop of evaluation. short_side: maximum
    short side of the dataset's images. It is one of 16, 24, 32, 48, 64 …, so that similar sizes share entries, and 0 if
    no image can be halved.
    """
    if augment is None or augment.crop_area[0] == 1:
        needed = config.image_size / config.crop_pct
    else:
        needed = config.image_size * math.sqrt(augment.crop_aspect / max(augment.crop_area[0], MIN_AREA))
    power = 2 ** math.ceil(math.log2(needed))
    side = power * 3 // 4 if power * 3 // 4 >= needed else power
    return side if 2 * side <= short_side else 0


def used_together(dataset: PackedDataset, split: str) -> list[str]:
    """Return the splits that are read in turns with a split, including itself. Training reads train and val."""
    return [each for each in ("train", "val") if _has(dataset, each)] if split in ("train", "val") else [split]


def _has(dataset: PackedDataset, split: str) -> bool:
    try:
        return dataset.split(split).rows > 0
    except UserError:  # empty, or no image of it is in this view
        return False


def jpeg_bytes(dataset: PackedDataset, split: str) -> int:
    """Return the bytes of a split's row groups as JPEG. A filtered view has only the row groups with selected images."""
    shards = dataset.manifest.splits[split].shards
    read, rows = int(RowGroups.of(dataset, split).size.sum()), sum(shard.rows for shard in shards)
    return sum(shard.bytes for shard in shards) * read // max(rows, 1)


def read_sizes(dataset: PackedDataset, split: str) -> np.ndarray:
    """Return width and height of each image in a split's row groups, pixels, int64 (n, 2), from the catalog."""
    table = dataset.full_catalog(["sample", "split", "width", "height"])
    table = table.filter(pc.equal(table["split"], split)).sort_by("sample")
    sizes = np.stack([table[name].to_numpy() for name in ("width", "height")], axis=1).astype(np.int64)
    groups = RowGroups.of(dataset, split)
    mask = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.add.at(mask, groups.first_sample, 1)
    np.add.at(mask, groups.first_sample + groups.size, -1)
    return sizes[np.cumsum(mask[:-1]) > 0]
