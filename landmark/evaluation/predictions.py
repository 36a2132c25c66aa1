"""Stored predictions: the top-k predictions per image of a split, the input of all metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

NO_LANDMARK = -1
"""Label of an image without a landmark."""


@dataclass(kw_only=True, frozen=True, eq=False)
class Predictions:
    """The top-k predictions for n images. Size is O(n * k), not O(n * classes), which allows 203,094 classes."""

    samples: np.ndarray
    """Sample numbers, unique, int64 (n,)."""
    image_ids: np.ndarray
    """Image ids, str (n,)."""
    labels: np.ndarray
    """int32 (n,). NO_LANDMARK for an image without a landmark."""
    top_k_labels: np.ndarray
    """Predicted labels, best first, int32 (n, k)."""
    scores: np.ndarray
    """Their softmax probabilities, float32 (n, k)."""
    losses: np.ndarray
    """Cross entropy, float32 (n,). NaN for an image without a landmark, or if no classifier was used."""
    embeddings: np.ndarray | None = None
    """Embeddings of length 1, float16 (n, d), if stored."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def has_landmark(self) -> np.ndarray:
        """Return which images show a landmark, bool (n,)."""
        return self.labels != NO_LANDMARK

    def of_landmarks(self) -> "Predictions":
        """Return the images that show a landmark."""
        return self if self.has_landmark.all() else self.take(np.flatnonzero(self.has_landmark))

    def take(self, rows: np.ndarray) -> "Predictions":
        """Return some of the rows."""
        found = {name: getattr(self, name)[rows] for name in _NAMES}
        return Predictions(**found, embeddings=None if self.embeddings is None else self.embeddings[rows])

    def top(self, k: int) -> np.ndarray:
        """Return whether each image's label is among its top-k predictions, bool (n,)."""
        return (self.top_k_labels[:, :k] == self.labels[:, None]).any(axis=1)

    def to_table(self) -> pa.Table:
        """Return a table: sample, image_id, label, top_k_labels, scores (lists of k), loss (null without a landmark).

        If embeddings are stored, also the column embedding, a list of d float16.
        """
        columns = {
            "sample": pa.array(self.samples),
            "image_id": pa.array(self.image_ids, pa.string()),
            "label": pa.array(self.labels),
            "top_k_labels": as_lists(self.top_k_labels),
            "scores": as_lists(self.scores),
            "loss": pa.array(self.losses, from_pandas=True),
        }
        return pa.table(columns if self.embeddings is None else columns | {"embedding": as_lists(self.embeddings)})

    @classmethod
    def from_table(cls, table: pa.Table) -> "Predictions":
        """Return the predictions of a table from `to_table`. Raises KeyError or pa.ArrowInvalid for another table."""
        table = table.combine_chunks()
        top_k_labels = "top_k_labels" if "top_k_labels" in table.column_names else "guesses"  # in earlier versions
        return cls(
            samples=table["sample"].to_numpy(),
            image_ids=np.asarray(table["image_id"].to_pylist(), dtype=np.str_),
            labels=table["label"].to_numpy(),
            losses=table["loss"].to_numpy().astype(np.float32),
            top_k_labels=from_lists(table[top_k_labels]),
            scores=from_lists(table["scores"]),
            embeddings=from_lists(table["embedding"]) if "embedding" in table.column_names else None,
        )

    @classmethod
    def joined(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """Join the shards of a split's predictions in the order of the samples.

        Raises ValueError for a repeated row.
        """
        parts = [part for part in parts if len(part)] or parts[:1]
        kept = [part.embeddings for part in parts if part.embeddings is not None]
        whole = cls(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _NAMES},
            embeddings=np.concatenate(kept) if len(kept) == len(parts) else None,
        )
        order = np.argsort(whole.samples, kind="stable")
        if len(order) and not np.diff(whole.samples[order]).all():
            raise ValueError("an image was inferred twice")
        return whole.take(order)


def as_lists(values: np.ndarray) -> pa.Array:
    """Return values (n, k) as an array of n lists of k."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def from_lists(column: pa.ChunkedArray) -> np.ndarray:
    """Return the values that were passed to `as_lists`."""
    return column.combine_chunks().flatten().to_numpy().reshape(-1, column.type.list_size)


_NAMES = ("samples", "image_ids", "labels", "top_k_labels", "scores", "losses")
