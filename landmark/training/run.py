"""Runs a complete training: selects the session by the number of workers and writes the run's folder."""

import csv
import dataclasses
import io
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from landmark.checkpoints.format import read_meta
from landmark.checkpoints.store import CheckpointStore
from landmark.config import (
    DistillConfig,
    ModelConfig,
    ProbeConfig,
    Recipe,
    TrainConfig,
    UserError,
    from_mapping,
    mask_credentials,
    resumed_subset,
    to_mapping,
)
from landmark.data.dataset import PackedDataset
from landmark.data.subset_view import open_dataset
from landmark.environment import describe_environment
from landmark.storage import Location, check_writable, locate, resuming
from landmark.training.compute.batch_size import check_batches
from landmark.training.distributed.failures import memory_errors, ray_errors
from landmark.training.distributed.local import LocalSession
from landmark.training.loop.fit import fit
from landmark.training.loop.loaders import resolve_stream
from landmark.training.observe.profiling import step_profiler
from landmark.training.resume import check_resume, recorded_config, resume_lines, saved_result

R = TypeVar("R", bound=Recipe)
F = TypeVar("F", ProbeConfig, DistillConfig)
FEATURES = "features"
"""Folder of stored features, below the output folder."""


@dataclass(kw_only=True, frozen=True)
class RunResult:
    """Result of a finished run."""

    name: str
    """Name of the run."""
    run: str
    """URI of its folder."""
    best_checkpoint: str
    """Path of the best checkpoint, below the run's folder."""
    last_checkpoint: str
    """Path of the last checkpoint, below the run's folder."""
    best: dict[str, float]
    """Metrics of the best epoch."""
    epochs_run: int
    """Number of trained epochs, including those before a resume."""
    stopped_early: bool
    """Whether the run ended before its last epoch."""
    seconds: float
    """Wall time of this call."""
    dataset: str
    """URI of the dataset."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Software and hardware of this call, as `describe_environment` returns it."""
    probe: dict[str, float] = field(default_factory=dict)
    """Metrics of the probe that fine-tuning started at, if there was one."""
    finished_before: bool = False
    """Whether nothing was left to train, so that all values are those of an earlier call."""


def run_training(config: TrainConfig) -> RunResult:
    """Train, in this process for one worker or with Ray Train for several, and write run.json.

    A run with the same name and settings resumes from its last checkpoint. With different settings, it resumes only if
    config.resume is set and accepts them. A finished run is returned as stored. Raises UserError for anything that the
    user can fix.
    """
    start = time.monotonic()
    config = _with_recorded_settings(absolute_paths(config))
    if not config.workers.in_process:
        # Ray is imported only if several workers need it. One worker trains without it.
        from landmark.training.distributed.backends import check_backend

        check_backend(config.workers, config.compute)
    dataset = open_dataset(config.dataset, config.subset, config.subset_seed)
    for split in ("train", "val"):
        dataset.split(split)
    if config.distill.teachers:
        from landmark.training.probe.teacher import check_teachers

        check_teachers(config, dataset)
    if config.auto_batch_size:
        from landmark.training.largest_batch import with_largest_batch

        config = with_largest_batch(config, dataset)
    check_batches(config, dataset.split("train").rows, config.workers.most)
    run = locate(config.output) / config.name
    check_writable(run)
    changes = check_resume(run, config, dataset)
    if (saved := saved_result(run, config, changes)) is not None:
        values = {**saved, "run": run.uri, "dataset": config.dataset, "finished_before": True}
        return from_mapping(RunResult, values, f"{run}/run.json")
    for line in resume_lines(run, config, changes):
        print(line)
    if config.workers.in_process:
        _fit_here(config, dataset, run)
    else:
        _fit_workers(config, run)
    store = CheckpointStore(run, config.monitor, config.monitor_mode())
    best, last = store.path("best"), store.path("last")
    if best is None or last is None:
        raise UserError(f"{run}: the run ended without a checkpoint; check the workers' output above")
    epochs_run = read_meta(run / last).epoch
    result = RunResult(
        name=config.name,
        run=run.uri,
        best_checkpoint=best,
        last_checkpoint=last,
        best=store.index["metrics"],
        epochs_run=epochs_run,
        stopped_early=_stopped_early(config, epochs_run, store.index["metrics"]["epoch"]),
        seconds=round(time.monotonic() - start, 2),
        dataset=config.dataset,
        environment=describe_environment(),
        probe=_probe_metrics(run),
    )
    (run / "run.json").write_text(mask_credentials(json.dumps(to_mapping(result), indent=1)) + "\n")
    return result


def _probe_metrics(run: Location) -> dict[str, float]:
    """Return the metrics of epoch 0 of a run's history, the probe. Empty if there is none."""
    rows = csv.DictReader(io.StringIO((run / "history.csv").read_text()))
    return next(({key: float(value) for key, value in row.items() if value} for row in rows if row["epoch"] == "0"), {})


def _stopped_early(config: TrainConfig, epochs_run: int, best_epoch: float) -> bool:
    """Return whether a run ended by early stopping. best_epoch: the epoch of its best checkpoint."""
    if config.limit_s is None:
        return epochs_run < config.epochs
    patience = config.early_stopping.patience
    return patience is not None and epochs_run - best_epoch >= patience


def absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return the config with absolute paths of dataset, start weights, cache, features, teachers and output. Workers run in
    another directory."""
    config = absolute_recipe(config, config.output)
    return dataclasses.replace(config, dataset=locate(config.dataset).uri, output=locate(config.output).uri)


def absolute_recipe(recipe: R, output: str | None = None) -> R:
    """Return a recipe with absolute paths. output: folder below which features are stored by default; None: no default."""
    teachers = tuple(locate(teacher).uri for teacher in recipe.distill.teachers)
    return dataclasses.replace(
        recipe,
        model=_absolute_weights(recipe.model),
        loader=dataclasses.replace(recipe.loader, cache=recipe.loader.cache_options().cache),
        probe=_stored_features(recipe.probe, recipe.probe.head != "none", output),
        distill=_stored_features(dataclasses.replace(recipe.distill, teachers=teachers), bool(teachers), output),
    )


def _absolute_weights(model: ModelConfig) -> ModelConfig:
    """Return a model's config with an absolute path of its start weights. A name does not change."""
    if model.weights is None or "://" in model.weights or not Path(model.weights).expanduser().is_file():
        return model
    return dataclasses.replace(model, weights=locate(model.weights).uri)


def _stored_features(config: F, used: bool, output: str | None) -> F:
    """Return a config with the absolute path of its features. used: whether it has features, so that it needs the default."""
    if config.features is not None:
        return dataclasses.replace(config, features=locate(config.features).uri)
    if not used or output is None:
        return config
    return dataclasses.replace(config, features=(locate(output) / FEATURES).uri)


def _fit_here(config: TrainConfig, dataset: PackedDataset, run: Location) -> None:
    if resolve_stream(config.loader, 1).stream == "ray":
        from landmark.runtime import connect

        connect(config.cluster)
    session = LocalSession(run, config, print)
    try:
        profiler = step_profiler(config.profile_steps, run, session.rank, print)
        with memory_errors(config), ray_errors():
            fit(
                config,
                dataset,
                session,
                show=print,
                checkpoint=config.checkpoint,
                profiler=profiler,
                limit_s=config.limit_s,
            )
        session.store.close()
    finally:
        session.close()


def _fit_workers(config: TrainConfig, run: Location) -> None:
    from landmark.runtime import connect
    from landmark.training.distributed.capacity import check_capacity, effective_workers
    from landmark.training.distributed.ray_train import fit_workers

    connect(config.cluster)
    config = dataclasses.replace(config, workers=effective_workers(config.workers, [config.loader]))
    check_capacity(config)
    with ray_errors():  # Ray may kill its own controller of the run, also for lack of memory
        resuming(lambda: fit_workers(config, run, shown=True))


def _with_recorded_settings(config: TrainConfig) -> TrainConfig:
    """Return the config with the subset rule and the measured batch size with which a run of the same name started."""
    before = recorded_config(locate(config.output) / config.name)
    if before is None:
        return config
    subset, note = resumed_subset(config.subset, before.subset)
    if note:
        print(f"note: {config.name}: {note}", flush=True)
    config = dataclasses.replace(config, subset=subset)
    store = CheckpointStore(locate(config.output) / config.name, config.monitor, config.monitor_mode())
    if not config.auto_batch_size or store.path("last") is None:
        return config
    loader = dataclasses.replace(config.loader, batch_size=before.loader.batch_size)
    return dataclasses.replace(config, loader=loader, auto_batch_size=False)
