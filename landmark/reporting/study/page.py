"""The page of a study: summary tables, leaderboard, charts of all trials and effects of hyperparameters."""

from typing import Any

import numpy as np
import pandas as pd

from landmark.data.loading.bottleneck import bottleneck_counts, counts_text
from landmark.reporting.page import Group, Page, Section, Widget, html_table
from landmark.reporting.sections import table_of
from landmark.reporting.study import plots
from landmark.reporting.study.effects import comparable_trials, effect_of, importance
from landmark.reporting.study.series import (
    changed_keys,
    exploits_table,
    learning_curves,
    parallel_axes,
    schedule_of,
    search_progress,
)
from landmark.reporting.study.trial_comparison import compare_data
from landmark.reporting.tables import (
    FAILED,
    FINISHED,
    STOPPED,
    StudyTables,
    metric_label,
    model_summary,
    optimizer_epochs,
    read_study,
    shown_metric,
    write_table,
)
from landmark.storage import Location

HIDDEN_COLUMNS = ("checkpoint", "error", "seconds")
SHOWN_TRIALS = 200
SHOWN_KEYS = 12
"""Maximum number of hyperparameters in a chart."""
SHOWN_SCHEDULES = 4


def study_page(run: Location, output: Location) -> Page:
    """Return a study's page and write its tables as CSV and JSON. Raises UserError with the name of an invalid file."""
    study = read_study(run)
    summary, baselines = study.summary, study.summary.get("baselines") or {}
    models, epochs = model_summary(study.board, baselines), optimizer_epochs(study.board)
    for name, table in (("leaderboard", study.board), ("model_summary", models), ("optimizer_epochs", epochs)):
        write_table(output, name, table)
    results, evaluated = [], models[models["test_top1"].notna()]
    if len(evaluated):
        description = "Results on the test split, with baselines. All trials are in model_summary.csv."
        shown = evaluated if (evaluated["data"].fillna("") != "").any() else evaluated.drop(columns="data")
        results.append(Section(title="Model summary", text=description, table=table_of(shown)))
    if len(epochs):
        description = "The best trial per backbone, optimizer and number of epochs."
        results.append(Section(title="Optimizer and epochs", text=description, table=table_of(epochs)))
    search = [
        _leaderboard(study),
        *_curves(study),
        *_trial_comparison(study),
        *_search_progress(study),
        *_pareto(study),
        *_parallel_coordinates(study),
        *_effects(study, output),
        *_exploits(study, output),
    ]
    failed = study.board[study.board["status"] == FAILED]
    if len(failed) and "error" in failed:
        search.append(Section(title="Failed trials", table=html_table(failed[["trial", "error"]])))
    return Page(
        title=f"Study {summary['name']}",
        subtitle=" · ".join(
            (
                str(summary["dataset"]),
                str(summary.get("scheduler", "no scheduler")),
                f"ranked by {metric_label(study.metric)}",
            )
        ),
        facts=[*_facts(summary), *_bottlenecks(study)],
        groups=[Group(title="Results", sections=results), Group(title="Hyperparameter search", sections=search)],
        commands=[
            f"landmark evaluate {run}",
            f"landmark tune --config {run}/config.yaml --name another",
        ],
    )


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    epochs, grid = f"{summary['epochs_run']:,}", summary.get("epochs_grid")
    return [
        ("trials", f"{summary['trials']:,}"),
        ("stopped early", f"{summary['stopped_early']:,}"),
        *([("failed", f"{summary['failed']:,}")] if summary.get("failed") else []),
        ("epochs run / full grid", f"{epochs} / {grid:,}") if grid else ("epochs run", epochs),
    ]


def _bottlenecks(study: StudyTables) -> list[tuple[str, str]]:
    """Return the number of trials per bottleneck as a fact, if the study recorded it."""
    last = study.history.drop_duplicates("trial", keep="last")
    text = counts_text(bottleneck_counts(row.dropna().to_dict() for _, row in last.iterrows()))
    return [("bottleneck", text)] if text else []


def _leaderboard(study: StudyTables) -> Section:
    board = study.board
    shown = board.drop(columns=[name for name in HIDDEN_COLUMNS if name in board]).head(SHOWN_TRIALS)
    subset = (
        f" Shows the first {SHOWN_TRIALS} of {len(board):,} trials. All trials are in leaderboard.csv."
        if len(board) > len(shown)
        else ""
    )
    return Section(
        title="Leaderboard",
        text=f"Sorted by {metric_label(study.metric)}. Trials that stopped early are highlighted.{subset}",
        table=table_of(shown.dropna(axis=1, how="all")),
    )


def _curves(study: StudyTables) -> list[Section]:
    curves = learning_curves(study)
    if not curves:
        return [Section(title="Learning curves", text="No trial reported a metric.")]
    counts = {status: sum(curve.status == status for curve in curves) for status in (FINISHED, STOPPED, FAILED)}
    description = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    first = next((curve for curve in curves if curve.rank == 1), None)
    best = f" The best trial, {first.trial}, ends at {shown_metric(study.metric, first.values[-1])}." if first else ""
    count = len(study.board) - len(curves)
    missing = f" Trials without a reported metric: {count}." if count else ""
    return [
        Section(
            title="Learning curves",
            text="One line per trial. Dot: finished. Cross: stopped early. Dashed: failed. "
            f"Numbers mark the three best trials.{missing}",
            chart=plots.learning_curves_svg(curves, study.metric),
            alt=f"Line chart of {metric_label(study.metric)} per epoch for {len(curves)} trials: {description}.{best}",
        )
    ]


def _trial_comparison(study: StudyTables) -> list[Section]:
    data = compare_data(study)
    if len(data["trials"]) < 2 or not data["curves"]:
        return []
    return [
        Section(
            title="Trial comparison",
            text="Select any two trials. Differences are highlighted.",
            widget=Widget(name="compare", data=data),
        )
    ]


def _search_progress(study: StudyTables) -> list[Section]:
    progress = search_progress(study)
    if not len(progress.improved):
        return []
    last, total = int(progress.improved[-1]), len(progress.values)
    grid = study.summary.get("epochs_grid")
    ratio = f", {total / grid:.0%} of the {grid:,} epochs of the full grid" if grid else ""
    text = (
        f"The trials ran {total:,} epochs{ratio}. "
        f"The best value, {shown_metric(study.metric, progress.best[last])}, was reached after {last + 1:,} epochs."
    )
    return [
        Section(
            title="Search progress",
            text=text,
            chart=plots.search_progress_svg(progress, study.metric, grid),
            alt=f"Step chart of the best {metric_label(study.metric)} so far over the epochs of all trials, with "
            f"{len(progress.improved)} improvements. {text}",
        )
    ]


def _pareto(study: StudyTables) -> list[Section]:
    objectives = study.objectives
    if len(objectives) < 2 or "pareto" not in study.board:
        return []
    results = study.results.dropna(subset=objectives)
    results = results.assign(pareto=results["pareto"].astype(str).str.lower() == "true")
    if not len(results):
        return []
    front = results[results["pareto"]].sort_values(objectives[1])
    columns = dict.fromkeys(["rank", "trial", *objectives, *study.keys])
    labels = ", ".join(metric_label(name) for name in objectives)
    return [
        Section(
            title=f"Pareto front: {labels}",
            text=f"{len(front)} of {len(results)} trials are on the Pareto front: no other trial is at least as good "
            "in every objective and better in one. Numbers are leaderboard ranks.",
            table=table_of(front[[name for name in columns if name in front]]),
            chart=plots.pareto_svg(results, objectives),
            alt=f"Scatter plot of {labels}: {len(results)} trials, {len(front)} of them on the Pareto front.",
        )
    ]


def _parallel_coordinates(study: StudyTables) -> list[Section]:
    results = study.results
    title = "Parallel coordinates"
    if not len(results):
        return []
    axes = parallel_axes(study)
    if len(axes) == 1:
        return [Section(title=title, text="All trials with a result have the same hyperparameters.")]
    subset = f" Shows the first {SHOWN_KEYS} of {len(axes) - 1} hyperparameters." if len(axes) > SHOWN_KEYS + 1 else ""
    shown = [*axes[:-1][:SHOWN_KEYS], axes[-1]]
    best = results.iloc[int(np.argmax(axes[-1].positions))]
    names = ", ".join(axis.name for axis in shown[:-1])
    return [
        Section(
            title=title,
            text="One line per trial: its hyperparameters and its result. Darker: better. Bold: the best trial. "
            f"Dashed: stopped early.{subset}",
            chart=plots.parallel_svg(shown, results["status"].tolist()),
            alt=f"Parallel coordinates of {len(results)} trials over {names} and {metric_label(study.metric)}. "
            f"The best trial is {best['trial']} with {shown_metric(study.metric, best[study.metric])}.",
        )
    ]


def _effects(study: StudyTables, output: Location) -> list[Section]:
    if not len(study.results):
        return []
    comparable = comparable_trials(study)
    effects = [effect_of(comparable.trials, key, study.metric) for key in comparable.keys]
    title = "Hyperparameter effects"
    if not effects:
        return [Section(title=title, text=f"{comparable.description} These trials have the same hyperparameters.")]
    table = importance(effects, study.mode)
    write_table(output, "importance", table)
    by_key = {effect.key: effect for effect in effects}
    shown = [by_key[key] for key in table["parameter"].head(SHOWN_KEYS)]
    description = ", ".join(table["parameter"].head(3))
    explanation = (
        f"Explained variance: the fraction of the variance of {metric_label(study.metric)} that one hyperparameter "
        "explains (eta squared, between values, or between quantile ranges if it is continuous). Expected by chance: "
        "the expected value for a hyperparameter without effect. Only clearly larger values are meaningful. "
        "Interactions are not included. If a search algorithm selected the trials, hyperparameters can be correlated. "
        "Then each one also explains variance that the others cause."
    )
    return [
        Section(
            title=title,
            text=f"{comparable.description} Dots are trials. Bars are means per value or range of values.",
            chart=plots.effects_svg(shown, study.metric, comparable.epoch),
            alt=f"One panel for each of {len(shown)} hyperparameters, with the {metric_label(study.metric)} of each "
            f"trial by value. Hyperparameters that explain the most variance: {description}.",
        ),
        Section(title="Hyperparameter importance", text=explanation, table=table_of(_display_importance(study, table))),
    ]


def _display_importance(study: StudyTables, table: pd.DataFrame) -> pd.DataFrame:
    """Return the importance table for display: formatted means and readable headings."""
    headings = {
        "parameter": "hyperparameter",
        "explained": "explained variance",
        "by_chance": "expected by chance",
        "best": "best value",
        "best_mean": "mean for best value",
    }
    shown = table.assign(best_mean=[shown_metric(study.metric, mean) for mean in table["best_mean"]])
    return shown.rename(columns=headings)


def _exploits(study: StudyTables, output: Location) -> list[Section]:
    exploits = study.summary.get("exploits") or []
    if not exploits:
        return []
    table = exploits_table(exploits)
    write_table(output, "exploits", table)
    sections = [
        Section(
            title="Exploit steps",
            text=f"Population based training made {len(table)} exploit steps. In an exploit step, a trial copies the "
            "weights of a better trial (the source) and continues with changed hyperparameters.",
            table=table_of(table.rename(columns={"took over from": "source trial", "what changed": "changes"})),
        )
    ]
    keys = changed_keys(exploits)[:SHOWN_SCHEDULES]
    schedules = {key: schedule_of(study, exploits, key) for key in keys}
    schedules = {key: trials for key, trials in schedules.items() if trials}
    if schedules:
        best = (study.summary.get("best") or {}).get("trial")
        sections.append(
            Section(
                title="Hyperparameter schedules",
                text="One line per trial. Dot: exploit step. Bold: the best trial.",
                chart=plots.schedules_svg(schedules, best),
                alt=f"Step charts of {', '.join(schedules)} over epochs, one line per trial.",
            )
        )
    return sections
