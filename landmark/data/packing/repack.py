"""A packed dataset as a source: a selection of it becomes a dataset of its own, images and splits unchanged."""

import functools
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from landmark.config import SubsetConfig, UserError
from landmark.data.dataset import SPLITS, PackedDataset, read_parquet
from landmark.data.packing.sources import Listing
from landmark.data.selection import open_dataset
from landmark.storage import NotFound, locate

KEPT_ROW_GROUPS = 8
_reading = threading.Lock()


@dataclass
class DatasetSource:
    """The images of a packed dataset, or of a subset of it, each with the split it has.

    `items` gives them in the order in which they lie, which packing keeps, so that each row group is read once.
    """

    uri: str
    subset: SubsetConfig
    seed: int

    def items(self) -> pa.Table:
        """List the images with their place in the shards, and what the catalog knows of them besides."""
        dataset = open_dataset(self.uri, self.subset, self.seed)
        parts = [_placed(dataset, split) for split in SPLITS if dataset.manifest.splits[split].rows]
        table = pa.concat_tables(parts)
        return table if "group" in table.column_names else table.append_column("group", table["image_id"])

    def read(self, row: dict[str, Any]) -> bytes:
        """Return one image as it lies in its shard; raises UserError where that is damaged."""
        table = _row_group(f"{_base(self.uri)}/{row['origin']}", row["from_row_group"])
        return table["image"][row["from_row"]].as_py()

    def notes(self) -> list[str]:
        """Nothing to tell."""
        return []

    def state(self) -> dict[str, Any]:
        """Return what tells the dataset from one that was prepared or cleaned again in its place."""
        return {"manifest": (locate(self.uri) / "manifest.json").sha256()[0]}

    def listing(self) -> Listing:
        """Return the items with the landmarks' names as the dataset has them."""
        names = PackedDataset.open(_base(self.uri)).labels.select(["landmark_id", "name"])
        return Listing(items=self.items(), notes=self.notes(), names=names)


def _placed(dataset: PackedDataset, split: str) -> pa.Table:
    """Return a split's images with the shard, row group and row in it where each lies."""
    catalog = dataset.catalog(split)
    entry = dataset.manifest.splits[split]
    paths = np.array([shard.path for shard in entry.shards], dtype=object)
    counts = np.array([shard.rows for shard in entry.shards], dtype=np.int64)
    shard = catalog["shard"].to_numpy()
    in_shard = catalog["sample"].to_numpy() - (np.cumsum(counts) - counts)[shard]
    place = in_shard - catalog["row_group"].to_numpy().astype(np.int64) * dataset.manifest.row_group_rows
    # What packing decides anew goes; what only the catalog knows, such as a license, stays.
    rest = catalog.drop_columns(["sample", "label", "shard", "row_group", "width", "height"])
    columns = {"origin": pa.array(paths[shard], pa.string()), "from_row_group": catalog["row_group"]}
    for name, values in (columns | {"from_row": pa.array(place)}).items():
        rest = rest.append_column(name, values)
    return rest


@functools.cache
def _base(uri: str) -> str:
    """Return where the shards of a dataset lie: with a cleaned one, those of the dataset that was cleaned."""
    return open_dataset(uri).location.uri.rstrip("/")


def _row_group(uri: str, number: int) -> pa.Table:
    with _reading:
        return _cached_row_group(uri, number)


@functools.lru_cache(maxsize=KEPT_ROW_GROUPS)
def _cached_row_group(uri: str, number: int) -> pa.Table:
    try:
        return read_parquet(locate(uri), lambda file: file.read_row_group(number, columns=["image"]))
    except NotFound:  # a missing image would be a reject, a missing shard stops the job
        raise UserError(f"{uri}: missing; put the shard back or prepare that dataset again") from None
