"""Stored predictions: the best guesses of each image of a split, one row an image, which all metrics are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

NO_LANDMARK = -1
"""Label of an image that shows no landmark."""


@dataclass(kw_only=True, frozen=True, eq=False)
class Predictions:
    """The k best guesses for n images. Nothing is as large as images x classes: at 203,094 classes only these are kept."""

    samples: np.ndarray
    """Sample numbers, each once, int64 (n,)."""
    image_ids: np.ndarray
    """Image ids, str (n,)."""
    labels: np.ndarray
    """int32 (n,); NO_LANDMARK for an image that shows none."""
    guesses: np.ndarray
    """Labels guessed, best first, int32 (n, k)."""
    scores: np.ndarray
    """Softmax probabilities of these, float32 (n, k)."""
    losses: np.ndarray
    """Cross entropy, float32 (n,); NaN without a landmark."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def known(self) -> np.ndarray:
        """Return which images show a landmark, bool (n,)."""
        return self.labels != NO_LANDMARK

    def of_landmarks(self) -> "Predictions":
        """Return the images that show a landmark."""
        return self if self.known.all() else self.take(np.flatnonzero(self.known))

    def take(self, rows: np.ndarray) -> "Predictions":
        """Return some of the rows."""
        return Predictions(**{name: getattr(self, name)[rows] for name in _NAMES})

    def top(self, k: int) -> np.ndarray:
        """Return whether each image's label is among its k best guesses, bool (n,)."""
        return (self.guesses[:, :k] == self.labels[:, None]).any(axis=1)

    def to_table(self) -> pa.Table:
        """Return them as a table: sample, image_id, label, guesses, scores (lists of k), loss (null without a landmark)."""
        k = self.guesses.shape[1]
        return pa.table(
            {
                "sample": pa.array(self.samples),
                "image_id": pa.array(self.image_ids, pa.string()),
                "label": pa.array(self.labels),
                "guesses": pa.FixedSizeListArray.from_arrays(pa.array(self.guesses.reshape(-1)), k),
                "scores": pa.FixedSizeListArray.from_arrays(pa.array(self.scores.reshape(-1)), k),
                "loss": pa.array(self.losses, from_pandas=True),
            }
        )

    @classmethod
    def from_table(cls, table: pa.Table) -> "Predictions":
        """Return what `to_table` gave; raises KeyError or pa.ArrowInvalid for another table."""
        table = table.combine_chunks()
        k = table.schema.field("guesses").type.list_size
        lists = {
            name: table[name].combine_chunks().flatten().to_numpy().reshape(-1, k) for name in ("guesses", "scores")
        }
        return cls(
            samples=table["sample"].to_numpy(),
            image_ids=np.asarray(table["image_id"].to_pylist(), dtype=np.str_),
            labels=table["label"].to_numpy(),
            losses=table["loss"].to_numpy().astype(np.float32),
            **lists,
        )

    @classmethod
    def joined(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """Return parts of a split, inferred apart, as one, in the order of the samples; raises ValueError for a row twice."""
        whole = cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in _NAMES})
        order = np.argsort(whole.samples, kind="stable")
        if len(order) and not np.diff(whole.samples[order]).all():
            raise ValueError("an image was inferred twice")
        return whole.take(order)


_NAMES = ("samples", "image_ids", "labels", "guesses", "scores", "losses")
