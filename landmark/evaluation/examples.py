"""Select notable images: confident errors, and those behind the most confused pairs of classes."""

from dataclasses import dataclass

import numpy as np

from landmark.evaluation.accumulator import ConfusionAccumulator
from landmark.evaluation.predictions import Predictions

MISTAKES = 48
PAIRS = 24
EACH_PAIR = 2


@dataclass(kw_only=True, frozen=True, eq=False)
class Examples:
    """Rows of predictions to show."""

    kinds: list[str]
    """mistake: highest confidence first. pair: of a confused pair. class: a typical image of a class in such a pair."""
    rows: np.ndarray
    """Rows of the predictions, int64 (n,)."""


def confused_pairs(accumulator: ConfusionAccumulator, most: int = PAIRS) -> list[tuple[int, int]]:
    """Return the most frequent confused pairs (true label, predicted label), most frequent first."""
    table = accumulator.confusion()
    true, guessed, count = (table[name].to_numpy() for name in ("true", "predicted", "count"))
    wrong = np.flatnonzero(true != guessed)
    first = wrong[np.lexsort((guessed[wrong], true[wrong], -count[wrong]))][:most]
    return list(zip(true[first].tolist(), guessed[first].tolist(), strict=True))


def choose_examples(predictions: Predictions, accumulator: ConfusionAccumulator) -> Examples:
    """Return the rows to show: at most a few hundred images, independent of the number of classes."""
    scores, best, labels = predictions.scores[:, 0], predictions.top_k_labels[:, 0], predictions.labels
    wrong = np.flatnonzero(predictions.has_landmark & (best != labels))
    wrong = wrong[np.argsort(-scores[wrong], kind="stable")]
    kinds, rows = ["mistake"] * len(wrong[:MISTAKES]), wrong[:MISTAKES].tolist()
    named: dict[int, None] = {}
    for true, guessed in confused_pairs(accumulator):
        of_pair = wrong[(labels[wrong] == true) & (best[wrong] == guessed)][:EACH_PAIR]
        rows += of_pair.tolist()
        kinds += ["pair"] * len(of_pair)
        named |= {true: None, guessed: None}
    for label in named:
        mine = np.flatnonzero(labels == label)
        if len(mine):  # the image with the highest confidence, correct predictions first
            rows.append(int(mine[np.lexsort((-scores[mine], best[mine] != label))[0]]))
            kinds.append("class")
    return Examples(kinds=kinds, rows=np.array(rows, dtype=np.int64))
