"""The audit: every row that cleaning dropped or relabeled, with reason and score."""

import csv
import io
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from landmark.data.dataset import SPLITS
from landmark.storage import Location
from landmark.storage.tables import write_table

REASONS = (
    "unreadable",
    "degenerate",
    "exact_duplicate",
    "near_duplicate",
    "distractor",
    "label_noise",
    "small_class",
)
"""In order of detection. The first reason that applies counts."""
EXAMPLES = 12
"""Maximum number of examples per reason."""
AUDIT_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("sample", pa.int64()),
        ("image_id", pa.string()),
        ("label", pa.int32()),
        ("reason", pa.string()),
        ("action", pa.string()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("other_split", pa.string()),
        ("other_image_id", pa.string()),
        ("other_label", pa.int32()),
        ("new_label", pa.int32()),
    ]
)


@dataclass(kw_only=True, frozen=True, eq=False)
class Rows:
    """All images to clean, by split and sample. Arrays have the same length."""

    split: np.ndarray
    """Index into SPLITS, int64."""
    sample: np.ndarray
    """int64."""
    image_id: pa.Array
    """string."""
    label: np.ndarray
    """int64, in the label numbering of the shards."""


@dataclass(kw_only=True, eq=False)
class Decisions:
    """The decision for each row. A row is dropped or relabeled at most once."""

    rows: Rows
    label: np.ndarray = field(init=False)
    """Label after cleaning, int64 (n,)."""
    dropped: np.ndarray = field(init=False)
    """bool (n,)."""
    _parts: list[pa.Table] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.label = self.rows.label.copy()
        self.dropped = np.zeros(len(self.label), dtype=bool)

    @property
    def left(self) -> np.ndarray:
        """Rows that are not dropped, int64 ascending."""
        return np.flatnonzero(~self.dropped)

    def drop(
        self, rows: np.ndarray, reason: str, score: np.ndarray, threshold: float, other: np.ndarray | None = None
    ) -> None:
        """Drop rows.

        rows: int64 (k,). score: float64 (k,). other: the row that each row is a duplicate of, int64 (k,), or None.
        """
        self.dropped[rows] = True
        self._note(rows, reason, "drop", score, threshold, other, None)

    def relabel(self, rows: np.ndarray, labels: np.ndarray, score: np.ndarray, threshold: float) -> None:
        """Assign new labels, int64 (k,), to rows, int64 (k,)."""
        self.label[rows] = labels
        self._note(rows, "label_noise", "relabel", score, threshold, None, labels)

    def _note(
        self,
        rows: np.ndarray,
        reason: str,
        action: str,
        score: np.ndarray,
        threshold: float,
        other: np.ndarray | None,
        new: np.ndarray | None,
    ) -> None:
        count, all_rows = len(rows), self.rows
        names = pa.array(SPLITS)
        columns = [
            names.take(pa.array(all_rows.split[rows])),
            all_rows.sample[rows],
            all_rows.image_id.take(pa.array(rows)),
            all_rows.label[rows],
            pa.repeat(reason, count),
            pa.repeat(action, count),
            score,
            np.full(count, threshold),
            pa.nulls(count, pa.string()) if other is None else names.take(pa.array(all_rows.split[other])),
            pa.nulls(count, pa.string()) if other is None else all_rows.image_id.take(pa.array(other)),
            pa.nulls(count, pa.int32()) if other is None else all_rows.label[other],
            pa.nulls(count, pa.int32()) if new is None else new,
        ]
        arrays = [pa.array(column).cast(kind.type) for column, kind in zip(columns, AUDIT_SCHEMA, strict=True)]
        table = pa.table(arrays, schema=AUDIT_SCHEMA).append_column("row", pa.array(rows, pa.int64()))
        counterpart = pa.array(np.full(count, -1) if other is None else other, pa.int64())
        self._parts.append(table.append_column("other_row", counterpart))

    def noted(self) -> pa.Table:
        """Return AUDIT_SCHEMA plus the int64 columns row and other_row (-1: none), in order of detection."""
        schema = AUDIT_SCHEMA.append(pa.field("row", pa.int64())).append(pa.field("other_row", pa.int64()))
        return pa.concat_tables([schema.empty_table(), *self._parts]).combine_chunks()

    def by_reason(self) -> dict[str, dict[str, int]]:
        """Return the number of dropped and relabeled rows per reason."""
        table = self.noted()
        reasons, actions = (table[name].to_numpy(zero_copy_only=False) for name in ("reason", "action"))
        return {
            reason: {
                key: int(((reasons == reason) & (actions == action)).sum())
                for key, action in (("dropped", "drop"), ("relabelled", "relabel"))
            }
            for reason in REASONS
        }

    def per_split(self, *, after: bool) -> dict[str, int]:
        """Return the number of rows per split, before or after cleaning."""
        splits = self.rows.split[self.left] if after else self.rows.split
        return dict(zip(SPLITS, np.bincount(splits, minlength=len(SPLITS)).tolist(), strict=True))


def write_audit(folder: Location, table: pa.Table) -> None:
    """Write audit.parquet and audit.csv."""
    table = table.select(AUDIT_SCHEMA.names)
    write_table(folder / "audit.parquet", table)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    for batch in table.to_batches(max_chunksize=65_536):
        writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    (folder / "audit.csv").write_text(text.getvalue())


def top_examples(table: pa.Table) -> pa.Table:
    """Return at most EXAMPLES rows of `Decisions.noted` per reason: those farthest from their threshold."""
    reasons = table["reason"].to_numpy(zero_copy_only=False)
    distance = np.abs(table["score"].to_numpy() - table["threshold"].to_numpy())
    parts = []
    for reason in REASONS:
        rows = np.flatnonzero(reasons == reason)
        parts.append(rows[np.argsort(-distance[rows], kind="stable")][:EXAMPLES])
    return table.take(pa.array(np.concatenate(parts)))
