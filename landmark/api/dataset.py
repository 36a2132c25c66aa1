"""A packed dataset for use in Python: its catalog, its images as a Ray Data dataset or as a PyTorch dataset."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from landmark.config import SubsetConfig
from landmark.data.subset_view import open_dataset

if TYPE_CHECKING:
    import pandas as pd
    import ray.data
    import torch.utils.data


class Dataset:
    """A packed or cleaned dataset, as `landmark prepare` and `landmark clean` write it, or a subset of one."""

    def __init__(self, uri: str | Path, subset: SubsetConfig | None = None, seed: int = 0) -> None:
        self.uri = str(uri)
        """Folder or URI."""
        self._packed = open_dataset(self.uri, subset, seed)

    def __repr__(self) -> str:
        rows = ", ".join(f"{name} {entry.rows:,}" for name, entry in self._packed.manifest.splits.items())
        return f"<landmark.Dataset {self.uri}, {len(self.classes):,} classes, {rows}>"

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        return self._packed.class_names

    @property
    def splits(self) -> dict[str, int]:
        """Number of images per split."""
        return {name: entry.rows for name, entry in self._packed.manifest.splits.items()}

    def catalog(self, split: str | None = None) -> "pd.DataFrame":
        """Return one row per image, without pixels: sample, image_id, landmark_id, label, split, width, height and more.

        split: train, val or test. [default: all]
        """
        import pandas as pd

        names = [split] if split is not None else [name for name, rows in self.splits.items() if rows]
        for name in names:
            self._packed.split(name)
        return pd.concat([self._packed.catalog(name).to_pandas() for name in names], ignore_index=True)

    def to_ray(self, split: str) -> "ray.data.Dataset":
        """Return the images of a split as a Ray Data dataset: image_id, label, image (JPEG bytes), height, width.

        Ray Data reads the shards, in parallel on the connected cluster. The rows of a cleaned dataset or a subset are filtered
        by image_id, and have their labels there.
        """
        import pyarrow as pa
        import pyarrow.compute as pc
        import ray
        import ray.data

        from landmark.runtime import quiet_data

        quiet_data()
        location = self._packed.location
        shards = [location / shard.path for shard in self._packed.split(split).shards]
        found = ray.data.read_parquet([shard.path for shard in shards], filesystem=location.fs)
        packed = self._packed
        if packed.selected(split) is None and not packed.relabelled and packed.label_map is None:
            return found
        kept = ray.put(packed.catalog(split).select(["image_id", "label"]).combine_chunks())

        def keep(table: pa.Table) -> pa.Table:
            own = ray.get(kept)
            place = pc.index_in(table["image_id"], own["image_id"].chunk(0))
            table = table.set_column(table.schema.get_field_index("label"), "label", own["label"].chunk(0).take(place))
            return table.filter(pc.is_valid(place))

        return found.map_batches(keep, batch_format="pyarrow")

    def to_torch(self, split: str, transform: Any = None) -> "torch.utils.data.Dataset":
        """Return the images of a split as a map-style PyTorch dataset of (image, label).

        transform: called with the PIL image, such as a torchvision transform. [default: uint8 tensor (3, height, width)]
        """
        from landmark.api.torch_dataset import ShardImages

        self._packed.split(split)
        return ShardImages(self._packed, split, transform)
