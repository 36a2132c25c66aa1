"""Tests packing of GLDv2 files: tars and tree, disk, S3 and web, faults and killed jobs."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from landmark.config import Gldv2Config, PackingConfig, PrepareConfig, SubsetConfig, SyntheticConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.packing.gldv2_source import gldv2_source
from landmark.data.packing.job import PackingResult, pack_dataset
from landmark.data.packing.join import drop_duplicates
from landmark.data.packing.plan import load_or_make
from landmark.data.packing.sources import Listing, SyntheticSource
from landmark.data.packing.worker import Packer
from landmark.data.synthetic import plan_images, render_image
from landmark.data.synthetic.gldv2_files import write_gldv2, write_tar
from landmark.storage import locate
from landmark.storage.tables import read_table
from tests.integration.test_prepare import ROOT, check_complete
from tests.support.seaweed import Seaweed
from tests.support.web import WebServer

IMAGES = SyntheticConfig(classes=5, images=150, image_size=32, broken=0.02)
JPEG = render_image(plan_images(SyntheticConfig(), 0).slice(0, 1).to_pylist()[0], SyntheticConfig(image_size=32), 0)


def pack(path: str, output: str, subset: SubsetConfig | None = None, **gldv2) -> PackingResult:
    config = PrepareConfig(
        output=output,
        source="gldv2",
        gldv2=Gldv2Config(path=path, **gldv2),
        subset=subset or SubsetConfig(),
        packing=PackingConfig(row_group_rows=16, max_reject_fraction=0.15),
    )
    source = gldv2_source(config.gldv2, clean=config.subset.clean)
    return pack_dataset(locate(config.output), source, config)


def reasons(dataset: PackedDataset) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in read_table(dataset.location / "rejects.parquet").to_pylist():
        found.setdefault(row["reason"], set()).add(row["image_id"])
    return found


def content(dataset: PackedDataset) -> dict[str, tuple]:
    columns = ["image_id", "landmark_id", "label", "split", "width"]
    rows = read_table(dataset.location / "catalog.parquet", columns=columns).to_pylist()
    return {row["image_id"]: tuple(row.values()) for row in rows}


def test_faults_in_tars_and_tables_are_listed_and_the_rest_is_packed(ray_cluster, tmp_path: Path):
    ids = plan_images(IMAGES, 0)["image_id"].to_pylist()
    missing, twice, thrice = ids[0], ids[4], ids[9]
    unknown = "00000000000000ff"
    extra = {
        0: [("README.txt", b"x"), (f"x/{unknown}.jpg", JPEG), (f"again/{twice}.jpg", JPEG)],
        2: [(f"again/{twice}.jpg", JPEG), (f"again/{thrice}.jpg", JPEG), ("a/b/c/UPPER0123456789A.jpg", b"x")],
        3: [(f"again/{thrice}.jpg", JPEG)],
    }
    table = write_gldv2(tmp_path / "in", IMAGES, tars=4, left_out=frozenset([missing]), extra=extra)
    with (tmp_path / "in/train.csv").open("a") as stream:
        stream.write("bad id,u,11\n")
    broken = {row["image_id"] for row in table.to_pylist() if row["kind"] == "broken"}
    result = pack(str(tmp_path / "in"), str(tmp_path / "out"), attribution=True)
    check_complete(result.dataset, set(ids) - broken - {missing})
    found = reasons(result.dataset)
    assert found.pop("missing") == {missing}
    assert found.pop("no row") == {unknown}
    assert found.pop("malformed id") == {"bad id"}
    assert found.pop("duplicate") == {twice, thrice}
    assert set().union(*found.values()) == broken
    assert result.rejects["duplicate"] == 4
    assert result.dataset.manifest.rejects == sum(result.rejects.values()) == 1 + 1 + 1 + 4 + len(broken)
    assert any(note.startswith("2 files in the tars were skipped; expected names") for note in result.notes)
    catalog = result.dataset.catalog("train")
    license_of = dict(zip(table["image_id"].to_pylist(), table["license"].to_pylist(), strict=True))
    assert catalog["license"].to_pylist() == [license_of[name] for name in catalog["image_id"].to_pylist()]
    assert result.dataset.class_names[0] == "Synthetic landmark 11"
    again = pack(str(tmp_path / "in"), str(tmp_path / "out"), attribution=True)
    assert again.packed == 0 and again.rejects == result.rejects


def test_disk_s3_web_and_tree_give_the_same_dataset(ray_cluster, s3: Seaweed, web: WebServer, tmp_path: Path):
    subset = SubsetConfig(classes=3, images=60)
    write_gldv2(web.folder, IMAGES, tars=3)
    expected = content(pack(str(web.folder), str(tmp_path / "disk"), subset).dataset)
    assert 55 < len(expected) <= 60
    for path in web.folder.rglob("*"):
        if path.is_file():
            locate(s3.uri(f"gldv2/{path.relative_to(web.folder)}")).upload(path)
    on_s3 = pack(s3.uri("gldv2"), s3.uri("packed/gldv2"), subset).dataset
    check_complete(on_s3, set(expected))
    assert content(on_s3) == expected
    (web.folder / "metadata").mkdir()
    for path in web.folder.glob("*.csv"):
        path.rename(web.folder / "metadata" / path.name)
    web.missing = 403
    web.breaks = [3000, 20_000, 100]
    from_web = pack(web.uri(), str(tmp_path / "web-out"), subset, tars=3)
    assert not web.breaks and content(from_web.dataset) == expected
    write_gldv2(tmp_path / "tree", IMAGES, tars=0)
    deleted = min(expected)
    next((tmp_path / "tree" / "train").rglob(f"{deleted}.jpg")).unlink()
    tree = pack(str(tmp_path / "tree"), str(tmp_path / "tree-out"), subset)
    check_complete(tree.dataset, set(expected) - {deleted})
    assert reasons(tree.dataset)["missing"] == {deleted}


def test_a_corrupt_tar_stops_the_job_and_finished_work_is_kept(ray_cluster, tmp_path: Path):
    write_gldv2(tmp_path / "in", IMAGES, tars=4)
    tar = tmp_path / "in/train/images_002.tar"
    intact = tar.read_bytes()
    tar.write_bytes(intact[:5000] + b"\0" + intact[5001:])
    with pytest.raises(
        UserError, match=r"packing stopped: .*images_002\.tar: its MD5 is .*; run the same command again"
    ):
        pack(str(tmp_path / "in"), str(tmp_path / "out"))
    parts = sorted(path.name for path in (tmp_path / "out/_work/parts").glob("*.json"))
    assert "000002.json" not in parts and not list((tmp_path / "out").glob("*/00002*.parquet"))
    tar.write_bytes(intact[:-20_000])
    (tmp_path / "in/md5sum/train/md5.images_002.txt").unlink()
    with pytest.raises(UserError, match=r"images_002\.tar: truncated after"):
        pack(str(tmp_path / "in"), str(tmp_path / "out"))
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/_work/parts").glob("*.json")}
    tar.write_bytes(intact)
    result = pack(str(tmp_path / "in"), str(tmp_path / "out"))
    packable = set(plan_images(IMAGES, 0)["image_id"].to_pylist()) - set().union(*reasons(result.dataset).values())
    check_complete(result.dataset, packable)
    assert len(packable) == 147
    assert result.packed < 147 or not kept
    assert any("1 tars have no file md5sum" in note for note in result.notes)


def test_too_many_unknown_or_missing_images_stop_the_job_with_counts(ray_cluster, tmp_path: Path):
    unknown_files = [(f"x/{number:016x}.jpg", JPEG) for number in range(40)]
    write_gldv2(tmp_path / "a", IMAGES, tars=2, extra={1: unknown_files})
    with pytest.raises(UserError, match=r"40 of 190 files in the tars match no image of the plan \(40 no row\)"):
        pack(str(tmp_path / "a"), str(tmp_path / "a-out"))
    missing = frozenset(plan_images(IMAGES, 0)["image_id"].to_pylist()[:30])
    write_gldv2(tmp_path / "b", IMAGES, tars=2, left_out=missing)
    with pytest.raises(UserError, match=r"3\d of 150 images were rejected \(30 missing, .*the maximum is 15\.0%"):
        pack(str(tmp_path / "b"), str(tmp_path / "b-out"))


def test_a_subset_applies_to_any_source(ray_cluster, tmp_path: Path):
    images = SyntheticConfig(classes=6, images=150, image_size=32)
    subset = SubsetConfig(classes=2, max_images=20, where="kind == 'landmark'")
    config = PrepareConfig(output=str(tmp_path / "d"), source="synthetic", synthetic=images, subset=subset)
    dataset = pack_dataset(locate(config.output), SyntheticSource(images, 0), config).dataset
    assert dataset.labels["images"].to_pylist() == [20, 20]
    assert dataset.labels["landmark_id"].to_pylist() == ["synthetic-000000", "synthetic-000001"]


@dataclass
class PresplitSource(SyntheticSource):
    """Synthetic images with predefined splits, order and class names."""

    def listing(self) -> Listing:
        items = super().items()
        splits = pa.array([("test", "train", "val")[number % 3] for number in range(len(items))])
        ids = sorted(set(items["landmark_id"].to_pylist()))
        names = pa.table({"landmark_id": ids, "name": [f"Name of {name}" for name in ids]})
        return Listing(items=items.append_column("split", splits), notes=["placed"], names=names)


def test_a_source_can_provide_splits_and_class_names(ray_cluster, tmp_path: Path):
    images = SyntheticConfig(classes=4, images=60, image_size=32)
    config = PrepareConfig(output=str(tmp_path / "d"), source="synthetic", synthetic=images)
    result = pack_dataset(locate(config.output), PresplitSource(images, 0), config)
    ids = plan_images(images, 0)["image_id"].to_pylist()
    for offset, split in enumerate(("test", "train", "val")):
        assert result.dataset.catalog(split)["image_id"].to_pylist() == ids[offset::3]
    assert result.dataset.class_names[2] == "Name of synthetic-000002"
    assert result.notes == ["placed"]


def slow_files(folder: Path, images: int = 560, tars: int = 40) -> set[str]:
    """Write images that take long to pack. Some images are in two tars. Returns the IDs."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (1000, 1400, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=80)
    ids = [f"{key:016x}" for key in rng.integers(0, 2**64, images, dtype=np.uint64)]
    folder.mkdir()
    rows = "".join(f"{name},u,{number % 5}\n" for number, name in enumerate(ids))
    (folder / "train.csv").write_text("id,url,landmark_id\n" + rows)
    for number in range(tars):
        names = ids[number::tars] + (ids[:2] if number in (20, 39) else [])
        write_tar(folder, number, [(f"{name[0]}/{name[1]}/{name[2]}/{name}.jpg", buffer.getvalue()) for name in names])
    return set(ids)


@pytest.mark.parametrize("reports_left", [False, True])
def test_a_job_killed_while_dropping_duplicates_still_drops_all_of_them(reports_left, ray_cluster, tmp_path: Path):
    ids = plan_images(IMAGES, 0)["image_id"].to_pylist()
    packable = [row["image_id"] for row in plan_images(IMAGES, 0).to_pylist() if row["kind"] != "broken"]
    extra = {number: [(f"again/{packable[0]}.jpg", JPEG)] for number in range(3)}
    write_gldv2(tmp_path / "in", IMAGES, tars=3, extra=extra)
    config = PrepareConfig(output=str(tmp_path / "out"), source="gldv2", gldv2=Gldv2Config(path=str(tmp_path / "in")))
    source, output = gldv2_source(config.gldv2, clean=False), locate(config.output)
    plan = load_or_make(output, source, config)
    packer = Packer(output, source, config.packing, plan.plan_id)
    reports = {task.number: packer.pack(task) for task in plan.tasks}
    written = {path: path.read_bytes() for path in (tmp_path / "out/_work/parts").glob("*.json")}
    assert drop_duplicates(output, plan, reports)
    assert len(reports) < 3
    if reports_left:
        for path, data in written.items():
            path.write_bytes(data)
    result = pack_dataset(output, source, config)
    check_complete(result.dataset, set(packable))
    assert result.rejects["duplicate"] == 3
    assert len(ids) - len(packable) == sum(result.rejects.values()) - 3


def test_a_killed_job_resumes_and_packs_every_image_once(tmp_path: Path):
    ids = slow_files(tmp_path / "in")
    output = tmp_path / "out"
    source = ["--source", "gldv2", "--gldv2.path", str(tmp_path / "in"), "--packing.short-side", "64"]
    command = [sys.executable, "-m", "landmark", "prepare", "--output", str(output), "--cluster.cpus", "2", *source]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE) as job:
        parts = output / "_work" / "parts"
        deadline = time.monotonic() + 90
        while not list(parts.glob("*.json")):
            assert time.monotonic() < deadline and job.poll() is None
            time.sleep(0.05)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        assert not (output / "manifest.json").exists()
    assert 0 < len(list(parts.glob("*.json"))) < 14
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    dataset = PackedDataset.open(str(output))
    check_complete(dataset, ids)
    duplicates = Counter(read_table(dataset.location / "rejects.parquet")["reason"].to_pylist())
    assert duplicates == {"duplicate": 4}
    for entry in dataset.manifest.splits.values():
        for shard in entry.shards:
            assert hashlib.sha256((output / shard.path).read_bytes()).hexdigest() == shard.sha256
