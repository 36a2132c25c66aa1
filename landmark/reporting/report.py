"""The report of a study or a run: its page and its tables."""

from typing import Any

import pandas as pd

from landmark.config import UserError
from landmark.reporting.page import Page, Section, embedded, html_table, metrics_table, render
from landmark.reporting.plots import curves_png
from landmark.reporting.tables import TOPK, model_summary, optimizer_epochs, read_csv, read_json, write_table
from landmark.storage import Location

HIDDEN = ("checkpoint", "error", "seconds")
SHARES = ("val_top1", "val_top5", "val_macro_recall", *(f"test_top{k}" for k in TOPK), *(f"top{k}" for k in TOPK))
SHOWN_TRIALS = 200
DRAWN_TRIALS = 40


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


def study_page(run: Location, output: Location) -> Page:
    """Return a study's page, and write its tables."""
    study = read_json(run / "study.json")
    board = read_csv(run / "leaderboard.csv")
    history = read_csv(run / "history.csv")
    baselines = study.get("baselines") or {}
    summary, epochs = model_summary(board, baselines), optimizer_epochs(board)
    for name, table in (("leaderboard", board), ("model_summary", summary), ("optimizer_epochs", epochs)):
        write_table(output, name, table)
    shown = board.drop(columns=[name for name in HIDDEN if name in board]).head(SHOWN_TRIALS)
    metric = study["metric"]
    sections = [
        Section(
            title="Leaderboard",
            text=f"By {metric} on the validation split. Trials that stopped early are in colour.",
            table=_table(shown),
        ),
        Section(title="Learning curves", picture=embedded(_curves(history, board, metric))),
        Section(title="Model summary", text="On the test split, beside the trivial baselines.", table=_table(summary)),
        Section(title="Optimizer and epochs", table=_table(epochs)),
        *evaluation_sections(run / "evaluation-test"),
    ]
    failed = board[board["status"] == "failed"]
    if len(failed):
        sections.append(Section(title="Failed trials", table=html_table(failed[["trial", "error"]])))
    return Page(
        title=f"Study {study['name']}",
        subtitle=f"{study['dataset']} · {study.get('scheduler', 'no scheduler')} · best by {metric}",
        facts=_study_facts(study),
        sections=sections,
        commands=[
            f"landmark evaluate --checkpoint {run}",
            f"landmark tune --config {run}/config.yaml --name another",
        ],
    )


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
            Section(title="Epochs", table=_table(history)),
            *evaluation_sections(run / "evaluation-test"),
        ],
        commands=[f"landmark evaluate --checkpoint {run}"],
    )


def evaluation_sections(folder: Location) -> list[Section]:
    """Return the sections of an evaluation on the test split, none where there is none."""
    if not (folder / "metrics.json").exists():
        return []
    metrics = read_json(folder / "metrics.json")
    picture = embedded((folder / "confusion.png").read_bytes())
    text = (
        f"{metrics['rows']:,} images of {metrics['classes_present']:,} classes; "
        f"macro recall {metrics['macro_recall']:.2%}, loss {metrics['loss']:.3f}."
    )
    table = html_table(metrics_table(metrics), ("model", "majority baseline", "random baseline"))
    return [
        Section(title="Best model on the test split", text=text, table=table),
        Section(title="Confusion matrix", picture=picture),
    ]


def _study_facts(study: dict[str, Any]) -> list[tuple[str, str]]:
    best = study.get("best") or {}
    facts = [(f"test top-{k}", f"{share:.1%}") for k, share in (best.get("test") or {}).items()]
    majority = (study.get("baselines") or {}).get("majority", {})
    if "1" in majority:
        facts.append(("majority top-1", f"{majority['1']:.1%}"))
    return [
        *facts,
        ("trials", str(study["trials"])),
        ("stopped early", str(study["stopped_early"])),
        ("epochs run / full grid", f"{study['epochs_run']} / {study['epochs_grid']}"),
    ]


def _curves(history: pd.DataFrame, board: pd.DataFrame, metric: str) -> bytes:
    status = dict(zip(board["trial"], board["status"], strict=True))
    names = [name for name in board["trial"] if name in set(history["trial"])][:DRAWN_TRIALS]
    curves = {f"{name} ({status[name]})": _points(history[history["trial"] == name], metric) for name in names}
    return curves_png(curves, "Learning curves; a dot where a trial ended", metric)


def _points(history: pd.DataFrame, name: str) -> list[tuple[float, float]]:
    return list(zip(history["epoch"].tolist(), history[name].tolist(), strict=True))


def _table(table: pd.DataFrame) -> dict[str, Any]:
    return html_table(table, [name for name in table.columns if name in SHARES])
