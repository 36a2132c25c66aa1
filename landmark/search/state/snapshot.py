"""Snapshot of a study from its journal, while another process runs it or after a crash: status, tables, summary."""

import json
from typing import Any

from landmark.config import (
    SpaceConfig,
    UserError,
    mask_credentials,
    parse_yaml,
)
from landmark.search.results import BestModel, best_of, summarize, write_tables
from landmark.search.resume import recorded_config
from landmark.search.spaces.representatives import representative_specs
from landmark.search.spaces.samplers import ListSampler, build_sampler
from landmark.search.spaces.space import Space
from landmark.search.state.journal import Journal
from landmark.search.state.leaderboard import LeaderboardEntry, rank_trials
from landmark.search.state.state import StudyState
from landmark.search.state.study_lock import StudyLock
from landmark.search.study import Study, StudyResult
from landmark.storage import Location

COPIED = ("config.yaml", "space.yaml")


def is_study(location: Location) -> bool:
    """Return whether a folder contains a study that has started."""
    return (location / "space.yaml").exists()


def read_study(location: Location) -> tuple[Study, StudyState]:
    """Return a study and the record of its trials; raises UserError if its files are missing or corrupt.

    Does not open the datasets.
    """
    config = recorded_config(location)
    if config is None or not is_study(location):
        raise UserError(f"{location}: contains no study; give the folder of a study or a run")
    source, text = f"{location}/space.yaml", (location / "space.yaml").read_text()
    space = Space(parse_yaml(SpaceConfig, text, source), source, text)
    proposals = build_sampler(space, config.recipe, space.config.budget.trials)
    representatives = representative_specs(space, config.recipe, proposals)
    most = max(plan.recipe.epochs for plan in representatives)
    grid = (
        sum(plan.recipe.epochs for plan in representatives)
        if isinstance(proposals, ListSampler)
        else proposals.total * most
    )
    study = Study(
        config=config,
        space=space,
        proposals=proposals,
        representatives=representatives,
        epochs_grid=grid,
        datasets={},
        location=location,
    )
    record = StudyState()
    record.restore(Journal(location).read(), lambda number, point: space.plan(number, point, config.recipe))
    return study, record


def standings_of(study: Study, record: StudyState) -> list[LeaderboardEntry]:
    """Return the trials that have started, best first."""
    space = study.space.config
    return rank_trials(
        record, space.metric, space.mode(), lambda trial: best_of(study, trial), space.searcher.objectives
    )


def write_snapshot(location: Location, folder: Location) -> dict[str, Any]:
    """Write the files of a finished study (study.json, leaderboard.csv, history.csv, configs) for its current state.

    Returns the values of study.json. Raises UserError if no trial has finished an epoch.
    """
    study, record = read_study(location)
    standings = standings_of(study, record)
    first = next((standing for standing in standings if standing.rank is not None and standing.best), None)
    if first is None:
        raise UserError(f"{location}: no trial has finished an epoch yet; try again later")
    best = BestModel(standing=first, checkpoint=location / str(first.checkpoint), metrics=first.best)
    outcome = StudyResult(record=record, seconds=record.seconds_before, ended_by=None, interrupted=True)
    summary = summarize(study, outcome, best)
    for name in COPIED:
        (folder / name).write_bytes((location / name).read_bytes())
    shown = Study(**{**study.__dict__, "location": folder})
    write_tables(shown, outcome, standings)
    (folder / "study.json").write_text(mask_credentials(json.dumps(summary, indent=1)) + "\n")
    return summary


def driver_of(location: Location) -> str | None:
    """Return the process that runs a study now; None if there is none or it cannot be determined."""
    return StudyLock(location).holder()
