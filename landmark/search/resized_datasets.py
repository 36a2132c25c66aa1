"""Resizes a study's datasets once for all trials, because decoding limits the throughput of small models."""

import math
from collections.abc import Iterable

from landmark.config import PackingConfig, PrepareConfig, Recipe, RepackConfig
from landmark.data.dataset import PackedDataset
from landmark.data.packing.job import pack_dataset
from landmark.data.packing.repack import DatasetSource
from landmark.storage import Location

MIN_AREA = 0.25
"""Crops with a smaller fraction of an image's area may be upscaled."""


def required_short_side(recipes: Iterable[Recipe]) -> int:
    """Return the short side in pixels at which no recipe upscales a crop, except for crops below LEAST_AREA."""
    return max(
        math.ceil(recipe.loader.image_size / math.sqrt(max(recipe.augment.crop_area[0], MIN_AREA)))
        for recipe in recipes
    )


def resized(dataset: PackedDataset, short_side: int, place: Location) -> PackedDataset:
    """Return the dataset resized to a short side in pixels, or itself if it is not larger.

    Writes to `place` unless the dataset is complete there. Runs on the connected cluster. After a crash, it writes only the
    missing shards.
    """
    if dataset.manifest.short_side <= short_side:
        return dataset
    source = DatasetSource(dataset.uri, dataset.subset, dataset.subset_seed)
    config = PrepareConfig(
        output=place.uri,
        source="dataset",
        dataset=RepackConfig(path=_path_before(place) or dataset.uri),
        seed=dataset.subset_seed,
        packing=PackingConfig(short_side=short_side),
    )
    return pack_dataset(place, source, config).dataset


def _path_before(place: Location) -> str | None:
    """Return the source path recorded at `place`, because the dataset may have moved; None if nothing is there."""
    if not (place / "manifest.json").exists():
        return None
    return PackedDataset.open(place.uri).manifest.source["dataset"]["path"]
