"""The GLDv2 catalog: files are joined, faults reported, and subset and splits do not depend on the row order."""

import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from landmark.cli import parse
from landmark.config import (
    Gldv2Config,
    PackingConfig,
    PrepareConfig,
    SplitConfig,
    SubsetConfig,
    SyntheticConfig,
    UserError,
)
from landmark.data.dataset import SPLITS
from landmark.data.packing.catalog import RequestedImages, request_images
from landmark.data.packing.gldv2_source import gldv2_source
from landmark.data.packing.index import UNKNOWN, UNWANTED, IdIndex, load_index
from landmark.data.packing.job import pack_dataset
from landmark.data.packing.plan import fingerprint
from landmark.data.packing.tar_plan import plan_tars
from landmark.data.synthetic.gldv2_files import LICENSES, write_gldv2
from landmark.storage import locate

IMAGES = SyntheticConfig(classes=6, images=240, image_size=24, label_noise=0.05, near_duplicates=0.05, tail=1.0)


def config(folder: Path, subset: SubsetConfig | None = None, seed: int = 0, **gldv2) -> PrepareConfig:
    settings = Gldv2Config(path=str(folder), **gldv2)
    return PrepareConfig(output="out", source="gldv2", gldv2=settings, subset=subset or SubsetConfig(), seed=seed)


def requested(folder: Path, subset: SubsetConfig | None = None, seed: int = 0, **gldv2) -> RequestedImages:
    prepare_config = config(folder, subset, seed, **gldv2)
    return request_images(gldv2_source(prepare_config.gldv2, clean=prepare_config.subset.clean), prepare_config)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gldv2")
    write_gldv2(folder, IMAGES, tars=0)
    return folder


@pytest.fixture
def tables(published: Path, tmp_path: Path) -> Path:
    """A copy of the CSV files that a test can modify."""
    for path in published.glob("*.csv"):
        (tmp_path / path.name).write_text(path.read_text())
    return tmp_path


def test_files_are_joined(published: Path, tmp_path: Path):
    plan = {row["image_id"]: row for row in write_gldv2(tmp_path, IMAGES, tars=0).to_pylist()}
    found = requested(published, attribution=True)
    rows = found.items.to_pylist()
    assert len(rows) == len(plan) == 240
    for row in rows:
        truth = plan[row["image_id"]]
        assert str(row["landmark_id"]) == truth["landmark_id"] == found.landmark_ids[row["label"]]
        assert row["license"] == truth["license"] and row["author"].startswith("Author, ")
        assert row["category"] == found.names[row["label"]] == f"Synthetic landmark {truth['landmark_id']}"
        assert (published / row["origin"]).is_file()
    assert found.landmark_ids == sorted(found.landmark_ids, key=int)
    assert {"author", "license"}.isdisjoint(requested(published).items.column_names)


def test_the_clean_list_and_licenses_define_subsets(published: Path):
    clean = requested(published, SubsetConfig(clean=True))
    assert 0 < len(clean.items) < 240
    assert clean.notes[0] == f"the clean list keeps {len(clean.items)} of 240 images"
    licensed = requested(published, SubsetConfig(licenses=("by-sa",)), attribution=True)
    assert set(licensed.items["license"].to_pylist()) == {LICENSES[1]}
    with pytest.raises(UserError, match=r"gldv2\.attribution"):
        requested(published, SubsetConfig(licenses=("by-sa",)))
    found = requested(published, SubsetConfig(where="supercategory == 'castle' and category != 'x'"))
    assert set(found.items["supercategory"].to_pylist()) == {"castle"}


@pytest.mark.parametrize(
    "subset",
    [
        SubsetConfig(),
        SubsetConfig(classes=4, images=100),
        SubsetConfig(classes=3, choose="random", max_images=20),
        SubsetConfig(clean=True, images=90),
    ],
)
def test_splits_depend_only_on_the_seed_and_not_on_the_row_order(tables: Path, subset):
    def splits(seed: int) -> dict[str, str]:
        items = requested(tables, subset, seed, attribution=True).items
        return dict(zip(items["image_id"].to_pylist(), items["split"].to_pylist(), strict=True))

    first = splits(7)
    for shuffler in (random.Random(1), random.Random(2)):
        for path in tables.glob("train*.csv"):
            header, *rows = path.read_text().splitlines(keepends=True)
            shuffler.shuffle(rows)
            path.write_text(header + "".join(rows))
        assert splits(7) == first
    assert splits(8) != first


def test_faults_of_all_files_are_counted_and_listed(tables: Path):
    with (tables / "train.csv").open("a") as stream:
        stream.write("nothex,u,11\n0123456789abcdef,u\n")
    with (tables / "train_clean.csv").open("a") as stream:
        stream.write("11,00000000000000aa xyz\n")
    lines = (tables / "train_attribution.csv").read_text().splitlines(keepends=True)
    (tables / "train_attribution.csv").write_text("".join(lines[:-3]) + "bad,u,a,l,t\n")
    found = requested(tables, SubsetConfig(clean=True), attribution=True, max_fault_fraction=0.1)
    assert dict(found.listing.faults.counts) == {"malformed id": 3, "malformed row": 1, "not in train.csv": 1}
    assert {row[0] for row in found.listing.faults.listed} >= {"nothex", "xyz", "bad", "00000000000000aa"}
    assert "3 images have no author and license" in found.notes
    assert any(note.startswith("5 rows of the CSV files were skipped (3 malformed id") for note in found.notes)
    with pytest.raises(UserError, match=r"\d\.\d+% of 242 rows are faulty \(3 malformed id.*max_fault_fraction"):
        requested(tables, SubsetConfig(clean=True), attribution=True)


def test_single_image_classes_stay_in_train_and_are_reported(tables: Path):
    with (tables / "train.csv").open("a") as stream:
        stream.writelines(f"{number:016x},u,{9000 + number}\n" for number in range(5))
    found = requested(tables)
    assert "5 classes have only one image, which is in the train split" in found.notes
    singles = [row for row in found.items.to_pylist() if row["landmark_id"] >= 9000]
    assert [row["split"] for row in singles] == ["train"] * 5
    assert found.names[-1] == "9004"


def test_flags_select_the_reference_subset():
    arguments = [
        "--output",
        "o",
        "--source",
        "gldv2",
        "--gldv2.path",
        "p",
        "--classes",
        "100",
        "--images",
        "81300",
        "--clean",
    ]
    parsed = parse(PrepareConfig, arguments, "landmark prepare")
    assert parsed.subset == SubsetConfig(classes=100, images=81_300, clean=True)
    full = parse(PrepareConfig, ["--output", "o", "--source", "synthetic", "--subset.classes", "5"], "landmark prepare")
    assert full.subset == SubsetConfig(classes=5)
    with pytest.raises(UserError, match=r"gldv2\.path is missing"):
        parse(PrepareConfig, ["--output", "o", "--source", "gldv2"], "landmark prepare")
    with pytest.raises(UserError, match=r"only source gldv2 has a clean list"):
        parse(PrepareConfig, ["--output", "o", "--source", "synthetic", "--clean"], "landmark prepare")


def test_a_fingerprint_contains_the_settings_that_determine_content(tmp_path: Path):
    plain = fingerprint(PrepareConfig(output="a", source="synthetic"))
    assert "max_megapixels" not in plain["packing"], "datasets from before the option existed are recognized"
    assert fingerprint(PrepareConfig(output="a", source="synthetic", packing=PackingConfig(max_megapixels=7))) != plain
    assert set(plain) == {"source", "synthetic", "split", "packing", "seed"}
    subset = fingerprint(PrepareConfig(output="b", source="synthetic", subset=SubsetConfig(classes=5)))
    assert subset["subset"]["classes"] == 5
    gldv2 = fingerprint(config(tmp_path))
    assert gldv2 == fingerprint(config(tmp_path, max_fault_fraction=0.5, check_md5=False))
    assert gldv2 != fingerprint(config(tmp_path, attribution=True))
    assert "synthetic" not in gldv2 and "subset" not in gldv2


def test_the_index_distinguishes_wanted_unwanted_and_unknown_ids(tmp_path: Path):
    known = np.unique(np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64))
    keys = known[::3]
    zeros = np.zeros(len(keys), dtype=np.int32)
    index = IdIndex(wanted=keys, labels=zeros, splits=zeros.astype(np.int8), known=known)
    index.save(locate(tmp_path))
    loaded = load_index(locate(tmp_path), "a")
    for i, key in enumerate(known.tolist()):
        assert loaded.row(key) == (i // 3 if i % 3 == 0 else UNWANTED)
        assert loaded.row(key ^ 1) == UNKNOWN
    assert load_index(locate(tmp_path), "a") is loaded and load_index(locate(tmp_path), "b") is not loaded


def test_a_long_tail_is_applied_to_the_final_training_split(published: Path):
    complete, tailed = requested(published), requested(published, SubsetConfig(tail=1.5))
    assert tailed.landmark_ids == complete.landmark_ids
    before, after = (
        {
            split: each.items.filter(each.splits() == number)["image_id"].to_pylist()
            for number, split in enumerate(SPLITS)
        }
        for each in (complete, tailed)
    )
    assert (before["val"], before["test"]) == (after["val"], after["test"])
    tail_counts, full_counts = (
        np.sort(np.bincount(each.items["label"].to_numpy()[each.splits() == 0]))[::-1] for each in (tailed, complete)
    )
    ideal = np.rint(full_counts[0] * np.arange(1.0, 7) ** -1.5)
    assert tail_counts.tolist() == np.minimum(full_counts, ideal).tolist() and tail_counts.sum() < full_counts.sum()
    assert any(f"keeps {len(tailed.items)} of {len(complete.items)} images" in note for note in tailed.notes)


@pytest.mark.parametrize(("tars", "size"), [(3, 1), (16, 1), (40, 3)])
def test_units_are_consecutive_tars_that_contain_every_row(tmp_path: Path, tars, size):
    write_gldv2(tmp_path, IMAGES, tars=tars)
    prepare_config = config(tmp_path, SubsetConfig(classes=5))
    source = gldv2_source(prepare_config.gldv2, clean=False)
    found = request_images(source, prepare_config)
    rows, tasks, index = plan_tars(source, found, prepare_config)
    assert [tar for task in tasks for tar in task.tars] == list(source.tars)
    assert max(len(task.tars) for task in tasks) == size
    assert sum(task.rows for task in tasks) == len(rows) == len(found.items) < len(index.known) == 240
    assert rows["image_id"].to_pylist() == sorted(rows["image_id"].to_pylist())
    assert [index.row(int(name, 16)) for name in rows["image_id"].to_pylist()] == list(range(len(rows)))


def test_shards_of_large_datasets_have_the_configured_size(tmp_path: Path):
    write_gldv2(tmp_path, IMAGES, tars=2)
    prepare_config = PrepareConfig(
        output="o",
        source="gldv2",
        gldv2=Gldv2Config(path=str(tmp_path)),
        packing=PackingConfig(shard_mib=1, row_group_rows=8),
        split=SplitConfig(val=0.1, test=0.1),
    )
    source = gldv2_source(prepare_config.gldv2, clean=False)
    found = request_images(source, prepare_config)
    many = pa.concat_tables([found.items] * 100)
    found = RequestedImages(**vars(found) | {"items": many.combine_chunks()})
    _, tasks, _ = plan_tars(source, found, prepare_config)
    image_bytes = np.mean([len(path.read_bytes()) for path in _unpacked(tmp_path)])
    for task in tasks:
        mib = task.shard_rows["train"] * image_bytes / 2**20
        assert 0.7 < mib < 1.4
        assert task.shard_rows["train"] % 8 == 0


def _unpacked(folder: Path) -> list[Path]:
    tree = folder / "tree"
    write_gldv2(tree, IMAGES, tars=0)
    return list((tree / "train").rglob("*.jpg"))


def test_a_folder_without_images_or_tables_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"no train/images_NNN\.tar"):
        gldv2_source(Gldv2Config(path=str(tmp_path), images="tars"), clean=False)
    with pytest.raises(UserError, match=r"neither train\.csv nor metadata/train\.csv"):
        requested(tmp_path)


def test_missing_tars_are_reported_before_any_is_read(tmp_path: Path):
    write_gldv2(tmp_path / "in", IMAGES, tars=4)
    for number in (1, 2, 3):
        (tmp_path / "in" / "train" / f"images_{number:03d}.tar").unlink()
    settings = Gldv2Config(path=str(tmp_path / "in"))
    config = PrepareConfig(output=str(tmp_path / "out"), source="gldv2", gldv2=settings)
    names = ", ".join(f"train/images_{number:03d}.tar" for number in (1, 2, 3))
    with pytest.raises(UserError, match=rf"3 tars are missing from {tmp_path}/in: {names}; 1 tars were found") as error:
        pack_dataset(locate(config.output), gldv2_source(settings, clean=False), config)
    assert "\n" not in str(error.value)
    shutil.rmtree(tmp_path / "in" / "md5sum")
    (tmp_path / "in" / "train" / "images_000.tar").rename(tmp_path / "in" / "train" / "images_002.tar")
    source = gldv2_source(settings, clean=False)
    assert source.missing == ("train/images_000.tar", "train/images_001.tar"), "all missing numbers before the last one"
    assert "2 tars are missing" in source.listing().notes[0]
