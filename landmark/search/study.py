"""Planning and running of a study: checks before the start, and running or resuming its trials with Ray Tune."""

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune import TuneError

from landmark.config import (
    Recipe,
    TuneConfig,
    UserError,
    to_mapping,
    to_stored_yaml,
)
from landmark.data.dataset import PackedDataset
from landmark.data.subset_view import open_dataset
from landmark.progress import is_quiet
from landmark.runtime import connect
from landmark.search.budget import BudgetStopper
from landmark.search.import_path import preserved_generators
from landmark.search.loggers import logger_callbacks
from landmark.search.pbt import Population, changeable
from landmark.search.progress import LiveTable
from landmark.search.resume import DATASETS, absolute, check_same_study, content_ids, with_recorded_settings
from landmark.search.schedulers.build import build_scheduler, check_scheduler
from landmark.search.schedulers.study_scheduler import StudyScheduler
from landmark.search.searcher import Proposals, StudyCallback, StudySearcher
from landmark.search.spaces.representatives import different_schedules, most_demanding, representative_specs
from landmark.search.spaces.samplers import ListSampler, Sampler, build_sampler
from landmark.search.spaces.space import Space, TrialSpec
from landmark.search.state.journal import Journal
from landmark.search.state.state import StudyState, TrialState
from landmark.search.state.study_lock import StudyLock
from landmark.search.termination import Termination
from landmark.search.trials.capacity import StudyCapacity, find_capacity
from landmark.search.trials.resource_estimates import trial_memory
from landmark.search.trials.shared_cache import planes_too_large
from landmark.search.trials.trial import TrialProcess, exploit_values, trial_values
from landmark.search.trials.trial_metrics import TrialStateMetrics
from landmark.search.waiting import WaitingNotice
from landmark.storage import Location, check_writable, locate
from landmark.training.distributed.backends import check_backend
from landmark.training.probe.teacher import check_teachers
from landmark.training.run import absolute_recipe

TUNE_FOLDER = "ray"
"""Prefix of the study's folders for Ray Tune and its loggers: one folder per driver process."""


@dataclass(kw_only=True, frozen=True)
class Study:
    """A validated study, ready to run."""

    config: TuneConfig
    space: Space
    proposals: Sampler
    """The source of its trials."""
    representatives: list[TrialSpec]
    """All trials of a list; for proposals, one representative per combination that `representative_specs` describes."""
    epochs_grid: int
    """Total epochs if every trial of the space ran to its end."""
    datasets: dict[str | None, PackedDataset]
    """Dataset by the name that trials use; None is the study's own. The best model is tested on these."""
    location: Location
    """The study's folder."""
    caches_jpegs: bool = False
    """Whether trials cache JPEGs, because the decoded images of all trials do not fit into their cache."""

    @property
    def max_epochs(self) -> int:
        """Maximum number of epochs of any trial."""
        return max(plan.recipe.epochs for plan in self.representatives)


@dataclass(kw_only=True, frozen=True)
class StudyResult:
    """The result of running a study's trials."""

    record: StudyState
    seconds: float
    """Wall time of all driver processes, until the last trial ended."""
    ended_by: str | None
    """Description of the budget or target that ended the study; None if all trials ended."""
    interrupted: bool
    """Whether the user interrupted the study."""
    terminated: bool = False
    """Whether SIGTERM ended the study."""
    out_of_time: bool = False
    """Whether the budget of wall time ended the study before all trials ended."""


def plan_study(config: TuneConfig) -> Study:
    """Check everything that can be checked without a cluster; raises UserError for the first mistake."""
    space = Space.load(config.space, config.space_changes())
    proposals = build_sampler(space, config.recipe, space.config.budget.trials)
    listed = isinstance(proposals, ListSampler)
    representatives = representative_specs(space, config.recipe, proposals)
    for plan in representatives:
        check_backend(config.workers, plan.recipe.compute)
    max_epochs = max(plan.recipe.epochs for plan in representatives)
    check_scheduler(space.config.scheduler, space.config.metric, space.config.mode(), max_epochs)
    if (warning := different_schedules(space, representatives)) is not None:
        print(warning, file=sys.stderr, flush=True)
    if space.config.scheduler.name == "pbt":
        changeable(space)
    location = locate(config.output) / config.name
    config = with_recorded_settings(config, location)
    datasets = open_datasets(config, space, [plan.dataset for plan in representatives])
    for recipe, name in {(plan.recipe, plan.dataset) for plan in representatives if plan.recipe.distill.teachers}:
        check_teachers(recipe, datasets[name])
    if not config.dry_run:
        check_writable(location)
    check_same_study(location, config, space, datasets)
    return Study(
        config=config,
        space=space,
        proposals=proposals,
        representatives=representatives,
        epochs_grid=sum(plan.recipe.epochs for plan in representatives) if listed else proposals.total * max_epochs,
        datasets=datasets,
        location=location,
    )


def open_datasets(config: TuneConfig, space: Space, names: Iterable[str | None]) -> dict[str | None, PackedDataset]:
    """Open every dataset that a trial names: a name of --datasets, a path or URI, or the study's own."""
    names = dict.fromkeys(names)
    unknown = [name for name in names if name is not None and name not in config.datasets and "/" not in name]
    if unknown:
        missing = " ".join(f"{name} FOLDER-OR-URI" for name in unknown)
        raise UserError(f"{space.source}: trials use the datasets {', '.join(unknown)}; add --datasets {missing}")
    splits = ("train", "val", "test") if config.test != "none" else ("train", "val")
    opened = {}
    for name in names:
        uri = config.dataset if name is None else config.datasets.get(name, name)
        opened[name] = open_dataset(uri, config.subset, config.subset_seed)
        for split in splits:
            opened[name].split(split)
    return opened


def run_trials(study: Study, lease: StudyLock) -> StudyResult:
    """Run the trials of a study, or those that an earlier process left unfinished, and show a live table.

    lease: the held lease of the study. Raises UserError if another process takes the study over.
    """
    space, termination = study.space.config, Termination()
    journal = Journal(study.location, lambda: lease.lost)
    record = StudyState(journal)
    rule = build_scheduler(
        record,
        space.scheduler,
        space.metric,
        space.mode(),
        max_epochs=study.max_epochs,
        seed=space.seed,
        exploit=Population(study.space, study.config.recipe, record).exploit,
    )
    proposals = Proposals(record, study.proposals, space.metric, space.mode())

    def observe(event: Mapping[str, Any]) -> None:
        rule.replay(event)
        proposals.replay(event)

    with preserved_generators():
        record.restore(
            journal.read(), lambda number, point: study.space.plan(number, point, study.config.recipe), observe
        )
    rule.restore()
    scheduler = StudyScheduler(record, rule)
    if study.config.retry_failed:
        print(
            f"{study.config.name}: {scheduler.retry_failed()} failed trials will run again", file=sys.stderr, flush=True
        )
    stopper = BudgetStopper(space.budget, record, space.metric, space.mode(), lambda: lease.lost)
    left = any(trial.state != "ended" for trial in record.trials.values()) or len(record.trials) < study.proposals.total
    if left and not stopper.stop_all():
        _run(study, scheduler, proposals, stopper, termination)
    lease.check()
    seconds, reason = stopper.seconds(), stopper.reason()
    record.flush(final=True)
    open_ones = [trial for trial in record.trials.values() if trial.state != "ended"]
    all_started = len(record.trials) == study.proposals.total
    out_of_time = stopper.out_of_time() and (bool(open_ones) or not all_started)
    for trial in open_ones if reason else []:
        trial.state = "ended"  # only in this process: with a larger budget they resume
    interrupted = bool(open_ones) and not reason
    terminated = interrupted and termination.requested
    return StudyResult(
        record=record,
        seconds=seconds,
        ended_by=reason,
        interrupted=interrupted,
        terminated=terminated,
        out_of_time=out_of_time,
    )


def _run(
    study: Study, scheduler: StudyScheduler, proposals: Proposals, stopper: BudgetStopper, termination: Termination
) -> None:
    config, space, record = study.config, study.space.config, scheduler.record
    connect(config.cluster)
    capacity = room_of(study)
    if (note := planes_too_large(study.representatives, study.datasets)) is not None:
        print(note, file=sys.stderr, flush=True)
        study = dataclasses.replace(study, caches_jpegs=True)
    (study.location / "config.yaml").write_text(to_stored_yaml(absolute(config)))
    (study.location / "space.yaml").write_text(study.space.text)
    (study.location / DATASETS).write_text(json.dumps(content_ids(study.datasets), indent=1) + "\n")
    # All processes start at once. No trial is submitted in advance: Ray Tune would start a process for it and wait for that
    # process at the end.
    queue = StudySearcher(scheduler.rule, proposals, lambda trial: values_of(study, trial), capacity.slots)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(capacity.slots.most)
    if not is_quiet():
        print(_headline(study, record, capacity.slots()), file=sys.stderr, flush=True)
    scheduler.begin(study.proposals.total)
    if space.scheduler.name == "pbt":
        queue.propose_all()
    record.flush()
    table = LiveTable(config.name, record, space.metric, space.mode(), study.proposals.total)
    states = TrialStateMetrics(config.name, record, study.proposals.total)
    loggers = logger_callbacks(config, study.location / _tune_folder(record), table.say)
    waiting = WaitingNotice(record, capacity.requires(), in_process=config.workers.in_process, say=table.say)
    callbacks = [StudyCallback(scheduler), table, states, waiting, *loggers]
    tuner = _tuner(study, capacity, scheduler, queue, callbacks, stopper)
    try:
        with termination.ends_tune():
            tuner.fit()
    except TuneError as error:
        raise _user_error(error) or error from None
    states.tell()
    table.clear()


def _user_error(error: BaseException | None) -> UserError | None:
    """Return the UserError for which Ray Tune raised an error, such as one in the user's scheduler; None if there is none."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _headline(study: Study, record: StudyState, slots: int) -> str:
    text = (
        f"{study.config.name}: {study.proposals.total} trials, {slots} at a time, {study.epochs_grid} epochs in a full grid, "
        f"scheduler {study.space.config.scheduler.name}"
    )
    if not record.trials:
        return text
    ended = sum(trial.state == "ended" for trial in record.trials.values())
    return f"{text}; resuming after {record.epochs_run} epochs, {ended} trials ended"


def room_of(study: Study) -> StudyCapacity:
    """Return the capacity of the connected cluster for the study's trials; raises UserError if no trial fits."""
    classes = max(dataset.num_classes for dataset in study.datasets.values())
    config = study.config

    def memory(recipe: Recipe) -> int:
        return trial_memory(recipe, classes, config.workers.most)

    recipes = [plan.recipe for plan in study.representatives]
    if not isinstance(study.proposals, ListSampler):
        recipes.append(most_demanding(study.space, config.recipe, memory))
    return find_capacity(config.workers, recipes, classes, study.proposals.total, config.max_concurrent)


def values_of(study: Study, trial: TrialState) -> dict[str, Any]:
    """Return the values that Ray Tune passes to a trial's process, including a planned exploit."""
    values = _values(study, trial.plan)
    if trial.planned is not None:
        exploit, after = trial.planned.exploit, _values(study, trial.planned.plan)
        values["exploit"] = exploit_values(exploit, after, study.location)
    return values


def _values(study: Study, plan: TrialSpec) -> dict[str, Any]:
    recipe = absolute_recipe(plan.recipe, study.config.output)
    if study.caches_jpegs:
        recipe = dataclasses.replace(recipe, loader=dataclasses.replace(recipe.loader, cache_format="jpeg"))
    return trial_values(dataclasses.replace(plan, recipe=recipe), study.datasets[plan.dataset], study.location)


def _tuner(
    study: Study,
    capacity: StudyCapacity,
    scheduler: StudyScheduler,
    queue: StudySearcher,
    callbacks: list[tune.Callback],
    stopper: BudgetStopper,
) -> tune.Tuner:
    """Return the tuner. Ray Tune starts and monitors the processes; our queue and scheduler decide what runs."""
    _quiet_tune()
    config = study.config
    local = study.location.local_path()
    return tune.Tuner(
        tune.with_resources(TrialProcess, capacity.placement),
        param_space={"workers": to_mapping(capacity.workers)},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            search_alg=queue,
            num_samples=-1,
            # The process of a single-process trial is reused for the next trial, which saves its start and imports.
            # The coordinator of a trial of several workers is not reused: ending it ends the workers.
            reuse_actors=config.workers.in_process,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=_tune_folder(scheduler.record),
            storage_path=str(local) if local else study.location.path,
            storage_filesystem=None if local else study.location.fs,
            stop=stopper,
            failure_config=tune.FailureConfig(max_failures=config.workers.max_failures),
            callbacks=callbacks,
            verbose=0,
        ),
    )


def _tune_folder(record: StudyState) -> str:
    return f"{TUNE_FOLDER}-{record.drivers:03d}"


def _trial_name(trial: Any) -> str:
    return trial.config["trial"]["name"]


def _quiet_tune() -> None:
    """Keep Ray Tune from printing next to our table and from writing its own logs; the table shows failures."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "1e9"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
