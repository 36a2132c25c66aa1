"""k-NN gallery: an index of image embeddings that classifies images by nearest neighbors and grows without training.

A gallery is a folder with classes.parquet (landmark_id, name; in the order of the labels), rows.parquet (image_id,
label, source; in the order of the index), index.usearch and gallery.json. gallery.json is written last and refers to
the others.
"""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from usearch.index import Index

from landmark.checkpoints.format import check_classes, read_meta, weights_digest
from landmark.config import CacheOptions, PackingConfig, SubsetConfig, UserError, from_mapping, recorded_subset
from landmark.data.dataset import PackedDataset
from landmark.data.sources.listing import nested_notes
from landmark.data.subset_view import open_dataset
from landmark.evaluation.predictions import from_lists
from landmark.inference.job import PARTS, Job, Replicas, infer_parts, lost_of
from landmark.inference.sources import FolderImages, Images, SplitImages
from landmark.retrieval.knn import add_embeddings, knn_vote, new_index, search_index
from landmark.storage import Location, NotFound, check_writable, locate
from landmark.storage.tables import read_table, write_table

RECORD = "gallery.json"
VERSION = 1
KEYS = ("revision", "folder", "weights", "images", "index_sha256", "places")
"""Required keys of gallery.json."""
GALLERY = "gallery"
"""Name of the gallery's folder in a run's folder."""


@dataclass(kw_only=True)
class Gallery:
    """An opened gallery."""

    place: Location
    checkpoint: Location
    weights: str
    """Digest of the weights that computed the embeddings."""
    classes: pa.Table
    """landmark_id, name: one row per label."""
    labels: np.ndarray
    """Label per image, int32 (m,)."""
    image_ids: pa.Array
    """ID per image, string (m,)."""
    sources: np.ndarray
    """Index in `places` per image, int32 (m,)."""
    index: Index | None
    """None if the gallery is empty."""
    places: list[dict[str, Any]] = field(default_factory=list)
    """Sources of the images, in the order in which they were added."""
    revision: int = 0

    @classmethod
    def empty(cls, place: Location, checkpoint: Location) -> "Gallery":
        """Return an empty gallery."""
        return cls(
            place=place,
            checkpoint=checkpoint,
            weights=weights_digest(checkpoint),
            classes=pa.table({"landmark_id": pa.array([], pa.string()), "name": pa.array([], pa.string())}),
            labels=np.empty(0, np.int32),
            image_ids=pa.array([], pa.string()),
            sources=np.empty(0, np.int32),
            index=None,
        )

    @classmethod
    def open(cls, place: Location, checkpoint: Location) -> "Gallery | None":
        """Open the gallery at a location. Returns None if there is none, and raises UserError if it is corrupt."""
        try:
            record = json.loads((place / RECORD).read_text())
        except NotFound:
            return None
        except json.JSONDecodeError as error:
            raise UserError(f"{place / RECORD}: not valid JSON ({error}); delete {place} and index again") from None
        version = record.get("version") if isinstance(record, dict) else None
        if version != VERSION:
            raise UserError(
                f"{place / RECORD}: version is {version!r}, but this version of landmark reads {VERSION}; delete {place} and index again"
            )
        if missing := [key for key in KEYS if key not in record]:
            raise UserError(f"{place / RECORD}: missing keys {', '.join(missing)}; delete {place} and index again")
        folder = place / record["folder"]
        rows = read_table(folder / "rows.parquet").combine_chunks()
        with _on_disk(folder / "index.usearch") as file:
            if locate(file).sha256()[0] != record["index_sha256"] or len(rows) != record["images"]:
                raise UserError(f"{folder}: index.usearch is corrupt; delete {place} and index again")
            index = Index.restore(str(file))
        return cls(
            place=place,
            checkpoint=checkpoint,
            weights=record["weights"],
            classes=read_table(folder / "classes.parquet"),
            labels=rows["label"].to_numpy(),
            image_ids=rows["image_id"].chunk(0) if len(rows) else pa.array([], pa.string()),
            sources=rows["source"].to_numpy(),
            index=index,
            places=record["places"],
            revision=record["revision"],
        )

    def __len__(self) -> int:
        return len(self.labels)

    def summary(self) -> dict[str, Any]:
        """Return a summary for JSON output."""
        return {"gallery": self.place.uri, "images": len(self), "classes": len(self.classes)}

    @property
    def names(self) -> list[str]:
        """Class names by label."""
        return self.classes["name"].to_pylist()

    @property
    def counts(self) -> np.ndarray:
        """Images per class, int64 (classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def labels_of(self, landmark_ids: Sequence[str] | pa.ChunkedArray) -> np.ndarray:
        """Return the labels of landmarks, int64 (n,), or -1 for landmarks that are not in the gallery."""
        found = pc.index_in(pa.array(landmark_ids, pa.string()), self.classes["landmark_id"].combine_chunks())
        return pc.fill_null(found, -1).to_numpy().astype(np.int64)

    def classify(
        self, embeddings: np.ndarray, neighbors: int, top_k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return classes and scores from `knn_vote`, and the nearest image, int64 (n,), with its cosine, float32 (n,)."""
        assert self.index is not None
        nearest, cosines = search_index(self.index, embeddings, neighbors)
        found, scores = knn_vote(self.labels[nearest], cosines, len(self.classes), top_k)
        return found, scores, nearest[:, 0], cosines[:, 0]

    def add(self, images: Images, replicas: Replicas, batch_size: int, *, quiet: bool = False) -> "AddedImages":
        """Embed images and add those that are new, with their classes. Call `save` to store them.

        The class of a file is the name of its top-level folder. Classes are identified by landmark ID.
        """
        place = place_of(images)
        if place in self.places and isinstance(images, SplitImages):  # a split never changes
            return AddedImages(images=0, skipped=images.rows, lost=0, classes=0)
        if place not in self.places:
            self.places.append(place)
        source = self.places.index(place)
        same = [number for number, other in enumerate(self.places) if _home(other) == _home(place)]
        have = self.image_ids.filter(pa.array(np.isin(self.sources, same)))
        skipped = 0
        if isinstance(images, FolderImages):
            known = set(have.to_pylist())
            fresh = tuple(name for name in images.names if name not in known)
            skipped = images.rows - len(fresh)
            images = dataclasses.replace(images, names=fresh)
        before = len(self.classes)
        labels_of_sample = self._labels_of(images)
        job = Job(
            checkpoint=self.checkpoint.uri,
            images=images,
            top_k=1,
            batch_size=batch_size,
            labelled=False,
            embeddings=True,
        )
        added = lost = 0
        labels, ids = [self.labels], [self.image_ids]
        for table, _ in infer_parts(job, self.place, replicas=replicas, doing="embedding", quiet=quiet):
            lost += lost_of(table)
            kept = table.filter(pc.invert(pc.is_in(table["image_id"], value_set=have)))
            skipped += len(table) - len(kept)
            if not len(kept):
                continue
            embeddings = from_lists(kept["embedding"])
            if self.index is None:
                self.index = new_index(embeddings.shape[1])
            add_embeddings(self.index, embeddings)
            labels.append(labels_of_sample[kept["sample"].to_numpy()].astype(np.int32))
            ids.append(kept["image_id"].combine_chunks())
            added += len(kept)
        self.labels, self.image_ids = np.concatenate(labels), pa.concat_arrays(ids)
        self.sources = np.concatenate([self.sources, np.full(added, source, np.int32)])
        return AddedImages(images=added, skipped=skipped, lost=lost, classes=len(self.classes) - before)

    def _labels_of(self, images: Images) -> np.ndarray:
        """Return the label of each sample, int64, and add new classes."""
        if isinstance(images, SplitImages):
            dataset = images.opened()
            theirs = dataset.sample_labels(images.split)
            landmarks = dataset.labels.select(["landmark_id", "name"])
        else:
            folders = [name.rpartition("/")[0].partition("/")[0] for name in images.names]
            if "" in folders:
                loose = images.names[folders.index("")]
                raise UserError(
                    f"{images.folder}: {loose} is not in a class folder; expected one folder per class: <class>/<image>"
                )
            for note in nested_notes(locate(images.folder), list(images.names)):
                print(f"note: {note}", flush=True)
            encoded = pa.array(folders, pa.string()).dictionary_encode()
            theirs = encoded.indices.to_numpy()
            landmarks = pa.table({"landmark_id": encoded.dictionary, "name": encoded.dictionary})
        new = self.labels_of(landmarks["landmark_id"].combine_chunks()) < 0
        self.classes = pa.concat_tables([self.classes, landmarks.filter(pa.array(new))]).combine_chunks()
        own = self.labels_of(landmarks["landmark_id"].combine_chunks())
        return np.where(theirs >= 0, own[theirs], -1)

    def save(self) -> None:
        """Write the gallery, gallery.json last, then delete the previous revision and the prediction shards."""
        assert self.index is not None
        self.revision += 1
        name = f"revision-{self.revision:04d}"
        rows = {"image_id": self.image_ids, "label": pa.array(self.labels), "source": pa.array(self.sources)}
        write_table(self.place / name / "rows.parquet", pa.table(rows))
        write_table(self.place / name / "classes.parquet", self.classes)
        with tempfile.TemporaryDirectory(prefix="landmark-gallery-") as folder:
            file = Path(folder) / "index.usearch"
            try:
                self.index.save(str(file))
            except (RuntimeError, OSError) as error:  # usearch raises these if the disk is full
                raise UserError(
                    f"{folder}: could not write the index ({error}); free space there, or set TMPDIR to a folder on another disk"
                ) from None
            (self.place / name / "index.usearch").upload(file)
            digest, _ = locate(file).sha256()
        record = {
            "version": VERSION,
            "revision": self.revision,
            "folder": name,
            "weights": self.weights,
            "images": len(self),
            "classes": len(self.classes),
            "width": self.index.ndim,
            "index_sha256": digest,
            "places": self.places,
        }
        (self.place / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        for other in self.place.names():
            if other == PARTS or (other.startswith("revision-") and other != name):
                (self.place / other).delete()


@dataclass(kw_only=True, frozen=True)
class AddedImages:
    """Counts of one addition to a gallery."""

    images: int
    skipped: int
    """Images that the gallery already contained."""
    lost: int
    """Images that could not be read."""
    classes: int
    """New classes."""


@contextlib.contextmanager
def _on_disk(location: Location) -> Iterator[Path]:
    """Yield a local path of a file: the file itself, or a temporary copy."""
    local = location.local_path()
    if local is not None:
        if not local.exists():
            raise UserError(f"{location}: missing; delete the gallery and index again")
        yield local
        return
    with tempfile.TemporaryDirectory(prefix="landmark-gallery-") as folder:
        copy = Path(folder) / "copy"
        location.download(copy)
        yield copy


def place_of(images: Images) -> dict[str, Any]:
    """Return a JSON-serializable source from which the images can be found again. A folder's contents may change."""
    if isinstance(images, FolderImages):
        place: dict[str, Any] = {"folder": images.folder, "short_side": images.short_side, "quality": images.quality}
        if images.max_megapixels != PackingConfig.max_megapixels:  # omitted, as in galleries from before this option
            place["max_megapixels"] = images.max_megapixels
        return place
    values = dataclasses.asdict(images)
    return {name: values[name] for name in ("dataset", "subset", "subset_seed", "split")}


def _home(place: dict[str, Any]) -> tuple[str, ...]:
    """Return the scope in which image IDs are unique: a folder, or a dataset's split regardless of the subset."""
    return (place["folder"],) if "folder" in place else (place["dataset"], place["split"])


def images_of(place: dict[str, Any], corrupt: Literal["stop", "skip"], cache: CacheOptions | None = None) -> Images:
    """Return the images of a source that `place_of` returned, in their current state."""
    if "folder" in place:
        found = FolderImages.of(locate(place["folder"]), max_megapixels=place.get("max_megapixels"))
        return dataclasses.replace(found, short_side=place["short_side"], quality=place["quality"])
    subset = from_mapping(SubsetConfig, recorded_subset(place["subset"]), f"the subset of {place['dataset']}")
    dataset = open_dataset(place["dataset"], subset, place["subset_seed"])
    return SplitImages.of(dataset, place["split"], corrupt, cache)


def build_gallery(
    checkpoint: Location,
    place: Location,
    dataset: PackedDataset | None,
    replicas: Replicas,
    batch_size: int,
    corrupt: Literal["stop", "skip"] = "stop",
    *,
    cache: CacheOptions | None = None,
    quiet: bool = False,
) -> Gallery:
    """Open the gallery at a location, or build it from a dataset's training images if it does not exist.

    dataset: None means the one that the model was trained on. If different weights built the gallery, for example
    before more training, all of its images are embedded again.
    """
    found = Gallery.open(place, checkpoint)
    if found is not None and found.weights == weights_digest(checkpoint):
        return found
    check_writable(place)
    gallery = Gallery.empty(place, checkpoint)
    if found is None:
        meta = read_meta(checkpoint)
        dataset = dataset or open_dataset(meta.dataset, meta.subset, meta.subset_seed)
        check_classes(checkpoint, meta, dataset)
        places = [place_of(SplitImages.of(dataset, "train"))]
    else:
        places, gallery.revision = found.places, found.revision
        if not quiet:
            print(f"{place}: built with different weights; embedding its images again")
    for each in places:
        gallery.add(images_of(each, corrupt, cache), replicas, batch_size, quiet=quiet)
    if not len(gallery):
        raise UserError(f"{place}: could not read any image for the gallery; prepare the dataset again")
    gallery.save()
    return gallery
