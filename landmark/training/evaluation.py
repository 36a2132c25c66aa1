"""Evaluating a checkpoint on a split: every row once, through the same input path as training."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from landmark.config import LoaderConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.loader import Loader
from landmark.evaluation import Tally, summarise
from landmark.progress import Progress
from landmark.reporting.evaluation_files import write_evaluation_files
from landmark.storage import Location
from landmark.training.checkpoints import CheckpointMeta, check_classes, load_model
from landmark.training.local import default_device
from landmark.training.preprocess import Preprocess
from landmark.training.steps import predict


@dataclass(kw_only=True, frozen=True)
class Evaluation:
    """What a model reached on a split."""

    summary: dict[str, Any]
    """Metrics beside their baselines, as `landmark.evaluation.summarise` gives them."""
    tally: Tally
    """All counts."""
    meta: CheckpointMeta
    """What the model is."""
    train_counts: np.ndarray
    """Training images a class, int64 (classes,)."""

    @property
    def topk(self) -> dict[int, float]:
        """Top-k shares by k."""
        return {k: self.tally.top_k(k) for k in self.tally.topk}

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """The random and the majority baseline's top-k shares by k (as text, for JSON)."""
        return {
            kind: {str(k): self.summary[f"{kind}_top{k}"] for k in self.tally.topk} for kind in ("random", "majority")
        }


def evaluate_checkpoint(
    checkpoint: Location,
    dataset: PackedDataset,
    split: str,
    topk: tuple[int, ...] = (1, 5, 10),
    batch_size: int = 128,
    *,
    quiet: bool = False,
    damaged: Literal["stop", "skip"] = "stop",
) -> Evaluation:
    """Evaluate a checkpoint on a split of a dataset with the same classes; raises UserError for other ones.

    damaged: what a damaged shard does, as in LoaderConfig; images lost by it are told as lost_images.
    """
    model, meta = load_model(checkpoint)
    check_classes(checkpoint, meta, dataset)
    rows = dataset.split(split).rows
    device = default_device()
    model = model.to(device).to(memory_format=torch.channels_last)
    tally = Tally(dataset.num_classes, topk)
    progress = Progress(f"evaluating {split}", rows, enabled=not quiet)
    config = LoaderConfig(image_size=meta.image_size, batch_size=batch_size, stream="thread", damaged=damaged)
    with Loader(dataset, split, config, tell=None if quiet else print) as loader:
        for _, logits, labels in predict(model, loader.epoch(1), Preprocess(meta.mean, meta.std, device)):
            loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
            guesses = logits.topk(tally.guesses, dim=1).indices
            tally.update(labels.cpu().numpy(), guesses.cpu().numpy(), float(loss))
            progress.update(len(labels))
    progress.clear()
    if not tally.rows:
        raise UserError(f"{dataset.location}: no image of the {split} split could be read; prepare the dataset again")
    train_counts = dataset.label_counts("train")
    summary = summarise(tally, split, train_counts)
    if lost := loader.lost[1]:
        summary["lost_images"] = lost
    return Evaluation(summary=summary, tally=tally, meta=meta, train_counts=train_counts)


def write_evaluation(evaluation: Evaluation, folder: Location) -> None:
    """Write metrics.json, per_class.csv, confusion.csv and confusion.png."""
    write_evaluation_files(
        folder, evaluation.summary, evaluation.tally, evaluation.meta.classes, evaluation.train_counts
    )
