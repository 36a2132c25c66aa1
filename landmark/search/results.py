"""What a study leaves in its folder: leaderboard.csv, history.csv, study.json and the best model's evaluation."""

import itertools
import json
import statistics
from typing import Any

import psutil

from landmark.config import UserError
from landmark.search.leaderboard import TESTED, history_rows, leaderboard_columns, leaderboard_rows, to_csv
from landmark.search.record import METRICS, StudyRecord
from landmark.search.study import Outcome, Study
from landmark.training.evaluation import evaluate_checkpoint, write_evaluation

EVALUATION_FOLDER = "evaluation-test"


def write_results(study: Study, outcome: Outcome) -> dict[str, Any]:
    """Evaluate the best on the test split, write every file, and return what study.json holds.

    Raises UserError, after everything is written, when no trial came through an epoch.
    """
    baselines = evaluate_best(study, outcome)
    keys = study.space.keys
    board = to_csv(leaderboard_rows(outcome.standings, keys), leaderboard_columns(keys))
    (study.location / "leaderboard.csv").write_text(board)
    (study.location / "history.csv").write_text(to_csv(history_rows(outcome.record), ["trial", *METRICS]))
    summary = summarise(study, outcome) | {"baselines": baselines}
    (study.location / "study.json").write_text(json.dumps(summary, indent=1) + "\n")
    if outcome.best is None and not outcome.interrupted:
        raise UserError(why_none(study, outcome))
    return summary


def evaluate_best(study: Study, outcome: Outcome) -> dict[str, Any]:
    """Evaluate on the test split what the config asks for; returns the trivial baselines of the best's dataset."""
    if outcome.interrupted or study.config.test == "none":
        return {}
    baselines: dict[str, Any] = {}
    for standing in outcome.standings:
        if standing.checkpoint is None or standing.rank is None:
            continue
        if standing is not outcome.best and study.config.test == "best":
            break
        recipe, dataset = standing.record.plan.recipe, study.datasets[standing.record.plan.dataset]
        result = evaluate_checkpoint(
            study.location / standing.checkpoint,
            dataset,
            "test",
            TESTED,
            recipe.loader.batch_size,
            damaged=recipe.loader.damaged,
        )
        standing.test = dict(result.topk)
        if standing is outcome.best:
            write_evaluation(result, study.location / EVALUATION_FOLDER)
            baselines = result.baselines
    return baselines


def summarise(study: Study, outcome: Outcome) -> dict[str, Any]:
    """Return what study.json says besides the baselines."""
    metric = study.space.config.metric
    counts = outcome.record.counts()
    best = outcome.best
    return {
        "name": study.config.name,
        "metric": metric,
        "mode": study.space.config.mode(),
        "scheduler": study.space.config.scheduler.name,
        "trials": len(study.plans),
        "finished": counts["finished"],
        "stopped_early": counts["stopped early"],
        "failed": counts["failed"],
        "not_started": counts["not started"],
        "interrupted": outcome.interrupted,
        "epochs_run": outcome.record.epochs_run,
        "epochs_grid": study.epochs_grid,
        "seconds": round(outcome.seconds, 2),
        "best": {
            "trial": best.record.plan.name,
            "parameters": best.record.plan.parameters,
            metric: best.best[metric],
            "epoch": best.best_epoch,
            "checkpoint": best.checkpoint,
            "test": {str(k): share for k, share in best.test.items()},
        }
        if best is not None
        else None,
        "dataset": study.config.dataset,
        "timing": timing(outcome.record),
    }


def timing(record: StudyRecord) -> dict[str, Any]:
    """Return when the first step was and how long processes stood still between trials.

    first_step_at is a unix time; first_step_s counts from the study's start, command_to_first_step_s from the start
    of this process, imports and the start of Ray included. between_trials_s counts from a trial's last report to the
    next one's first step in the same process, over trials that did not pause.
    """
    stepped = [trial for trial in record.trials.values() if trial.first_step_at and trial.last_report_at]
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


def why_none(study: Study, outcome: Outcome) -> str:
    """Return why a study has no best model."""
    errors = [trial.error for trial in outcome.record.trials.values() if trial.error]
    if errors:
        return f"{study.location}: all {len(errors)} trials that started failed; the first: {errors[0]}"
    return f"{study.location}: no trial came through an epoch within the space's budget; raise it"
