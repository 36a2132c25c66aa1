"""The report of a study or a run: its page and its tables."""

import pandas as pd

from landmark.config import UserError
from landmark.reporting.page import Page, Section, embedded, render
from landmark.reporting.plots import curves_png
from landmark.reporting.sections import evaluation_sections, table_of
from landmark.reporting.study_page import study_page
from landmark.reporting.tables import read_csv, read_json
from landmark.storage import Location


def write_report(run: Location, output: Location) -> Location:
    """Write the page and tables of a study or run into a folder; returns the page's place."""
    if (run / "study.json").exists():
        page = study_page(run, output)
    elif (run / "run.json").exists():
        page = run_page(run)
    else:
        state = (
            "holds neither study.json nor run.json: it has not come to its end" if run.exists() else "does not exist"
        )
        raise UserError(f"{run}: {state}; give the folder of a study or a run")
    place = output / "index.html"
    place.write_text(render(page))
    return place


def run_page(run: Location) -> Page:
    """Return a single run's page."""
    values = read_json(run / "run.json")
    history = read_csv(run / "history.csv")
    best = values["best"]
    curves = {name: _points(history, name) for name in ("train_top1", "val_top1", "val_top5") if name in history}
    losses = {name: _points(history, name) for name in ("train_loss", "val_loss") if name in history}
    return Page(
        title=f"Run {values['name']}",
        subtitle=str(values["dataset"]),
        facts=[
            ("val top-1", f"{best['val_top1']:.2%}"),
            ("best epoch", f"{best['epoch']:.0f}"),
            ("epochs run", str(values["epochs_run"])),
        ],
        sections=[
            Section(title="Accuracy", picture=embedded(curves_png(curves, "Accuracy", "share"))),
            Section(title="Loss", picture=embedded(curves_png(losses, "Loss", "cross entropy"))),
            Section(title="Epochs", table=table_of(history)),
            *evaluation_sections(run / "evaluation-test"),
        ],
        commands=[f"landmark evaluate --checkpoint {run}"],
    )


def _points(history: pd.DataFrame, name: str) -> list[tuple[float, float]]:
    return list(zip(history["epoch"].tolist(), history[name].tolist(), strict=True))
