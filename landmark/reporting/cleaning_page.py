"""Page sections for a cleaned dataset: dropped and relabeled images, reasons, and examples per reason."""

from typing import Any

import pandas as pd

from landmark.config import UserError
from landmark.reporting.page import Gallery, Picture, Section, html_table, within_budget
from landmark.reporting.tables import read_json, read_parquet, require_numbers, write_table
from landmark.storage import Location, locate, scheme_of

HINT = "clean the dataset again"
REASONS = {
    "unreadable": "unreadable",
    "degenerate": "degenerate image",
    "exact_duplicate": "exact duplicate",
    "near_duplicate": "near-duplicate",
    "label_noise": "label error",
    "distractor": "distractor",
    "small_class": "class too small",
}
AUDIT = ("split", "image_id", "label", "reason", "action", "score", "threshold", "other_image_id", "new_label")
EXAMPLES = (
    "reason",
    "action",
    "image_id",
    "label",
    "score",
    "other_image_id",
    "other_label",
    "thumbnail",
    "other_thumbnail",
)
ROWS_PER_REASON = 8
"""Maximum rows per reason in the page's table."""
PHOTOGRAPH_BYTES = 900_000
"""Maximum size of the section's photographs."""


def cleaned_dataset(run: Location, dataset: str, explicit: str | None) -> Location | None:
    """Return the folder of the cleaned dataset to show on a run's page, or None.

    explicit: the user's choice. Raises UserError if it is not a cleaned dataset. By default, the run's own dataset is
    used, but only if it is on the same storage as the run. So the report of a local run never waits for a bucket.
    """
    if explicit is not None:
        path = locate(explicit)
        if not (path / "clean.json").exists():
            raise UserError(
                f"{path}: not a cleaned dataset (clean.json is missing); specify an output folder of `landmark clean`"
            )
        return path
    if not dataset or scheme_of(dataset) != scheme_of(run.uri):
        return None
    path = locate(dataset)
    return path if (path / "clean.json").exists() else None


def cleaning_sections(folder: Location, output: Location) -> list[Section]:
    """Return the sections of a cleaned dataset and write their table next to the page.

    Raises UserError if a file is corrupt.
    """
    values = read_json(folder / "clean.json")
    if missing := [key for key in ("rows_before", "rows_after", "by_reason") if key not in values]:
        raise UserError(f"{folder / 'clean.json'}: missing {', '.join(missing)}; {HINT}")
    for key in ("rows_before", "rows_after"):
        require_numbers(folder / "clean.json", values[key], list(values[key]), HINT)
    names = _names(folder, values)
    sections = [_overview(values, output)]
    if (folder / "audit.parquet").exists():
        sections.append(_audit(folder / "audit.parquet", names))
    if (folder / "examples.parquet").exists():
        sections += _examples(folder / "examples.parquet", names)
    return sections


def _overview(values: dict[str, Any], output: Location) -> Section:
    reasons = pd.DataFrame(
        [
            {"reason": REASONS.get(reason, reason)} | {key: counts.get(key, 0) for key in ("dropped", "relabelled")}
            for reason, counts in values["by_reason"].items()
        ],
        columns=["reason", "dropped", "relabelled"],
    )
    write_table(output, "cleaning", reasons)
    splits = pd.DataFrame(
        [
            {"split": split, "before": before, "after": values["rows_after"].get(split, 0)}
            for split, before in values["rows_before"].items()
        ],
        columns=["split", "before", "after"],
    )
    before, after = int(splits["before"].sum()), int(splits["after"].sum())
    thresholds = pd.DataFrame(
        [(key, str(value)) for key, value in (values.get("thresholds") or {}).items()], columns=["threshold", "value"]
    )
    source = f" Features: {values['embeddings']}." if values.get("embeddings") else ""
    display_names = {"relabelled": "relabeled"}
    return Section(
        title="Cleaning",
        text=f"{before - after:,} of {before:,} images ({(before - after) / max(before, 1):.1%}) were dropped and "
        f"{int(reasons['relabelled'].sum()):,} relabeled. The original dataset is unchanged.{source}",
        table=html_table(reasons.rename(columns=display_names)),
        extra_tables=[
            ("Images by split", html_table(splits)),
            *([("Thresholds", html_table(thresholds))] if len(thresholds) else []),
        ],
    )


def _audit(path: Location, names: list[str]) -> Section:
    audit = read_parquet(path, AUDIT, HINT).to_pandas()
    # For some reasons a lower score is worse, so rank by distance from the threshold.
    ranked = audit.assign(distance=(audit["score"] - audit["threshold"]).abs().fillna(0))
    ranked = ranked.sort_values("distance", ascending=False, kind="stable")
    top = ranked.groupby("reason", sort=False).head(ROWS_PER_REASON)
    order = {reason: number for number, reason in enumerate(REASONS)}
    top = top.sort_values("reason", key=lambda column: column.map(order), kind="stable")
    shown = pd.DataFrame(
        {
            "reason": [REASONS.get(reason, reason) for reason in top["reason"]],
            "action": [
                f"relabeled as {_name(names, new)}" if action == "relabel" else "dropped"
                for action, new in zip(top["action"], top["new_label"], strict=True)
            ],
            "split": top["split"],
            "image": top["image_id"],
            "class": [_name(names, label) for label in top["label"]],
            "score": top["score"],
            "threshold": top["threshold"],
            "counterpart": top["other_image_id"],
        }
    )
    return Section(
        title="Audit",
        text=f"Up to {ROWS_PER_REASON} rows per reason, farthest from the threshold first. "
        f"All {len(audit):,} rows are in {path}.",
        table=html_table(shown),
    )


def _examples(path: Location, names: list[str]) -> list[Section]:
    rows = read_parquet(path, EXAMPLES, HINT).to_pandas().to_dict("records")
    by_reason: dict[str, list[Gallery]] = {reason: [] for reason in REASONS}
    for row in rows:
        reason = REASONS.get(row["reason"], row["reason"])
        name = _name(names, row["label"])
        picture = Picture(
            data=row["thumbnail"],
            alt=f"Photograph {row['image_id']} of {name}: {reason}",
            caption=f"{name}, score {row['score']:.2f}",
            badge="relabeled" if row["action"] == "relabel" else "dropped",
        )
        pictures = [picture] if row["thumbnail"] else []
        if row["other_thumbnail"]:
            other = _name(names, row["other_label"])
            alt = f"Counterpart {row['other_image_id']} of {other}"
            pictures.append(Picture(data=row["other_thumbnail"], alt=alt, caption=other, badge="counterpart"))
        by_reason.setdefault(row["reason"], []).append(Gallery(title="", pictures=pictures))
    # Alternate between reasons, so that the size limit omits the weakest examples of all reasons.
    ranked = [(rank, row) for examples in by_reason.values() for rank, row in enumerate(examples) if row.pictures]
    ranked.sort(key=lambda item: item[0])
    kept, omitted = within_budget((row for _, row in ranked), PHOTOGRAPH_BYTES)
    shown = {id(row) for row in kept}
    galleries = [
        Gallery(title=REASONS.get(reason, reason).capitalize(), pictures=pictures)
        for reason, examples in by_reason.items()
        if (pictures := [picture for row in examples if id(row) in shown for picture in row.pictures])
    ]
    if not galleries:
        return []
    text = "The clearest examples per reason." + (f" {omitted} photographs are omitted." if omitted else "")
    return [Section(title="Examples by reason", text=text, galleries=galleries)]


def _names(folder: Location, values: dict[str, Any]) -> list[str]:
    """Return the class names by label. The audit uses the labels of the dataset that was cleaned."""
    for path in (locate(str(values.get("dataset") or folder)), folder):
        if (path / "labels.parquet").exists():
            return read_parquet(path / "labels.parquet", ("name",), HINT)["name"].to_pylist()
    return []


def _name(names: list[str], label: float | None) -> str:
    if label is None or pd.isna(label):
        return "none"
    number = int(label)
    return names[number] if 0 <= number < len(names) else "no landmark" if number < 0 else f"label {number}"
