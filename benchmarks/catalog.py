"""Measures metadata processing for the full GLDv2: catalog, reference subset, plan of one epoch; peak memory of each.

    python benchmarks/catalog.py [--rows 4132914] [--classes 203094] [--output benchmarks/results/catalog.json]

First, CSV files of that size with a long-tailed class distribution are generated. Each stage runs in its own process,
so that its peak memory is measured separately. The last line is JSON: build_s, build_peak_mib, subset_s, epoch_plan_s,
growth (seconds per row, relative to those with a tenth of the rows).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from landmark.config import Gldv2Config, PrepareConfig, SubsetConfig, SyntheticConfig
from landmark.data.dataset import SPLITS, Manifest, PackedDataset, ShardEntry, SplitEntry
from landmark.data.loading.plan import RowGroups, plan_training_epoch
from landmark.data.packing.finish import finish
from landmark.data.packing.gldv2_source import gldv2_source
from landmark.data.packing.index import load_index
from landmark.data.packing.join import drop_duplicates, find_missing
from landmark.data.packing.plan import load_or_make
from landmark.data.packing.tasks import WORK_FOLDER
from landmark.data.packing.worker import PART_REJECTS_SCHEMA, PART_SCHEMA, part_file
from landmark.data.sources.gldv2 import image_path
from landmark.data.synthetic import plan_images, render_image
from landmark.data.synthetic.gldv2_files import LICENSES, write_tar
from landmark.storage import locate
from landmark.storage.tables import write_table

ROWS, CLASSES, LARGEST = 4_132_914, 203_094, 10_247
TARS = 500
REFERENCE = SubsetConfig(classes=100, images=81_300)
SHARD_ROWS, ROW_GROUP_ROWS = 5_376, 128
RANKS, BATCH = 8, 256
AUTHORS = 200_000


def long_tail(rows: int, classes: int) -> np.ndarray:
    """Return images per class, int64 (classes,): a power law from LARGEST (at most a twentieth of `rows`) down to 1.

    The sum is `rows`.
    """
    rank = np.arange(1, classes + 1, dtype=float)
    largest = min(LARGEST, rows // 20)

    def counts(exponent: float) -> np.ndarray:
        fraction = (rank**-exponent - classes**-exponent) / (1 - classes**-exponent)
        return 1 + np.round((largest - 1) * fraction).astype(np.int64)

    low, high = 1e-3, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if counts(middle).sum() > rows else (low, middle)
    found = counts(high)
    found[1 : 1 + rows - found.sum()] += 1
    assert found.sum() == rows and found.min() == 1
    return found


def hex_ids(numbers: np.ndarray) -> pa.Array:
    """Return numbers as strings of 16 hexadecimal digits."""
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    octets = numbers.astype(">u8").view(np.uint8).reshape(-1, 8)
    text = np.stack([digits[octets >> 4], digits[octets & 15]], axis=2).tobytes()
    offsets = np.arange(0, 16 * len(numbers) + 1, 16, dtype=np.int32)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(text))


def generate(folder: Path, rows: int, classes: int) -> None:
    """Write train.csv, train_attribution.csv, the category file and the names of the tars. One tar contains images."""
    rng = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    keys = np.unique(rng.integers(0, 2**64, rows + rows // 100 + 10, dtype=np.uint64))
    ids = hex_ids(rng.permutation(keys)[:rows])
    labels = rng.permutation(np.repeat(rng.permutation(classes), long_tail(rows, classes)))
    url = pc.binary_join_element_wise("https://upload.wikimedia.org/wikipedia/commons/", ids, ".jpg", "")
    author = np.minimum(rng.zipf(1.3, rows), AUTHORS)
    tables = {
        "train": {"id": ids, "url": url, "landmark_id": labels},
        "train_attribution": {
            "id": ids,
            "url": url,
            "author": pc.binary_join_element_wise("Author ", pa.array(author).cast(pa.string()), ""),
            "license": pa.array(LICENSES).take(pa.array(rng.integers(0, len(LICENSES), rows))),
            "title": pc.binary_join_element_wise("File:", ids, ".jpg", ""),
        },
        "train_label_to_category": {
            "landmark_id": np.arange(classes),
            "category": pc.binary_join_element_wise(
                "http://commons.wikimedia.org/wiki/Category:Landmark_",
                pa.array(np.arange(classes)).cast(pa.string()),
                "",
            ),
        },
    }
    for name, columns in tables.items():
        pacsv.write_csv(pa.table(columns), folder / f"{name}.csv")
    synthetic = SyntheticConfig(classes=2, images=60)
    members = [
        (image_path(ids[i].as_py()).removeprefix("train/"), render_image(row, synthetic, 0))
        for i, row in enumerate(plan_images(synthetic, 0).to_pylist())
    ]
    write_tar(folder, 0, members)
    for number in range(1, TARS):
        (folder / "train" / f"images_{number:03d}.tar").touch()


def settings(folder: Path, subset: SubsetConfig, output: str) -> PrepareConfig:
    """Return the config of a packing job over the generated files."""
    gldv2 = Gldv2Config(path=str(folder), attribution=True)
    return PrepareConfig(output=str(folder / output), source="gldv2", gldv2=gldv2, subset=subset)


def build(folder: Path, subset: SubsetConfig, output: str) -> dict[str, float]:
    """Build and save all data that a packing job needs before it reads its first image."""
    config = settings(folder, subset, output)
    start = time.perf_counter()
    source = gldv2_source(config.gldv2, clean=False)
    plan = load_or_make(locate(config.output), source, config)
    seconds = time.perf_counter() - start
    return {"s": seconds, "rows": plan.planned, "classes": len(plan.landmark_ids), "tasks": len(plan.tasks)}


def join(folder: Path) -> dict[str, float]:
    """Join the parts of a complete packing job into the dataset's files."""
    config = settings(folder, SubsetConfig(), "whole")
    source, output = gldv2_source(config.gldv2, clean=False), locate(config.output)
    plan = load_or_make(output, source, config)
    work, figures = output / WORK_FOLDER, {}
    splits = load_index(work, plan.plan_id).splits
    order = np.random.default_rng(0).permutation(plan.planned)
    for task, rows in zip(plan.tasks, np.array_split(order, len(plan.tasks)), strict=True):
        rows = rows[np.argsort(splits[rows], kind="stable")]
        counts = np.bincount(splits[rows], minlength=len(SPLITS)).tolist()
        shards = [
            {"split": split, "path": f"{split}/{task.name}", "rows": n, "row_groups": 1, "bytes": 1, "sha256": ""}
            for split, n in zip(SPLITS, counts, strict=True)
        ]
        zeros = np.zeros(len(rows), dtype=np.int32)
        part = pa.table([rows, splits[rows].astype(np.int32), zeros, zeros, zeros], schema=PART_SCHEMA)
        write_table(part_file(work, task.number, ".parquet"), part)
        write_table(part_file(work, task.number, ".rejects.parquet"), PART_REJECTS_SCHEMA.empty_table())
        figures[task.number] = {"rows": len(rows), "rejects": 0, "unplanned": 0, "shards": shards}
    start = time.perf_counter()
    assert not drop_duplicates(output, plan, figures)
    dataset = finish(output, source, config, plan, figures, find_missing(output, plan))
    return {"s": time.perf_counter() - start, "rows": sum(e.rows for e in dataset.manifest.splits.values())}


def plan_epoch(rows: int) -> dict[str, float]:
    """Plan one rank's epoch over all rows, and select the row groups of a subset."""
    groups = RowGroups.of(_dataset(rows), "train")
    start = time.perf_counter()
    plan = plan_training_epoch(groups, rank=3, world_size=RANKS, batch_size=BATCH, seed=0, epoch=1)
    plan_s = time.perf_counter() - start
    selected = np.zeros(rows, dtype=bool)
    selected[np.random.default_rng(0).permutation(rows)[: REFERENCE.images]] = True
    start = time.perf_counter()
    part = groups.select(selected)
    select = time.perf_counter() - start
    assert sum(len(task.rows) for task in plan.read_tasks) in (rows // RANKS, rows // RANKS + 1)
    return {"s": plan_s + select, "plan_s": plan_s, "select_s": select, "rows": rows, "tasks": len(part.rows)}


def _dataset(rows: int) -> PackedDataset:
    sizes = [min(SHARD_ROWS, rows - start) for start in range(0, rows, SHARD_ROWS)]
    shards = [
        ShardEntry(path=f"train/{i:05d}.parquet", rows=n, row_groups=-(-n // ROW_GROUP_ROWS), bytes=0, sha256="")
        for i, n in enumerate(sizes)
    ]
    manifest = Manifest(
        schema_version=1,
        created_by="benchmark",
        source={},
        seed=0,
        short_side=288,
        quality=90,
        row_group_rows=ROW_GROUP_ROWS,
        classes=CLASSES,
        rejects=0,
        splits={"train": SplitEntry(rows=rows, shards=shards)},
    )
    return PackedDataset(locate("nowhere"), manifest)


def peak_mib() -> float:
    """Return the peak memory of this process, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def in_child(*arguments: object) -> dict[str, float]:
    """Run a stage in its own process and return its figures."""
    command = [sys.executable, __file__, "--stage", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def run_stage(name: str, folder: Path, rows: int, classes: int) -> dict[str, Any]:
    """Run one stage and return its figures and peak memory."""
    stages: dict[str, Callable[[], dict[str, float] | None]] = {
        "generate": lambda: generate(folder, rows, classes),
        "build": lambda: build(folder, SubsetConfig(), "whole"),
        "subset": lambda: build(folder, REFERENCE, "subset"),
        "join": lambda: join(folder),
        "epoch": lambda: plan_epoch(rows),
    }
    figures = stages[name]() or {}
    return {**figures, "peak_mib": peak_mib()}


def measure(rows: int, classes: int) -> dict[str, Any]:
    """Run all stages at the full size, and the build at a tenth of it. Prints a table and returns the figures."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="landmark-catalog-") as temporary:
        for size, stages in ((10, ("generate", "build")), (1, ("generate", "build", "subset", "join", "epoch"))):
            folder = Path(temporary) / f"tenth-{size}"
            for stage in stages:
                found[f"{stage}/{size}"] = in_child(stage, folder, rows // size, classes // size)
    print(f"{'stage':22}{'rows':>12}{'seconds':>10}{'peak MiB':>10}")
    for stage, text in (
        ("build/10", "catalog, 1/10 rows"),
        ("build/1", "catalog"),
        ("subset/1", "reference subset"),
        ("join/1", "joining the parts"),
        ("epoch/1", "epoch plan + select"),
    ):
        figures = found[stage]
        print(f"{text:22}{int(figures['rows']):>12,}{figures['s']:>10.2f}{figures['peak_mib']:>10,.0f}")
    full, tenth = found["build/1"], found["build/10"]
    return {
        "rows": rows,
        "classes": classes,
        "build_s": round(full["s"], 2),
        "build_peak_mib": round(full["peak_mib"]),
        "subset_s": round(found["subset/1"]["s"], 2),
        "subset_rows": int(found["subset/1"]["rows"]),
        "subset_peak_mib": round(found["subset/1"]["peak_mib"]),
        "join_s": round(found["join/1"]["s"], 2),
        "join_peak_mib": round(found["join/1"]["peak_mib"]),
        "epoch_plan_s": round(found["epoch/1"]["s"], 4),
        "growth": round((full["s"] / full["rows"]) / (tenth["s"] / tenth["rows"]), 3),
    }


def main() -> None:
    """Parse the arguments, measure, print and save the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "catalog.json")
    parser.add_argument("--stage", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        name, folder, rows, classes = arguments.stage
        print(json.dumps(run_stage(name, Path(folder), int(rows), int(classes))))
        return
    result = measure(arguments.rows, arguments.classes)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
