"""Tests the packing job: class folders and synthetic images, disk and S3, and killed workers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from landmark.config import (
    FoldersConfig,
    LoaderConfig,
    PackingConfig,
    PrepareConfig,
    SplitConfig,
    SubsetConfig,
    SyntheticConfig,
    UserError,
)
from landmark.data.dataset import PackedDataset
from landmark.data.loading.loader import Loader
from landmark.data.packing.job import pack_dataset
from landmark.data.packing.shards import file_sha256
from landmark.data.packing.sources import SyntheticSource, folder_source
from landmark.data.subset_view import open_dataset
from landmark.data.synthetic import plan_images, render_image
from landmark.data.verify import verify_dataset
from landmark.storage import locate
from landmark.storage.tables import read_table
from tests.support.packed import picture
from tests.support.seaweed import Seaweed

ROOT = Path(__file__).parent.parent.parent
SMALL = SyntheticConfig(classes=5, images=150, image_size=48, broken=0.02, near_duplicates=0.1)


def synthetic(output: str, images: SyntheticConfig = SMALL, **changes) -> PrepareConfig:
    return PrepareConfig(
        output=output, source="synthetic", synthetic=images, packing=PackingConfig(row_group_rows=16), **changes
    )


def pack(config: PrepareConfig):
    return pack_dataset(locate(config.output), SyntheticSource(config.synthetic, config.seed), config)


def check_complete(dataset: PackedDataset, expected_ids: set[str]) -> None:
    """Check that catalog, shards and manifest agree, and that each expected image is present once."""
    found = []
    for split, entry in dataset.manifest.splits.items():
        if not entry.rows:
            continue
        catalog = dataset.catalog(split)
        assert catalog["sample"].to_pylist() == list(range(entry.rows))
        ids, labels, row_groups = [], [], []
        for shard in entry.shards:
            with (dataset.location / shard.path).open_input() as stream:
                file = pq.ParquetFile(stream)
                assert (file.metadata.num_rows, file.metadata.num_row_groups) == (shard.rows, shard.row_groups)
                for number in range(shard.row_groups):
                    table = file.read_row_group(number)
                    ids += table["image_id"].to_pylist()
                    labels += table["label"].to_pylist()
                    row_groups += [number] * len(table)
        assert catalog["image_id"].to_pylist() == ids
        assert catalog["label"].to_pylist() == labels
        assert catalog["row_group"].to_pylist() == row_groups
        found += ids
    assert len(found) == len(set(found))
    assert set(found) == expected_ids
    counts = dataset.labels["images"].to_numpy()
    assert counts.sum() == len(found)
    assert not any(path.startswith("_work") for path in dataset.location.walk())


@pytest.mark.parametrize("storage", ["disk", "s3"])
def test_synthetic_images_are_packed_and_faults_listed(storage, ray_cluster, tmp_path, request):
    output = str(tmp_path / "d") if storage == "disk" else request.getfixturevalue("s3").uri("packed/d")
    result = pack(synthetic(output))
    plan = plan_images(SMALL, 0)
    broken = {row["image_id"] for row in plan.to_pylist() if row["kind"] == "broken"}
    check_complete(result.dataset, set(plan["image_id"].to_pylist()) - broken)
    rejects = read_table(result.dataset.location / "rejects.parquet")
    assert set(rejects["image_id"].to_pylist()) == broken and None not in rejects["reason"].to_pylist()
    assert result.dataset.manifest.rejects == len(broken) == 3
    assert read_table(result.dataset.location / "synthetic.parquet").equals(plan)
    again = pack(synthetic(output))
    assert again.packed == 0
    with pytest.raises(UserError, match="contains a dataset with other options"):
        pack(synthetic(output, seed=1))


def test_groups_stay_in_one_split_and_checksums_match(ray_cluster, tmp_path):
    result = pack(synthetic(str(tmp_path / "d")))
    group_of = {row["image_id"]: row["group"] for row in plan_images(SMALL, 0).to_pylist()}
    splits_of: dict[str, set[str]] = {}
    for split in result.dataset.manifest.splits:
        for image_id in result.dataset.catalog(split)["image_id"].to_pylist():
            splits_of.setdefault(group_of[image_id], set()).add(split)
        # Evaluation resamples the groups that the catalog stores.
        expected = [group_of[image_id] for image_id in result.dataset.catalog(split)["image_id"].to_pylist()]
        codes = result.dataset.sample_groups(split)
        assert codes is not None and len(codes) == len(expected)
        assert len(set(zip(codes.tolist(), expected, strict=True))) == len(set(expected)) == codes.max() + 1
    assert all(len(splits) == 1 for splits in splits_of.values())
    for entry in result.dataset.manifest.splits.values():
        for shard in entry.shards:
            path = tmp_path / "d" / shard.path
            assert (file_sha256(path), path.stat().st_size) == (shard.sha256, shard.bytes)


def folders(root: Path, images: SyntheticConfig) -> set[str]:
    ids = set()
    for row in plan_images(images, 0).to_pylist():
        path = root / row["landmark_id"] / f"{row['image_id']}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(render_image(row, images, 0))
        if row["kind"] != "broken":
            ids.add(row["image_id"])
    return ids


def test_class_folders_on_s3_are_packed_to_s3(ray_cluster, s3: Seaweed, tmp_path):
    ids = folders(tmp_path / "source", SMALL)
    for path in (tmp_path / "source").rglob("*.jpg"):
        locate(s3.uri(f"source/{path.parent.name}/{path.name}")).upload(path)
    source = FoldersConfig(path=s3.uri("source"))
    config = PrepareConfig(output=s3.uri("packed/folders"), source="folders", folders=source)
    result = pack_dataset(locate(config.output), folder_source(source.path or "", None), config)
    check_complete(result.dataset, ids)


def test_too_many_rejects_stop_the_job_with_counts_per_reason(ray_cluster, tmp_path):
    images = SyntheticConfig(classes=5, images=150, image_size=48, broken=0.3)
    with pytest.raises(UserError, match=r"45 of 150 images were rejected \(.*truncated.*\); the maximum is 5\.0%"):
        pack(synthetic(str(tmp_path / "d"), images))
    allowed = PackingConfig(row_group_rows=16, max_reject_fraction=0.4)
    config = PrepareConfig(output=str(tmp_path / "d"), source="synthetic", synthetic=images, packing=allowed)
    assert pack(config).dataset.manifest.rejects == 45


def test_a_vanished_image_is_rejected(ray_cluster, tmp_path):
    ids = folders(tmp_path / "source", SMALL)

    class Vanishing(type(folder_source("x", None))):
        def read(self, row):
            if row["image_id"] == min(ids):
                (tmp_path / "source" / row["origin"]).unlink(missing_ok=True)
            return super().read(row)

    source = Vanishing(root=locate(tmp_path / "source"))
    config = PrepareConfig(
        output=str(tmp_path / "d"),
        source="folders",
        folders=FoldersConfig(path=str(tmp_path / "source")),
        split=SplitConfig(val=0.2),
    )
    result = pack_dataset(locate(config.output), source, config)
    check_complete(result.dataset, ids - {min(ids)})
    assert result.rejects["missing"] == 1


def test_a_job_whose_worker_is_killed_packs_every_image_once(tmp_path):
    output = tmp_path / "d"
    images = [
        "--source",
        "synthetic",
        "--synthetic.images",
        "1400",
        "--synthetic.classes",
        "5",
        "--synthetic.image-size",
        "96",
    ]
    command = [sys.executable, "-m", "landmark", "prepare", "--output", str(output), "--cluster.cpus", "2", *images]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE) as job:
        parts = output / "_work" / "parts"
        deadline = time.monotonic() + 90
        while not list(parts.glob("*.json")):
            assert time.monotonic() < deadline and job.poll() is None
            time.sleep(0.05)
        os.kill(_packing_worker(job.pid), signal.SIGKILL)
        assert job.wait(90) == 0
    ids = plan_images(SyntheticConfig(images=1400, classes=5, image_size=96), 0)["image_id"].to_pylist()
    check_complete(PackedDataset.open(str(output)), set(ids))


def _packing_worker(session: int) -> int:
    """Return the PID of a Ray worker in the job's session that is packing."""
    for _ in range(200):
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    title = (entry / "cmdline").read_text()
                    same = os.getsid(int(entry.name)) == session
                except OSError:
                    continue
                if same and title.startswith("ray::") and "Packer" in title:
                    return int(entry.name)
        time.sleep(0.02)
    raise AssertionError("no worker was packing")


def test_shards_are_random_samples_of_the_classes(ray_cluster, tmp_path):
    images = SyntheticConfig(classes=4, images=2000, image_size=16, tail=0)
    config = PrepareConfig(
        output=str(tmp_path / "d"), source="synthetic", synthetic=images, packing=PackingConfig(row_group_rows=64)
    )
    dataset = pack(config).dataset
    catalog = dataset.catalog("train")
    labels, shard = catalog["label"].to_numpy(), catalog["shard"].to_numpy()
    assert len(dataset.split("train").shards) >= 4
    for number in np.unique(shard):
        fractions = np.bincount(labels[shard == number], minlength=4) / (shard == number).sum()
        assert fractions == pytest.approx([0.25] * 4, abs=0.1)


def test_unreadable_classes_are_dropped_and_source_changes_reported(ray_cluster, tmp_path):
    """The labels in the shards are assigned before any image is read, so the catalog's labels count."""
    photos = tmp_path / "photos"
    for number in range(24):
        path = photos / "ad"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number % 2, number, 24))
    (photos / "b").mkdir(exist_ok=True)
    (photos / "b" / "notes.txt").write_text("no picture")
    config = PrepareConfig(output=str(photos / "out"), folders=FoldersConfig(path=str(photos)))

    def packed():
        source = folder_source(str(photos), None, locate(config.output))
        return pack_dataset(locate(config.output), source, config)

    result = packed()
    dataset = result.dataset
    assert "1 classes were dropped because none of their images can be read: b" in result.notes
    assert (dataset.class_names, dataset.manifest.classes) == (["a", "d"], 2)
    assert list(verify_dataset(dataset)) == []
    loader = LoaderConfig(image_size=16, batch_size=4, stream="thread", decode_threads=1)
    for opened in (dataset, open_dataset(config.output, SubsetConfig(max_images=10))):
        ids = opened.catalog("train")
        samples, names = ids["sample"].to_pylist(), ids["image_id"].to_pylist()
        expected = {sample: int(name) % 2 for sample, name in zip(samples, names, strict=True)}
        with Loader(opened, "train", loader) as batches:
            pairs = [(batch.samples.tolist(), batch.labels.tolist()) for batch in batches.epoch(1)]
        loaded = {sample: label for samples, labels in pairs for sample, label in zip(samples, labels, strict=True)}
        assert loaded == expected
    assert packed().notes == []
    (photos / "d" / "more.jpg").write_bytes(picture(1, 99, 24))
    again = packed()
    assert again.packed == 0
    assert again.notes[0].startswith("the source changed after packing (26 files now, 25 then); ")
    shutil.rmtree(photos / "a")
    shutil.rmtree(photos / "d")
    shutil.rmtree(photos / "b")
    assert "25 then" in packed().notes[0]
