"""The report of a study or a run: its page and its tables."""

from collections.abc import Sequence

import pandas as pd

from landmark.config import UserError
from landmark.data.loading.bottleneck import bottleneck_text
from landmark.reporting.cleaning_page import cleaned_dataset, cleaning_sections
from landmark.reporting.evaluation.page import evaluation_groups
from landmark.reporting.evaluation.reader import EvaluationTables, read_evaluation
from landmark.reporting.page import Group, Page, Section, render
from landmark.reporting.plots import curves_svg
from landmark.reporting.provenance import cost_of, provenance_sections, shown_time
from landmark.reporting.sections import table_of
from landmark.reporting.study.page import study_page
from landmark.reporting.study.reference_study import reference_summary
from landmark.reporting.tables import (
    metric_label,
    read_csv,
    read_json,
    read_study,
    require_columns,
    require_numbers,
    write_table,
)
from landmark.storage import Location

CONTENTS = {
    "leaderboard": "all trials, best first",
    "model_summary": "model summary with baselines",
    "optimizer_epochs": "best trial per backbone, optimizer and number of epochs",
    "importance": "explained variance per hyperparameter",
    "exploits": "exploit steps of population based training",
    "history": "metrics per epoch",
    "measures": "metrics with baselines and 95% intervals",
    "bands": "metrics by class frequency",
    "calibration": "accuracy per confidence bin",
    "comparison": "differences between the two models",
    "confused_pairs": "confused pairs of classes",
    "best_classes": "classes with the highest recall",
    "worst_classes": "classes with the lowest recall",
    "classes": "metrics per class",
    "confusion": "nonzero cells of the confusion matrix",
    "cleaning": "dropped and relabeled images per reason",
}
"""Descriptions of the tables next to the page."""


def write_report(
    run: Location, output: Location, *, cleaned: str | None = None, price_per_hour: float | None = None
) -> Location:
    """Write the page and tables of a study or run into a folder and return the page's location.

    cleaned: a cleaned dataset whose audit is shown. By default, the run's own dataset if it is a cleaned one.
    price_per_hour: price of the machine or cluster, in any currency. By default, the page shows no cost. Raises
    UserError with the name of a file that is missing or corrupt.
    """
    is_study = (run / "study.json").exists()
    if not is_study and not (run / "run.json").exists():
        state = "contains neither study.json nor run.json, so it is not complete" if run.exists() else "does not exist"
        raise UserError(f"{run}: {state}; specify the folder of a complete study or run")
    values = read_json(run / ("study.json" if is_study else "run.json"))
    evaluation = read_evaluation(run)
    cleaned_folder = cleaned_dataset(run, str(values.get("dataset", "")), cleaned)
    page = study_page(run, output) if is_study else run_page(run, output)
    groups = evaluation_groups(evaluation, output) if evaluation is not None else []
    if cleaned_folder is not None:
        groups.append(Group(title="Data", sections=cleaning_sections(cleaned_folder, output)))
    purpose = "for the study's trials" if is_study else "for this run"
    groups.append(Group(title="Provenance", sections=provenance_sections(run, values, price_per_hour, purpose)))
    page.groups = _merged_groups([*page.groups, *groups])
    page.facts = [
        *(_evaluation_facts(evaluation) or _best_facts(values)),
        *page.facts,
        *_time_facts(values, price_per_hour),
    ]
    _write_large_tables(run, output, evaluation)
    page.files = _files(output)
    path = output / "index.html"
    path.write_text(render(page))
    return path


def write_reference(run: Location, output: Location) -> tuple[Location, pd.DataFrame]:
    """Write the reference summary with a study's metrics next to it. Returns the table's location and the table."""
    if not (run / "study.json").exists():
        state = "contains no study.json, so it is not a complete study" if run.exists() else "does not exist"
        raise UserError(f"{run}: {state}; specify the folder of a complete study")
    table = reference_summary(read_study(run))
    write_table(output, "reference_summary", table)
    return output / "reference_summary.csv", table


def run_page(run: Location, output: Location) -> Page:
    """Return the page of a single run."""
    values = read_json(run / "run.json")
    if missing := [key for key in ("name", "dataset", "best", "epochs_run") if key not in values]:
        raise UserError(f"{run / 'run.json'}: missing {', '.join(missing)}; run the training again")
    best = values["best"]
    require_numbers(run / "run.json", best, ("val_top1", "epoch"), "run the training again")
    history = require_columns(run / "history.csv", read_csv(run / "history.csv"), ["epoch"], "run the training again")
    accuracies = _curves(history, ("train_top1", "val_top1", "val_top5"))
    losses = _curves(history, ("train_loss", "val_loss"))
    return Page(
        title=f"Run {values['name']}",
        subtitle=str(values["dataset"]),
        facts=[
            ("validation top-1", f"{best['val_top1']:.2%}"),
            ("best epoch", f"{best['epoch']:.0f}"),
            ("epochs run", str(values["epochs_run"])),
            *_bottleneck(history),
        ],
        groups=[
            Group(
                title="Training",
                sections=[
                    Section(
                        title="Accuracy",
                        chart=curves_svg(accuracies, fractions=True),
                        alt=_curves_alt("Accuracy", accuracies),
                    ),
                    Section(title="Loss", chart=curves_svg(losses, fractions=False), alt=_curves_alt("Loss", losses)),
                    Section(title="Epochs", table=table_of(history)),
                ],
            )
        ],
        commands=[f"landmark evaluate {run}"],
    )


def _bottleneck(history: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the bottleneck of the last epoch as a fact, if the run recorded it."""
    text = bottleneck_text(history.iloc[-1].dropna().to_dict()) if len(history) else None
    return [("bottleneck", text)] if text else []


def _merged_groups(groups: list[Group]) -> list[Group]:
    """Merge groups with the same title, results first. A study and its evaluation share the group of results."""
    by_title: dict[str, Group] = {}
    for group in groups:
        if group.title in by_title:
            by_title[group.title].sections += group.sections
        else:
            by_title[group.title] = Group(title=group.title, sections=list(group.sections))
    return sorted(by_title.values(), key=lambda group: group.title != "Results")


def _evaluation_facts(evaluation: EvaluationTables | None) -> list[tuple[str, str]]:
    if evaluation is None:
        return []
    metrics = evaluation.metrics
    facts = []
    for key in ("top1", "top5"):
        if key in metrics:
            low_high = (metrics.get("intervals") or {}).get(key)
            interval = f" ({low_high[0]:.1%} – {low_high[1]:.1%})" if low_high else ""
            facts.append((f"{metrics['split']} top-{key[3:]}{interval}", f"{metrics[key]:.1%}"))
    if "majority_top1" in metrics:
        facts.append(("majority baseline top-1", f"{metrics['majority_top1']:.1%}"))
    if metrics.get("gap") is not None:
        facts.append(("GAP", f"{metrics['gap']:.3f}"))
    return facts


def _best_facts(values: dict) -> list[tuple[str, str]]:
    """Return the best model's test metrics from study.json, for studies without an evaluation."""
    test_metrics = (values.get("best") or {}).get("test") or {}
    facts = [(f"test top-{k}", f"{accuracy:.1%}") for k, accuracy in test_metrics.items()]
    majority = (values.get("baselines") or {}).get("majority") or {}
    return [*facts, *([("majority baseline top-1", f"{majority['1']:.1%}")] if "1" in majority else [])]


def _time_facts(values: dict, price_per_hour: float | None) -> list[tuple[str, str]]:
    seconds = values.get("seconds")
    if not isinstance(seconds, int | float):
        return []
    facts = [("wall time", shown_time(seconds))]
    if price_per_hour is not None:
        facts.append(("cost", f"{cost_of(seconds, price_per_hour):,.2f}"))
    return facts


def _write_large_tables(run: Location, output: Location, evaluation: EvaluationTables | None) -> None:
    """Write the data of the curves, the matrix and the class list, as CSV and as Parquet."""
    tables = {"history": read_csv(run / "history.csv")}
    if evaluation is not None:
        tables |= {"classes": evaluation.classes, "confusion": evaluation.confusion}
    for name, table in tables.items():
        (output / f"{name}.csv").write_text(table.to_csv(index=False, float_format="%.6g"))
        (output / f"{name}.parquet").write_bytes(table.to_parquet(index=False))


def _files(output: Location) -> list[tuple[str, str]]:
    """Return the tables next to the page and their descriptions."""
    written = set(output.names())
    files = []
    for name, description in CONTENTS.items():
        found = [f"{name}.{kind}" for kind in ("csv", "json", "parquet") if f"{name}.{kind}" in written]
        if found:
            files.append((", ".join(found), description))
    return files


def _curves_alt(title: str, curves: dict[str, list[tuple[float, float]]]) -> str:
    ends = ", ".join(f"{name} ends at {points[-1][1]:.4g}" for name, points in curves.items() if points)
    return f"{title} per epoch: {ends or 'no data'}."


def _curves(history: pd.DataFrame, names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """Return the points (epoch, value) of each metric that the history has, by display name."""
    epochs = history["epoch"].tolist()
    return {
        metric_label(name): list(zip(epochs, history[name].tolist(), strict=True)) for name in names if name in history
    }
