"""Verification of a packed dataset: whether its files match its manifest and each other."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from landmark.config import UserError
from landmark.data.dataset import PackedDataset, ShardEntry
from landmark.data.loading.prefetch import ordered_prefetch
from landmark.data.threads import DaemonPool
from landmark.progress import Progress
from landmark.storage import NotFound
from landmark.storage.tables import read_parquet, read_table

THREADS = 4
COLUMNS = ["sample", "image_id", "landmark_id", "label", "split", "shard", "row_group"]


@dataclass(kw_only=True, frozen=True)
class _Piece:
    """A shard to check, with the catalog's rows for it."""

    split: str
    entry: ShardEntry
    catalog: pa.Table


def verify_dataset(dataset: PackedDataset) -> Iterator[str]:
    """Yield one line per problem, with the file's name. Yields nothing if the dataset is intact.

    Several shards are streamed at a time and never held in memory completely. Size, SHA-256, rows, row groups, ids and
    labels of each shard are compared with manifest and catalog. The catalog is compared with the labels. Raises
    UserError if the storage fails.
    """
    tables: dict[str, pa.Table] = {}
    for name, columns in (("catalog", COLUMNS), ("labels", None), ("rejects", None)):
        try:
            tables[name] = read_table(dataset.location / f"{name}.parquet", columns=columns)
        except NotFound:
            yield f"{dataset.location}/{name}.parquet: missing"
        except UserError as error:
            yield str(error)
    yield from _check_tables(dataset, tables)
    pieces = list(_pieces(dataset, tables.get("catalog")))
    progress = Progress("verifying", sum(piece.entry.bytes for piece in pieces) >> 20, "MiB")
    with DaemonPool(THREADS, "landmark-verify") as pool:
        checked = ordered_prefetch(lambda piece: pool.submit(_check_shard, dataset, piece), pieces, THREADS)
        for piece, problems in zip(pieces, checked, strict=True):
            progress.update(piece.entry.bytes >> 20)
            if problems:
                progress.clear()
            yield from problems
    progress.clear()


def _pieces(dataset: PackedDataset, catalog: pa.Table | None) -> Iterator[_Piece]:
    """Yield the shards with their rows of the catalog, in its order. The rows are None without a catalog."""
    for split, entry in dataset.manifest.splits.items():
        rows = catalog.filter(pc.field("split") == split).sort_by("sample") if catalog is not None else None
        start = 0
        for shard in entry.shards:
            yield _Piece(split=split, entry=shard, catalog=rows.slice(start, shard.rows) if rows is not None else None)
            start += shard.rows


def _check_shard(dataset: PackedDataset, piece: _Piece) -> list[str]:
    entry, place = piece.entry, dataset.location / piece.entry.path
    try:
        digest, size = place.sha256()
    except NotFound:
        return [f"{place}: missing; {entry.rows} images lost"]
    problems = []
    if size != entry.bytes:
        problems.append(f"{place}: {size} bytes; expected {entry.bytes} (manifest)")
    elif digest != entry.sha256:
        problems.append(
            f"{place}: its content changed: SHA-256 {digest[:12]}…; expected {entry.sha256[:12]}… (manifest)"
        )

    def read(file: pq.ParquetFile) -> tuple[pa.Table, list[int]]:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        return file.read(columns=["image_id", "label"]), sizes

    try:
        table, sizes = read_parquet(place, read)
    except UserError as error:
        return [*problems, str(error)]
    row_groups = len(sizes)
    if (len(table), row_groups) != (entry.rows, entry.row_groups):
        problems.append(
            f"{place}: {len(table)} rows in {row_groups} row groups; expected {entry.rows} in "
            f"{entry.row_groups} (manifest)"
        )
    elif piece.catalog is not None:
        problems += _check_rows(dataset, piece, table, np.repeat(np.arange(row_groups), sizes))
    return problems


def _check_rows(dataset: PackedDataset, piece: _Piece, table: pa.Table, row_group: np.ndarray) -> list[str]:
    """Compare a shard's rows with the catalog's rows."""
    problems = []
    found = {"image_id": table["image_id"], "label": table["label"], "row_group": pa.array(row_group, pa.int32())}
    if dataset.manifest.relabelled:  # each label of the shard maps to one label of the catalog
        pairs = pa.table({"ours": found.pop("label"), "theirs": piece.catalog["label"]}).group_by(["ours", "theirs"])
        ours = pairs.aggregate([])["ours"]
        if pc.count_distinct(ours).as_py() != len(ours):
            problems.append(
                f"{dataset.location}/catalog.parquet: label of {piece.entry.path}: one label of the shard has two labels in the catalog"
            )
    for name, column in found.items():
        ours, theirs = column.to_pylist(), piece.catalog[name].to_pylist()
        wrong = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        if wrong is not None or len(ours) != len(theirs):
            where = f"row {wrong} is {ours[wrong]!r}, but {theirs[wrong]!r}" if wrong is not None else "fewer rows"
            problems.append(f"{dataset.location}/catalog.parquet: {name} of {piece.entry.path}: {where} in the catalog")
    return problems


def _check_tables(dataset: PackedDataset, tables: dict[str, pa.Table]) -> Iterator[str]:
    """Compare catalog, labels and rejects with the manifest and with each other."""
    manifest, labels, catalog = dataset.manifest, tables.get("labels"), tables.get("catalog")
    place = f"{dataset.location}/labels.parquet"
    if labels is not None and labels["label"].to_pylist() != list(range(manifest.classes)):
        yield f"{place}: its labels are not 0 to {manifest.classes - 1}, which the manifest requires"
        labels = None
    if "rejects" in tables and len(tables["rejects"]) != manifest.rejects:
        yield (
            f"{dataset.location}/rejects.parquet: {len(tables['rejects'])} rows; expected {manifest.rejects} (manifest)"
        )
    if catalog is None:
        return
    yield from _check_catalog(dataset, catalog)
    label = catalog["label"].to_numpy()
    if not len(label) or label.min() < 0 or label.max() >= manifest.classes:
        yield f"{dataset.location}/catalog.parquet: contains labels outside 0 to {manifest.classes - 1}"
    elif labels is not None:
        counts = np.bincount(label, minlength=manifest.classes)
        wrong = np.flatnonzero(counts != labels["images"].to_numpy())
        if len(wrong):
            yield (
                f"{place}: label {wrong[0]} has {labels['images'][int(wrong[0])].as_py()} images, but "
                f"{counts[wrong[0]]} in the catalog ({len(wrong)} such labels)"
            )
        named = labels["landmark_id"].take(catalog["label"])
        unequal = pc.sum(pc.not_equal(named, catalog["landmark_id"].cast(named.type))).as_py()
        if unequal:
            yield f"{dataset.location}/catalog.parquet: {unequal} rows with a landmark_id that does not match their label"


def _check_catalog(dataset: PackedDataset, catalog: pa.Table) -> Iterator[str]:
    """Check that samples are dense, ids are unique, and each row is in the shard that the manifest implies."""
    place = f"{dataset.location}/catalog.parquet"
    repeated = len(catalog) - pc.count_distinct(catalog["image_id"]).as_py()
    if repeated:
        yield f"{place}: {repeated} image ids occur more than once"
    unknown = sorted(set(pc.unique(catalog["split"]).to_pylist()) - set(dataset.manifest.splits))
    if unknown:
        yield f"{place}: rows of the split {unknown[0]!r}, which is not in the manifest"
    for split, entry in dataset.manifest.splits.items():
        rows = catalog.filter(pc.field("split") == split).sort_by("sample")
        if len(rows) != entry.rows:
            yield f"{place}: {len(rows)} rows of {split}; expected {entry.rows} (manifest)"
        if not np.array_equal(rows["sample"].to_numpy(), np.arange(len(rows))):
            yield f"{place}: the samples of {split} are not 0 to {len(rows) - 1}, each once"
        counts = np.array([shard.rows for shard in entry.shards], dtype=np.int64)
        expected = np.repeat(np.arange(len(counts)), counts)
        if len(rows) == entry.rows and not np.array_equal(rows["shard"].to_numpy(), expected):
            yield f"{place}: the shards of {split} do not match the manifest"
