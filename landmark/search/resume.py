"""Resuming a study: what it was started with, and whether a command of the same name continues it."""

import dataclasses
import json
from typing import Any

from landmark.config import (
    CacheOptions,
    Recipe,
    SpaceConfig,
    TuneConfig,
    UserError,
    from_mapping,
    mask_credentials,
    parse_mapping,
    parse_yaml,
    resumed_subset,
    with_recorded_subset,
)
from landmark.data.dataset import PackedDataset
from landmark.search.spaces.space import Space
from landmark.storage import Location, NotFound, locate
from landmark.training.run import absolute_recipe

DATASETS = "datasets.json"
"""File with the content ids of the study's datasets."""
SAME = ("dataset", "datasets", "subset", "subset_seed", "recipe")
"""Settings that must not change when a study resumes, except for the cache in the recipe."""


def recorded_config(location: Location) -> TuneConfig | None:
    """Return the config with which the study in a folder was started; None if there is no study."""
    try:
        text = (location / "config.yaml").read_text()
    except NotFound:
        return None
    place = f"{location}/config.yaml"
    return from_mapping(TuneConfig, with_recorded_subset(parse_mapping(text, place)), place)


def with_recorded_settings(config: TuneConfig, location: Location) -> TuneConfig:
    """Return the config with the subset rule with which the study in a folder was started.

    Raises UserError if the study exists and is not to be resumed.
    """
    before = recorded_config(location)
    if before is None:
        return config
    if not (config.resume or config.retry_failed or config.dry_run):
        raise UserError(
            f"{location}: a study of this name exists; add --resume to continue it, or choose another --name"
        )
    subset, note = resumed_subset(config.subset, before.subset)
    if note:
        print(f"note: {config.name}: {note}", flush=True)
    return dataclasses.replace(config, subset=subset)


def content_ids(datasets: dict[str | None, PackedDataset]) -> dict[str, str]:
    """Return dataset name -> content id, which does not depend on the location."""
    return {name or "": dataset.content_id for name, dataset in datasets.items()}


def check_same_study(
    location: Location, config: TuneConfig, space: Space, datasets: dict[str | None, PackedDataset]
) -> None:
    """Raise UserError if the existing study of this name has other settings.

    Its budget may have changed, and its datasets may have moved.
    """
    before = recorded_config(location)
    try:
        text = (location / "space.yaml").read_text()
    except NotFound:
        return
    if before is None:
        return
    try:
        known = json.loads((location / DATASETS).read_text())
    except NotFound:  # written by a version that identified datasets by their location
        known = None
    now = absolute(config)
    other = [key for key in SAME if _stored(getattr(before, key)) != _stored(getattr(now, key))]
    if known is not None:
        other = [key for key in other if key not in ("dataset", "datasets")]
        found = content_ids(datasets)
        other += ["dataset"] if any(known[name] != found[name] for name in known.keys() & found.keys()) else []
    place = f"{location}/space.yaml"
    spaces = [Space(parse_yaml(SpaceConfig, part, place), place, part).config for part in (text, space.text)]
    if dataclasses.replace(spaces[0], budget=spaces[1].budget) != spaces[1]:
        other.append("space")
    if other:
        raise UserError(
            f"{location}: a study of this name exists, with another {', '.join(other)}; choose another --name, or delete that folder"
        )


def _stored(setting: Any) -> str:
    """Return a setting as it is stored in a study's files, without credentials and the options of the cache."""
    if isinstance(setting, Recipe):
        loader = dataclasses.replace(setting.loader, **dataclasses.asdict(CacheOptions()))
        setting = dataclasses.replace(setting, loader=loader)
    return mask_credentials(repr(setting))


def absolute(config: TuneConfig) -> TuneConfig:
    """Return the config with absolute paths: another process may have another working directory."""
    return dataclasses.replace(
        config,
        dataset=locate(config.dataset).uri,
        datasets={name: locate(uri).uri for name, uri in config.datasets.items()},
        output=locate(config.output).uri,
        retry_failed=False,  # an option of one call, not a setting of the study
        resume=False,
        recipe=absolute_recipe(config.recipe),
    )
