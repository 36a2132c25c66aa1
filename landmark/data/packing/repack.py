"""A packed dataset as a source: packs a subset of it into a new dataset, with the same images and splits."""

import functools
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from landmark.config import SubsetConfig, UserError
from landmark.data.dataset import SPLITS, PackedDataset
from landmark.data.packing.sources import Listing
from landmark.data.subset_view import open_dataset
from landmark.storage import NotFound, locate
from landmark.storage.tables import read_parquet

KEPT_ROW_GROUPS = 8
_reading = threading.Lock()


@dataclass
class DatasetSource:
    """The images of a packed dataset, or of a subset of it. Each image keeps its split.

    `items` returns them in their stored order. Packing keeps this order, so that each row group is read once.
    """

    uri: str
    subset: SubsetConfig
    seed: int

    def items(self) -> pa.Table:
        """List the images with their location in the shards and the other columns of the catalog."""
        dataset = open_dataset(self.uri, self.subset, self.seed)
        parts = [_placed(dataset, split) for split in SPLITS if dataset.manifest.splits[split].rows]
        table = pa.concat_tables(parts)
        return table if "group" in table.column_names else table.append_column("group", table["image_id"])

    def read(self, row: dict[str, Any]) -> bytes:
        """Return one image as its shard stores it. Raises UserError if the shard is corrupt."""
        table = _row_group(f"{_base(self.uri)}/{row['origin']}", row["from_row_group"])
        return table["image"][row["from_row"]].as_py()

    def notes(self) -> list[str]:
        """Return no notes."""
        return []

    def state(self) -> dict[str, Any]:
        """Return a digest that changes if the dataset is prepared or cleaned again."""
        return {"manifest": (locate(self.uri) / "manifest.json").sha256()[0]}

    def listing(self) -> Listing:
        """Return the items with the landmark names of the dataset."""
        names = PackedDataset.open(_base(self.uri)).labels.select(["landmark_id", "name"])
        return Listing(items=self.items(), notes=self.notes(), names=names)


def _placed(dataset: PackedDataset, split: str) -> pa.Table:
    """Return a split's images with their shard, row group and row."""
    catalog = dataset.catalog(split)
    entry = dataset.manifest.splits[split]
    paths = np.array([shard.path for shard in entry.shards], dtype=object)
    counts = np.array([shard.rows for shard in entry.shards], dtype=np.int64)
    shard = catalog["shard"].to_numpy()
    in_shard = catalog["sample"].to_numpy() - (np.cumsum(counts) - counts)[shard]
    place = in_shard - catalog["row_group"].to_numpy().astype(np.int64) * dataset.manifest.row_group_rows
    # Drop columns that packing computes again. Keep columns that only the catalog has, such as a license.
    rest = catalog.drop_columns(["sample", "label", "shard", "row_group", "width", "height"])
    columns = {"origin": pa.array(paths[shard], pa.string()), "from_row_group": catalog["row_group"]}
    for name, values in (columns | {"from_row": pa.array(place)}).items():
        rest = rest.append_column(name, values)
    return rest


@functools.cache
def _base(uri: str) -> str:
    """Return the location of a dataset's shards. For a cleaned dataset, it is the packed dataset."""
    return open_dataset(uri).location.uri.rstrip("/")


def _row_group(uri: str, number: int) -> pa.Table:
    with _reading:
        return _cached_row_group(uri, number)


@functools.lru_cache(maxsize=KEPT_ROW_GROUPS)
def _cached_row_group(uri: str, number: int) -> pa.Table:
    try:
        return read_parquet(locate(uri), lambda file: file.read_row_group(number, columns=["image"]))
    except NotFound:  # a missing image would be a reject, a missing shard stops the job
        raise UserError(f"{uri}: missing; restore the shard, or prepare that dataset again") from None
