"""The size of a job's images in each format of the cache, and the choice of the format."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from landmark.config import AugmentConfig, LoaderConfig
from landmark.data.cache.planes import planes_bytes
from landmark.data.cache.split_cache import GIB, jpeg_bytes, read_sizes, stored_side
from landmark.data.dataset import PackedDataset

ENTRY_BYTES = 4096
"""Bytes of an entry in addition to its images: labels, offsets, and the file's metadata. An approximation."""


@dataclass(kw_only=True, frozen=True)
class CacheSizes:
    """Bytes of the same images in each format."""

    jpeg: int
    yuv420: int


def cache_sizes(dataset: PackedDataset, config: LoaderConfig, splits: Mapping[str, AugmentConfig | None]) -> CacheSizes:
    """Return the size of a dataset's splits in each format.

    splits: the augmentation of each split that is read, None for the center crop of evaluation.
    """
    short = dataset.manifest.short_side
    return CacheSizes(
        jpeg=sum(jpeg_bytes(dataset, split) for split in splits),
        yuv420=sum(
            stored_planes_bytes(dataset, split, stored_side(config, augment, short))
            for split, augment in splits.items()
        ),
    )


def stored_planes_bytes(dataset: PackedDataset, split: str, side: int) -> int:
    """Return the bytes of a split's entries with planes. side: as `stored_side` returns it."""
    sizes = read_sizes(dataset, split)
    entries = -(-len(sizes) // dataset.manifest.row_group_rows)
    return int(planes_bytes(sizes, side).sum()) + entries * ENTRY_BYTES


def with_cache_format(
    config: LoaderConfig,
    dataset: PackedDataset,
    splits: Mapping[str, AugmentConfig | None],
    say: Callable[[str], object] | None,
) -> LoaderConfig:
    """Return the config with the format that is cached: JPEG instead of planes that do not fit. `say` gets a line."""
    if config.cache_gib is None or config.cache_format == "jpeg":
        return config
    sizes = cache_sizes(dataset, config, splits)
    if sizes.yuv420 <= config.cache_gib * GIB:
        return config
    if say is not None:
        say(too_large(sizes, config.cache_gib))
    return dataclasses.replace(config, cache_format="jpeg")


def too_large(sizes: CacheSizes, gib: float) -> str:
    """Return the message about planes that do not fit into the cache."""
    return (
        f"note: the decoded images (yuv420) need {sizes.yuv420 / GIB:.2f} GiB, more than cache_gib ({gib:g}); the cache "
        f"stores JPEGs instead ({sizes.jpeg / GIB:.2f} GiB)"
    )
