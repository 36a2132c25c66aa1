"""Synthetic landmarks in the published layout of GLDv2: the CSV files, and the images in tars or in the tree."""

import csv
import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from landmark.config import SyntheticConfig
from landmark.data.sources.gldv2 import image_path
from landmark.data.synthetic.plan import plan_images
from landmark.data.synthetic.scene import render_image

FIRST_LANDMARK, LANDMARK_STEP = 11, 7
"""Landmark ids are neither dense nor start at 0, as in subsets of the published files."""
LICENSES = (
    "https://creativecommons.org/licenses/by/2.0/",
    "https://creativecommons.org/licenses/by-sa/3.0/",
    "Public Domain",
)
KINDS = ("tower", "bridge", "castle", "church")
AUTHORS = 20
UNSHOWN = 12
"""Rows of the solution for test images: a third without a landmark, a third with two, a third ignored."""

Member = tuple[str, bytes]


def write_gldv2(
    folder: Path,
    config: SyntheticConfig,
    seed: int = 0,
    *,
    tars: int = 4,
    left_out: frozenset[str] = frozenset(),
    extra: dict[int, list[Member]] | None = None,
) -> pa.Table:
    """Write the files of `plan_images(config, seed)` to a folder. Returns one row per image.

    tars: number of train/images_NNN.tar with their MD5 files. Images are distributed round-robin. 0 writes the tree
    train/a/b/c/<id>.jpg. left_out: ids of images that are not written. extra: further files, by the tar's number.

    Columns of the table: image_id, landmark_id (integer as text), kind (as in `plan_images`), license.
    """
    rows = plan_images(config, seed).to_pylist()
    for row in rows:
        row["number"] = FIRST_LANDMARK + LANDMARK_STEP * int(row["landmark_id"].rsplit("-", 1)[1])
        row["license"] = LICENSES[int(row["image_id"][-1], 16) % len(LICENSES)]
    folder.mkdir(parents=True, exist_ok=True)
    _write_tables(folder, rows)
    shown = [row for row in rows if row["image_id"] not in left_out]
    if tars:
        for number in range(tars):
            members = [*_draw(shown[number::tars], config, seed), *(extra or {}).get(number, [])]
            write_tar(folder, number, members)
    else:
        for name, data in _draw(shown, config, seed):
            path = folder / "train" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return pa.table(
        {
            "image_id": [row["image_id"] for row in rows],
            "landmark_id": [str(row["number"]) for row in rows],
            "kind": [row["kind"] for row in rows],
            "license": [row["license"] for row in rows],
        }
    )


def write_tar(folder: Path, number: int, members: Iterable[Member]) -> Path:
    """Write train/images_NNN.tar and its MD5 file to a folder. Returns the tar's path."""
    path = folder / "train" / f"images_{number:03d}.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    digest = folder / "md5sum" / "train" / f"md5.{path.stem}.txt"
    digest.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as stream:
        digest.write_text(f"{hashlib.file_digest(stream, 'md5').hexdigest()}  {path.name}\n")
    return path


def _draw(rows: list[dict[str, Any]], config: SyntheticConfig, seed: int) -> Iterator[Member]:
    for row in rows:
        yield image_path(row["image_id"]).removeprefix("train/"), render_image(row, config, seed)


def _write_tables(folder: Path, rows: list[dict[str, Any]]) -> None:
    landmarks = sorted({row["number"] for row in rows})
    urls = {row["image_id"]: f"https://example.org/{row['image_id']}, view.jpg" for row in rows}
    _write(
        folder / "train.csv",
        ["id", "url", "landmark_id"],
        ([row["image_id"], urls[row["image_id"]], row["number"]] for row in rows),
    )
    clean: dict[int, list[str]] = {}
    for row in rows:
        if row["kind"] == "landmark" and row["true_landmark_id"] == row["landmark_id"] and not row["duplicate_of"]:
            clean.setdefault(row["number"], []).append(row["image_id"])
    _write(
        folder / "train_clean.csv",
        ["landmark_id", "images"],
        ([number, " ".join(ids)] for number, ids in sorted(clean.items())),
    )
    _write(
        folder / "train_attribution.csv",
        ["id", "url", "author", "license", "title"],
        (
            [row["image_id"], urls[row["image_id"]], f"Author, {row['number'] % AUTHORS}", row["license"], "A view"]
            for row in rows
        ),
    )
    category = {n: f"http://commons.wikimedia.org/wiki/Category:Synthetic_landmark_{n}" for n in landmarks}
    kind = {n: KINDS[n % len(KINDS)] for n in landmarks}
    _write(
        folder / "train_label_to_category.csv",
        ["landmark_id", "category"],
        ([number, category[number]] for number in landmarks),
    )
    _write(
        folder / "train_label_to_hierarchical.csv",
        ["landmark_id", "category", "supercategory", "hierarchical_label", "natural_or_human_made"],
        ([number, category[number], kind[number], kind[number], "human-made"] for number in landmarks),
    )
    tests = [f"{number:016x}" for number in range(UNSHOWN)]
    answers = ["", f"{landmarks[0]} {landmarks[-1]}", str(landmarks[0])]
    _write(
        folder / "recognition_solution_v2.1.csv",
        ["id", "landmarks", "Usage"],
        ([name, answers[i % 3], ("Public", "Private", "Ignored")[i % 3]] for i, name in enumerate(tests)),
    )


def _write(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
