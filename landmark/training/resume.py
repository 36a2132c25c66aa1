"""Resuming a run: checks which settings changed since the run started and whether it has epochs left to train."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from landmark.checkpoints.format import CheckpointMeta, read_meta
from landmark.checkpoints.store import CheckpointStore
from landmark.config import (
    Recipe,
    TrainConfig,
    UserError,
    from_mapping,
    mask_credentials,
    parse_mapping,
    parse_yaml,
    to_mapping,
    with_recorded_subset,
)
from landmark.data.dataset import PackedDataset
from landmark.data.subset_view import open_dataset
from landmark.storage import Location, NotFound

PLACE = ("output", "name", "resume")
"""Keys that identify a run and do not change it."""
FREE = ("auto_batch_size", "workers.cpus", "dry_run", "headroom", "lr_range_test")
"""Keys that may differ without a note. workers.cpus had the default 1 in older versions. Their runs can resume."""
RESUMABLE = (
    "cluster.",
    "checkpoint.",
    # Not compute.sync_batchnorm: statistics over different images change the model.
    *(f"compute.{key}" for key in ("amp", "channels_last", "compile", "accumulate", "deterministic")),
    *(f"compute.{key}" for key in ("gradient_checkpointing", "ddp_comm_hook")),
    "distill.features",
    "early_stopping.",
    "hours",
    "minutes",
    "probe.features",
    "profile_steps",
    "tensorboard",
    "workers.",
    *(f"loader.{key}" for key in ("stream", "reader", "decode", "data_cpus", "prefetch_batches", "corrupt", "cache")),
)
"""Prefixes of keys that --resume accepts. They change results at most by rounding. More epochs are accepted, too. The
pixels of another loader.cache_format differ by about one of 255 levels."""
LONGER = ("epochs", "hours", "minutes", "early_stopping.")
"""Prefixes of keys with which a finished run may continue."""
SHOWN = 12
"""Maximum number of changes in a message."""


@dataclass(kw_only=True, frozen=True)
class Change:
    """A setting that differs from the existing run's."""

    key: str
    old: Any
    new: Any
    resumable: bool
    """Whether a run may resume with it."""

    def __str__(self) -> str:
        old, new = ("unset" if value is None else value for value in (self.old, self.new))
        return f"{self.key}: {old} -> {new}"


def check_resume(run: Location, config: TrainConfig, dataset: PackedDataset) -> list[Change]:
    """Return the changed settings of an existing run with this name, or an empty list.

    A run without a checkpoint may change in any way. Raises UserError for a change that would make it a different run,
    and for an existing run without config.resume.
    """
    last = CheckpointStore(run, config.monitor, config.monitor_mode()).path("last")
    if last is None:
        return []
    meta = read_meta(run / last)
    before = _saved_config(run, last, config, meta)
    changes = list(differences(before, config, meta.epoch))
    if not _same_data(before, config, meta, dataset):
        new = "different images" if before.dataset == config.dataset else f"{config.dataset} (different images)"
        changes.insert(0, Change(key="dataset", old=before.dataset, new=new, resumable=False))
    fixed = [change for change in changes if not change.resumable]
    if fixed:
        raise UserError(
            f"{run}: a run with this name exists and cannot resume with different settings: {_listed(fixed)}; choose another "
            "--name, or delete this folder"
        )
    if not config.resume:
        state = (
            f"has different settings: {_listed(changes)}" if changes else f"exists, with {meta.epoch} epochs finished"
        )
        raise UserError(f"{run}: a run with this name {state}; add --resume to continue it, or choose another --name")
    return changes


def recorded_config(run: Location) -> TrainConfig | None:
    """Return the config with which a run in this folder started, or None if there is none."""
    try:
        text = (run / "config.yaml").read_text()
    except NotFound:
        return None
    place = f"{run}/config.yaml"
    return from_mapping(TrainConfig, with_recorded_subset(parse_mapping(text, place)), place)


def differences(before: TrainConfig, after: TrainConfig, finished: int) -> Iterator[Change]:
    """Yield the settings that differ, except the dataset. finished: number of epochs that the run has finished."""
    old, new = dict(_leaves(to_mapping(before))), dict(_leaves(to_mapping(after)))
    for key in new:
        if key in (*PLACE, *FREE, "dataset") or _shown(old[key]) == _shown(new[key]):
            continue
        resumable = new[key] >= finished if key == "epochs" else key.startswith(RESUMABLE)
        yield Change(key=key, old=old[key], new=new[key], resumable=resumable)


def _shown(value: Any) -> str:
    """Return a setting as stored in a run's files."""
    return mask_credentials(str(value))


def resume_lines(run: Location, config: TrainConfig, changes: list[Change]) -> Iterator[str]:
    """Yield the notes for a run that resumes with different settings."""
    if not changes:
        return
    yield f"note: {run} resumes with different settings: {_listed(changes)}"
    follows = [
        name
        for name, used in (
            (f"schedule.name {config.schedule.name}", config.schedule.name in ("cosine", "one_cycle")),
            ("resizing.start_size", config.resizing.start_size is not None),
        )
        if used
    ]
    if follows and any(change.key == "epochs" for change in changes):
        yield f"note: {' and '.join(follows)} depends on the number of epochs: the rest is trained as in a run with {config.epochs} epochs"


def saved_result(run: Location, config: TrainConfig, changes: list[Change]) -> dict[str, Any] | None:
    """Return the contents of run.json if the run has nothing left to train, else None."""
    try:
        values = json.loads((run / "run.json").read_text())
        epochs, early = int(values["epochs_run"]), bool(values["stopped_early"])
    except (NotFound, ValueError, TypeError, KeyError):
        return None
    goes_on = any(change.key.startswith(LONGER) for change in changes)
    if config.limit_s is None:
        return values if epochs >= config.epochs or (early and not goes_on) else None
    return None if goes_on else values


def _saved_config(run: Location, last: str, config: TrainConfig, meta: CheckpointMeta) -> TrainConfig:
    """Return the settings of a run: those of its config.yaml, or without one those of its last checkpoint."""
    if (before := recorded_config(run)) is not None:
        return before
    place = run / last / "config.yaml"
    recipe = parse_yaml(Recipe, place.read_text(), str(place))
    values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)}
    data: dict[str, Any] = {"dataset": meta.dataset, "subset": meta.subset, "subset_seed": meta.subset_seed}
    return dataclasses.replace(config, **values, **data)


def _same_data(before: TrainConfig, config: TrainConfig, meta: CheckpointMeta, dataset: PackedDataset) -> bool:
    """Return whether a dataset is the one that a run was trained on, even if it has moved."""
    if meta.dataset_id:
        return meta.dataset_id == dataset.content_id
    if before.dataset == config.dataset:
        return True
    try:  # the checkpoint is from a version that identified datasets by their location
        return open_dataset(before.dataset).content_id == dataset.content_id
    except UserError:
        return False


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _listed(changes: list[Change]) -> str:
    more = f", and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    return ", ".join(map(str, changes[:SHOWN])) + more
