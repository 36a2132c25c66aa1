"""Clean a dataset: run all detectors and write the cleaned dataset."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from landmark.cleaning.audit import Decisions, Rows, top_examples, write_audit
from landmark.cleaning.duplicates import (
    Pairs,
    candidate_pairs,
    equal_pairs,
    groups_of,
    retention_priority,
    select_duplicates,
    verified_pairs,
)
from landmark.cleaning.features import EmbeddingModel, extract_features
from landmark.cleaning.noise import Findings, find_noise, over_fraction
from landmark.config import CleanConfig, UserError, to_mapping
from landmark.data.cleaned_dataset import KEPT_SCHEMA
from landmark.data.dataset import SCHEMA_VERSION, SELECTION_KIND, SPLITS, PackedDataset
from landmark.data.random_access import ImageReader, thumbnail
from landmark.data.subset_view import open_dataset
from landmark.storage import Location, locate
from landmark.storage.tables import write_table

HINTS = {
    "unreadable": "check the images",
    "degenerate": "lower --quality.min-side, --quality.min-spread or --quality.min-entropy",
    "exact_duplicate": "check that the source contains each image once",
    "near_duplicate": "raise --duplicates.correlation or --duplicates.similarity",
    "distractor": "lower --noise.distractor",
    "label_noise": "raise --noise.confidence or lower --noise.own",
    "small_class": "lower --min-images",
}
"""Options that change how many images each detector drops."""


class Cleaning:
    """One cleaning run: features and decisions.

    `decide` runs all detectors. Each detector skips the images that earlier ones dropped.
    """

    def __init__(self, dataset: PackedDataset, features: pa.Table, config: CleanConfig, *, quiet: bool = False) -> None:
        self.dataset = dataset
        self.config = config
        self.quiet = quiet
        self.features = features.drop_columns(["embedding"])
        flat = features["embedding"].combine_chunks()
        self.embeddings = flat.flatten().to_numpy().reshape(len(features), -1)
        self.rows = rows_of(dataset, features)
        self.decisions = Decisions(rows=self.rows)
        self.pictures = ImageReader(dataset, self.rows.split, self.rows.sample)
        self.seconds: dict[str, float] = {}
        self.mean_neighbor_similarity = np.full(len(features), np.nan)
        """Mean cosine with the nearest embeddings, NaN for images that the noise detector skipped."""

    def decide(self) -> Decisions:
        """Run all detectors and return the decision for each row."""
        with self._timed("quality"):
            self._quality()
        with self._timed("exact_duplicates"):
            self._exact()
        if self.config.duplicates.near:
            with self._timed("near_duplicates"):
                self._near()
        with self._timed("label_noise"):
            self._noise()
        self._small_classes()
        self._check_fraction()
        return self.decisions

    def _check_fraction(self) -> None:
        """Raise UserError if a detector drops more than the maximum fraction of images, a sign of a wrong threshold."""
        rows, most = len(self.rows.label), self.config.max_drop_fraction
        for reason, counts in self.decisions.by_reason().items():
            fraction = counts["dropped"] / max(rows, 1)
            if fraction > most:
                raise UserError(
                    f"{self.config.dataset}: {reason} would drop {counts['dropped']:,} of {rows:,} images ({fraction:.0%}, "
                    f"maximum {most:.0%}); no output was written. To fix this, {HINTS[reason]}, or set "
                    f"--max-drop-fraction {min(math.ceil(100 * fraction) / 100, 1):g}"
                )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - start, 2)
        self._check_fraction()

    def _column(self, name: str) -> np.ndarray:
        return self.features[name].to_numpy(zero_copy_only=False)

    @property
    def _in_splits(self) -> np.ndarray:
        """Whether each row is in a split that all detectors check, bool (n,).

        Other splits are only checked for duplicates.
        """
        return np.isin(self.rows.split, [SPLITS.index(split) for split in self.config.splits])

    def _quality(self) -> None:
        unreadable = ~np.array(self.features["fault"].is_null())
        self.decisions.drop(np.flatnonzero(unreadable), "unreadable", np.zeros(unreadable.sum()), 0.0)
        limits = self.config.quality
        seen = {
            "side": np.minimum(self._column("width"), self._column("height")) / limits.min_side,
            "spread": self._column("spread") / max(limits.min_spread, 1e-9),
            "entropy": self._column("entropy") / max(limits.min_entropy, 1e-9),
        }
        # The score is the minimum of the three, as a fraction of the required value.
        worst = np.min(list(seen.values()), axis=0)
        rows = np.flatnonzero((worst < 1) & ~self.decisions.dropped & self._in_splits)
        self.decisions.drop(rows, "degenerate", worst[rows], 1.0)

    def _copies(self, pairs: Pairs, reason: str, threshold: float) -> None:
        groups = groups_of(len(self.rows.label), pairs)
        areas = self._column("width").astype(np.int64) * self._column("height")
        rank = retention_priority(self.rows.split, self.rows.label, areas, groups)
        copies = select_duplicates(pairs, rank)
        self.decisions.drop(copies.rows, reason, copies.score, threshold, copies.kept)

    def _exact(self) -> None:
        left = self.decisions.left
        hashes = [self._column(name)[left] for name in ("file_hash", "pixel_hash")]
        pairs = equal_pairs(*hashes)
        self._copies(
            Pairs(first=left[pairs.first], second=left[pairs.second], score=pairs.score), "exact_duplicate", 1.0
        )

    def _near(self) -> None:
        left, options = self.decisions.left, self.config.duplicates
        candidates = candidate_pairs(left, self.embeddings[left], options)
        pairs = verified_pairs(candidates, self.pictures, options, threads=self.config.threads, quiet=self.quiet)
        self._copies(pairs, "near_duplicate", options.correlation)

    def _noise(self) -> None:
        left, options = self.decisions.left, self.config.noise
        found = find_noise(self.embeddings[left], self.rows.label[left], options, self.config.seed)
        self.mean_neighbor_similarity[left] = found.mean_neighbor_similarity
        sought = self._in_splits[left]
        nothing = sought & (found.mean_neighbor_similarity < options.distractor)
        wrong = sought & found.wrong & ~nothing
        self._spare_classes(left, nothing, wrong, found)
        self.decisions.drop(left[nothing], "distractor", found.mean_neighbor_similarity[nothing], options.distractor)
        sure = wrong & (found.confidence >= options.relabel)
        unsure = wrong & ~sure
        self.decisions.relabel(left[sure], found.best[sure], found.confidence[sure], options.relabel)
        self.decisions.drop(left[unsure], "label_noise", found.confidence[unsure], options.relabel)

    def _spare_classes(self, left: np.ndarray, nothing: np.ndarray, wrong: np.ndarray, found: Findings) -> None:
        """Remove in place, from both findings, bool (left,), the images beyond the maximum fraction of a class."""
        labels = self.rows.label[left]
        sizes = np.bincount(labels, minlength=self.dataset.manifest.classes)
        rows = np.flatnonzero(nothing | wrong)
        # Rank distractors first, by dissimilarity. Then label errors, by the probability of another class.
        certainty = np.where(nothing[rows], 2 - found.mean_neighbor_similarity[rows], found.confidence[rows])
        spared = rows[over_fraction(labels[rows], certainty, self.config.noise.max_class_fraction, sizes)]
        nothing[spared] = wrong[spared] = False

    def _small_classes(self) -> None:
        left = self.decisions.left
        labels = self.decisions.label
        training = left[self.rows.split[left] == SPLITS.index("train")]
        counts = np.bincount(labels[training], minlength=self.dataset.manifest.classes)
        small = left[counts[labels[left]] < self.config.min_images]
        score = counts[labels[small]].astype(np.float64)
        self.decisions.drop(small, "small_class", score, float(self.config.min_images))


def rows_of(dataset: PackedDataset, features: pa.Table) -> Rows:
    """Return the rows of the features, in their order, with the columns of the catalog."""
    catalog = dataset.full_catalog(["split", "sample", "image_id", "label"])
    order = np.lexsort((catalog["sample"].to_numpy(), _split_numbers(catalog)))
    catalog = catalog.take(pa.array(order))
    split, sample = _split_numbers(features), features["sample"].to_numpy()
    place = np.lexsort((sample, split))
    if len(catalog) != len(features) or not (
        np.array_equal(sample[place], catalog["sample"].to_numpy())
        and np.array_equal(split[place], _split_numbers(catalog))
    ):
        raise UserError(f"{dataset.location}: catalog.parquet does not match the shards; prepare the dataset again")
    back = np.empty_like(place)
    back[place] = np.arange(len(place))
    catalog = catalog.take(pa.array(back))
    return Rows(
        split=split,
        sample=sample,
        image_id=catalog["image_id"].combine_chunks(),
        label=catalog["label"].to_numpy().astype(np.int64),
    )


def _split_numbers(table: pa.Table) -> np.ndarray:
    return pc.index_in(table["split"], pa.array(SPLITS)).to_numpy().astype(np.int64)


def clean_dataset(config: CleanConfig, *, quiet: bool = False) -> dict[str, Any]:
    """Clean a dataset and write the result to config.output. Returns the contents of clean.json."""
    output = locate(config.output)
    dataset = open_dataset(config.dataset)
    if output.uri.rstrip("/") == locate(config.dataset).uri.rstrip("/"):
        raise UserError(f"output is {config.output}, the dataset itself; specify another folder")
    start = time.monotonic()
    model = EmbeddingModel.load(config.weights, config.image_size)
    features = extract_features(dataset, output / "features", model, config, quiet=quiet)
    embedding_s = round(time.monotonic() - start, 2)
    cleaning = Cleaning(dataset, features, config, quiet=quiet)
    decisions = cleaning.decide()
    if not len(decisions.left):
        raise UserError(f"{config.dataset}: cleaning would drop all images; use less strict thresholds")
    summary = {
        "dataset": config.dataset,
        "output": output.uri,
        "rows_before": decisions.per_split(after=False),
        "rows_after": decisions.per_split(after=True),
        "by_reason": decisions.by_reason(),
        "thresholds": {
            **{key: to_mapping(getattr(config, key)) for key in ("quality", "duplicates", "noise")},
            "min_images": config.min_images,
            "splits": list(config.splits),
        },
        "embeddings": model.description,
        "seconds": {"embedding": embedding_s, **cleaning.seconds},
    }
    write_cleaned(output, dataset, cleaning, summary)
    return summary


def write_cleaned(output: Location, dataset: PackedDataset, cleaning: Cleaning, summary: dict[str, Any]) -> None:
    """Write kept.parquet, audit.parquet, audit.csv, examples.parquet, clean.json and finally manifest.json."""
    decisions, rows = cleaning.decisions, cleaning.rows
    left = decisions.left
    kept = pa.table(
        [
            pa.array(SPLITS).take(pa.array(rows.split[left])),
            pa.array(rows.sample[left]),
            pa.array(decisions.label[left], pa.int32()),
        ],
        schema=KEPT_SCHEMA,
    )
    # Prevents that a reader finds the old manifest with new rows.
    (output / "manifest.json").delete()
    write_table(output / "kept.parquet", kept)
    noted = decisions.noted()
    write_audit(output, noted)
    write_table(output / "examples.parquet", examples(noted, cleaning.pictures))
    (output / "clean.json").write_text(json.dumps(summary, indent=1) + "\n")
    manifest = {
        "kind": SELECTION_KIND,
        "schema_version": SCHEMA_VERSION,
        "dataset": dataset.location.uri,
        "fingerprint": dataset.manifest.shards_digest(),
        "rows": len(kept),
        "rows_before": summary["rows_before"],
        "rows_after": summary["rows_after"],
    }
    (output / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def examples(noted: pa.Table, pictures: ImageReader) -> pa.Table:
    """Return the clearest rows per reason with thumbnails: examples.parquet."""
    table = top_examples(noted)
    rows, others = table["row"].to_pylist(), table["other_row"].to_pylist()
    images = pictures.read([row for row in [*rows, *others] if row >= 0])
    columns = table.select(["reason", "action", "image_id", "label", "score", "other_image_id", "other_label"])
    for name, wanted in (("thumbnail", rows), ("other_thumbnail", others)):
        small = [thumbnail(images.get(row)) for row in wanted]
        columns = columns.append_column(name, pa.array(small, pa.binary()))
    return columns
