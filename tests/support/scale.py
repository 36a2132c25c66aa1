"""Metadata of the full Google Landmarks training set without images, and a recipe for its many classes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from landmark.checkpoints.store import CheckpointStore
from landmark.config import (
    CheckpointConfig,
    ComputeConfig,
    HeadConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
)
from landmark.data.dataset import LABELS_SCHEMA, SCHEMA_VERSION, Manifest, PackedDataset, ShardEntry, SplitEntry
from landmark.data.loading.plan import RankPlan, plan_training_epoch
from landmark.data.loading.progress import EpochProgress
from landmark.data.loading.sampling import EpochRows
from landmark.storage import locate
from landmark.storage.tables import write_table

SAMPLES, CLASSES, RANKS, PER_NODE = 4_132_914, 203_094, 64, 8
SHARD_ROWS, ROW_GROUP_ROWS = 8192, 128
BATCH = 64 * RANKS


def write_metadata(folder: Path, samples: int = SAMPLES, classes: int = CLASSES) -> PackedDataset:
    """Write the manifest and labels of a packed dataset with the given number of training images."""
    sizes = [min(SHARD_ROWS, samples - first) for first in range(0, samples, SHARD_ROWS)]
    shards = [
        ShardEntry(
            path=f"train/{number:05d}.parquet", rows=rows, row_groups=-(-rows // ROW_GROUP_ROWS), bytes=0, sha256=""
        )
        for number, rows in enumerate(sizes)
    ]
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created_by="tests",
        source={},
        seed=0,
        short_side=288,
        quality=90,
        row_group_rows=ROW_GROUP_ROWS,
        classes=classes,
        rejects=0,
        splits={"train": SplitEntry(rows=samples, shards=shards)},
    )
    folder.mkdir(parents=True, exist_ok=True)
    names = np.arange(classes).astype(str)
    columns = [np.arange(classes, dtype=np.int32), names, names, np.full(classes, samples // classes)]
    write_table(locate(folder) / "labels.parquet", pa.table(columns, schema=LABELS_SCHEMA))
    (folder / "manifest.json").write_text(json.dumps(json.loads(manifest.to_json())))
    return PackedDataset.open(str(folder))


def full_recipe(width: int, subcenters: int = 3, optimizer: str = "adamw") -> Recipe:
    """Return a recipe of sub-center ArcFace with sampled classes on embeddings of a width, with a tiny backbone."""
    head = HeadConfig(name="subcenter", sample=0.1, subcenters=subcenters)
    return Recipe(
        model=ModelConfig(backbone="reference_mlp", neck=width, head=head),
        optimizer=OptimizerConfig(name=optimizer, lr=0.001),
        schedule=ScheduleConfig(name="constant"),
        compute=ComputeConfig(amp="off"),
        loader=LoaderConfig(batch_size=BATCH, image_size=16),
        epochs=2,
    )


def new_store(run: Path) -> CheckpointStore:
    """Return the checkpoint store of a run."""
    return CheckpointStore(locate(run), "val_top1", "max", CheckpointConfig(keep=1), lambda line: None)


def plan_of(rows: EpochRows, position: EpochProgress, rank: int, world_size: int) -> RankPlan:
    """Return a rank's plan of the epoch, or of the samples that remained when it was last partitioned."""
    placed = {"rank": rank, "world_size": world_size, "batch_size": BATCH, "seed": 0, "epoch": position.epoch}
    return plan_training_epoch(
        rows.left(position.epoch, position.before), **placed, resumed=position.before is not None
    )


def visits_of(plan: RankPlan) -> list[np.ndarray]:
    """Return the visits of each step of a rank."""
    visits = (
        np.concatenate([task.visits for task in plan.read_tasks]) if plan.read_tasks else np.zeros(0, dtype=np.int64)
    )
    return np.split(visits, np.cumsum(plan.batch_rows)[:-1]) if plan.steps else []
