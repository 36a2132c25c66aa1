"""The catalog of images to pack, before any is read: listed, reduced to the subset, labeled and split in one
process."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from landmark.config import PrepareConfig
from landmark.data.dataset import SPLITS
from landmark.data.packing.sources import Listing, ListingSource, Source, class_labels
from landmark.data.splits import split_images
from landmark.data.subset import limit_training_images, select_images


@dataclass(kw_only=True, frozen=True)
class RequestedImages:
    """The images to pack."""

    items: pa.Table
    """One row per image: the columns of the source, label int32 and split (dictionary of SPLITS)."""
    in_order: bool
    """Whether the rows are packed in their order, because the source is already shuffled."""
    landmark_ids: list[str]
    """Landmark ids, in the order of the labels."""
    names: list[str]
    """Names of the landmarks, or their ids without names, in the order of the labels."""
    listing: Listing
    """The listing of the source."""
    notes: list[str]
    """Notes for the user."""

    def splits(self) -> np.ndarray:
        """Return each image's split: int8 (images,)."""
        return self.items["split"].combine_chunks().indices.to_numpy()


def request_images(source: Source, config: PrepareConfig) -> RequestedImages:
    """List a source's images, apply the subset, and assign labels and splits.

    The same seed gives the same subset and splits on any machine and in any order of the source's rows. A source with
    splits is already a subset.
    """
    listing = list_source(source)
    items, notes = listing.items, list(listing.notes)
    brought = "split" in items.column_names
    if not brought and not config.subset.keeps_all_images():
        kept = select_images(items, config.subset, config.seed)
        notes.append(f"the subset keeps {int(kept.sum()):,} of {len(items):,} images")
        items = items.filter(pa.array(kept))
    labels, landmark_ids = class_labels(items)
    if brought:
        splits = pc.index_in(items["split"].combine_chunks(), pa.array(SPLITS)).to_numpy()
        items = items.drop_columns(["split"])
    else:
        splits = split_images(labels, items["group"], config.split, config.seed)
        notes += _single_image_classes(labels) + _empty_splits(splits, config)
    items = items.append_column("label", pa.array(labels, pa.int32()))
    items = items.append_column("split", pa.DictionaryArray.from_arrays(pa.array(splits, pa.int8()), list(SPLITS)))
    if not brought and config.subset.limits_training():
        kept = limit_training_images(items, config.subset, config.seed)
        notes.append(
            f"the limit of training images keeps {int(kept.sum()):,} of {len(items):,} images, including all of val and test"
        )
        items = items.filter(pa.array(kept))
    return RequestedImages(
        items=items,
        in_order=brought,
        landmark_ids=landmark_ids,
        names=_names(landmark_ids, listing.names),
        listing=listing,
        notes=notes,
    )


def list_source(source: Source) -> Listing:
    """Return the listing of a source."""
    if isinstance(source, ListingSource):
        return source.listing()
    return Listing(items=source.items(), notes=source.notes())


def _single_image_classes(labels: np.ndarray) -> list[str]:
    """Return a note on the classes with one image, which only train can contain."""
    single = int((np.bincount(labels) == 1).sum())
    return [f"{single:,} classes have only one image, which is in the train split"] if single else []


def _empty_splits(splits: np.ndarray, config: PrepareConfig) -> list[str]:
    """Return a note on each requested split without images."""
    counts = np.bincount(splits, minlength=len(SPLITS))
    fractions = {"val": config.split.val, "test": config.split.test}
    return [
        f"the {name} split is empty although split.{name} is {fraction:g}: each class keeps one or more for train, and groups are not split"
        for name, fraction in fractions.items()
        if fraction and not counts[SPLITS.index(name)]
    ]


def _names(landmark_ids: list[str], names: pa.Table | None) -> list[str]:
    """Return each landmark's published name, or its id."""
    ids = pa.array(landmark_ids, pa.string())
    if names is None or not len(names):
        return landmark_ids
    known = names["landmark_id"].cast(pa.string()).combine_chunks()
    rows = pc.index_in(ids, known)
    found = names["name"].combine_chunks().take(rows)
    return pc.coalesce(pc.if_else(pc.equal(found, ""), None, found), ids).to_pylist()
