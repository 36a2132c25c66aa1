"""Joining of the parts of a packing job: duplicate and missing images."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from landmark.data.dataset import REJECTS_SCHEMA
from landmark.data.packing.plan import Plan, read_plan
from landmark.data.packing.tasks import WORK_FOLDER
from landmark.data.packing.worker import NO_ROW, part_file, read_without, without_file
from landmark.storage import Location
from landmark.storage.tables import read_table

Figures = dict[int, dict[str, Any]]
"""The figures of completed tasks, by task number."""


def part_rejects(output: Location, number: int) -> pa.Table:
    """Return a task's rejects: plan_row and REJECTS_SCHEMA."""
    return read_table(part_file(output / WORK_FOLDER, number, ".rejects.parquet"))


def drop_duplicates(output: Location, plan: Plan, figures: Figures) -> bool:
    """Find images that several tasks packed, and reset the later tasks so that they are packed again without them.

    Returns whether there were any. Their figures are removed from `figures`, so that the next run packs them.
    """
    if not plan.in_tars():
        return False
    work = output / WORK_FOLDER
    taken = np.zeros(plan.planned, dtype=bool)
    again = False
    for task in plan.tasks:
        rows = _packed_rows(work, task.number)
        twice = rows[taken[rows]]
        taken[rows] = True
        if not len(twice):
            continue
        again = True
        without = sorted(read_without(work, task.number) | set(twice.tolist()))
        # The order matters. A task without figures is packed again, and reads this file.
        without_file(work, task.number).write_text(json.dumps(without))
        part_file(work, task.number, ".json").delete()
        for shard in figures.pop(task.number)["shards"]:
            (output / shard["path"]).delete()
    return again


def find_missing(output: Location, plan: Plan) -> pa.Table:
    """Return the planned images that were in no tar. Schema: REJECTS_SCHEMA."""
    if not plan.in_tars():
        return REJECTS_SCHEMA.empty_table()
    work = output / WORK_FOLDER
    seen = np.zeros(plan.planned, dtype=bool)
    for task in plan.tasks:
        refused = part_rejects(output, task.number)["plan_row"].to_numpy()
        seen[refused[refused != NO_ROW]] = True
        seen[_packed_rows(work, task.number)] = True
    rows = np.flatnonzero(~seen)
    ids = read_plan(work, ["image_id"])["image_id"].take(pa.array(rows))
    reasons = pa.array(np.full(len(rows), "missing"), pa.string())
    return pa.table([ids, pa.array(np.full(len(rows), "train.csv"), pa.string()), reasons], schema=REJECTS_SCHEMA)


def _packed_rows(work: Location, number: int) -> np.ndarray:
    return read_table(part_file(work, number, ".parquet"), columns=["plan_row"])["plan_row"].to_numpy()
