"""The packing plan: label, split and shard of each image. It is decided once and saved, so that a killed job can
resume."""

import collections
import dataclasses
import itertools
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from landmark.config import (
    PackingConfig,
    PrepareConfig,
    UserError,
    from_mapping,
    resumed_subset,
    to_mapping,
    with_recorded_subset,
)
from landmark.config.commands.prepare import MAX_MEGAPIXELS
from landmark.data.dataset import REJECTS_SCHEMA, SPLITS
from landmark.data.packing.catalog import RequestedImages, request_images
from landmark.data.packing.gldv2_source import Gldv2Source
from landmark.data.packing.sources import Source, changes, source_state
from landmark.data.packing.tar_plan import plan_tars
from landmark.data.packing.tasks import MIN_TASKS, SIZE_SAMPLES, WORK_FOLDER, PackingTask
from landmark.data.randomness import Stream, generator
from landmark.data.sources.image_files import RejectedImage, describe_reasons
from landmark.data.sources.transcode import pack_image
from landmark.storage import Location, NotFound
from landmark.storage.tables import read_parquet, read_table, write_table

PLAN_FILE = "plan.parquet"
FAULTS_FILE = "faults.parquet"
MIN_SHARD_ROWS = 256
TAR_ROW_GROUP_ROWS = 1 << 16


@dataclass(kw_only=True, frozen=True)
class Plan:
    """The plan of a packing job."""

    tasks: list[PackingTask]
    """All packing tasks."""
    landmark_ids: list[str]
    """Landmark ids, in the order of the labels."""
    names: list[str]
    """Names of the landmarks, in the order of the labels."""
    notes: list[str]
    """Notes of the source for the user."""
    faults: int
    """Number of skipped rows of the source's tables."""
    planned: int
    """Number of planned images."""
    plan_id: str
    """Unique id of this plan."""
    source_state: dict[str, Any] | None = None
    """State of the source files when they were listed, to detect changes. None if it is unknown."""

    def in_tars(self) -> bool:
        """Return whether the images are in tars."""
        return bool(self.tasks) and bool(self.tasks[0].tars)


def fingerprint(config: PrepareConfig) -> dict[str, Any]:
    """Return the options that determine a dataset's content: the config without output and cluster."""
    values = to_mapping(config)
    sources = ("folders", "synthetic", "gldv2", "dataset")
    left_out = {"output", "cluster", "verify", *(name for name in sources if name != config.source)}
    if config.subset.keeps_all_images():
        left_out.add("subset")
    checks = {"packing": ("max_reject_fraction",), "gldv2": ("max_fault_fraction", "check_md5")}
    if config.packing.max_megapixels == MAX_MEGAPIXELS:
        checks["packing"] += ("max_megapixels",)  # for datasets that are older than this option
    for name, keys in checks.items():
        values[name] = {key: value for key, value in values[name].items() if key not in keys}
    return {key: value for key, value in values.items() if key not in left_out}


def recorded_settings(saved: Mapping[str, Any], config: PrepareConfig) -> tuple[bool, str]:
    """Return whether a recorded fingerprint matches a config, and a note if the rule of its subset is an older one.

    Options that the record does not contain have their defaults, because an older version wrote it.
    """
    try:
        before = from_mapping(PrepareConfig, {**with_recorded_subset(saved), "output": config.output}, config.output)
    except UserError:  # written by a newer version
        return False, ""
    subset, note = resumed_subset(config.subset, before.subset)
    return fingerprint(before) == fingerprint(dataclasses.replace(config, subset=subset)), note


def load_or_make(output: Location, source: Source, config: PrepareConfig) -> Plan:
    """Return the incomplete plan in the output's work folder, or create and save one.

    Raises UserError if the incomplete plan belongs to another config.
    """
    work = output / WORK_FOLDER
    try:
        saved = json.loads((work / "plan.json").read_text())
    except NotFound:
        return _make(work, source, config)
    same, note = recorded_settings(saved["config"], config)
    if not same:
        raise UserError(
            f"{output}: contains an incomplete dataset with other options; run `landmark prepare` with its options, or choose "
            "another --output"
        )
    plan = _plan(saved)
    if note:
        plan.notes.append(note)
    if changed := changes(plan.source_state, source_state(source, config.subset)):
        plan.notes.append(
            f"the source changed after packing started ({changed}); the dataset keeps the earlier images. To pack the source as it "
            f"is now, choose another --output, or delete {output}"
        )
    return plan


def read_task(work: Location, task: PackingTask) -> pa.Table:
    """Return the planned rows of a task."""
    return read_parquet(work / PLAN_FILE, lambda file: file.read_row_group(task.number))


def read_plan(work: Location, columns: list[str]) -> pa.Table:
    """Return the existing columns of `columns` of all planned rows, task by task, or sorted by id for tars."""
    return read_parquet(
        work / PLAN_FILE, lambda file: file.read([name for name in columns if name in file.schema_arrow.names])
    )


def read_faults(work: Location) -> pa.Table:
    """Return the skipped rows of the source's tables. Schema: REJECTS_SCHEMA."""
    return read_table(work / FAULTS_FILE)


def _plan(saved: dict[str, Any]) -> Plan:
    values = {key: value for key, value in saved.items() if key not in ("config", "tasks", "units")}
    tasks = saved["tasks"] if "tasks" in saved else saved["units"]  # the key of earlier versions
    return Plan(**values, tasks=[PackingTask(**task) for task in tasks])


def _make(work: Location, source: Source, config: PrepareConfig) -> Plan:
    wanted = request_images(source, config)
    if isinstance(source, Gldv2Source) and source.tars:
        rows, tasks, index = plan_tars(source, wanted, config)
        index.save(work)
        _save_rows(work, rows, [np.arange(start, stop) for start, stop in _bounds(len(rows), TAR_ROW_GROUP_ROWS)])
    else:
        tasks, order = _plan_rows(source, wanted, config)
        _save_rows(work, wanted.items, order)
    listed = [list(column) for column in zip(*wanted.listing.faults.listed, strict=True)] or [[]] * len(REJECTS_SCHEMA)
    write_table(work / FAULTS_FILE, pa.table(listed, schema=REJECTS_SCHEMA))
    values = {
        "config": fingerprint(config),
        "tasks": [to_mapping(task) for task in tasks],
        "landmark_ids": wanted.landmark_ids,
        "names": wanted.names,
        "notes": wanted.notes,
        "planned": len(wanted.items),
        "faults": wanted.listing.faults.total(),
        "plan_id": uuid.uuid4().hex,
        "source_state": source_state(source, config.subset),
    }
    (work / "plan.json").write_text(json.dumps(values))
    return _plan(values)


def _plan_rows(
    source: Source, wanted: RequestedImages, config: PrepareConfig
) -> tuple[list[PackingTask], list[np.ndarray]]:
    """Divide the shuffled images of each split into shards. Returns the tasks and the items' rows of each."""
    shard_rows = rows_per_shard(source, wanted.items, config.packing, config.seed)
    splits = wanted.splits()
    order: list[np.ndarray] = []
    tasks: list[PackingTask] = []
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(splits == number)
        if not wanted.in_order:
            rows = generator(config.seed, Stream.PACKING_ORDER, number).permutation(rows)
        for shard, part in enumerate(_even_parts(rows, shard_rows, config.packing.row_group_rows)):
            tasks.append(PackingTask(number=len(tasks), name=f"{shard:05d}", split=split, rows=len(part)))
            order.append(part)
    return tasks, order


def _bounds(total: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, total)) for start in range(0, total, size)]


def rows_per_shard(source: Source, items: pa.Table, packing: PackingConfig, seed: int) -> int:
    """Return the rows per shard for the target size, estimated from a seeded sample of the images.

    It does not depend on the number of CPUs, so that the same images give the same shards on any machine.
    """
    chosen = generator(seed, Stream.SIZE_SAMPLE).permutation(len(items))[:SIZE_SAMPLES]
    sizes = []
    reasons: collections.Counter[str] = collections.Counter()
    for row in items.take(pa.array(np.sort(chosen))).to_pylist():
        try:
            sizes.append(len(pack_image(source.read(row), packing, name=row["origin"]).jpeg))
        except (RejectedImage, UserError) as error:
            reasons[str(error)] += 1
    if not sizes:
        raise UserError(
            f"none of {len(chosen)} sampled files is a readable image ({describe_reasons(reasons)}); check the path of the source"
        )
    by_size = int(packing.shard_mib * 2**20 / (sum(sizes) / len(sizes)))
    spread = max(MIN_SHARD_ROWS, -(-len(items) // MIN_TASKS))
    return max(1, min(by_size, spread))


def _even_parts(rows: np.ndarray, size: int, row_group_rows: int) -> list[np.ndarray]:
    """Divide rows into shards of about `size` rows, with complete row groups."""
    if not len(rows):
        return []
    groups = -(-len(rows) // row_group_rows)
    parts = max(1, round(len(rows) / size))
    bounds = (np.arange(parts + 1) * groups // parts * row_group_rows).clip(max=len(rows))
    bounds[-1] = len(rows)
    return [rows[start:stop] for start, stop in itertools.pairwise(bounds) if stop > start]


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _save_rows(work: Location, items: pa.Table, order: list[np.ndarray]) -> None:
    """Save the planned rows with one row group per task, so that a worker reads only its own rows."""
    sink = pa.BufferOutputStream()
    # Plain columns. With dictionary encoding, each row group would repeat the complete dictionary.
    schema = pa.schema([pa.field(field.name, _plain(field.type)) for field in items.schema])
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for part in order:
            writer.write_table(items.take(pa.array(part)).cast(schema), row_group_size=max(1, len(part)))
    (work / PLAN_FILE).write_bytes(sink.getvalue().to_pybytes())
