"""Evaluating a checkpoint on a split: every image inferred once, all metrics made of the predictions that are kept."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from landmark.config import LoaderConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.loader import Loader
from landmark.evaluation import Tally
from landmark.evaluation.baselines import nearest_neighbours
from landmark.evaluation.measures import gap, gap_order
from landmark.evaluation.predictions import NO_LANDMARK, Predictions
from landmark.evaluation.summary import baselines_of, metrics_of, tally_of
from landmark.models.embeddings import Embedder
from landmark.reporting.evaluation_files import write_evaluation_files, write_examples
from landmark.storage import Location
from landmark.training.checkpoints import CheckpointMeta, check_classes, load_model, read_meta
from landmark.training.feed import to_device
from landmark.training.inference import PARTS, infer, job_of
from landmark.training.local import default_device
from landmark.training.preprocess import Preprocess
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
    train_counts: np.ndarray
    """Training images a class, int64 (classes,)."""
    dataset: PackedDataset
    split: str

    @property
    def topk(self) -> dict[int, float]:
        """Top-k shares by k."""
        return {k: self.tally.top_k(k) for k in self.tally.topk}

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """The random and the majority baseline's top-k shares by k (as text, for JSON)."""
        return baselines_of(self.summary, self.tally.topk)


def evaluate_checkpoint(
    checkpoint: Location,
    dataset: PackedDataset,
    split: str,
    topk: tuple[int, ...] = (1, 5, 10),
    batch_size: int = 128,
    *,
    output: Location | None = None,
    replicas: int = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    samples: int = 1000,
    neighbours: int = 0,
    distractors: Location | None = None,
    quiet: bool = False,
    damaged: Literal["stop", "skip"] = "stop",
) -> Evaluation:
    """Evaluate a checkpoint on a split of a dataset with the same classes; raises UserError for other ones.

    output: folder where the parts of a long inference are kept, to go on with. replicas, cpus, gpus: as `infer` takes them.
    samples: resamples of the bootstrap. neighbours: of the k-nearest-neighbour baseline on the model's own embeddings; 0: none.
    distractors: a folder or a packed dataset of images without a landmark, which GAP and rejection count besides.
    damaged: what a damaged shard does, as in LoaderConfig; images lost by it are told as lost_images.
    """
    meta = read_meta(checkpoint)
    check_classes(checkpoint, meta, dataset)
    job = job_of(checkpoint, dataset, split, max(topk), batch_size, damaged)
    rows = dataset.split(split).rows
    found = infer(job, rows, output, replicas=replicas, cpus=cpus, gpus=gpus, quiet=quiet)
    predictions = found.predictions
    if not predictions.known.any():
        raise UserError(f"{dataset.location}: no image of the {split} split could be read; prepare the dataset again")
    refused = 0
    if distractors is not None:
        first = int(predictions.samples[-1]) + 1
        strangers, refused = infer_strangers(checkpoint, distractors, job, output, first_sample=first, quiet=quiet)
        predictions = Predictions.joined([predictions, strangers])
    train_counts = dataset.label_counts("train")
    tally = tally_of(predictions, dataset.num_classes, topk)
    summary = metrics_of(predictions, tally, split, train_counts, samples=samples)
    if neighbours:
        summary |= neighbour_metrics(checkpoint, dataset, split, topk, batch_size, neighbours)
    if refused:
        summary["distractors_refused"] = refused
    if found.lost:
        summary["lost_images"] = found.lost
    return Evaluation(
        summary=summary,
        tally=tally,
        predictions=predictions,
        meta=meta,
        train_counts=train_counts,
        dataset=dataset,
        split=split,
    )


def neighbour_metrics(
    checkpoint: Location, dataset: PackedDataset, split: str, topk: tuple[int, ...], batch_size: int, neighbours: int
) -> dict[str, float]:
    """Return knn_topK and knn_gap: the classes of the nearest training images, by the model's embeddings."""
    train, labels, _ = embed(checkpoint, dataset, "train", batch_size)
    queries, wanted, samples = embed(checkpoint, dataset, split, batch_size)
    known, count = wanted != NO_LANDMARK, min(max(topk), dataset.num_classes)
    found, scores = nearest_neighbours(
        train, labels, queries, dataset.num_classes, neighbours=neighbours, guesses=count
    )
    hits = found == wanted[:, None]
    shares = {f"knn_top{k}": float(hits[known, :k].any(axis=1).mean()) for k in topk}
    order = gap_order(scores[:, 0], samples.astype(np.str_), found[:, 0])
    return shares | {"knn_gap": gap((hits[:, 0] & known)[order], int(known.sum())), "knn_neighbours": neighbours}


def embed(
    checkpoint: Location, dataset: PackedDataset, split: str, batch_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a split's embeddings by a checkpoint, float32 (n, d) of length 1, with labels and sample numbers (n,)."""
    model, meta = load_model(checkpoint)
    device = default_device()
    embedder = Embedder(model.to(device).to(memory_format=torch.channels_last))
    preprocess = Preprocess(meta.mean, meta.std, device)
    config = LoaderConfig(image_size=meta.image_size, batch_size=batch_size, stream="thread")
    vectors, labels, samples = [], [], []
    with Loader(dataset, split, config) as loader, torch.inference_mode():
        for batch in to_device(loader.epoch(1), device):
            vectors.append(embedder(preprocess(batch.images, batch.flip)).cpu().numpy())
            labels.append(batch.host.labels)
            samples.append(batch.host.samples)
    return np.concatenate(vectors), np.concatenate(labels), np.concatenate(samples)


def write_evaluation(evaluation: Evaluation, folder: Location) -> None:
    """Write an evaluation's files, metrics.json last, and remove the parts it was made of."""
    write_examples(folder, evaluation.predictions, evaluation.tally, evaluation.dataset, evaluation.split)
    write_evaluation_files(
        folder,
        evaluation.summary,
        evaluation.tally,
        evaluation.predictions,
        evaluation.meta.classes,
        evaluation.train_counts,
    )
    if (folder / PARTS).exists():
        (folder / PARTS).delete()
