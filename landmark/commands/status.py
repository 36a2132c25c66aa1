"""`landmark status`: prints the progress of a study or a run."""

import csv
import io
import json
from typing import Any

from landmark.checkpoints.format import INDEX
from landmark.config import ShowConfig, TrainConfig, UserError
from landmark.data.loading.bottleneck import bottleneck, bottleneck_counts, bottleneck_text, counts_text
from landmark.progress import clock
from landmark.search.progress import LiveTable
from landmark.search.state.snapshot import driver_of, is_study, read_study, standings_of
from landmark.storage import Location, NotFound, locate
from landmark.table import aligned
from landmark.training.resume import recorded_config


def status(config: ShowConfig) -> dict[str, Any]:
    """Print the progress and the best result so far of a study or a run; returns both."""
    location = locate(config.run)
    if is_study(location):
        return study_status(location)
    if (before := recorded_config(location)) is None:
        state = "contains neither a study nor a run" if location.exists() else "does not exist"
        raise UserError(f"{config.run}: {state}; give the folder of a study or a run")
    return run_status(location, before)


def study_status(location: Location) -> dict[str, Any]:
    """Print the state, the trials and the best result of a study; returns them."""
    study, record = read_study(location)
    finished, driver = (location / "study.json").exists(), driver_of(location)
    space = study.space.config
    table = LiveTable(study.config.name, record, space.metric, space.mode(), study.proposals.total)
    over = [trial.status() for trial in record.trials.values() if trial.state == "ended"]
    counts = {name.replace(" ", "_"): over.count(name) for name in ("finished", "stopped early", "failed")}
    state = f"running ({driver})" if driver else "finished" if finished else "not running; add --resume to continue it"
    ended = sum(trial.state == "ended" for trial in record.trials.values())
    print(
        f"{study.config.name}: {state}; {ended}/{study.proposals.total} trials ended ({counts['stopped_early']} stopped early, "
        f"{counts['failed']} failed), {record.epochs_run} of {study.epochs_grid} epochs, {clock(record.seconds_before)}"
    )
    if rows := table.table():
        print(rows)
    best = next((standing for standing in standings_of(study, record) if standing.rank == 1 and standing.best), None)
    if best is not None:
        print(
            f"best so far: {best.record.plan.name} at epoch {best.best_epoch}, {space.metric} {best.best[space.metric]:.4g}"
        )
    limits = bottleneck_counts(trial.rows[trial.epochs_run] for trial in record.trials.values() if trial.rows)
    if limits:
        print(f"bottleneck: {counts_text(limits)}")
    return {
        "study": location.uri,
        "state": "running" if driver else "finished" if finished else "stopped",
        "trials": study.proposals.total,
        "trials_ended": ended,
        **counts,
        "epochs_run": record.epochs_run,
        "epochs_grid": study.epochs_grid,
        "bottlenecks": dict(limits),
        "best": {"trial": best.record.plan.name, **best.best} if best is not None else None,
    }


def run_status(location: Location, config: TrainConfig) -> dict[str, Any]:
    """Print the state, the last epochs and the newest checkpoint of a run; returns a summary."""
    rows = _history(location)
    try:
        newest = json.loads((location / INDEX).read_text())
    except (NotFound, json.JSONDecodeError):
        newest = {}
    finished = (location / "run.json").exists()
    state = "finished" if finished else "not finished"
    checkpoint = f"; newest checkpoint: {newest['kept'][0]}" if newest.get("kept") else ""
    epochs = f"{len(rows)} epochs in {config.length}" if config.limit_s else f"{len(rows)} of {config.length}"
    print(f"{location.uri}: {state}, {epochs}{checkpoint}")
    shown = ("epoch", "train_loss", "val_loss", "val_top1", "val_top5", "images_per_s")
    if rows:
        names = [name for name in shown if name in rows[-1]]
        print(aligned([names, *([f"{float(row[name]):.4g}" for name in names] for row in rows[-10:])]))
    last = {name: float(value) for name, value in rows[-1].items() if value} if rows else {}
    if text := bottleneck_text(last):
        print(f"bottleneck: {text}")
    return {
        "run": location.uri,
        "state": state,
        "epochs_run": len(rows),
        "epochs": None if config.limit_s else config.epochs,
        "last_epoch": last or None,
        "bottleneck": bottleneck(last),
    }


def _history(location: Location) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(io.StringIO((location / "history.csv").read_text())))
    except NotFound:
        return []
