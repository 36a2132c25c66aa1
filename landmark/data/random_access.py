"""Random access to images of a dataset, for comparing or showing their pixels."""

from collections.abc import Iterable

import cv2
import numpy as np
import simplejpeg

from landmark.data.dataset import SPLITS, PackedDataset
from landmark.data.loading.plan import ReadTask, RowGroups
from landmark.data.loading.reader import RowGroupReader
from landmark.data.sources.image_files import fault_of

THUMBNAIL_SIDE = 112
THUMBNAIL_QUALITY = 70


class ImageReader:
    """Reads single images of a dataset. Images of one row group are read together.

    splits, samples: the location of each row, as index into SPLITS (n,) and sample number int64 (n,).
    """

    def __init__(self, dataset: PackedDataset, splits: np.ndarray, samples: np.ndarray) -> None:
        self.dataset = dataset
        self.splits = splits
        self.samples = samples
        self._groups: dict[int, RowGroups] = {}
        self._readers: dict[int, RowGroupReader] = {}

    def read(self, rows: Iterable[int]) -> dict[int, bytes]:
        """Return the images of rows. Images that cannot be read are left out."""
        wanted = np.unique(np.fromiter(rows, dtype=np.int64))
        found: dict[int, bytes] = {}
        for split in np.unique(self.splits[wanted]).tolist():
            groups = self._groups_of(split)
            split_rows = wanted[self.splits[wanted] == split]
            group = np.searchsorted(groups.first_sample, self.samples[split_rows], side="right") - 1
            for index in np.unique(group).tolist():
                part = split_rows[group == index]
                part = part[np.argsort(self.samples[part])]
                first = int(groups.first_sample[index])
                inside = self.samples[part] - first
                task = ReadTask(
                    shard=int(groups.shard[index]),
                    row_group=int(groups.row_group[index]),
                    first_sample=first,
                    rows=inside,
                    visits=self.samples[part],
                )
                images = self._readers[split].read(task)["image"].to_pylist()
                found.update({row: data for row, data in zip(part.tolist(), images, strict=True) if data is not None})
        return found

    def _groups_of(self, split: int) -> RowGroups:
        if split not in self._groups:
            name = SPLITS[split]
            self._groups[split] = RowGroups.of(self.dataset, name)
            self._readers[split] = RowGroupReader(self.dataset.location, self.dataset.split(name).shards)
        return self._groups[split]


def decode_grey(data: bytes) -> np.ndarray | None:
    """Decode a JPEG to grayscale, uint8 (h, w). None if it cannot be decoded."""
    try:
        return simplejpeg.decode_jpeg(data, "GRAY")[:, :, 0]
    except Exception as error:
        fault_of(error)
        return None


def thumbnail(data: bytes | None) -> bytes | None:
    """Return a JPEG with a long side of up to THUMBNAIL_SIDE. None if the image cannot be decoded."""
    if data is None:
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB")
    except Exception as error:
        fault_of(error)
        return None
    scale = min(1.0, THUMBNAIL_SIDE / max(pixels.shape[:2]))
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(small), quality=THUMBNAIL_QUALITY)
