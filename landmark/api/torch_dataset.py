"""A split of a packed dataset as a map-style PyTorch dataset."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from landmark.config import UserError
from landmark.data.dataset import SPLITS, PackedDataset
from landmark.data.random_access import ImageReader


class ShardImages(Dataset[tuple[Any, int]]):
    """The images of a split, in the order of `sample`: (image, label).

    Random access reads a whole row group (128 images by default) per image. A PyTorch DataLoader that calls `__getitems__`
    (torch >= 2.0 does) reads each row group once per batch. For training at speed use `landmark.train`, or `Dataset.to_ray`.
    """

    def __init__(
        self, packed: PackedDataset, split: str, transform: Callable[[Image.Image], Any] | None = None
    ) -> None:
        catalog = packed.catalog(split)
        self.packed, self.split, self.transform = packed, split, transform
        self.samples = catalog["sample"].to_numpy()
        self.labels = catalog["label"].to_numpy().astype(np.int64)
        self.image_ids = catalog["image_id"]
        self._reader: ImageReader | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        """Return several images: what a DataLoader asks for per batch; raises UserError for an image that cannot be read."""
        if self._reader is None:  # in each process of a DataLoader: files are opened there
            self._reader = ImageReader(self.packed, np.full(len(self), SPLITS.index(self.split)), self.samples)
        rows = [index % len(self) for index in indices]
        images = self._reader.read(rows)
        found = []
        for row in rows:
            if row not in images:
                raise UserError(
                    f"{self.packed.uri}: image {self.image_ids[row]} cannot be read; run landmark prepare --verify"
                )
            image = Image.open(io.BytesIO(images[row])).convert("RGB")
            found.append((self._transformed(image), int(self.labels[row])))
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def _transformed(self, image: Image.Image) -> Any:
        if self.transform is not None:
            return self.transform(image)
        return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))
