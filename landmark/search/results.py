"""Result files of a study: leaderboard.csv, history.csv, study.json, the best model and its evaluation."""

import dataclasses
import itertools
import json
import statistics
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray

from landmark.checkpoints.format import MODEL_FILES
from landmark.config import Recipe, Stopped, TrainConfig, UserError, mask_credentials
from landmark.environment import describe_environment
from landmark.runtime import connect
from landmark.search.state.leaderboard import (
    LeaderboardEntry,
    history_rows,
    leaderboard_columns,
    leaderboard_rows,
    rank_trials,
    to_csv,
)
from landmark.search.state.state import METRICS, StudyState, TrialState
from landmark.search.study import Study, StudyResult
from landmark.search.trials.model_tests import ModelTest, result_of, run_tests
from landmark.search.trials.trial import store_of
from landmark.storage import Location, locate
from landmark.training.distributed.capacity import effective_workers
from landmark.training.distributed.ray_train import gpus_per_worker
from landmark.training.observe.run_names import TRIALS
from landmark.training.run import RunResult, run_training

EVALUATION_FOLDER = "evaluation-test"
BEST = "best"
"""Folder of the best model: weights, recipe and metadata."""
RETRAINED = "retrained"
"""Folder of the runs that retrain the best recipe, each named like its trial."""


@dataclass(kw_only=True)
class BestModel:
    """The best model of a study."""

    standing: LeaderboardEntry
    """Its trial."""
    checkpoint: Location
    """Its checkpoint in the folder of the trial or run that trained it."""
    metrics: dict[str, float]
    """Metrics of its epoch."""
    exported: bool = False
    """Whether it is copied to the study's folder BEST."""
    baselines: dict[str, Any] = field(default_factory=dict)
    """Top-k accuracies of trivial baselines on the test split."""


def write_results(study: Study, outcome: StudyResult) -> tuple[dict[str, Any], list[LeaderboardEntry]]:
    """Select the best model, test it and write all files; returns the values of study.json and the leaderboard.

    Raises UserError, after all files are written, if no trial completed an epoch, and Stopped if time ended before.
    """
    space = study.space.config
    standings = rank_trials(
        outcome.record,
        space.metric,
        space.mode(),
        lambda trial: best_of(study, trial),
        space.searcher.objectives,
    )
    write_tables(study, outcome, standings)  # kept even if exporting the best model fails
    best = select_best(study, outcome, standings)
    summary = write_summary(study, outcome, best)  # kept even if the test fails
    if best is not None and not outcome.interrupted:
        add_test_figures(study, best, standings)
        summary = write_summary(study, outcome, best)
    write_tables(study, outcome, standings)
    if best is None and not outcome.interrupted:
        raise (Stopped if outcome.out_of_time else UserError)(no_best_reason(study, outcome))
    return summary, standings


def write_summary(study: Study, outcome: StudyResult, best: BestModel | None) -> dict[str, Any]:
    """Write study.json; returns its values."""
    summary = summarize(study, outcome, best)
    (study.location / "study.json").write_text(mask_credentials(json.dumps(summary, indent=1)) + "\n")
    return summary


def write_tables(study: Study, outcome: StudyResult, standings: list[LeaderboardEntry]) -> None:
    """Write the leaderboard and the history."""
    keys = study.space.keys
    board = to_csv(leaderboard_rows(standings, keys), leaderboard_columns(keys))
    (study.location / "leaderboard.csv").write_text(board)
    history = to_csv(history_rows(outcome.record), ["trial", *METRICS, "reported_at"])
    (study.location / "history.csv").write_text(history)


def best_of(study: Study, trial: TrialState) -> tuple[int, str] | None:
    """Return a trial's best epoch and its checkpoint's path relative to the study; None if no checkpoint is kept."""
    store = store_of(study.location, trial.plan)
    path = store.path("best")
    return None if path is None else (int(store.index["metrics"]["epoch"]), f"{TRIALS}/{trial.plan.name}/{path}")


def select_best(study: Study, outcome: StudyResult, standings: list[LeaderboardEntry]) -> BestModel | None:
    """Select or retrain the best model and export it; returns None if there is no model."""
    standing = next((s for s in standings if s.rank is not None and s.checkpoint is not None), None)
    if standing is None:
        return None
    best = BestModel(standing=standing, checkpoint=study.location / str(standing.checkpoint), metrics=standing.best)
    if outcome.interrupted:
        return best
    if study.config.best == "retrained":
        run = retrain(study, standing)
        best.checkpoint, best.metrics = locate(run.run) / run.best_checkpoint, run.best
    for file in MODEL_FILES:
        (study.location / BEST / file).write_bytes((best.checkpoint / file).read_bytes())
    best.exported = True
    return best


def retrain(study: Study, standing: LeaderboardEntry) -> RunResult:
    """Train a trial's recipe from scratch to its last epoch, or resume that, on the resources of a trial."""
    recipe, dataset, config = standing.record.plan.recipe, study.datasets[standing.record.plan.dataset], study.config
    training = TrainConfig(
        **{field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)},
        dataset=dataset.uri,
        subset=dataset.subset,
        subset_seed=dataset.subset_seed,
        output=(study.location / RETRAINED).uri,
        name=standing.record.plan.name,
        resume=(study.location / RETRAINED / standing.record.plan.name / "config.yaml").exists(),
        workers=config.workers,
        cluster=config.cluster,
    )
    if not config.workers.in_process:
        return run_training(training)
    connect(config.cluster)  # not connected yet if all trials had ended before
    workers = effective_workers(config.workers, [recipe.loader])
    task = ray.remote(num_cpus=workers.reserved_cpus, num_gpus=gpus_per_worker(workers.gpus))(run_training)
    return result_of(task.remote(training), f"training of {training.output}/{training.name}")


def add_test_figures(study: Study, best: BestModel, standings: list[LeaderboardEntry]) -> None:
    """Test the best model and, with `test: all`, the models of all other ranked trials; stores top-k accuracies."""
    if study.config.test == "none":
        return
    chosen = [best.standing]
    if study.config.test == "all":
        chosen += [s for s in standings if s.checkpoint is not None and s.rank is not None and s is not best.standing]
    tests = []
    for standing in chosen:
        plan, whole = standing.record.plan, standing is best.standing
        folder = study.location / (EVALUATION_FOLDER if whole else f"{TRIALS}/{plan.name}/test")
        checkpoint = best.checkpoint if whole else study.location / str(standing.checkpoint)
        tests.append(ModelTest.of(checkpoint, study.datasets[plan.dataset], plan.recipe.loader, folder, whole=whole))
    found = run_tests(tests, study.config.workers, study.config.cluster)
    for standing, result in zip(chosen, found, strict=True):
        standing.test = {int(k): accuracy for k, accuracy in result["topk"].items()}
    best.baselines = found[0]["baselines"]


def summarize(study: Study, outcome: StudyResult, best: BestModel | None) -> dict[str, Any]:
    """Return the values of study.json."""
    record, space = outcome.record, study.space.config
    counts = record.counts()
    return {
        "name": study.config.name,
        "metric": space.metric,
        "mode": space.mode(),
        "scheduler": space.scheduler.name,
        "searcher": space.searcher.name,
        "objectives": space.searcher.objectives or [space.metric],
        "parameters": study.space.keys,
        "trials": study.proposals.total,
        "finished": counts["finished"],
        "stopped_early": counts["stopped early"],
        "failed": counts["failed"],
        "not_started": study.proposals.total - len(record.trials) + counts["not started"],
        "interrupted": outcome.interrupted,
        "ended_by": outcome.ended_by,
        "out_of_time": outcome.out_of_time,
        "epochs_run": record.epochs_run,
        "epochs_repeated": record.epochs_repeated,
        "epochs_grid": study.epochs_grid,
        "drivers": record.drivers,
        "seconds": round(outcome.seconds, 2),
        "best": _best_values(best, space.metric),
        "baselines": best.baselines if best is not None else {},
        "exploits": [dataclasses.asdict(exploit) for exploit in record.exploits],
        "dataset": study.config.dataset,
        "timing": timing(record),
        "environment": describe_environment(),
    }


def _best_values(best: BestModel | None, metric: str) -> dict[str, Any] | None:
    if best is None:
        return None
    plan = best.standing.record.plan
    return {
        "trial": plan.name,
        "parameters": plan.parameters,
        metric: best.metrics[metric],
        "epoch": int(best.metrics["epoch"]),
        "checkpoint": BEST if best.exported else str(best.standing.checkpoint),
        "trained_at": str(best.checkpoint),
        "test": {str(k): accuracy for k, accuracy in best.standing.test.items()},
    }


def timing(record: StudyState) -> dict[str, Any]:
    """Return the time of the first step and the idle time of processes between trials.

    first_step_at is a unix time. first_step_s counts from the study's start, and command_to_first_step_s from the start of
    this process, including imports and the start of Ray. between_trials_s counts from a trial's last report to the first
    step of the next trial in the same process, over trials that did not pause.
    """
    stepped = [trial for trial in record.trials.values() if trial.first_step_at and trial.last_report_at]
    stepped = [trial for trial in stepped if (trial.first_step_at or 0.0) >= record.started_at]
    if not stepped:
        return {}
    first = min(trial.first_step_at or 0.0 for trial in stepped)
    stepped.sort(key=lambda trial: (trial.process, trial.first_step_at or 0.0))
    gaps = [
        (after.first_step_at or 0.0) - (before.last_report_at or 0.0)
        for before, after in itertools.pairwise(stepped)
        if before.process == after.process and (after.first_step_at or 0.0) > (before.last_report_at or 0.0)
    ]
    between = {"median": round(statistics.median(gaps), 3), "max": round(max(gaps), 3)} if gaps else None
    return {
        "first_step_at": first,
        "first_step_s": round(first - record.started_at, 2),
        "command_to_first_step_s": round(first - psutil.Process().create_time(), 2),
        "processes": len({trial.process for trial in stepped}),
        "between_trials_s": between,
    }


def no_best_reason(study: Study, outcome: StudyResult) -> str:
    """Return why a study has no best model."""
    errors = [trial.error for trial in outcome.record.trials.values() if trial.error]
    if errors:
        return f"{study.location}: all {len(errors)} trials that started failed; the first: {errors[0]}"
    return f"{study.location}: no trial completed an epoch within the space's budget; increase the budget"
