"""`landmark report`: writes a page and tables for a study or run, or compares a study with the reference study."""

import json

from landmark.checkpoints.format import INDEX
from landmark.config import ReportConfig, UserError, mask_credentials
from landmark.reporting.report import write_reference, write_report
from landmark.reporting.study.reference_study import reference_text
from landmark.reporting.tables import as_text, read_csv
from landmark.search.state.snapshot import driver_of, is_study, write_snapshot
from landmark.storage import Location, NotFound, check_writable, locate
from landmark.training.resume import recorded_config

SNAPSHOT = "snapshot"
"""Subfolder of the report with the files of a study or run that has not finished."""


def report(config: ReportConfig) -> Location:
    """Write the report, print the summary and the location; returns the location of the page or summary."""
    run = locate(str(config.run or config.reference))
    output = locate(config.output) if config.output else run / "report"
    if run.exists():
        check_writable(output)
    if config.reference:
        place, table = write_reference(run, output)
        print(reference_text(table))
        print(f"reference: {place}")
        return place
    page = write_report(_as_now(run, output), output, cleaned=config.cleaned, price_per_hour=config.price_per_hour)
    if (output / "model_summary.csv").exists():
        summary = read_csv(output / "model_summary.csv")
        print(as_text(summary, ["val_top1", "test_top1", "test_top5", "test_top10"]))
    print(f"report: {page}")
    return page


def _as_now(run: Location, output: Location) -> Location:
    """Return the folder that the report reads: the run's own, or a snapshot if the run has not finished."""
    if is_study(run):
        if (run / "study.json").exists() and driver_of(run) is None:
            return run
        summary = write_snapshot(run, output / SNAPSHOT)
        print(
            f"note: {run} has not finished: {summary['epochs_run']} of {summary['epochs_grid']} epochs; the report shows its current state"
        )
        return output / SNAPSHOT
    if (run / "run.json").exists() or (before := recorded_config(run)) is None:
        return run
    try:
        index = json.loads((run / INDEX).read_text())
        history = (run / "history.csv").read_bytes()
    except (NotFound, json.JSONDecodeError):
        raise UserError(f"{run}: no epoch is complete yet; try again later") from None
    if not index.get("metrics"):
        raise UserError(f"{run}: no epoch is complete yet; try again later")
    epochs = history.count(b"\n") - 1
    values = {"name": before.name, "dataset": before.dataset, "best": index["metrics"], "epochs_run": epochs}
    for name, data in (
        ("history.csv", history),
        ("config.yaml", (run / "config.yaml").read_bytes()),
        ("run.json", mask_credentials(json.dumps(values, indent=1)).encode()),
    ):
        (output / SNAPSHOT / name).write_bytes(data)
    of = f" epochs of {before.length}" if before.limit_s else f" of {before.length}"
    print(f"note: {run} has not finished: {epochs}{of}; the report shows its current state")
    return output / SNAPSHOT
