"""The page of a study: leaderboard, charts of all trials, effects of parameters and reference tables."""

from typing import Any

import numpy as np
import pandas as pd

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
    spending,
)
from landmark.reporting.study.trial_comparison import compare_data
from landmark.reporting.tables import (
    FAILED,
    FINISHED,
    STOPPED,
    StudyTables,
    model_summary,
    named,
    optimizer_epochs,
    read_study,
    shown_metric,
    write_table,
)
from landmark.storage import Location

HIDDEN = ("checkpoint", "error", "seconds")
SHOWN_TRIALS = 200
SHOWN_KEYS = 12
"""Maximum number of parameters in a chart: those that explain the most variance."""
SHOWN_SCHEDULES = 4


def study_page(run: Location, output: Location) -> Page:
    """Return a study's page and write its tables as CSV and JSON. Raises UserError with the name of an invalid file."""
    study = read_study(run)
    summary, baselines = study.summary, study.summary.get("baselines") or {}
    models, epochs = model_summary(study.board, baselines), optimizer_epochs(study.board)
    for name, table in (("leaderboard", study.board), ("model_summary", models), ("optimizer_epochs", epochs)):
        write_table(output, name, table)
    results, tested = [], models[models["test_top1"].notna()]
    if len(tested):
        told = "Test split, with trivial baselines. All trials are in model_summary.csv."
        shown = tested if (tested["data"].fillna("") != "").any() else tested.drop(columns="data")
        results.append(Section(title="Model summary", text=told, table=table_of(shown)))
    if len(epochs):
        told = "The best trial per backbone, optimizer and number of epochs."
        results.append(Section(title="Optimizer and epochs", text=told, table=table_of(epochs)))
    search = [
        _leaderboard(study),
        *_curves(study),
        *_compared(study),
        *_spending(study),
        *_pareto(study),
        *_parallel(study),
        *_effects(study, output),
        *_exploits(study, output),
    ]
    failed = study.board[study.board["status"] == FAILED]
    if len(failed) and "error" in failed:
        search.append(Section(title="Failed trials", table=html_table(failed[["trial", "error"]])))
    return Page(
        title=f"Study {summary['name']}",
        subtitle=f"{summary['dataset']} · {summary.get('scheduler', 'no scheduler')} · best by {named(study.metric)}",
        facts=_facts(summary),
        groups=[Group(title="Results", sections=results), Group(title="The search", sections=search)],
        commands=[
            f"landmark evaluate {run}",
            f"landmark tune --config {run}/config.yaml --name another",
        ],
    )


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    spent, grid = f"{summary['epochs_run']:,}", summary.get("epochs_grid")
    return [
        ("trials", f"{summary['trials']:,}"),
        ("stopped early", f"{summary['stopped_early']:,}"),
        *([("failed", f"{summary['failed']:,}")] if summary.get("failed") else []),
        ("epochs run / full grid", f"{spent} / {grid:,}") if grid else ("epochs run", spent),
    ]


def _leaderboard(study: StudyTables) -> Section:
    board = study.board
    shown = board.drop(columns=[name for name in HIDDEN if name in board]).head(SHOWN_TRIALS)
    more = (
        f" Shows the first {SHOWN_TRIALS} of {len(board):,}. All trials are in leaderboard.csv."
        if len(board) > len(shown)
        else ""
    )
    return Section(
        title="Leaderboard",
        text=f"Sorted by {named(study.metric)}. Trials that stopped early are highlighted.{more}",
        table=table_of(shown.dropna(axis=1, how="all")),
    )


def _curves(study: StudyTables) -> list[Section]:
    curves = learning_curves(study)
    if not curves:
        return [Section(title="Learning curves", text="No trial reported a metric.")]
    counts = {status: sum(curve.status == status for curve in curves) for status in (FINISHED, STOPPED, FAILED)}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    first = next((curve for curve in curves if curve.rank == 1), None)
    best = f" The best, {first.trial}, ends at {shown_metric(study.metric, first.values[-1])}." if first else ""
    silent = len(study.board) - len(curves)
    return [
        Section(
            title="Learning curves",
            text="One line per trial. Dot: finished. Cross: stopped early. Dashed: failed. "
            f"The best three are numbered.{f' {silent} reported no metric.' if silent else ''}",
            chart=plots.learning_curves_svg(curves, study.metric),
            alt=f"Line chart of {named(study.metric)} per epoch for {len(curves)} trials: {told}.{best}",
        )
    ]


def _compared(study: StudyTables) -> list[Section]:
    data = compare_data(study)
    if len(data["trials"]) < 2 or not data["curves"]:
        return []
    return [
        Section(
            title="Two runs side by side",
            text="Choose any two trials. Differences are highlighted.",
            widget=Widget(name="compare", data=data),
        )
    ]


def _spending(study: StudyTables) -> list[Section]:
    spent = spending(study)
    if not len(spent.improved):
        return []
    last, total = int(spent.improved[-1]), len(spent.values)
    grid = study.summary.get("epochs_grid")
    share = f", {total / grid:.0%} of the {grid:,} epochs of the full grid" if grid else ""
    text = (
        f"{total:,} epochs were trained{share}. "
        f"The best, {shown_metric(study.metric, spent.best[last])}, was found after {last + 1:,} epochs."
    )
    return [
        Section(
            title="Epochs spent against the best so far",
            text=text,
            chart=plots.spending_svg(spent, study.metric, grid),
            alt=f"Step chart of the best {named(study.metric)} over the epochs of all trials, with "
            f"{len(spent.improved)} new bests. {text}",
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
    others = " and ".join(named(name) for name in objectives[1:])
    return [
        Section(
            title=f"{named(objectives[0]).capitalize()} against {others}",
            text=f"{len(front)} of {len(results)} trials are on the Pareto front: no other trial is at least as good in "
            "every objective and better in one. Numbers are leaderboard ranks.",
            table=table_of(front[[name for name in columns if name in front]]),
            chart=plots.pareto_svg(results, objectives),
            alt=f"Scatter plot of {named(objectives[0])} against {others}, {len(results)} trials, {len(front)} on the front.",
        )
    ]


def _parallel(study: StudyTables) -> list[Section]:
    results = study.results
    title = "Settings and what they led to"
    if not len(results):
        return []
    axes = parallel_axes(study)
    if len(axes) == 1:
        return [Section(title=title, text="All trials with a result have the same searched settings.")]
    more = f" Shows the first {SHOWN_KEYS} of {len(axes) - 1} settings." if len(axes) > SHOWN_KEYS + 1 else ""
    shown = [*axes[:-1][:SHOWN_KEYS], axes[-1]]
    best = results.iloc[int(np.argmax(axes[-1].positions))]
    names = ", ".join(axis.name for axis in shown[:-1])
    return [
        Section(
            title=title,
            text="One line per trial, through its settings to its result. Better trials have a stronger color, the best "
            f"one is bold, and trials stopped early are dashed.{more}",
            chart=plots.parallel_svg(shown, results["status"].tolist()),
            alt=f"Parallel coordinates of {len(results)} trials over {names} and {named(study.metric)}. The best is "
            f"{best['trial']} with {shown_metric(study.metric, best[study.metric])}.",
        )
    ]


def _effects(study: StudyTables, output: Location) -> list[Section]:
    if not len(study.results):
        return []
    counted = comparable_trials(study)
    effects = [effect_of(counted.trials, key, study.metric) for key in counted.keys]
    title = "The effect of each setting"
    if not effects:
        return [Section(title=title, text=f"{counted.told} These trials have the same searched settings.")]
    table = importance(effects, study.mode)
    write_table(output, "importance", table)
    by_key = {effect.key: effect for effect in effects}
    shown = [by_key[key] for key in table["parameter"].head(SHOWN_KEYS)]
    told = ", ".join(table["parameter"].head(3))
    limits = (
        f"Explained: the fraction of the variance of {study.metric} between trials that a setting accounts for on its own "
        "(eta squared, between values, or between quantile ranges if the setting is continuous). By "
        "chance: the expected value for a setting without effect. Only clearly larger values are meaningful. "
        "Interactions are not included. If a search chose the trials instead of random sampling, settings that "
        "were tried together share their effect."
    )
    return [
        Section(
            title=title,
            text=f"{counted.told} Dots are trials. Bars are means per value or range of values.",
            chart=plots.effects_svg(shown, study.metric, counted.epoch),
            alt=f"One panel for each of {len(shown)} settings with the {named(study.metric)} of each trial by the "
            f"setting's value. Settings that explain the most variance: {told}.",
        ),
        Section(title="How much each setting explains", text=limits, table=table_of(_in_words(study, table))),
    ]


def _in_words(study: StudyTables, table: pd.DataFrame) -> pd.DataFrame:
    """Return the importance table for display: formatted best mean and readable headings."""
    shown = table.assign(best_mean=[shown_metric(study.metric, mean) for mean in table["best_mean"]])
    return shown.rename(columns={"by_chance": "by chance", "best": "best on average", "best_mean": "mean there"})


def _exploits(study: StudyTables, output: Location) -> list[Section]:
    exploits = study.summary.get("exploits") or []
    if not exploits:
        return []
    table = exploits_table(exploits)
    write_table(output, "exploits", table)
    sections = [
        Section(
            title="Weights taken over from better trials",
            text=f"Population based training: {len(table)} times, a trial continued from a better trial's weights with "
            "changed settings.",
            table=table_of(table),
        )
    ]
    keys = changed_keys(exploits)[:SHOWN_SCHEDULES]
    schedules = {key: schedule_of(study, exploits, key) for key in keys}
    schedules = {key: trials for key, trials in schedules.items() if trials}
    if schedules:
        best = (study.summary.get("best") or {}).get("trial")
        sections.append(
            Section(
                title="Settings that changed while trials ran",
                text="One line per trial. Dot: the trial copied another trial's weights. Bold: the best trial.",
                chart=plots.schedules_svg(schedules, best),
                alt=f"Step charts of {', '.join(schedules)} over the epochs of each trial.",
            )
        )
    return sections
