"""A study: all trials of a space by Ray Tune, then the leaderboard and the best model on the test split."""

import dataclasses
import logging
import math
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from ray import tune

from landmark.config import TuneConfig, UserError, to_mapping, to_yaml
from landmark.data.dataset import PackedDataset
from landmark.data.selection import open_dataset
from landmark.runtime import connect
from landmark.search.leaderboard import (
    Standing,
    rank_trials,
)
from landmark.search.progress import LiveTable
from landmark.search.record import StudyRecord
from landmark.search.schedulers import BudgetStopper, build_scheduler
from landmark.search.space import Space, TrialPlan
from landmark.search.trial import TUNE_FOLDER, run_trial, trial_values
from landmark.storage import Location, check_writable, locate
from landmark.training.distributed import gpus_per_worker
from landmark.training.resources import head_resource, need_of, room_for
from landmark.training.run import absolute_weights

WORST = {"max": 0.0, "min": 1e9}
"""What a failed trial reports as its metric."""


@dataclass(kw_only=True, frozen=True)
class Study:
    """A study that is checked and ready to run."""

    config: TuneConfig
    space: Space
    plans: list[TrialPlan]
    """Trials to run."""
    epochs_grid: int
    """Epochs of all of the space's trials, each run to its end."""
    datasets: dict[str | None, PackedDataset]
    """Datasets by the names that trials have for them; None: the study's."""
    location: Location
    """Its folder."""


@dataclass(kw_only=True, frozen=True)
class Outcome:
    """What the trials of a study came to."""

    record: StudyRecord
    standings: list[Standing]
    """The trials that started, best first."""
    seconds: float
    """Wall time from the start to the last trial's end."""
    interrupted: bool
    """Whether the user ended it."""

    @property
    def best(self) -> Standing | None:
        """The best trial that did not fail."""
        return next((s for s in self.standings if s.rank == 1 and s.checkpoint is not None), None)


def plan_study(config: TuneConfig) -> Study:
    """Check all that can be checked without a cluster; raises UserError for the first mistake."""
    space = Space.load(config.space)
    plans = space.trials(config.recipe)
    epochs_grid = sum(plan.recipe.epochs for plan in plans)
    plans = plans[: space.config.budget.trials]
    build_scheduler(space.config.scheduler, max(plan.recipe.epochs for plan in plans))
    datasets = open_datasets(config, space, plans)
    location = locate(config.output) / config.name
    if (location / "config.yaml").exists():
        raise UserError(f"{location}: a study of this name is there; choose another --name, or delete that folder")
    check_writable(location)
    return Study(config=config, space=space, plans=plans, epochs_grid=epochs_grid, datasets=datasets, location=location)


def open_datasets(config: TuneConfig, space: Space, plans: list[TrialPlan]) -> dict[str | None, PackedDataset]:
    """Open every dataset that a trial names: by --datasets, as a path or URI, or the study's own."""
    names = dict.fromkeys(plan.dataset for plan in plans)
    unknown = [name for name in names if name is not None and name not in config.datasets and "/" not in name]
    if unknown:
        missing = " ".join(f"{name} FOLDER-OR-URI" for name in unknown)
        raise UserError(f"{space.source}: trials name the datasets {', '.join(unknown)}; add --datasets {missing}")
    splits = ("train", "val", "test") if config.test != "none" else ("train", "val")
    opened = {}
    for name in names:
        uri = config.dataset if name is None else config.datasets.get(name, name)
        opened[name] = open_dataset(uri, config.subset, config.subset_seed)
        for split in splits:
            opened[name].split(split)
    return opened


def run_trials(study: Study) -> Outcome:
    """Run the trials of a study, showing a table of them as they go."""
    start = time.monotonic()
    config, space = study.config, study.space.config
    connect(config.cluster)
    slots = concurrent_trials(study)
    (study.location / "config.yaml").write_text(to_yaml(config))
    (study.location / "space.yaml").write_text(study.space.text)
    print(
        f"{config.name}: {len(study.plans)} trials, {slots} at a time, "
        f"{study.epochs_grid} epochs in a full grid, scheduler {space.scheduler.name}",
        file=sys.stderr,
        flush=True,
    )
    record = StudyRecord(study.plans)
    table = LiveTable(config.name, record, space.metric, space.mode())
    stopper = BudgetStopper(space.budget)
    _tuner(study, slots, [record, table], stopper).fit()
    table.clear()
    unfinished = any(trial.state != "ended" for trial in record.trials.values())
    return Outcome(
        record=record,
        standings=rank_trials(record, space.metric, space.mode(), lambda path: _kept(study.location, path)),
        seconds=time.monotonic() - start,
        interrupted=unfinished and not stopper.stop_all(),
    )


def concurrent_trials(study: Study) -> int:
    """Return how many trials run at a time; raises UserError where there is no room for one and its readers."""
    most = min(len(study.plans), study.config.max_concurrent or len(study.plans))
    needs = {need_of(study.config.workers, plan.recipe.loader) for plan in study.plans}
    return min(room_for(need, "a trial", most) for need in needs)


def _tuner(study: Study, slots: int, callbacks: list[tune.Callback], stopper: BudgetStopper) -> tune.Tuner:
    """Return the tuner: every trial is known, so that Ray Tune's own search is a list."""
    _quiet_tune()
    config, space = study.config, study.space.config
    trials = [
        trial_values(
            dataclasses.replace(
                plan, recipe=dataclasses.replace(plan.recipe, model=absolute_weights(plan.recipe.model))
            ),
            study.datasets[plan.dataset],
            study.location,
        )
        for plan in study.plans
    ]
    local = study.location.local_path()
    return tune.Tuner(
        tune.with_resources(run_trial, _placement(study, slots)),
        param_space={
            "trial": tune.grid_search(trials),
            "workers": to_mapping(config.workers),
            "metric": space.metric,
            "worst": WORST[space.mode()],
        },
        tune_config=tune.TuneConfig(
            metric=space.metric,
            mode=space.mode(),
            scheduler=build_scheduler(space.scheduler, max(plan.recipe.epochs for plan in study.plans)),
            # A process that trains alone serves the next trial: no start, no imports. A run of several
            # workers is ended by ending its coordinator.
            reuse_actors=config.workers.in_process,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=str(local) if local else study.location.path,
            storage_filesystem=None if local else study.location.fs,
            stop=stopper,
            failure_config=tune.FailureConfig(max_failures=config.workers.max_failures),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=space.metric, checkpoint_score_order=space.mode()
            ),
            callbacks=callbacks,
            verbose=0,
        ),
    )


def _placement(study: Study, slots: int) -> tune.PlacementGroupFactory:
    """Return what a trial reserves: its process's CPUs and GPUs, and its share of the slots where these are limited."""
    workers = study.config.workers
    share = {head_resource(): math.floor(1e4 / slots) / 1e4}
    if not workers.in_process:  # Ray Train reserves what the workers need by itself
        return tune.PlacementGroupFactory([{"CPU": 0.0, **share}])
    gpus = gpus_per_worker(workers.gpus)
    process = {"CPU": workers.cpus} | ({"GPU": gpus} if gpus else {})
    by_ray = any(plan.recipe.loader.stream == "ray" for plan in study.plans)
    limited = by_ray or study.config.max_concurrent is not None
    return tune.PlacementGroupFactory([process, share] if limited else [process])


def _trial_name(trial: Any) -> str:
    return trial.config["trial"]["name"]


def _quiet_tune() -> None:
    """Keep Ray Tune from printing beside our table; what fails is in the table."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def _kept(study: Location, path: str) -> str | None:
    """Return a checkpoint's path below the study, or None if it was deleted."""
    below = path.removeprefix(study.path.rstrip("/") + "/")
    return below if (study / below / "meta.json").exists() else None
