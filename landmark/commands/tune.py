"""`landmark tune`: runs a study: many trials, early stopping and a leaderboard."""

import dataclasses
from typing import Any

from landmark.config import STOPPED, Stopped, TuneConfig
from landmark.models import with_hub_model
from landmark.progress import clock
from landmark.runtime import connect
from landmark.search.dry_run import dry_run_text
from landmark.search.loggers import check_loggers
from landmark.search.results import write_results
from landmark.search.spaces.samplers import preview
from landmark.search.state.leaderboard import leaderboard_text
from landmark.search.state.study_lock import StudyLock
from landmark.search.study import Study, plan_study, room_of, run_trials
from landmark.training.distributed.ray_train import gpus_per_worker


def tune(config: TuneConfig) -> dict[str, Any]:
    """Search a space, and print the leaderboard and the best model; an existing study resumes."""
    check_loggers(config)
    model = with_hub_model(config.recipe.model)
    config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, model=model))
    study = plan_study(config)
    if config.dry_run:
        print(dry_run(study))
        return {}
    with StudyLock(study.location) as lease:
        outcome = run_trials(study, lease)
        if outcome.terminated:
            raise Stopped(STOPPED)
        summary, standings = write_results(study, outcome)
    print(leaderboard_text(standings, study.space.keys, study.space.config.metric))
    print(outcome_line(summary))
    if summary["best"]:
        print(best_line(summary))
        print(f"best model: {study.location / summary['best']['checkpoint']}")
    if outcome.interrupted:
        raise KeyboardInterrupt
    print(f"study: {study.location}  next: landmark report {study.location}")
    return summary


def dry_run(study: Study) -> str:
    """Return the trials that a study would run on its cluster, and their estimated cost, as text."""
    connect(study.config.cluster)
    capacity = room_of(study)
    return dry_run_text(
        study.space,
        preview(study.proposals),
        study.datasets,
        workers=capacity.workers.most,
        resources=capacity.requires(),
        at_a_time=capacity.slots(),
        gpu=gpus_per_worker(capacity.workers.gpus) > 0,
    )


def outcome_line(summary: dict[str, Any]) -> str:
    """Return one line with the numbers of trials and epochs of a study."""
    run, grid = summary["epochs_run"], summary["epochs_grid"]
    not_started = f", {summary['not_started']} not started" if summary["not_started"] else ""
    repeated = f" ({summary['epochs_repeated']} repeated)" if summary["epochs_repeated"] else ""
    ended_by = f"; ended because {summary['ended_by']}" if summary["ended_by"] else ""
    return (
        f"{summary['finished']} trials finished, {summary['stopped_early']} stopped early, {summary['failed']} failed"
        f"{not_started}; {run}{repeated} of {grid} epochs of the full grid ({run / grid:.0%}) in {clock(summary['seconds'])}{ended_by}"
    )


def best_line(summary: dict[str, Any]) -> str:
    """Return one line with the best model's metrics and the majority baseline."""
    best, metric = summary["best"], summary["metric"]
    text = f"best: {best['trial']} at epoch {best['epoch']}, {metric} {best[metric]:.4g}"
    majority = summary["baselines"].get("majority", {})
    tested = [f"top-{k} {accuracy:.1%} (majority {majority[k]:.1%})" for k, accuracy in best["test"].items()]
    return text + (f"; test {', '.join(tested)}" if tested else "")
