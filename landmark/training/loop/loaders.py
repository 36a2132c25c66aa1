"""Configurations of the training and validation loaders. Imports no torch: Ray Train's actors without a model use it."""

import dataclasses
from collections.abc import Callable

from landmark.config import LoaderConfig, Recipe
from landmark.data.cache.format import with_cache_format
from landmark.data.dataset import PackedDataset


def training_loader(
    recipe: Recipe, dataset: PackedDataset, world_size: int, say: Callable[[str], object] | None = None
) -> LoaderConfig:
    """Return the loader's config for training, with stream `auto` and the format of the cache resolved."""
    loader = resolve_stream(recipe.loader, world_size)
    return with_cache_format(loader, dataset, {"train": recipe.augment, "val": None}, say)


def validation_loader(config: LoaderConfig) -> LoaderConfig:
    """Return the loader's config for validation. Its images are decoded in the training process."""
    return dataclasses.replace(config, decode="worker", decoders=1)


def resolve_stream(config: LoaderConfig, world_size: int) -> LoaderConfig:
    """Return the loader's config with stream `auto` resolved: Ray Data for several workers or decoders, else threads."""
    if config.stream != "auto":
        return config
    by_ray = world_size > 1 or config.decode == "data"
    return dataclasses.replace(config, stream="ray" if by_ray else "thread")
