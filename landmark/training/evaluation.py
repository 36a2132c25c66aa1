"""Evaluating a checkpoint on a split, by its classifier or by neighbours: every image inferred once, all metrics made of the
predictions that are kept."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from landmark.config import UserError
from landmark.data.dataset import PackedDataset
from landmark.evaluation import Tally
from landmark.evaluation.predictions import NO_LANDMARK, Predictions
from landmark.evaluation.summary import baselines_of, metrics_of, tally_of
from landmark.reporting.evaluation_files import write_evaluation_files, write_examples
from landmark.storage import Location
from landmark.training.checkpoints import CheckpointMeta, check_classes, read_meta
from landmark.training.gallery import GALLERY, Gallery, made_gallery
from landmark.training.images import SplitImages
from landmark.training.inference import PARTS, Job, Replicas, infer
from landmark.training.strangers import infer_strangers


@dataclass(kw_only=True, frozen=True)
class Evaluation:
    """What a model reached on a split."""

    summary: dict[str, Any]
    """Metrics beside their baselines, as `landmark.evaluation.summary.metrics_of` gives them."""
    tally: Tally
    """All counts."""
    predictions: Predictions
    """The best guesses for each image."""
    meta: CheckpointMeta
    """What the model is."""
    classes: list[str]
    """Names of the classes, by label: the model's, or by neighbours the gallery's."""
    train_counts: np.ndarray
    """Training images a class, int64 (classes,)."""
    dataset: PackedDataset
    split: str
    groups: np.ndarray | None
    """Group of each of the predictions, int64, as `groups_of` gives it; None for a dataset without groups."""

    @property
    def topk(self) -> dict[int, float]:
        """Top-k shares by k."""
        return {k: self.tally.top_k(k) for k in self.tally.topk}

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """The random and the majority baseline's top-k shares by k (as text, for JSON)."""
        return baselines_of(self.summary, self.tally.topk)


@dataclass(kw_only=True, frozen=True)
class Settings:
    """What an evaluation looks at."""

    topk: tuple[int, ...] = (1, 5, 10)
    batch_size: int = 128
    by: Literal["classifier", "neighbours", "both"] = "classifier"
    """What guesses; both: the classifier, with the neighbours' metrics beside."""
    neighbours: int = 5
    """Nearest images that vote."""
    gallery: Location | None = None
    """Where the gallery is or is made, by neighbours; None: in the folder of the checkpoint."""
    distractors: Location | None = None
    """A folder or a packed dataset of images without a landmark, which GAP and rejection count besides."""
    max_megapixels: int | None = None
    """Largest image of a folder of distractors that is decoded, millions of pixels; None: the default."""
    samples: int = 1000
    """Resamples of the bootstrap."""
    damaged: Literal["stop", "skip"] = "stop"
    """What a damaged shard does, as in LoaderConfig; images lost by it are told as lost_images."""
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
    """Evaluate a checkpoint on a split of a dataset with the same classes; raises UserError for other ones.

    By neighbours alone the classes may be any that the gallery knows. output: folder where the parts of a long inference are
    kept, to go on with.
    """
    settings = settings or Settings()
    meta = read_meta(checkpoint)
    if settings.by != "neighbours":
        check_classes(checkpoint, meta, dataset)
    job = Job(
        checkpoint=checkpoint.uri,
        images=SplitImages.of(dataset, split, settings.damaged),
        guesses=max(settings.topk),
        batch_size=settings.batch_size,
        labelled=settings.by != "neighbours",
        embeddings=settings.by != "classifier",
    )
    found = _inferred(job, dataset, output, settings)
    if settings.by == "classifier":
        scored = Scored(predictions=found.predictions, classes=meta.classes, counts=dataset.label_counts("train"))
        return _evaluation(scored, found, meta, dataset, split, settings)
    place = settings.gallery or checkpoint / GALLERY
    base = dataset if dataset.class_names == meta.classes else None
    gallery = made_gallery(
        checkpoint, place, base, settings.replicas, settings.batch_size, settings.damaged, quiet=settings.quiet
    )
    near = by_neighbours(found.predictions, gallery, dataset, split, settings)
    if settings.by == "neighbours":
        return _evaluation(near, found, meta, dataset, split, settings)
    scored = Scored(predictions=found.predictions, classes=meta.classes, counts=dataset.label_counts("train"))
    evaluation = _evaluation(scored, found, meta, dataset, split, settings)
    beside = _evaluation(near, found, meta, dataset, split, settings).summary
    return dataclasses.replace(evaluation, summary=evaluation.summary | {"neighbours": beside})


@dataclass(kw_only=True, frozen=True)
class Scored:
    """Predictions by a classifier or by neighbours, and the classes they are of."""

    predictions: Predictions
    classes: list[str]
    """Names, by label."""
    counts: np.ndarray
    """Images of each that were learned from, int64 (classes,)."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What the summary says besides."""


@dataclass(kw_only=True, frozen=True)
class _Found:
    predictions: Predictions
    lost: int
    refused: int


def _inferred(job: Job, dataset: PackedDataset, output: Location | None, settings: Settings) -> _Found:
    """Infer a split, and the images without a landmark beside it."""
    found = infer(job, output, replicas=settings.replicas, quiet=settings.quiet)
    predictions = found.predictions
    if not len(predictions):
        raise UserError(
            f"{dataset.location}: no image of the {job.images.told} split could be read; prepare the dataset again"
        )
    refused = 0
    if settings.distractors is not None:
        strangers, refused = infer_strangers(
            settings.distractors,
            job,
            output,
            settings.replicas,
            first_sample=dataset.manifest.splits[job.images.told].rows,
            max_megapixels=settings.max_megapixels,
            quiet=settings.quiet,
        )
        predictions = Predictions.joined([predictions, strangers])
    return _Found(predictions=predictions, lost=found.lost, refused=refused)


def by_neighbours(
    predictions: Predictions, gallery: Gallery, dataset: PackedDataset, split: str, settings: Settings
) -> Scored:
    """Return the predictions that a gallery makes of embeddings, with the labels of its classes.

    Raises UserError where it does not know a class of the split.
    """
    theirs = dataset.sample_labels(split)
    own = gallery.labels_of(dataset.labels["landmark_id"].combine_chunks())
    unknown = np.unique(theirs[theirs >= 0])[own[np.unique(theirs[theirs >= 0])] < 0]
    if len(unknown):
        name = dataset.class_names[int(unknown[0])]
        raise UserError(
            f"{gallery.place}: knows no image of {name!r}, which {dataset.location} has ({len(unknown)} such classes); add "
            "them with landmark index --add"
        )
    labels = np.full(len(predictions), NO_LANDMARK, np.int32)
    within = predictions.samples < len(theirs)
    labels[within] = own[theirs[predictions.samples[within]]]
    assert predictions.embeddings is not None
    guesses, scores, _, _ = gallery.guesses(predictions.embeddings, settings.neighbours, max(settings.topk))
    scored = dataclasses.replace(
        predictions,
        labels=labels,
        guesses=guesses,
        scores=scores,
        losses=np.full(len(predictions), np.nan, np.float32),
        embeddings=None,
    )
    extra = {"by": "neighbours", "voting": settings.neighbours, "gallery_images": len(gallery)}
    return Scored(predictions=scored, classes=gallery.names, counts=gallery.counts, extra=extra)


def groups_of(dataset: PackedDataset, split: str, samples: np.ndarray) -> np.ndarray | None:
    """Return the group of each sample, int64 (n,), None for a dataset without groups; a distractor is one by itself."""
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
    tally = tally_of(predictions, len(scored.classes), settings.topk)
    groups = groups_of(dataset, split, predictions.samples)
    summary = metrics_of(predictions, tally, split, scored.counts, samples=settings.samples, groups=groups)
    summary |= scored.extra
    if found.refused:
        summary["distractors_refused"] = found.refused
    if found.lost:
        summary["lost_images"] = found.lost
    return Evaluation(
        summary=summary,
        tally=tally,
        predictions=predictions,
        meta=meta,
        classes=scored.classes,
        train_counts=scored.counts,
        dataset=dataset,
        split=split,
        groups=groups,
    )


def write_evaluation(evaluation: Evaluation, folder: Location) -> None:
    """Write an evaluation's files, metrics.json last, and remove the parts it was made of."""
    write_examples(folder, evaluation.predictions, evaluation.tally, evaluation.dataset, evaluation.split)
    write_evaluation_files(
        folder,
        evaluation.summary,
        evaluation.tally,
        evaluation.predictions,
        evaluation.classes,
        evaluation.train_counts,
    )
    if (folder / PARTS).exists():
        (folder / PARTS).delete()
