"""The Google Landmarks Dataset v2 as a source, with its CSV files joined into one table and its images in a tree or in
tars."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from landmark.config import Gldv2Config, UserError
from landmark.data.packing.sources import Listing
from landmark.data.sources.gldv2 import (
    SourceFaults,
    id_keys,
    image_path,
    image_paths,
    missing_tars,
    published_md5,
    read_attribution,
    read_categories,
    read_clean_ids,
    read_images,
    tar_images,
)
from landmark.data.sources.listing import shallow_state
from landmark.data.sources.resuming_stream import is_web, read_whole
from landmark.storage import Location, locate


@dataclass
class Gldv2Source:
    """GLDv2's published files. Small and picklable, because each worker receives a copy."""

    root: Location
    config: Gldv2Config
    clean: bool = False
    """Keep only the images of train_clean.csv."""
    tars: tuple[str, ...] = ()
    """Paths of the tars relative to the root, in order. Empty if the images are in the extracted tree."""
    missing: tuple[str, ...] = ()
    """Paths of missing tars that other files imply."""

    def items(self) -> pa.Table:
        """Return only the images of `listing`."""
        return self.listing().items

    def listing(self) -> Listing:
        """Read the CSV files.

        Columns of the items:

        - image_id and group, string, and landmark_id, int64
        - origin, string, if the images are in a tree
        - author and license, dictionary-encoded, if gldv2.attribution is set
        - category and supercategory, dictionary-encoded, if published

        Raises UserError if more than gldv2.max_fault_fraction of the rows are faulty.
        """
        faults = SourceFaults()
        table = read_images(self.root, faults)
        rows = len(table) + faults.total()
        keys = id_keys(table["image_id"])
        names = read_categories(self.root, faults)
        notes = [f"{self.describe_tars()}; the images of missing tars are counted as rejects"] if self.missing else []
        columns: dict[str, Any] = {name: table[name].combine_chunks() for name in table.column_names}
        if self.config.attribution:
            columns |= self._attribution(keys, faults, notes)
        columns |= _of_landmarks(columns["landmark_id"], names)
        items = pa.table(columns)
        if self.clean:
            items = items.filter(pa.array(self._clean_mask(keys, faults)))
            notes.append(f"the clean list keeps {len(items):,} of {len(table):,} images")
        faults.check(rows, self.config.max_fault_fraction, self.root.uri)
        if faults.total():
            notes.append(f"{faults.total():,} rows of the CSV files were skipped ({faults.breakdown()})")
        items = items.append_column("group", items["image_id"])
        if not self.tars:
            items = items.append_column("origin", image_paths(items["image_id"].combine_chunks()))
        return Listing(items=items, notes=notes, faults=faults, names=names, known=np.sort(keys) if self.tars else None)

    def describe_tars(self) -> str:
        """Return a description of the tars that exist and of those that are missing."""
        first = ", ".join(self.missing[:5]) + (", …" if len(self.missing) > 5 else "")
        lacking = f"{len(self.missing):,} tars are missing from {self.root}: {first}; " if self.missing else ""
        last = f" to {self.tars[-1]}" if len(self.tars) > 1 else ""
        return f"{lacking}{len(self.tars):,} tars were found: {self.tars[0]}{last}"

    def read(self, row: dict[str, Any]) -> bytes:
        """Read one file of the tree."""
        return read_whole(self.root / image_path(row["image_id"]))

    def notes(self) -> list[str]:
        """Return no notes. `listing` has them all."""
        return []

    def state(self) -> dict[str, Any] | None:
        """Return the state of the CSV files and tars. None on a web server, whose folders cannot be listed."""
        return None if is_web(self.root) else shallow_state(self.root, ("", "metadata", "train"))

    def md5(self, tar: str) -> str | None:
        """Return the published MD5 of a tar. None if there is none or the check is off."""
        return published_md5(self.root, tar) if self.config.check_md5 else None

    def _attribution(self, keys: np.ndarray, faults: SourceFaults, notes: list[str]) -> dict[str, pa.Array]:
        """Return author and license of each image, null if they are not published."""
        table = read_attribution(self.root, faults)
        found, rows = _look_up(keys, id_keys(table["image_id"]))
        missing = int((~found).sum())
        if missing:
            notes.append(f"{missing:,} images have no author and license")
        return {name: _taken(table[name].combine_chunks(), rows, found) for name in ("author", "license")}

    def _clean_mask(self, keys: np.ndarray, faults: SourceFaults) -> np.ndarray:
        """Return a mask of the rows in the clean list: bool (rows,)."""
        wanted = read_clean_ids(self.root, faults)
        kept, _ = _look_up(keys, wanted)
        if int(kept.sum()) < len(wanted):
            strange, _ = _look_up(wanted, np.sort(keys))
            ids = [f"{key:016x}" for key in wanted[~strange].tolist()]
            faults.add("not in train.csv", (self.root / "train_clean.csv").uri, ids)
        return kept


def gldv2_source(config: Gldv2Config, *, clean: bool) -> Gldv2Source:
    """Return the source of a config. Detects whether the images are in tars or in a tree."""
    root = locate(config.path or "")
    tars = None if config.images == "tree" else tar_images(root, config.tars)
    if config.images == "tars" and tars is None:
        raise UserError(f"{root}: no train/images_NNN.tar; check gldv2.path, or set gldv2.images to tree")
    missing = missing_tars(root, tars) if tars else []
    return Gldv2Source(root=root, config=config, clean=clean, tars=tuple(tars or ()), missing=tuple(missing))


def _look_up(keys: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a mask of the keys in a table of keys, bool (n,), and their first rows, int64 (n,)."""
    if len(keys) == len(table) and np.array_equal(keys, table):
        return np.ones(len(keys), dtype=bool), np.arange(len(keys))
    if not len(table):
        return np.zeros(len(keys), dtype=bool), np.zeros(len(keys), dtype=np.int64)
    order = np.argsort(table, kind="stable")
    place = np.searchsorted(table, keys, sorter=order).clip(max=len(table) - 1)
    rows = order[place]
    return table[rows] == keys, rows


def _taken(values: pa.DictionaryArray, rows: np.ndarray, found: np.ndarray) -> pa.DictionaryArray:
    """Return values[rows], null for keys that were not found."""
    codes = values.indices.to_numpy(zero_copy_only=False)[rows] if len(values) else np.zeros(len(rows), np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32), mask=~found), values.dictionary)


def _of_landmarks(landmarks: pa.Array, names: pa.Table) -> dict[str, pa.Array]:
    """Return category and, if published, supercategory of each image."""
    if not len(names):
        return {}
    found, rows = _look_up(landmarks.to_numpy(), names["landmark_id"].to_numpy())
    columns = {"category": "name", "supercategory": "supercategory"}
    encoded = {new: names[old].combine_chunks() for new, old in columns.items() if old in names.column_names}
    return {name: _taken(values.dictionary_encode(), rows, found) for name, values in encoded.items()}
