"""The report of a study or a run: its page and its tables."""

import pandas as pd

from landmark.config import UserError
from landmark.reporting.cleaning_page import cleaned_dataset, cleaning_sections
from landmark.reporting.evaluation.page import evaluation_groups
from landmark.reporting.evaluation.reader import Evaluated, read_evaluation
from landmark.reporting.page import Group, Page, Section, render
from landmark.reporting.plots import curves_svg
from landmark.reporting.provenance import cost_of, provenance_sections, shown_time
from landmark.reporting.sections import table_of
from landmark.reporting.study.page import study_page
from landmark.reporting.study.reference_study import deck_summary
from landmark.reporting.tables import (
    named,
    read_csv,
    read_json,
    read_study,
    require_columns,
    require_numbers,
    write_table,
)
from landmark.storage import Location

CONTENTS = {
    "leaderboard": "every trial, best first",
    "model_summary": "model summary with baselines",
    "optimizer_epochs": "best trial per backbone, optimizer and number of epochs",
    "importance": "variance explained per setting",
    "exploits": "exploit steps of population based training",
    "history": "metrics per epoch",
    "measures": "metrics with baselines and intervals",
    "bands": "metrics by class frequency",
    "calibration": "confidence and accuracy in bins",
    "comparison": "differences from the other model",
    "confused_pairs": "confused pairs of classes",
    "best_classes": "the best classes",
    "worst_classes": "the worst classes",
    "classes": "metrics per class",
    "confusion": "nonzero cells of the confusion matrix",
    "cleaning": "dropped and relabeled images per reason",
}
"""Descriptions of the tables next to the page."""


def write_report(
    run: Location, output: Location, *, cleaned: str | None = None, price_per_hour: float | None = None
) -> Location:
    """Write the page and tables of a study or run into a folder and return the page's location.

    cleaned: a cleaned dataset whose audit is shown. None: the run's own dataset if it is a cleaned one. price_per_hour:
    of the machine or cluster, in any currency. None: the page shows no cost. Raises UserError with the name of a file
    that is missing or corrupt.
    """
    is_study = (run / "study.json").exists()
    if not is_study and not (run / "run.json").exists():
        state = "contains neither study.json nor run.json, so it is not complete" if run.exists() else "does not exist"
        raise UserError(f"{run}: {state}; specify the folder of a complete study or run")
    values = read_json(run / ("study.json" if is_study else "run.json"))
    evaluated = read_evaluation(run)
    audited = cleaned_dataset(run, str(values.get("dataset", "")), cleaned)
    page = study_page(run, output) if is_study else run_page(run, output)
    groups = evaluation_groups(evaluated, output) if evaluated is not None else []
    if audited is not None:
        groups.append(Group(title="Data", sections=cleaning_sections(audited, output)))
    spent = "for the study's trials" if is_study else "for this run"
    groups.append(Group(title="How it was made", sections=provenance_sections(run, values, price_per_hour, spent)))
    page.groups = _merged([*page.groups, *groups])
    page.facts = [
        *(_evaluation_facts(evaluated) or _best_facts(values)),
        *page.facts,
        *_time_facts(values, price_per_hour),
    ]
    _write_large_tables(run, output, evaluated)
    page.files = _files(output)
    place = output / "index.html"
    place.write_text(render(page))
    return place


def write_deck(run: Location, output: Location) -> tuple[Location, pd.DataFrame]:
    """Write the reference summary with a study's metrics next to it. Returns the table's location and the table."""
    if not (run / "study.json").exists():
        state = "contains no study.json, so it is not a complete study" if run.exists() else "does not exist"
        raise UserError(f"{run}: {state}; specify the folder of a complete study")
    table = deck_summary(read_study(run))
    write_table(output, "deck_summary", table)
    return output / "deck_summary.csv", table


def run_page(run: Location, output: Location) -> Page:
    """Return a single run's page and write its table."""
    values = read_json(run / "run.json")
    if missing := [key for key in ("name", "dataset", "best", "epochs_run") if key not in values]:
        raise UserError(f"{run / 'run.json'}: missing {', '.join(missing)}; run the training again")
    best = values["best"]
    require_numbers(run / "run.json", best, ("val_top1", "epoch"), "run the training again")
    history = require_columns(run / "history.csv", read_csv(run / "history.csv"), ["epoch"], "run the training again")
    curves = {named(name): _points(history, name) for name in ("train_top1", "val_top1", "val_top5") if name in history}
    losses = {named(name): _points(history, name) for name in ("train_loss", "val_loss") if name in history}
    return Page(
        title=f"Run {values['name']}",
        subtitle=str(values["dataset"]),
        facts=[
            ("validation top-1", f"{best['val_top1']:.2%}"),
            ("best epoch", f"{best['epoch']:.0f}"),
            ("epochs run", str(values["epochs_run"])),
        ],
        groups=[
            Group(
                title="Training",
                sections=[
                    Section(
                        title="Accuracy", chart=curves_svg(curves, shares=True), alt=_curves_alt("Accuracy", curves)
                    ),
                    Section(title="Loss", chart=curves_svg(losses, shares=False), alt=_curves_alt("Loss", losses)),
                    Section(title="Epochs", table=table_of(history)),
                ],
            )
        ],
        commands=[f"landmark evaluate {run}"],
    )


def _merged(groups: list[Group]) -> list[Group]:
    """Join groups with the same title, results first. The results of a study and of its evaluation form one group."""
    joined: dict[str, Group] = {}
    for group in groups:
        if group.title in joined:
            joined[group.title].sections += group.sections
        else:
            joined[group.title] = Group(title=group.title, sections=list(group.sections))
    return sorted(joined.values(), key=lambda group: group.title != "Results")


def _evaluation_facts(evaluated: Evaluated | None) -> list[tuple[str, str]]:
    if evaluated is None:
        return []
    metrics = evaluated.metrics
    facts = []
    for key in ("top1", "top5"):
        if key in metrics:
            low_high = (metrics.get("intervals") or {}).get(key)
            interval = f" ({low_high[0]:.1%} – {low_high[1]:.1%})" if low_high else ""
            facts.append((f"{metrics['split']} top-{key[3:]}{interval}", f"{metrics[key]:.1%}"))
    if "majority_top1" in metrics:
        facts.append(("majority top-1", f"{metrics['majority_top1']:.1%}"))
    if metrics.get("gap") is not None:
        facts.append(("GAP", f"{metrics['gap']:.3f}"))
    return facts


def _best_facts(values: dict) -> list[tuple[str, str]]:
    """Return the test metrics of the best model from the study's own file, used if there is no evaluation."""
    tested = (values.get("best") or {}).get("test") or {}
    facts = [(f"test top-{k}", f"{share:.1%}") for k, share in tested.items()]
    majority = (values.get("baselines") or {}).get("majority") or {}
    return [*facts, *([("majority top-1", f"{majority['1']:.1%}")] if "1" in majority else [])]


def _time_facts(values: dict, price_per_hour: float | None) -> list[tuple[str, str]]:
    seconds = values.get("seconds")
    if not isinstance(seconds, int | float):
        return []
    facts = [("wall time", shown_time(seconds))]
    if price_per_hour is not None:
        facts.append(("cost", f"{cost_of(seconds, price_per_hour):,.2f}"))
    return facts


def _write_large_tables(run: Location, output: Location, evaluated: Evaluated | None) -> None:
    """Write the data of the curves, the matrix and the class list, as CSV and as Parquet."""
    tables = {"history": read_csv(run / "history.csv")}
    if evaluated is not None:
        tables |= {"classes": evaluated.classes, "confusion": evaluated.confusion}
    for name, table in tables.items():
        (output / f"{name}.csv").write_text(table.to_csv(index=False, float_format="%.6g"))
        (output / f"{name}.parquet").write_bytes(table.to_parquet(index=False))


def _files(output: Location) -> list[tuple[str, str]]:
    """Return the tables next to the page and their descriptions."""
    there = set(output.names())
    files = []
    for name, told in CONTENTS.items():
        found = [f"{name}.{kind}" for kind in ("csv", "json", "parquet") if f"{name}.{kind}" in there]
        if found:
            files.append((", ".join(found), told))
    return files


def _curves_alt(title: str, curves: dict[str, list[tuple[float, float]]]) -> str:
    ends = ", ".join(f"{name} ends at {points[-1][1]:.4g}" for name, points in curves.items() if points)
    return f"{title} per epoch: {ends or 'no curve'}."


def _points(history: pd.DataFrame, name: str) -> list[tuple[float, float]]:
    return list(zip(history["epoch"].tolist(), history[name].tolist(), strict=True))
