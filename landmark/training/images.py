"""Images that a model infers: those of a split of a packed dataset, or files in a folder; in parts, as plain values that replicas get."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from landmark.config import LoaderConfig, PackingConfig, SubsetConfig, UserError, from_mapping, to_mapping
from landmark.cpus import available_cpus
from landmark.data.ahead import run_ahead
from landmark.data.dataset import PackedDataset
from landmark.data.decode import decode_batch
from landmark.data.image_files import Refused
from landmark.data.images import pack_image
from landmark.data.listing import list_files
from landmark.data.loader import Batch, Loader
from landmark.data.selection import open_dataset
from landmark.data.threads import DaemonPool
from landmark.evaluation.predictions import NO_LANDMARK
from landmark.storage import Location, NotFound, locate

PART_ROWS = 2048
"""Images of a part, about: what is lost when a process dies. More where that would make more than PARTS_AT_MOST."""
PARTS_AT_MOST = 256


def parts_of(rows: int) -> int:
    """Return the number of parts that so many images are divided into."""
    return min(PARTS_AT_MOST, -(-rows // PART_ROWS))


@dataclass(kw_only=True, frozen=True)
class SplitImages:
    """The images of a split, of a packed or cleaned dataset or a subset of it."""

    dataset: str
    """URI."""
    subset: dict[str, Any]
    """Which of its images, as a SubsetConfig's mapping."""
    subset_seed: int
    split: str
    rows: int
    """How many images these are."""
    damaged: Literal["stop", "skip"] = "stop"

    @classmethod
    def of(cls, dataset: PackedDataset, split: str, damaged: Literal["stop", "skip"] = "stop") -> "SplitImages":
        """Return the images of a split of an open dataset; raises UserError for an empty one."""
        return cls(
            dataset=dataset.uri,
            subset=to_mapping(dataset.subset),
            subset_seed=dataset.subset_seed,
            split=split,
            rows=dataset.split(split).rows,
            damaged=damaged,
        )

    @property
    def told(self) -> str:
        """What a person reads of them."""
        return self.split

    @property
    def place(self) -> str:
        """Where they lie."""
        return self.dataset

    def digest(self) -> bytes:
        """Return what tells these images from others."""
        dataset = open_dataset(self.dataset)  # known by its content: it may have moved
        values = {**dataclasses.asdict(self), "dataset": dataset.content_id}
        return json.dumps(values, sort_keys=True).encode()

    def opened(self) -> PackedDataset:
        """Open the dataset."""
        subset = from_mapping(SubsetConfig, self.subset, "the subset")
        return open_dataset(self.dataset, subset, self.subset_seed)

    def open(self, image_size: int, batch_size: int) -> "SplitReader":
        """Return what reads them at an image size."""
        return SplitReader(self, image_size, batch_size)


class SplitReader:
    """Reads a split's images by the loader of training; a part is a rank's share of them."""

    def __init__(self, images: SplitImages, image_size: int, batch_size: int) -> None:
        self.images, self.image_size, self.batch_size = images, image_size, batch_size
        self.dataset = images.opened()
        catalog = self.dataset.catalog(images.split)
        self._samples = catalog["sample"].to_numpy()
        self._ids = catalog["image_id"].to_numpy(zero_copy_only=False)
        self.lost = 0
        """Images of the part last read that could not be."""
        self.rejects: list[tuple[str, str]] = []
        """Names of files that could not be decoded, and why: none, as shards hold no files."""

    def batches(self, part: int, parts: int, tell: Callable[[str], object] | None = None) -> Iterator[Batch]:
        """Yield a part's images."""
        config = LoaderConfig(
            image_size=self.image_size,
            batch_size=self.batch_size * parts,
            stream="thread",
            damaged=self.images.damaged,
        )
        with Loader(self.dataset, self.images.split, config, rank=part, world_size=parts, tell=tell) as loader:
            yield from loader.epoch(1)
        self.lost = loader.lost[1]

    def ids(self, samples: np.ndarray) -> np.ndarray:
        """Return the image ids of samples, str (n,)."""
        return self._ids[np.searchsorted(self._samples, samples)].astype(np.str_)


@dataclass(kw_only=True, frozen=True)
class FolderImages:
    """Files in a folder and those below it, in any format; each is brought to what a dataset's shards hold before it is decoded."""

    folder: str
    """URI."""
    names: tuple[str, ...]
    """The files' paths below it, sorted: their places are the sample numbers, they themselves the image ids."""
    short_side: int = PackingConfig.short_side
    quality: int = PackingConfig.quality
    max_megapixels: int = PackingConfig.max_megapixels
    is_file: bool = False
    """Whether they are one file that was given by its own path, and not a folder's."""

    @classmethod
    def of(
        cls,
        place: Location,
        packed_as: PackedDataset | None = None,
        max_megapixels: int | None = None,
        *,
        output: Location | None = None,
    ) -> "FolderImages":
        """Return the files below a folder but for hidden ones, or one file; raises UserError where there are none.

        packed_as: the dataset whose size and quality images get. max_megapixels: None: the default. output: a folder of which
        nothing is an image. Prints a note on links and names that are left out.
        """
        if not place.exists():
            raise UserError(f"{place}: does not exist; give a folder of images, or a packed dataset")
        limit = max_megapixels or PackingConfig.max_megapixels
        if place.is_file():
            folder, _, name = place.uri.rpartition("/")
            found = cls(folder=folder or "/", names=(name,), max_megapixels=limit, is_file=True)
        else:
            listed = list_files(place, output)
            for note in listed.notes:
                print(f"note: {note}", flush=True)
            if not listed.paths:
                raise UserError(f"{place}: holds no file; give a folder of images, or a packed dataset")
            found = cls(folder=place.uri, names=tuple(listed.paths), max_megapixels=limit)
        if packed_as is None:
            return found
        manifest = packed_as.manifest
        return dataclasses.replace(found, short_side=manifest.short_side, quality=manifest.quality)

    @property
    def rows(self) -> int:
        """How many files these are."""
        return len(self.names)

    @property
    def told(self) -> str:
        """What a person reads of them."""
        return self.place.rstrip("/").rsplit("/", 1)[-1]

    @property
    def place(self) -> str:
        """Where they lie."""
        return f"{self.folder.rstrip('/')}/{self.names[0]}" if self.is_file else self.folder

    def digest(self) -> bytes:
        """Return what tells these images from others."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True).encode()

    def open(self, image_size: int, batch_size: int) -> "FolderReader":
        """Return what reads them at an image size."""
        return FolderReader(self, image_size, batch_size)


class FolderReader:
    """Reads, packs and decodes files in threads, ahead of the model; a part is a stretch of the files."""

    def __init__(self, images: FolderImages, image_size: int, batch_size: int) -> None:
        self.images, self.image_size, self.batch_size = images, image_size, batch_size
        self.folder = locate(images.folder)
        self.packing = PackingConfig(
            short_side=images.short_side, quality=images.quality, max_megapixels=images.max_megapixels
        )
        self.rejects: list[tuple[str, str]] = []
        """Names of the files of the part last read that are no readable images, and why."""

    @property
    def lost(self) -> int:
        """Files of the part last read that are no readable images."""
        return len(self.rejects)

    def batches(self, part: int, parts: int, tell: Callable[[str], object] | None = None) -> Iterator[Batch]:
        """Yield a part's images; files that are none are left out."""
        self.rejects = []
        low, high = (edge * self.images.rows // parts for edge in (part, part + 1))
        threads = available_cpus()
        with DaemonPool(threads, "landmark-decode") as pool:
            samples, pixels = [], []
            for sample, decoded in zip(
                range(low, high),
                run_ahead(lambda row: pool.submit(self._decoded, row), range(low, high), 2 * self.batch_size),
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
        """Return a file's pixels, or why it is no readable image."""
        file = self.folder / self.images.names[row]
        try:
            image = pack_image(file.read_bytes(), self.packing, name=str(file), option="max_megapixels").jpeg
        except Refused as refused:
            return str(refused)
        except NotFound:
            return "missing"
        pixels, faults = decode_batch([image], np.array([row]), self.image_size)
        return faults.get(0, pixels[0])


def check_limit(place: Location, max_megapixels: int | None) -> None:
    """Raise UserError for a limit of pixels that is given for a packed dataset."""
    if max_megapixels is not None:
        raise UserError(
            f"max_megapixels applies to a folder of image files, but {place} is a packed dataset, whose images "
            "`landmark prepare --packing.max-megapixels` limits; leave it out"
        )


def _batch(samples: list[int], pixels: list[np.ndarray]) -> Batch:
    numbers = np.array(samples, dtype=np.int64)
    return Batch(
        images=np.stack(pixels),
        labels=np.full(len(samples), NO_LANDMARK, dtype=np.int64),
        samples=numbers,
        draws=numbers,
        flip=np.zeros(len(samples), dtype=bool),
        share=1.0,
        epoch=1,
    )


Images = SplitImages | FolderImages
