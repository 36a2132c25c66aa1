"""Images at the size that a study's trials need, written once for all of them: decoding is what limits small networks."""

import math
from collections.abc import Iterable

from landmark.config import PackingConfig, PrepareConfig, Recipe, RepackConfig
from landmark.data.dataset import PackedDataset
from landmark.data.packing.job import pack_dataset
from landmark.data.packing.repack import DatasetSource
from landmark.storage import Location

LEAST_AREA = 0.25
"""Crops of a smaller share of an image are enlarged."""


def needed_short_side(recipes: Iterable[Recipe]) -> int:
    """Return the short side, pixels, at which no recipe's crop has to be enlarged, but for the smallest ones."""
    return max(
        math.ceil(recipe.loader.image_size / math.sqrt(max(recipe.augment.crop_area[0], LEAST_AREA)))
        for recipe in recipes
    )


def resized(dataset: PackedDataset, short_side: int, place: Location) -> PackedDataset:
    """Return a dataset at a short side (pixels): written to `place` unless it is there; itself where it is no larger.

    Runs on the connected cluster; killed, it goes on with what is missing.
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
    """Return where the dataset was when it was written to `place`: it may have moved since. None where nothing is there."""
    if not (place / "manifest.json").exists():
        return None
    return PackedDataset.open(place.uri).manifest.source["dataset"]["path"]
