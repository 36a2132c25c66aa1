"""Write a tiny packed dataset directly, for tests of code that reads datasets."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from landmark.data.dataset import (
    CATALOG_SCHEMA,
    LABELS_SCHEMA,
    SCHEMA_VERSION,
    SHARD_SCHEMA,
    Manifest,
    PackedDataset,
    ShardEntry,
    SplitEntry,
)
from landmark.storage import locate
from landmark.storage.tables import write_table


def picture(label: int, sample: int, size: int) -> bytes:
    """Return a JPEG whose color depends on the label, with noise seeded by the sample."""
    rng = np.random.default_rng([label, sample])
    color = np.random.default_rng(label).integers(40, 216, 3)
    pixels = np.clip(color + rng.integers(-30, 30, (size, size, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_packed(
    folder: Path, splits: dict[str, list[int]], *, classes: int = 4, row_group_rows: int = 8, size: int = 32
) -> PackedDataset:
    """Write a dataset whose splits have shards with the given numbers of rows. Labels cycle through the classes."""
    entries, catalog = {}, []
    for split, shard_rows in splits.items():
        shards, sample = [], 0
        for index, rows in enumerate(shard_rows):
            samples = range(sample, sample + rows)
            table = pa.table(
                {
                    "image_id": [f"{split}{number:06d}" for number in samples],
                    "label": [number % classes for number in samples],
                    "image": [picture(number % classes, number, size) for number in samples],
                    "height": [size] * rows,
                    "width": [size] * rows,
                },
                schema=SHARD_SCHEMA,
            )
            path = folder / split / f"{index:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(
                table,
                path,
                row_group_size=row_group_rows,
                compression="none",
                use_dictionary=False,
                write_statistics=["label"],
                write_page_checksum=True,
            )
            data = path.read_bytes()
            shards.append(
                ShardEntry(
                    path=f"{split}/{index:05d}.parquet",
                    rows=rows,
                    row_groups=-(-rows // row_group_rows),
                    bytes=len(data),
                    sha256=hashlib.sha256(data).hexdigest(),
                )
            )
            catalog += [
                (
                    number,
                    f"{split}{number:06d}",
                    f"c{number % classes}",
                    number % classes,
                    split,
                    index,
                    i // row_group_rows,
                )
                for i, number in enumerate(samples)
            ]
            sample += rows
        entries[split] = SplitEntry(rows=sample, shards=shards)
    location = locate(folder)
    columns = [list(column) for column in zip(*catalog, strict=True)] + [[size] * len(catalog)] * 2
    write_table(location / "catalog.parquet", pa.table(columns, schema=CATALOG_SCHEMA))
    labels = list(range(classes))
    counts = [sum(row[3] == label for row in catalog) for label in labels]
    names = [f"c{label}" for label in labels]
    write_table(location / "labels.parquet", pa.table([labels, names, names, counts], schema=LABELS_SCHEMA))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created_by="tests",
        source={},
        seed=0,
        short_side=size,
        quality=90,
        row_group_rows=row_group_rows,
        classes=classes,
        rejects=0,
        splits=entries,
    )
    (location / "manifest.json").write_text(manifest.to_json())
    return PackedDataset.open(str(folder))
