"""Faulty dataset for the cleaning benchmark: photographs with duplicates, label errors, distractors, bad files.

Everything is derived from LANDMARK_TEST_DATA and a seed. The fault of every row is known. The pixels stay in the given
folder.
"""

import csv
import hashlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from landmark import __version__
from landmark.data.dataset import (
    CATALOG_SCHEMA,
    SCHEMA_VERSION,
    SHARD_SCHEMA,
    SPLITS,
    Manifest,
    PackedDataset,
    ShardEntry,
    SplitEntry,
)
from landmark.storage import locate
from landmark.storage.tables import read_table, write_table

ROW_GROUP_ROWS = 64
EXACT, NEAR, LABEL_ERRORS, BROKEN, BLANK = 0.04, 0.02, 0.08, 0.01, 12
"""Fractions of the images: exact duplicates; near-duplicates per kind; label errors in train and val; truncated files.
The last value is the number of blank images.
"""
KINDS = ("encoded", "resized", "cropped", "watermarked")


@dataclass(kw_only=True)
class Row:
    """One image of the faulty dataset."""

    split: str
    image_id: str
    label: int
    data: bytes
    true_label: int
    """-1: no landmark."""
    fault: str = ""
    """exact, encoded, resized, cropped, watermarked, wrong, distractor, broken, blank. Empty: no fault."""
    source: str = ""
    """Image that it is a duplicate of."""


@dataclass(kw_only=True)
class Faulty:
    """A faulty dataset and its faults."""

    path: str
    rows: list[Row] = field(default_factory=list)


def read_rows(dataset: PackedDataset) -> list[Row]:
    """Return the rows of a packed dataset with their images."""
    rows = []
    for split in SPLITS:
        for shard in dataset.split(split).shards:
            table = read_table(dataset.location / shard.path, columns=["image_id", "label", "image"])
            rows += [
                Row(split=split, image_id=i, label=label, data=data, true_label=label)
                for i, label, data in zip(*(column.to_pylist() for column in table.columns), strict=True)
            ]
    return rows


def vary(data: bytes, kind: str, random: np.random.Generator) -> bytes:
    """Return a near-duplicate of a JPEG."""
    pixels = simplejpeg.decode_jpeg(data, "RGB")
    height, width = pixels.shape[:2]
    quality = 85
    if kind == "encoded":
        quality = int(random.integers(30, 70))
    elif kind == "resized":
        scale = random.uniform(0.5, 0.85)
        pixels = cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    elif kind == "cropped":
        scale = np.sqrt(random.uniform(0.6, 0.9))
        h, w = round(height * scale), round(width * scale)
        top, left = int(random.integers(0, height - h + 1)), int(random.integers(0, width - w + 1))
        pixels = pixels[top : top + h, left : left + w]
    else:
        overlay = pixels.copy()
        position = (int(width * random.uniform(0, 0.3)), int(height * random.uniform(0.3, 0.95)))
        cv2.putText(overlay, "(c) travel 2019", position, cv2.FONT_HERSHEY_SIMPLEX, height / 250, (255, 255, 255), 2)
        pixels = cv2.addWeighted(overlay, 0.7, pixels, 0.3, 0)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality)


def distractors(short_side: int) -> list[bytes]:
    """Return the distractor photographs as JPEG at a short side."""
    folder = Path(os.environ.get("LANDMARK_TEST_DATA", "../shared/data")) / "distractors"
    images = []
    for path in sorted(folder.rglob("*.*")):
        pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if pixels is None:
            continue
        scale = min(1.0, short_side / min(pixels.shape[:2]))
        size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
        small = cv2.cvtColor(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
        images.append(simplejpeg.encode_jpeg(np.ascontiguousarray(small), quality=88))
    return images


def inject(base: PackedDataset, folder: Path, seed: int, *, leaks: bool = True) -> Faulty:
    """Write the faulty dataset.

    leaks: duplicates are in any split, sometimes with any class. Otherwise they are in train and are duplicates of
    training images, so that training does not see test images.
    """
    random = np.random.default_rng(seed)
    rows = read_rows(base)
    classes = base.num_classes
    order = random.permutation(len(rows))
    added: list[Row] = []

    def copy(row: Row, fault: str, data: bytes) -> Row:
        split = str(random.choice(SPLITS, p=[0.6, 0.2, 0.2])) if leaks else row.split
        label = int(random.integers(classes)) if leaks and random.random() < 0.25 else row.label
        new = Row(split=split, image_id=_name(random), label=label, data=data, true_label=row.true_label)
        new.fault, new.source = fault, row.image_id
        return new

    originals = [rows[i] for i in order if leaks or rows[i].split == "train"]
    remaining = iter(originals)
    for _ in range(round(EXACT * len(rows))):
        row = next(remaining)
        added.append(copy(row, "exact", row.data))
    for kind in KINDS:
        for _ in range(round(NEAR * len(rows))):
            row = next(remaining)
            added.append(copy(row, kind, vary(row.data, kind, random)))
    changeable = [row for row in remaining if row.split != "test"]
    for row in changeable[: round(LABEL_ERRORS * sum(row.split != "test" for row in rows))]:
        row.label = int((row.true_label + random.integers(1, classes)) % classes)
        row.fault = "wrong"
    splits = ("train", "train", "train", "val")
    for data in distractors(base.manifest.short_side):
        added.append(_not_a_landmark(random, str(random.choice(splits)), data, "distractor", classes))
    for row in originals[-round(BROKEN * len(rows)) :]:
        cut = row.data[: int(len(row.data) * random.uniform(0.2, 0.7))]
        added.append(_not_a_landmark(random, "train", cut, "broken", classes))
    for _ in range(BLANK):
        color = np.full((96, 128, 3), random.integers(0, 256, 3), dtype=np.uint8)
        added.append(_not_a_landmark(random, "train", simplejpeg.encode_jpeg(color, quality=90), "blank", classes))
    rows += added
    rows = [rows[i] for i in random.permutation(len(rows))]
    rows.sort(key=lambda row: SPLITS.index(row.split))
    write_rows(base, folder, rows)
    return Faulty(path=str(folder), rows=rows)


def _not_a_landmark(random: np.random.Generator, split: str, data: bytes, fault: str, classes: int) -> Row:
    label = int(random.integers(classes))
    return Row(split=split, image_id=_name(random), label=label, data=data, true_label=-1, fault=fault)


def _name(random: np.random.Generator) -> str:
    return random.bytes(8).hex()


def write_rows(base: PackedDataset, folder: Path, rows: list[Row]) -> None:
    """Write rows as a packed dataset with the classes of another one, one shard per split."""
    location = locate(folder)
    entries, catalog = {}, []
    ids = base.labels["landmark_id"].to_pylist()
    for split in SPLITS:
        split_rows = [row for row in rows if row.split == split]
        sizes = [_size(row.data) for row in split_rows]
        columns = [
            [row.image_id for row in split_rows],
            [row.label for row in split_rows],
            [row.data for row in split_rows],
            [height for height, _ in sizes],
            [width for _, width in sizes],
        ]
        buffer = io.BytesIO()
        pq.write_table(
            pa.table(columns, schema=SHARD_SCHEMA),
            buffer,
            row_group_size=ROW_GROUP_ROWS,
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
        )
        data = buffer.getvalue()
        path = folder / split / "00000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        shard = ShardEntry(
            path=f"{split}/00000.parquet",
            rows=len(split_rows),
            row_groups=-(-len(split_rows) // ROW_GROUP_ROWS),
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        entries[split] = SplitEntry(rows=len(split_rows), shards=[shard])
        catalog += [
            (i, row.image_id, ids[row.label], row.label, split, 0, i // ROW_GROUP_ROWS, width, height)
            for i, (row, (height, width)) in enumerate(zip(split_rows, sizes, strict=True))
        ]
    columns = [list(column) for column in zip(*catalog, strict=True)]
    write_table(location / "catalog.parquet", pa.table(columns, schema=CATALOG_SCHEMA))
    write_table(location / "labels.parquet", base.labels)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created_by=f"landmark {__version__} benchmarks/injected.py",
        source={},
        seed=0,
        short_side=base.manifest.short_side,
        quality=base.manifest.quality,
        row_group_rows=ROW_GROUP_ROWS,
        classes=base.num_classes,
        rejects=0,
        splits=entries,
    )
    (location / "manifest.json").write_text(manifest.to_json())


def _size(data: bytes) -> tuple[int, int]:
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    return height, width


def natural_groups() -> dict[str, str]:
    """Return each photograph's group of near-duplicates, by id."""
    path = Path(os.environ.get("LANDMARK_TEST_DATA", "../shared/data")) / "monuments" / "groups.csv"
    with path.open() as file:
        return {row["id"]: row["group"] for row in csv.DictReader(file)}
