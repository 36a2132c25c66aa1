"""Compare two models on the same images: McNemar's test and paired bootstrap."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from landmark.config import UserError
from landmark.evaluation.bootstrap import BootstrapReplicates, Interval, percentile_interval, resample
from landmark.evaluation.metrics import gap, gap_order
from landmark.evaluation.predictions import Predictions

EXACT_BELOW = 1000
"""Maximum number of discordant images for the exact (binomial) McNemar test."""


@dataclass(kw_only=True, frozen=True)
class Difference:
    """A metric of two models, and the difference a - b with its 95% interval by the paired bootstrap."""

    a: float
    b: float
    difference: float
    interval: Interval


@dataclass(kw_only=True, frozen=True, eq=False)
class Comparison:
    """Models a and b compared on the same images."""

    both_correct: int
    only_a: int
    only_b: int
    both_incorrect: int
    mcnemar_p: float
    """p-value: probability of such a difference if both models are equally accurate (McNemar 1947)."""
    differences: dict[str, Difference]
    """By metric: top-k and gap."""
    table: pa.Table
    """One row per image: sample, image_id, label, predicted_a, score_a, predicted_b, score_b, correct_a, correct_b."""

    def summary(self) -> dict[str, Any]:
        """Return the metrics for JSON."""
        counts = {
            name: getattr(self, name) for name in ("both_correct", "only_a", "only_b", "both_incorrect", "mcnemar_p")
        }
        differences = {
            name: {"a": d.a, "b": d.b, "difference": d.difference, "low": d.interval.low, "high": d.interval.high}
            for name, d in self.differences.items()
        }
        return {"rows": sum(list(counts.values())[:4]), **counts, "difference": differences}


def mcnemar(only_a: int, only_b: int) -> float:
    """Return McNemar's two-sided p-value: exact up to EXACT_BELOW discordant images, else with Edwards' correction."""
    discordant = only_a + only_b
    if not discordant:
        return 1.0
    if discordant <= EXACT_BELOW:
        tail = sum(math.comb(discordant, i) for i in range(min(only_a, only_b) + 1))
        return min(1.0, 2 * tail / 2**discordant)
    statistic = max(abs(only_a - only_b) - 1, 0) ** 2 / discordant
    return math.erfc(math.sqrt(statistic / 2))


def compare(
    a: Predictions,
    b: Predictions,
    topk: tuple[int, ...],
    *,
    samples: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Comparison:
    """Compare two models' predictions for the same images. Raises UserError if the images differ.

    groups: as for `intervals`. Both models use the same replicates, so an image that is hard for both does not widen
    the interval of the difference.
    """
    _check_images(a, b)
    has_landmark = a.has_landmark
    correct_a, correct_b = a.top(1) & has_landmark, b.top(1) & has_landmark
    cells = [correct_a & correct_b, correct_a & ~correct_b, ~correct_a & correct_b, ~correct_a & ~correct_b]
    both, only_a, only_b, neither = (int((cell & has_landmark).sum()) for cell in cells)
    drawn = _paired(a, b, topk, samples, seed, groups)
    whole = [_whole(predictions, topk) for predictions in (a, b)]
    differences = {
        name: Difference(
            a=whole[0][name],
            b=whole[1][name],
            difference=whole[0][name] - whole[1][name],
            interval=percentile_interval(drawn[name]),
        )
        for name in whole[0]
    }
    columns = {"sample": a.samples, "image_id": a.image_ids, "label": a.labels}
    for letter, predictions, correct in (("a", a, correct_a), ("b", b, correct_b)):
        columns |= {f"predicted_{letter}": predictions.top_k_labels[:, 0], f"score_{letter}": predictions.scores[:, 0]}
        columns[f"correct_{letter}"] = correct
    return Comparison(
        both_correct=both,
        only_a=only_a,
        only_b=only_b,
        both_incorrect=neither,
        mcnemar_p=mcnemar(only_a, only_b),
        differences=differences,
        table=pa.table({name: pa.array(values) for name, values in columns.items()}),
    )


def _whole(predictions: Predictions, topk: tuple[int, ...]) -> dict[str, float]:
    landmarks = int(predictions.has_landmark.sum())
    found = {f"top{k}": float((predictions.top(k) & predictions.has_landmark).sum() / max(landmarks, 1)) for k in topk}
    order = gap_order(predictions.scores[:, 0], predictions.image_ids, predictions.top_k_labels[:, 0])
    return found | {"gap": gap((predictions.top(1) & predictions.has_landmark)[order], landmarks)}


def _check_images(a: Predictions, b: Predictions) -> None:
    """Raise UserError unless both contain the same images with the same labels."""
    if not np.array_equal(a.samples, b.samples):
        alone = [len(np.setdiff1d(one.samples, other.samples)) for one, other in ((a, b), (b, a))]
        raise UserError(
            f"the predictions are for different images: {alone[0]:,} images are only in the first model's predictions and "
            f"{alone[1]:,} only in the second model's; evaluate both on the same dataset, with the same distractors and all shards "
            "readable"
        )
    if changed := int((a.labels != b.labels).sum()):
        raise UserError(
            f"the predictions have different labels for {changed:,} of {len(a):,} images; evaluate both on the same dataset"
        )


def _paired(
    a: Predictions, b: Predictions, topk: tuple[int, ...], samples: int, seed: int, groups: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Return each metric's difference in each replicate, float (samples,)."""
    first, second = BootstrapReplicates(a, topk), BootstrapReplicates(b, topk)
    names = [*(f"top{k}" for k in topk), "gap"]

    def difference(weights: np.ndarray) -> dict[str, float]:
        ours, theirs = first.metrics(weights), second.metrics(weights)
        return {name: ours[name] - theirs[name] for name in names}

    return resample(len(a), samples, seed, difference, groups)
