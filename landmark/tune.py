"""`landmark tune`: a study, that is many trials, early stopping and a leaderboard."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from landmark.cli import end, run_verb, take_option
from landmark.config import (
    STOPPED,
    Recipe,
    Stopped,
    TuneConfig,
    UserError,
    from_mapping,
    load_yaml,
    parse_mapping,
    to_mapping,
)
from landmark.config.text import read_text
from landmark.progress import clock
from landmark.recipes import merged
from landmark.runtime import connect
from landmark.search.dry_run import dry_run_text
from landmark.search.leaderboard import leaderboard_text
from landmark.search.lease import Lease
from landmark.search.loggers import check_loggers
from landmark.search.proposals import preview
from landmark.search.results import write_results
from landmark.search.space import Space
from landmark.search.study import Study, plan_study, room_of, run_trials
from landmark.training.distributed import gpus_per_worker

SPACE = "demo"


def tune(config: TuneConfig) -> dict[str, Any]:
    """Search a space, and say what was found and where it lies; a study that is there already goes on."""
    check_loggers(config)
    study = plan_study(config)
    if config.dry_run:
        print(dry_run(study))
        return {}
    with Lease(study.location) as lease:
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
    print(f"study: {study.location}  next: landmark report --run {study.location}")
    return summary


def dry_run(study: Study) -> str:
    """Return what a study would run and what it may cost, on the cluster it would run on."""
    connect(study.config.cluster)
    room = room_of(study)
    return dry_run_text(
        study.space,
        preview(study.proposals),
        study.datasets,
        workers=room.workers.most,
        resources=room.requires(),
        at_a_time=room.slots,
        gpu=gpus_per_worker(room.workers.gpus) > 0,
    )


def outcome_line(summary: dict[str, Any]) -> str:
    """Return what the study did and what it saved."""
    run, grid = summary["epochs_run"], summary["epochs_grid"]
    not_started = f", {summary['not_started']} not started" if summary["not_started"] else ""
    repeated = f" ({summary['epochs_repeated']} of them again)" if summary["epochs_repeated"] else ""
    ended_by = f"; ended as {summary['ended_by']}" if summary["ended_by"] else ""
    return (
        f"{summary['finished']} trials finished, {summary['stopped_early']} stopped early, {summary['failed']} failed"
        f"{not_started}; {run}{repeated} of a full grid's {grid} epochs ({run / grid:.0%}) in {clock(summary['seconds'])}{ended_by}"
    )


def best_line(summary: dict[str, Any]) -> str:
    """Return the best model's results beside the baselines."""
    best, metric = summary["best"], summary["metric"]
    text = f"best: {best['trial']} at epoch {best['epoch']}, {metric} {best[metric]:.4g}"
    majority = summary["baselines"].get("majority", {})
    tested = [f"top-{k} {share:.1%} (majority {majority[k]:.1%})" for k, share in best["test"].items()]
    return text + (f"; test {', '.join(tested)}" if tested else "")


def defaults(recipe: str | None, arguments: Sequence[str]) -> TuneConfig | None:
    """Return the defaults of a command line: what its space says all trials have in common, over the recipe that it names."""
    _, name = take_option(arguments, "--space")
    try:
        space = Space.load(name or SPACE)
    except UserError:
        if name is None:  # --help works where tune_spaces/ is not installed
            return None
        raise
    return TuneConfig(dataset=tyro.MISSING, space=name or SPACE, recipe=space.recipe(recipe))


def configured(file: str, arguments: Sequence[str]) -> TuneConfig:
    """Return the defaults of a command line from a config file: the recipe that it holds, and its space's for other keys.

    A space that the command line names overrides the file: its recipe is merged over the file's, as over any other.
    """
    config = load_yaml(TuneConfig, file)
    _, name = take_option(arguments, "--space")
    if name is not None:
        return dataclasses.replace(config, space=name, recipe=Space.load(name).recipe_over(to_mapping(config.recipe)))
    values = parse_mapping(read_text(Path(file), file), file).get("recipe") or {}
    recipe = merged(to_mapping(Space.load(config.space).recipe()), values)
    return dataclasses.replace(config, recipe=from_mapping(Recipe, recipe, f"{file}: recipe"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit code."""
    return run_verb(TuneConfig, tune, argv, default=defaults, from_file=configured)


if __name__ == "__main__":
    end(main())
