"""The packing plan: every image's label, split and shard, decided once and saved, so that a killed job goes on."""

import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from landmark.config import PackingConfig, PrepareConfig, UserError, to_mapping
from landmark.data.dataset import SPLITS, read_parquet, read_table
from landmark.data.images import Refused, pack_image
from landmark.data.packing.sources import Source, class_labels
from landmark.data.randomness import generator
from landmark.data.splits import split_images
from landmark.storage import Location, NotFound

WORK_FOLDER = "_work"
PLAN_FILE = "plan.parquet"
SIZE_SAMPLES = 48
SHARDS_AT_LEAST = 16
"""Shards that a split too small to fill them gets all the same, so that packing has something to share out."""
SMALLEST_SHARD_ROWS = 256


@dataclass(kw_only=True, frozen=True)
class Unit:
    """One piece of work: the images of one shard."""

    number: int
    """Its place in the plan, and its row group in the plan's file."""
    split: str
    """train, val or test."""
    shard: int
    """Number of the shard in its split."""
    rows: int
    """Images planned."""

    @property
    def path(self) -> str:
        """The shard's path below the dataset."""
        return f"{self.split}/{self.shard:05d}.parquet"


@dataclass(kw_only=True, frozen=True)
class Plan:
    """What there is to pack."""

    units: list[Unit]
    """All pieces of work."""
    names: list[str]
    """The landmark ids in the order of the labels."""
    notes: list[str]
    """What the source found worth telling."""

    def rows(self) -> int:
        """Return the number of images."""
        return sum(unit.rows for unit in self.units)


def fingerprint(config: PrepareConfig) -> dict[str, Any]:
    """Return what decides a dataset's content: the config without where it goes and who computes it."""
    values = to_mapping(config)
    unused = {name: config.source != name for name in ("folders", "synthetic", "dataset")}
    return {
        key: value
        for key, value in values.items()
        if key not in ("output", "cluster", "packing", "verify") and not unused.get(key, False)
    } | {"packing": {key: value for key, value in values["packing"].items() if key != "max_reject_share"}}


def load_or_make(output: Location, source: Source, config: PrepareConfig) -> Plan:
    """Return the unfinished plan found in the output's work folder, or make and save one.

    Raises UserError when the unfinished one is of another config.
    """
    work = output / WORK_FOLDER
    try:
        saved = json.loads((work / "plan.json").read_text())
    except NotFound:
        return _make(work, source, config)
    if saved["config"] != fingerprint(config):
        raise UserError(
            f"{output}: holds an unfinished dataset of other settings; run `landmark prepare` as before, or choose "
            "another --output"
        )
    units = [Unit(**unit) for unit in saved["units"]]
    return Plan(units=units, names=saved["names"], notes=saved["notes"])


def read_unit(work: Location, unit: Unit) -> pa.Table:
    """Return the planned rows of a unit."""
    return read_parquet(work / PLAN_FILE, lambda file: file.read_row_group(unit.number))


def read_plan(work: Location, columns: list[str]) -> pa.Table:
    """Return columns of all planned rows, unit by unit."""
    return read_table(work / PLAN_FILE, columns=columns)


def _make(work: Location, source: Source, config: PrepareConfig) -> Plan:
    items = source.items()
    labels, names = class_labels(items)
    items = items.append_column("label", pa.array(labels, pa.int32()))
    kept = "split" in items.column_names
    if kept:
        splits = pc.index_in(items["split"], pa.array(SPLITS)).to_numpy()
    else:
        splits = split_images(labels, items["group"], config.split, config.seed)
        items = items.append_column("split", pa.array([SPLITS[number] for number in splits]))
    shard_rows = rows_per_shard(source, items, config.packing, config.seed)
    order: list[np.ndarray] = []
    units: list[Unit] = []
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(splits == number)
        if not kept:  # a source that brings its splits is a dataset, whose rows are mixed already
            rows = generator(config.seed, 2, number).permutation(rows)
        for shard, part in enumerate(_even_parts(rows, shard_rows, config.packing.row_group_rows)):
            units.append(Unit(number=len(units), split=split, shard=shard, rows=len(part)))
            order.append(part)
    _save_rows(work, items, order)
    plan = Plan(units=units, names=names, notes=source.notes())
    values = {
        "config": fingerprint(config),
        "units": [to_mapping(unit) for unit in units],
        "names": names,
        "notes": plan.notes,
    }
    (work / "plan.json").write_text(json.dumps(values))
    return plan


def rows_per_shard(source: Source, items: pa.Table, packing: PackingConfig, seed: int) -> int:
    """Return the rows that make a shard of the size aimed at, judged by a seeded sample of the images.

    The number of CPUs has no say: the same images give the same shards on any machine.
    """
    chosen = generator(seed, 3).permutation(len(items))[:SIZE_SAMPLES]
    sizes = []
    for row in items.take(pa.array(np.sort(chosen))).to_pylist():
        try:
            sizes.append(len(pack_image(source.read(row), packing).jpeg))
        except (Refused, UserError):
            continue
    if not sizes:
        raise UserError(f"none of {len(chosen)} files looked at is a readable picture; check the source's path")
    by_size = int(packing.shard_mib * 2**20 / (sum(sizes) / len(sizes)))
    spread = max(SMALLEST_SHARD_ROWS, -(-len(items) // SHARDS_AT_LEAST))
    return max(1, min(by_size, spread))


def _even_parts(rows: np.ndarray, size: int, row_group_rows: int) -> list[np.ndarray]:
    """Cut rows into shards of about `size` rows, whole row groups each."""
    if not len(rows):
        return []
    groups = -(-len(rows) // row_group_rows)
    parts = max(1, round(len(rows) / size))
    bounds = (np.arange(parts + 1) * groups // parts * row_group_rows).clip(max=len(rows))
    bounds[-1] = len(rows)
    return [rows[start:stop] for start, stop in itertools.pairwise(bounds) if stop > start]


def _save_rows(work: Location, items: pa.Table, order: list[np.ndarray]) -> None:
    """Save the planned rows, a unit a row group, so that a worker reads its own alone."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, items.schema, compression="zstd") as writer:
        for part in order:
            writer.write_table(items.take(pa.array(part)), row_group_size=max(1, len(part)))
    (work / PLAN_FILE).write_bytes(sink.getvalue().to_pybytes())
