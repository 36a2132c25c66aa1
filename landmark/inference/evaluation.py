"""Evaluation of a checkpoint on a split, by its classifier or by k-NN.

Each image is inferred once. All metrics are computed from the stored predictions.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from landmark.checkpoints.format import CheckpointMeta, check_classes, read_meta
from landmark.config import CacheOptions, UserError
from landmark.data.dataset import SPLITS, PackedDataset
from landmark.data.random_access import ImageReader, thumbnail
from landmark.evaluation import ConfusionAccumulator
from landmark.evaluation.examples import choose_examples
from landmark.evaluation.io import write_evaluation_files
from landmark.evaluation.predictions import NO_LANDMARK, Predictions
from landmark.evaluation.summary import accumulate, baselines_of, metrics_of
from landmark.inference.distractors import infer_distractors
from landmark.inference.job import PARTS, Job, Replicas, infer
from landmark.inference.sources import SplitImages
from landmark.reporting.plots import confusion_png
from landmark.retrieval.gallery import GALLERY, Gallery, build_gallery
from landmark.storage import Location
from landmark.storage.tables import write_table


@dataclass(kw_only=True, frozen=True)
class Evaluation:
    """Results of a model on a split."""

    summary: dict[str, Any]
    """Metrics and their baselines, as `landmark.evaluation.summary.metrics_of` returns them."""
    accumulator: ConfusionAccumulator
    """All counts."""
    predictions: Predictions
    """Top-k predictions per image."""
    meta: CheckpointMeta
    """Metadata of the model."""
    classes: list[str]
    """Class names by label: the model's, or for k-NN the gallery's."""
    train_counts: np.ndarray
    """Training images per class, int64 (classes,)."""
    dataset: PackedDataset
    split: str
    groups: np.ndarray | None
    """Group of each prediction, int64, as `groups_of` returns it. None for a dataset without groups."""

    @property
    def topk(self) -> dict[int, float]:
        """Top-k accuracy by k."""
        return {k: self.accumulator.top_k(k) for k in self.accumulator.topk}

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """Top-k accuracy of the random and the majority baseline by k (as text, for JSON)."""
        return baselines_of(self.summary, self.accumulator.topk)


@dataclass(kw_only=True, frozen=True)
class Settings:
    """Settings of an evaluation."""

    topk: tuple[int, ...] = (1, 5, 10)
    batch_size: int = 128
    by: Literal["classifier", "knn", "both"] = "classifier"
    """Source of the predictions. both: the classifier, with k-NN metrics added."""
    flips: bool = False
    """Whether outputs are means over an image and its mirror image."""
    neighbors: int = 5
    """Number of nearest images that vote."""
    gallery: Location | None = None
    """Location of the gallery for k-NN, built there if missing. None: in the checkpoint's folder."""
    distractors: Location | None = None
    """Folder or packed dataset of distractors, that is, non-landmark images. They count for GAP and rejection."""
    max_megapixels: int | None = None
    """Maximum size of decoded distractors in a folder, megapixels. None: the default."""
    samples: int = 1000
    """Number of bootstrap replicates."""
    corrupt: Literal["stop", "skip"] = "stop"
    """Behavior for a corrupt shard, as in LoaderConfig. The summary reports skipped images as lost_images."""
    cache: CacheOptions = field(default_factory=CacheOptions)
    """Cache of the dataset's images on the node's disk."""
    replicas: Replicas = field(default_factory=Replicas)
    quiet: bool = False


def evaluate_checkpoint(
    checkpoint: Location,
    dataset: PackedDataset,
    split: str,
    settings: Settings | None = None,
    *,
    output: Location | None = None,
) -> Evaluation:
    """Evaluate a checkpoint on a split of a dataset.

    Raises UserError if the dataset's classes differ from the checkpoint's. With k-NN only, the classes may be any that
    the gallery contains. output: folder where shards of the predictions are stored, so that a long inference can
    resume.
    """
    settings = settings or Settings()
    meta = read_meta(checkpoint)
    if settings.by != "knn":
        check_classes(checkpoint, meta, dataset)
    job = Job(
        checkpoint=checkpoint.uri,
        images=SplitImages.of(dataset, split, settings.corrupt, settings.cache),
        top_k=max(settings.topk),
        batch_size=settings.batch_size,
        labelled=settings.by != "knn",
        embeddings=settings.by != "classifier",
        flips=settings.flips,
    )
    found = _inferred(job, dataset, output, settings)
    if settings.by == "classifier":
        scored = Scored(predictions=found.predictions, classes=meta.classes, counts=dataset.label_counts("train"))
        return _evaluation(scored, found, meta, dataset, split, settings)
    place = settings.gallery or checkpoint / GALLERY
    base = dataset if dataset.class_names == meta.classes else None
    gallery = build_gallery(
        checkpoint,
        place,
        base,
        settings.replicas,
        settings.batch_size,
        settings.corrupt,
        cache=settings.cache,
        quiet=settings.quiet,
    )
    near = by_knn(found.predictions, gallery, dataset, split, settings)
    if settings.by == "knn":
        return _evaluation(near, found, meta, dataset, split, settings)
    scored = Scored(predictions=found.predictions, classes=meta.classes, counts=dataset.label_counts("train"))
    evaluation = _evaluation(scored, found, meta, dataset, split, settings)
    next_to = _evaluation(near, found, meta, dataset, split, settings).summary
    return dataclasses.replace(evaluation, summary=evaluation.summary | {"knn": next_to})


@dataclass(kw_only=True, frozen=True)
class Scored:
    """Predictions by a classifier or by k-NN, with their classes."""

    predictions: Predictions
    classes: list[str]
    """Names, by label."""
    counts: np.ndarray
    """Number of training or gallery images per class, int64 (classes,)."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Additional entries of the summary."""


@dataclass(kw_only=True, frozen=True)
class _Found:
    predictions: Predictions
    lost: int
    refused: int


def _inferred(job: Job, dataset: PackedDataset, output: Location | None, settings: Settings) -> _Found:
    """Infer a split and the distractors."""
    found = infer(job, output, replicas=settings.replicas, quiet=settings.quiet)
    predictions = found.predictions
    if not len(predictions):
        raise UserError(
            f"{dataset.location}: could not read any image of the {job.images.description} split; prepare the dataset again"
        )
    refused = 0
    if settings.distractors is not None:
        distractors, refused = infer_distractors(
            settings.distractors,
            job,
            output,
            settings.replicas,
            first_sample=dataset.manifest.splits[job.images.description].rows,
            max_megapixels=settings.max_megapixels,
            quiet=settings.quiet,
        )
        predictions = Predictions.joined([predictions, distractors])
    return _Found(predictions=predictions, lost=found.lost, refused=refused)


def by_knn(
    predictions: Predictions, gallery: Gallery, dataset: PackedDataset, split: str, settings: Settings
) -> Scored:
    """Return a gallery's k-NN predictions for embeddings, with the labels of its classes.

    Raises UserError if the gallery lacks a class of the split.
    """
    theirs = dataset.sample_labels(split)
    own = gallery.labels_of(dataset.labels["landmark_id"].combine_chunks())
    unknown = np.unique(theirs[theirs >= 0])[own[np.unique(theirs[theirs >= 0])] < 0]
    if len(unknown):
        name = dataset.class_names[int(unknown[0])]
        raise UserError(
            f"{gallery.place}: contains no image of {name!r}, a class of {dataset.location} ({len(unknown)} classes are missing); add "
            "them with landmark index --add"
        )
    labels = np.full(len(predictions), NO_LANDMARK, np.int32)
    within = predictions.samples < len(theirs)
    labels[within] = own[theirs[predictions.samples[within]]]
    assert predictions.embeddings is not None
    top_k_labels, scores, _, _ = gallery.classify(predictions.embeddings, settings.neighbors, max(settings.topk))
    scored = dataclasses.replace(
        predictions,
        labels=labels,
        top_k_labels=top_k_labels,
        scores=scores,
        losses=np.full(len(predictions), np.nan, np.float32),
        embeddings=None,
    )
    extra = {"by": "knn", "voting": settings.neighbors, "gallery_images": len(gallery)}
    return Scored(predictions=scored, classes=gallery.names, counts=gallery.counts, extra=extra)


def groups_of(dataset: PackedDataset, split: str, samples: np.ndarray) -> np.ndarray | None:
    """Return the group of each sample, int64 (n,), None for a dataset without groups. A distractor is its own group."""
    known = dataset.sample_groups(split)
    if known is None:
        return None
    within = samples < len(known)
    groups = int(known.max(initial=-1)) + 1 + np.arange(len(samples))
    groups[within] = known[samples[within]]
    return groups


def _evaluation(
    scored: Scored, found: _Found, meta: CheckpointMeta, dataset: PackedDataset, split: str, settings: Settings
) -> Evaluation:
    predictions = dataclasses.replace(scored.predictions, embeddings=None)
    accumulator = accumulate(predictions, len(scored.classes), settings.topk)
    groups = groups_of(dataset, split, predictions.samples)
    summary = metrics_of(predictions, accumulator, split, scored.counts, samples=settings.samples, groups=groups)
    summary |= scored.extra
    if settings.flips:
        summary["tta"] = "flip"
    if found.refused:
        summary["distractors_refused"] = found.refused
    if found.lost:
        summary["lost_images"] = found.lost
    return Evaluation(
        summary=summary,
        accumulator=accumulator,
        predictions=predictions,
        meta=meta,
        classes=scored.classes,
        train_counts=scored.counts,
        dataset=dataset,
        split=split,
        groups=groups,
    )


def write_evaluation(evaluation: Evaluation, folder: Location) -> None:
    """Write an evaluation's files, metrics.json last, and delete the prediction shards."""
    write_examples(folder, evaluation.predictions, evaluation.accumulator, evaluation.dataset, evaluation.split)
    (folder / "confusion.png").write_bytes(confusion_png(evaluation.accumulator.confusion(), evaluation.classes))
    write_evaluation_files(
        folder,
        evaluation.summary,
        evaluation.accumulator,
        evaluation.predictions,
        evaluation.classes,
        evaluation.train_counts,
    )
    if (folder / PARTS).exists():
        (folder / PARTS).delete()


def write_examples(
    folder: Location, predictions: Predictions, accumulator: ConfusionAccumulator, dataset: PackedDataset, split: str
) -> None:
    """Write thumbnails of notable images: kind, image_id, label, predicted, score, thumbnail (JPEG)."""
    chosen = choose_examples(predictions, accumulator)
    shown = predictions.take(chosen.rows)
    places = np.full(len(shown), SPLITS.index(split))
    images = ImageReader(dataset, places, shown.samples).read(range(len(shown))) if len(shown) else {}
    table = pa.table(
        {
            "kind": pa.array(chosen.kinds, pa.string()),
            "image_id": pa.array(shown.image_ids, pa.string()),
            "label": pa.array(shown.labels),
            "predicted": pa.array(shown.top_k_labels[:, 0]),
            "score": pa.array(shown.scores[:, 0]),
            "thumbnail": pa.array([thumbnail(images.get(row)) for row in range(len(shown))], pa.binary()),
        }
    )
    write_table(folder / "examples.parquet", table)
