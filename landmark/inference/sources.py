"""Images for inference: a packed dataset's split or files in a folder, in shards, as plain values for replicas."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from landmark.config import (
    CROP_PCT,
    CacheOptions,
    LoaderConfig,
    PackingConfig,
    SubsetConfig,
    UserError,
    from_mapping,
    to_mapping,
)
from landmark.cpus import available_cpus
from landmark.data.cache.format import with_cache_format
from landmark.data.dataset import PackedDataset
from landmark.data.loading.jpeg import decode_batch
from landmark.data.loading.loader import Batch, Loader
from landmark.data.loading.prefetch import ordered_prefetch
from landmark.data.sources.image_files import RejectedImage
from landmark.data.sources.listing import list_files
from landmark.data.sources.transcode import pack_image
from landmark.data.subset_view import open_dataset
from landmark.data.threads import DaemonPool
from landmark.evaluation.predictions import NO_LANDMARK
from landmark.storage import Location, NotFound, locate

PART_ROWS = 2048
"""Approximate images per shard, the maximum loss if a process dies. Larger if PARTS_AT_MOST limits the count."""
MAX_PARTS = 256


def parts_of(rows: int) -> int:
    """Return the number of shards for this number of images."""
    return min(MAX_PARTS, -(-rows // PART_ROWS))


@dataclass(kw_only=True, frozen=True)
class SplitImages:
    """Images of a split of a packed or cleaned dataset, or a subset of it."""

    dataset: str
    """URI."""
    subset: dict[str, Any]
    """Subset of the images, as a SubsetConfig's mapping."""
    subset_seed: int
    split: str
    rows: int
    """Number of images."""
    corrupt: Literal["stop", "skip"] = "stop"
    cache: CacheOptions = field(default_factory=CacheOptions)

    @classmethod
    def of(
        cls,
        dataset: PackedDataset,
        split: str,
        corrupt: Literal["stop", "skip"] = "stop",
        cache: CacheOptions | None = None,
    ) -> "SplitImages":
        """Return the images of a split of an open dataset. Raises UserError for an empty split."""
        return cls(
            dataset=dataset.uri,
            subset=to_mapping(dataset.subset),
            subset_seed=dataset.subset_seed,
            split=split,
            rows=dataset.split(split).rows,
            corrupt=corrupt,
            cache=cache or CacheOptions(),
        )

    @property
    def description(self) -> str:
        """Display name of these images."""
        return self.split

    @property
    def place(self) -> str:
        """Location of the images."""
        return self.dataset

    def digest(self) -> bytes:
        """Return bytes that identify these images."""
        dataset = open_dataset(self.dataset)  # identified by its content, because it may have moved
        values = {**dataclasses.asdict(self), "dataset": dataset.content_id}
        # The predictions do not depend on a cache of JPEGs. Results of versions without a cache are found again.
        cache = values.pop("cache")
        if cache["cache_format"] != "jpeg":
            values["cache_format"] = cache["cache_format"]
        return json.dumps(values, sort_keys=True).encode()

    def opened(self) -> PackedDataset:
        """Open the dataset."""
        subset = from_mapping(SubsetConfig, self.subset, "the subset")
        return open_dataset(self.dataset, subset, self.subset_seed)

    def open(self, image_size: int, batch_size: int, crop_pct: float = CROP_PCT) -> "SplitReader":
        """Return a reader for the preprocessing of a model, see `CheckpointMeta`."""
        return SplitReader(self, image_size, batch_size, crop_pct)


class SplitReader:
    """Reads a split's images with the training loader. A shard is one rank's fraction of them."""

    def __init__(self, images: SplitImages, image_size: int, batch_size: int, crop_pct: float = CROP_PCT) -> None:
        self.images, self.image_size, self.batch_size = images, image_size, batch_size
        self.dataset = images.opened()
        self._notes: list[str] = []
        self.config = with_cache_format(
            LoaderConfig(
                image_size=image_size,
                crop_pct=crop_pct,
                corrupt=images.corrupt,
                **dataclasses.asdict(images.cache),
            ),
            self.dataset,
            {images.split: None},
            self._notes.append,
        )
        catalog = self.dataset.catalog(images.split)
        self._samples = catalog["sample"].to_numpy()
        self._ids = catalog["image_id"].to_numpy(zero_copy_only=False)
        self.lost = 0
        """Unreadable images of the last shard."""
        self.rejects: list[tuple[str, str]] = []
        """Names and errors of files that could not be decoded. Always empty, because a split has no files."""

    def batches(self, part: int, parts: int, tell: Callable[[str], object] | None = None) -> Iterator[Batch]:
        """Yield a shard's images in batches."""
        config = dataclasses.replace(self.config, batch_size=self.batch_size * parts, stream="thread")
        while tell is not None and self._notes:
            tell(self._notes.pop())
        with Loader(self.dataset, self.images.split, config, rank=part, world_size=parts, tell=tell) as loader:
            yield from loader.epoch(1)
        self.lost = loader.lost[1]

    def ids(self, samples: np.ndarray) -> np.ndarray:
        """Return the image IDs of samples, str (n,)."""
        return self._ids[np.searchsorted(self._samples, samples)].astype(np.str_)


@dataclass(kw_only=True, frozen=True)
class FolderImages:
    """Files in a folder and its subfolders, in any format. Each is resized and encoded as in a packed dataset."""

    folder: str
    """URI."""
    names: tuple[str, ...]
    """Sorted paths of the files below the folder. Their indices are the sample numbers, the paths are the image IDs."""
    short_side: int = PackingConfig.short_side
    quality: int = PackingConfig.quality
    max_megapixels: int = PackingConfig.max_megapixels
    is_file: bool = False
    """Whether this is one file that was passed by its own path."""

    @classmethod
    def of(
        cls,
        place: Location,
        packed_as: PackedDataset | None = None,
        max_megapixels: int | None = None,
        *,
        output: Location | None = None,
    ) -> "FolderImages":
        """Return one file, or the files below a folder except hidden ones. Raises UserError if there are none.

        packed_as: dataset whose size and quality the images get. max_megapixels: None means the default. output: a
        folder whose files are ignored. Prints a note about skipped links and names.
        """
        if not place.exists():
            raise UserError(f"{place}: does not exist; pass a folder of images, or a packed dataset")
        limit = max_megapixels or PackingConfig.max_megapixels
        if place.is_file():
            folder, _, name = place.uri.rpartition("/")
            found = cls(folder=folder or "/", names=(name,), max_megapixels=limit, is_file=True)
        else:
            listed = list_files(place, output)
            for note in listed.notes:
                print(f"note: {note}", flush=True)
            if not listed.paths:
                raise UserError(f"{place}: contains no files; pass a folder of images, or a packed dataset")
            found = cls(folder=place.uri, names=tuple(listed.paths), max_megapixels=limit)
        if packed_as is None:
            return found
        manifest = packed_as.manifest
        return dataclasses.replace(found, short_side=manifest.short_side, quality=manifest.quality)

    @property
    def rows(self) -> int:
        """Number of files."""
        return len(self.names)

    @property
    def description(self) -> str:
        """Display name of these images."""
        return self.place.rstrip("/").rsplit("/", 1)[-1]

    @property
    def place(self) -> str:
        """Location of the images."""
        return f"{self.folder.rstrip('/')}/{self.names[0]}" if self.is_file else self.folder

    def digest(self) -> bytes:
        """Return bytes that identify these images."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True).encode()

    def open(self, image_size: int, batch_size: int, crop_pct: float = CROP_PCT) -> "FolderReader":
        """Return a reader for the preprocessing of a model, see `CheckpointMeta`."""
        return FolderReader(self, image_size, batch_size, crop_pct)


class FolderReader:
    """Reads, encodes and decodes files in threads, ahead of the model. A shard is a contiguous range of the files."""

    def __init__(self, images: FolderImages, image_size: int, batch_size: int, crop_pct: float = CROP_PCT) -> None:
        self.images, self.image_size, self.batch_size, self.crop_pct = images, image_size, batch_size, crop_pct
        self.folder = locate(images.folder)
        self.packing = PackingConfig(
            short_side=images.short_side, quality=images.quality, max_megapixels=images.max_megapixels
        )
        self.rejects: list[tuple[str, str]] = []
        """Names and errors of the unreadable files of the last shard."""

    @property
    def lost(self) -> int:
        """Number of unreadable files of the last shard."""
        return len(self.rejects)

    def batches(self, part: int, parts: int, tell: Callable[[str], object] | None = None) -> Iterator[Batch]:
        """Yield a shard's images in batches, without unreadable files."""
        self.rejects = []
        low, high = (edge * self.images.rows // parts for edge in (part, part + 1))
        threads = available_cpus()
        with DaemonPool(threads, "landmark-decode") as pool:
            samples, pixels = [], []
            for sample, decoded in zip(
                range(low, high),
                ordered_prefetch(lambda row: pool.submit(self._decoded, row), range(low, high), 2 * self.batch_size),
                strict=True,
            ):
                if isinstance(decoded, str):
                    self.rejects.append((self.images.names[sample], decoded))
                    continue
                samples.append(sample)
                pixels.append(decoded)
                if len(samples) == self.batch_size:
                    yield _batch(samples, pixels)
                    samples, pixels = [], []
            if samples:
                yield _batch(samples, pixels)

    def ids(self, samples: np.ndarray) -> np.ndarray:
        """Return the names of samples, str (n,)."""
        return np.array([self.images.names[sample] for sample in samples.tolist()], dtype=np.str_)

    def _decoded(self, row: int) -> np.ndarray | str:
        """Return a file's pixels, or the reason why it is unreadable."""
        file = self.folder / self.images.names[row]
        try:
            image = pack_image(file.read_bytes(), self.packing, name=str(file), option="max_megapixels").jpeg
        except RejectedImage as refused:
            return str(refused)
        except NotFound:
            return "missing"
        pixels, faults = decode_batch([image], np.array([row]), self.image_size, crop_pct=self.crop_pct)
        return faults.get(0, pixels[0])


def check_limit(place: Location, max_megapixels: int | None) -> None:
    """Raise UserError if a pixel limit is set for a packed dataset."""
    if max_megapixels is not None:
        raise UserError(
            f"max_megapixels applies to a folder of image files, but {place} is a packed dataset, whose images "
            "`landmark prepare --packing.max-megapixels` limits; remove the option"
        )


def _batch(samples: list[int], pixels: list[np.ndarray]) -> Batch:
    numbers = np.array(samples, dtype=np.int64)
    return Batch(
        images=np.stack(pixels),
        labels=np.full(len(samples), NO_LANDMARK, dtype=np.int64),
        samples=numbers,
        visits=numbers,
        flip=np.zeros(len(samples), dtype=bool),
        weight=1.0,
        epoch=1,
    )


Images = SplitImages | FolderImages
