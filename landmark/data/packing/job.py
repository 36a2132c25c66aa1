"""The packing job: a Ray Data job over the plan's units, then the catalog, and the manifest last."""

import collections
import json
import re
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

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
    read_table,
    write_table,
)
from landmark.data.packing.plan import WORK_FOLDER, Plan, Unit, fingerprint, load_or_make, read_plan
from landmark.data.packing.sources import Source, SyntheticSource
from landmark.data.packing.worker import Packer
from landmark.progress import Progress
from landmark.runtime import own_message
from landmark.storage import Location, NotFound, check_writable

JUDGED_ROWS = 1000
"""Rows after which too many rejects stop a job that is not through."""


@dataclass(kw_only=True, frozen=True)
class PackingResult:
    """What a packing job did."""

    dataset: PackedDataset
    """The finished dataset."""
    packed: int
    """Images packed by this call; those of an earlier, interrupted one do not count."""
    rejects: dict[str, int]
    """Images refused, by reason."""
    seconds: float
    """Wall time of this call."""
    bytes_in: int
    """Bytes read by this call."""
    bytes_out: int
    """Bytes of all shards."""
    notes: list[str]
    """What the source found worth telling."""


def pack_dataset(output: Location, source: Source, config: PrepareConfig) -> PackingResult:
    """Pack a source into `output`, going on where an interrupted call stopped.

    Needs a connected Ray. A finished dataset of the same settings is left as it is, one of other settings
    refused. Raises UserError when more than packing.max_reject_share of the images are refused.
    """
    start = time.monotonic()
    if (done := _finished(output, config)) is not None:
        return PackingResult(
            dataset=done,
            packed=0,
            rejects=_count_rejects(done),
            seconds=0.0,
            bytes_in=0,
            bytes_out=_size(done),
            notes=[],
        )
    check_writable(output)
    plan = load_or_make(output, source, config)
    figures = _read_figures(output, plan)
    before = sum(part["rows"] for part in figures.values())
    bytes_in = _run(output, source, config, plan, figures)
    dataset = _finish(output, source, config, plan, figures)
    packed = sum(part["rows"] for part in figures.values()) - before
    return PackingResult(
        dataset=dataset,
        packed=packed,
        rejects=_count_rejects(dataset),
        seconds=time.monotonic() - start,
        bytes_in=bytes_in,
        bytes_out=_size(dataset),
        notes=plan.notes,
    )


def _finished(output: Location, config: PrepareConfig) -> PackedDataset | None:
    """Return the finished dataset in `output`, if there is one of the same settings."""
    if not (output / "manifest.json").exists():
        return None
    dataset = PackedDataset.open(output.uri)
    if dataset.manifest.source != fingerprint(config):
        raise UserError(f"{output}: holds a dataset of other settings; choose another --output, or delete it first")
    return dataset


def _read_figures(output: Location, plan: Plan) -> dict[int, dict[str, Any]]:
    """Return the figures of the units that are done already."""
    parts = output / WORK_FOLDER / "parts"
    try:
        names = [name for name in parts.names() if name.endswith(".json")]
    except NotFound:
        return {}
    figures = {int(name.removesuffix(".json")): json.loads((parts / name).read_text()) for name in names}
    return {unit.number: figures[unit.number] for unit in plan.units if unit.number in figures}


def _run(
    output: Location, source: Source, config: PrepareConfig, plan: Plan, figures: dict[int, dict[str, Any]]
) -> int:
    """Pack the units that are missing, adding their figures; returns the bytes read."""
    missing = [unit for unit in plan.units if unit.number not in figures]
    if not missing:
        return 0
    progress = Progress("packing", sum(unit.rows for unit in missing))
    rows = [{"unit": json.dumps(vars(unit))} for unit in missing]
    stream = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Packer(output, source, config.packing), batch_size=1, num_cpus=1
    )
    bytes_in, by_number = 0, {unit.number: unit for unit in missing}
    try:
        for done in stream.iter_rows():
            number = int(done["number"])
            bytes_in += int(done["bytes_in"])
            figures[number] = json.loads((output / WORK_FOLDER / "parts" / f"{number:06d}.json").read_text())
            rejects = sum(part["rejects"] for part in figures.values())
            progress.update(by_number[number].rows, f"{rejects} rejected" if rejects else "")
            _judge(output, config, figures, final=False)
    except ray.exceptions.RayError as error:
        raise _explain(error) from error
    progress.clear()
    return bytes_in


def _explain(error: ray.exceptions.RayError) -> UserError:
    """Return a worker's error as one line: its own, where it was a user's mistake."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"[\w.]+(Error|Invalid|Exception): ", line)]
    text = own_message(error) or next(reversed(causes or lines), type(error).__name__)
    return UserError(f"packing stopped: {text}; run the same command again to go on")


def _judge(output: Location, config: PrepareConfig, figures: dict[int, dict[str, Any]], *, final: bool) -> None:
    """Stop the job when too many images are refused."""
    rejects = sum(part["rejects"] for part in figures.values())
    seen = rejects + sum(part["rows"] for part in figures.values())
    if not final and seen < JUDGED_ROWS:
        return
    if rejects > config.packing.max_reject_share * seen:
        reasons: collections.Counter[str] = collections.Counter()
        for number, part in figures.items():
            if part["rejects"]:
                reasons.update(_part_rejects(output, number)["reason"].to_pylist())
        breakdown = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise UserError(
            f"{rejects} of {seen} images refused ({breakdown}), more than the {config.packing.max_reject_share:.1%} "
            "allowed; check the source, or raise packing.max_reject_share and run again"
        )


def _part_rejects(output: Location, number: int) -> pa.Table:
    return read_table(output / WORK_FOLDER / "parts" / f"{number:06d}.rejects.parquet")


def _finish(
    output: Location, source: Source, config: PrepareConfig, plan: Plan, figures: dict[int, dict[str, Any]]
) -> PackedDataset:
    """Write labels, catalog and rejects, then the manifest; the work folder goes last."""
    _judge(output, config, figures, final=True)
    units = [unit for unit in plan.units if figures[unit.number]["rows"]]
    catalog = _catalog(output, units)
    if not len(catalog):
        raise UserError("no image could be packed; check the source")
    counts = np.bincount(catalog["label"].to_numpy(), minlength=len(plan.names))
    labels = [list(range(len(plan.names))), plan.names, plan.names, counts]
    write_table(output / "labels.parquet", pa.table(labels, schema=LABELS_SCHEMA))
    write_table(output / "catalog.parquet", catalog)
    rejects = [_part_rejects(output, unit.number) for unit in plan.units if figures[unit.number]["rejects"]]
    write_table(output / "rejects.parquet", pa.concat_tables([REJECTS_SCHEMA.empty_table(), *rejects]))
    if isinstance(source, SyntheticSource):
        write_table(output / "synthetic.parquet", source.items().drop_columns(["origin"]))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created_by=f"landmark {__version__}",
        source=fingerprint(config),
        seed=config.seed,
        short_side=config.packing.short_side,
        quality=config.packing.quality,
        row_group_rows=config.packing.row_group_rows,
        classes=len(plan.names),
        rejects=sum(part["rejects"] for part in figures.values()),
        splits={split: _split_entry(split, units, figures) for split in SPLITS},
    )
    (output / "manifest.json").write_text(manifest.to_json())
    (output / WORK_FOLDER).delete()
    return PackedDataset.open(output.uri)


def _split_entry(split: str, units: list[Unit], figures: dict[int, dict[str, Any]]) -> SplitEntry:
    parts = [figures[unit.number] for unit in units if unit.split == split]
    shards = [
        ShardEntry(
            path=part["path"],
            rows=part["rows"],
            row_groups=part["row_groups"],
            bytes=part["bytes_out"],
            sha256=part["sha256"],
        )
        for part in parts
    ]
    return SplitEntry(rows=sum(shard.rows for shard in shards), shards=shards)


def _catalog(output: Location, units: list[Unit]) -> pa.Table:
    """Join the parts with the plan: one row a packed image, numbered within its split."""
    work = output / WORK_FOLDER
    plan = read_plan(work, ["image_id", "landmark_id", "label", "split"])
    tables, shard, sample = [], collections.Counter[str](), collections.Counter[str]()
    for unit in units:
        part = read_table(work / "parts" / f"{unit.number:06d}.parquet")
        rows = len(part)
        planned = plan.take(part["plan_row"])
        first = sample[unit.split]
        columns = {name: planned[name] for name in planned.column_names}
        columns |= {name: part[name] for name in ("row_group", "width", "height")}
        columns["sample"] = pa.array(np.arange(first, first + rows))
        columns["shard"] = pa.array(np.full(rows, shard[unit.split], dtype=np.int32))
        tables.append(pa.table({field.name: columns[field.name] for field in CATALOG_SCHEMA}).cast(CATALOG_SCHEMA))
        shard[unit.split] += 1
        sample[unit.split] += rows
    return pa.concat_tables([CATALOG_SCHEMA.empty_table(), *tables])


def _count_rejects(dataset: PackedDataset) -> dict[str, int]:
    reasons = read_table(dataset.location / "rejects.parquet", columns=["reason"])["reason"].to_pylist()
    return dict(collections.Counter(reasons).most_common())


def _size(dataset: PackedDataset) -> int:
    return sum(shard.bytes for split in dataset.manifest.splits.values() for shard in split.shards)
