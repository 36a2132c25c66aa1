"""The last step of a packing job: labels, catalog and rejects from the parts, then the manifest."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from landmark import __version__
from landmark.config import PrepareConfig, UserError
from landmark.data.dataset import (
    CATALOG_SCHEMA,
    LABELS_SCHEMA,
    REJECTS_SCHEMA,
    SCHEMA_VERSION,
    SPLITS,
    Manifest,
    PackedDataset,
    ShardEntry,
    SplitEntry,
)
from landmark.data.packing.join import Figures, part_rejects
from landmark.data.packing.plan import Plan, fingerprint, read_faults, read_plan
from landmark.data.packing.sources import Source, SyntheticSource
from landmark.data.packing.tasks import WORK_FOLDER, PackingTask
from landmark.data.packing.worker import PART_SCHEMA, part_file
from landmark.storage import Location
from landmark.storage.tables import read_table, write_table

EXTRA_COLUMNS = ("author", "license", "category", "supercategory")
"""Columns that are copied into the catalog if the source has them."""


def finish(
    output: Location, source: Source, config: PrepareConfig, plan: Plan, figures: Figures, missing: pa.Table
) -> PackedDataset:
    """Write labels, catalog and rejects, then the manifest. Delete the work folder last.

    missing: planned images that were not found, REJECTS_SCHEMA. Classes without an image are dropped. The labels in the
    catalog then differ from the labels in the shards. Raises UserError if no image was packed, or only images of one
    class.
    """
    catalog = _catalog(output, plan, figures)
    if not len(catalog):
        raise UserError("no image could be packed; check the source")
    counts = np.bincount(catalog["label"].to_numpy(), minlength=len(plan.names))
    used = np.flatnonzero(counts)
    if len(used) < min(2, len(plan.names)):
        raise UserError(
            f"only the class {plan.names[used[0]]!r} has readable images, but training requires two classes; check the source"
        )
    label_map = np.cumsum(counts > 0) - 1
    catalog = catalog.set_column(
        catalog.schema.get_field_index("label"),
        catalog.schema.field("label"),
        pa.array(label_map[catalog["label"].to_numpy()], pa.int32()),
    )
    names, landmark_ids = ([values[label] for label in used] for values in (plan.names, plan.landmark_ids))
    labels = [list(range(len(used))), landmark_ids, names, counts[used]]
    write_table(output / "labels.parquet", pa.table(labels, schema=LABELS_SCHEMA))
    write_table(output / "catalog.parquet", catalog)
    write_table(output / "rejects.parquet", _rejects(output, plan, figures, missing))
    if isinstance(source, SyntheticSource):
        write_table(output / "synthetic.parquet", source.items().drop_columns(["origin"]))
    refused = sum(part["rejects"] + part["unplanned"] for part in figures.values()) + len(missing)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created_by=f"landmark {__version__}",
        source=fingerprint(config),
        seed=config.seed,
        short_side=config.packing.short_side,
        quality=config.packing.quality,
        row_group_rows=config.packing.row_group_rows,
        classes=len(used),
        source_state=plan.source_state,
        relabelled=len(used) < len(plan.names),
        rejects=refused + plan.faults,
        splits={split: _split_entry(split, plan.tasks, figures) for split in SPLITS},
    )
    (output / "manifest.json").write_text(manifest.to_json())
    (output / WORK_FOLDER).delete()
    return PackedDataset.open(output.uri)


def _rejects(output: Location, plan: Plan, figures: Figures, missing: pa.Table) -> pa.Table:
    """Return all rejects: skipped rows of the source's tables first, then images."""
    numbers = [
        task.number for task in plan.tasks if figures[task.number]["rejects"] + figures[task.number]["unplanned"]
    ]
    parts = [part_rejects(output, number).drop_columns(["plan_row"]) for number in numbers]
    return pa.concat_tables([REJECTS_SCHEMA.empty_table(), read_faults(output / WORK_FOLDER), *parts, missing])


def _split_entry(split: str, tasks: list[PackingTask], figures: Figures) -> SplitEntry:
    """Return a split's shards, in the order of the tasks and of the shards in each task."""
    shards = []
    for task in tasks:
        for shard in figures[task.number]["shards"]:
            if shard["split"] == split:
                shards.append(ShardEntry(**{key: value for key, value in shard.items() if key != "split"}))
    return SplitEntry(rows=sum(shard.rows for shard in shards), shards=shards)


def _catalog(output: Location, plan: Plan, figures: Figures) -> pa.Table:
    """Join the parts with the plan: one row per packed image, split by split, numbered within its split."""
    work = output / WORK_FOLDER
    parts: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
    for task in plan.tasks:
        part, start = read_table(part_file(work, task.number, ".parquet")), 0
        for shard in figures[task.number]["shards"]:
            number = np.full(shard["rows"], len(parts[shard["split"]]), dtype=np.int32)
            rows = part.slice(start, shard["rows"]).set_column(1, "shard", pa.array(number))
            parts[shard["split"]].append(rows)
            start += shard["rows"]
    joined = pa.concat_tables([PART_SCHEMA.empty_table(), *(part for split in SPLITS for part in parts[split])])
    counts = [sum(map(len, parts[split])) for split in SPLITS]
    columns: dict[str, Any] = {name: joined[name] for name in ("shard", "row_group", "width", "height")}
    columns["sample"] = pa.array(np.concatenate([np.arange(count) for count in counts]))
    planned = read_plan(work, ["image_id", "landmark_id", "label", "split", "group", *EXTRA_COLUMNS]).combine_chunks()
    rows = joined["plan_row"].combine_chunks()
    columns |= {name: planned[name].take(rows) for name in planned.column_names}
    extra = [pa.field(name, pa.string()) for name in EXTRA_COLUMNS if name in planned.column_names]
    if "group" in columns and not pc.all(pc.equal(columns["group"], columns["image_id"])).as_py():
        extra.append(pa.field("group", pa.string()))  # without a groups file, each image is its own group
    schema = pa.schema([*CATALOG_SCHEMA, *extra])
    return pa.table({field.name: columns[field.name].cast(field.type) for field in schema})
