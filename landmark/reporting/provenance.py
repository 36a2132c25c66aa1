"""Provenance of a run: command, config, versions, hardware, time and cost."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from landmark.config import mask_credentials
from landmark.reporting.page import Section, html_table
from landmark.storage import Location, NotFound

CONFIGS = ("config.yaml", "space.yaml")
UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def provenance_sections(
    run: Location, values: Mapping[str, Any], price_per_hour: float | None, purpose: str
) -> list[Section]:
    """Return the provenance sections of a run or study. Missing values are omitted.

    values: run.json or study.json. purpose: a phrase such as "for this run", which completes the sentence about time.
    """
    environment = values.get("environment") or {}
    sections = []
    if time := _time(values, price_per_hour, purpose):
        sections.append(time)
    if environment.get("command"):
        started = f"Started {environment['started']}." if environment.get("started") else ""
        sections.append(Section(title="Command", text=started, collapsibles=[("Command line", environment["command"])]))
    texts = [(name, text) for name in CONFIGS if (text := _text(run / name)) is not None]
    if texts:
        description = "All resolved options. To repeat the run, use --config config.yaml."
        sections.append(Section(title="Configuration", text=description, collapsibles=texts))
    if machine := machine_rows(environment):
        sections.append(
            Section(title="Hardware", table=html_table(pd.DataFrame(machine, columns=["component", "description"])))
        )
    if packages := environment.get("packages"):
        rows = [("python", environment.get("python", ""))] if environment.get("python") else []
        rows += list(packages.items())
        table = pd.DataFrame(rows, columns=["package", "version"]).astype(str)
        sections.append(Section(title="Versions", text=environment.get("platform", ""), table=html_table(table)))
    return sections


def machine_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the hardware as rows of name and description."""
    machine, cluster = environment.get("machine") or {}, environment.get("cluster") or {}
    rows = []
    if machine:
        rows.append(("processor", f"{machine.get('cpu', 'unknown')}, {machine.get('cpus', '?')} logical CPUs"))
        rows.append(("memory", f"{machine.get('memory_gib', '?')} GiB"))
        rows.append(("GPUs", ", ".join(machine.get("gpus") or []) or "none"))
    if cluster:
        kinds = ", ".join(cluster.get("accelerators") or [])
        nodes = cluster.get("nodes", 0)
        rows.append(
            (
                "Ray cluster",
                f"{nodes} node{'s' if nodes != 1 else ''}, {cluster.get('cpus', 0):g} CPUs, "
                f"{cluster.get('gpus', 0):g} GPUs{f' ({kinds})' if kinds else ''}, "
                f"{cluster.get('memory_gib', 0):g} GiB",
            )
        )
    return rows


def cost_of(seconds: float, price_per_hour: float) -> float:
    """Return the cost of a duration, in the price's currency."""
    return seconds / 3600 * price_per_hour


def shown_time(seconds: float) -> str:
    """Return a duration as text, in its two largest units."""
    remaining = round(seconds)
    for size, unit in UNITS:
        if remaining >= size:
            smaller, name = {"d": (3600, "h"), "h": (60, "min"), "min": (1, "s")}[unit]
            return f"{remaining // size} {unit} {remaining % size // smaller} {name}"
    return f"{remaining} s"


def _time(values: Mapping[str, Any], price_per_hour: float | None, purpose: str) -> Section | None:
    seconds = values.get("seconds")
    if not isinstance(seconds, int | float):
        return None
    text = f"{shown_time(seconds)} of wall time {purpose}."
    if price_per_hour is not None:
        cost = cost_of(seconds, price_per_hour)
        text += f" At {price_per_hour:,.2f} per hour, this cost {cost:,.2f}."
    return Section(title="Time" if price_per_hour is None else "Time and cost", text=text)


def _text(path: Location) -> str | None:
    try:
        return mask_credentials(path.read_text())
    except NotFound:
        return None
