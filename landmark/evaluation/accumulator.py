"""Evaluation counts: batches of predictions are reduced to top-k, recall and a sparse confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from landmark.evaluation.baselines import majority_top_k, random_top_k


class ConfusionAccumulator:
    """Counts predictions batch by batch. Counts of separate shards can be merged.

    Memory is O(classes + confused pairs), never O(classes^2): with 203,094 classes a dense confusion matrix
    would have 4.1e10 cells.
    """

    def __init__(self, classes: int, topk: Sequence[int] = (1, 5, 10)) -> None:
        self.classes = classes
        self.topk = tuple(sorted(set(topk) | {1}))
        self.rows = 0
        self.loss_sum = 0.0
        self.hits = dict.fromkeys(self.topk, 0)
        self.support = np.zeros(classes, dtype=np.int64)
        self.predicted = np.zeros(classes, dtype=np.int64)
        self.correct = np.zeros(classes, dtype=np.int64)
        self._pairs = np.empty(0, dtype=np.int64)
        self._pair_counts = np.empty(0, dtype=np.int64)

    @property
    def max_k(self) -> int:
        """Number of predictions needed per row: the largest k, or the number of classes if smaller."""
        return min(self.topk[-1], self.classes)

    def update(self, labels: np.ndarray, top_k_labels: np.ndarray, loss_sum: float = 0.0) -> None:
        """Count a batch.

        labels: int (n,). top_k_labels: int (n, self.max_k), best first. loss_sum: the batch's summed loss.
        """
        correct = top_k_labels == labels[:, None]
        self.rows += len(labels)
        self.loss_sum += loss_sum
        for k in self.topk:
            self.hits[k] += int(correct[:, :k].any(axis=1).sum())
        self.support += np.bincount(labels, minlength=self.classes)
        self.predicted += np.bincount(top_k_labels[:, 0], minlength=self.classes)
        self.correct += np.bincount(labels[correct[:, 0]], minlength=self.classes)
        pairs = labels.astype(np.int64) * self.classes + top_k_labels[:, 0]
        self._add_pairs(pairs, np.ones(len(pairs), dtype=np.int64))

    def merge(self, other: "ConfusionAccumulator") -> None:
        """Add the counts of another shard. Raises ValueError if its classes or k differ."""
        if (other.classes, other.topk) != (self.classes, self.topk):
            raise ValueError("cannot merge counts of different classes or k")
        self.rows += other.rows
        self.loss_sum += other.loss_sum
        for k in self.topk:
            self.hits[k] += other.hits[k]
        self.support += other.support
        self.predicted += other.predicted
        self.correct += other.correct
        self._add_pairs(other._pairs, other._pair_counts)

    def top_k(self, k: int) -> float:
        """Return the fraction of rows whose label is among the top-k predictions. It is 1 if k covers all classes."""
        return self.hits[k] / max(self.rows, 1)

    def macro_recall(self) -> float:
        """Return the mean recall of the classes that occur. Classes without a row have no recall."""
        present = self.support > 0
        return float((self.correct[present] / self.support[present]).mean()) if present.any() else 0.0

    def macro_precision(self) -> float:
        """Return the mean precision of the classes that occur.

        A class that is never predicted counts 0, as in scikit-learn.
        """
        present = self.support > 0
        precision = self.correct[present] / np.maximum(self.predicted[present], 1)
        return float(precision.mean()) if present.any() else 0.0

    def confusion(self) -> pa.Table:
        """Return the nonzero cells of the confusion matrix, sorted: true, predicted, count."""
        return pa.table(
            {
                "true": pa.array((self._pairs // self.classes).astype(np.int32)),
                "predicted": pa.array((self._pairs % self.classes).astype(np.int32)),
                "count": pa.array(self._pair_counts),
            }
        )

    def per_class(self, names: Sequence[str], train_counts: np.ndarray) -> pa.Table:
        """Return one row per class: label, name, train_images, images, recall and precision (null if undefined)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            recall, precision = self.correct / self.support, self.correct / self.predicted
        return pa.table(
            {
                "label": pa.array(np.arange(self.classes, dtype=np.int32)),
                "name": pa.array(list(names)),
                "train_images": pa.array(np.asarray(train_counts)),
                "images": pa.array(self.support),
                "recall": pa.array(recall, from_pandas=True),
                "precision": pa.array(precision, from_pandas=True),
            }
        )

    def _add_pairs(self, pairs: np.ndarray, counts: np.ndarray) -> None:
        merged, place = np.unique(np.concatenate([self._pairs, pairs]), return_inverse=True)
        self._pair_counts = np.bincount(place, weights=np.concatenate([self._pair_counts, counts])).astype(np.int64)
        self._pairs = merged


def summarize(accumulator: ConfusionAccumulator, split: str, train_counts: np.ndarray) -> dict[str, Any]:
    """Return the metrics of a split, each top-k with the random and the majority baseline for the same k."""
    summary: dict[str, Any] = {"split": split, "rows": accumulator.rows, "classes": accumulator.classes}
    summary["loss"] = accumulator.loss_sum / max(accumulator.rows, 1)
    for k in accumulator.topk:
        summary[f"top{k}"] = accumulator.top_k(k)
        summary[f"random_top{k}"] = random_top_k(accumulator.classes, k)
        summary[f"majority_top{k}"] = majority_top_k(train_counts, accumulator.support, k)
    summary["macro_recall"] = accumulator.macro_recall()
    summary["classes_present"] = int((accumulator.support > 0).sum())
    return summary
