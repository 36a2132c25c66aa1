"""Class order in which classes that a model confuses are adjacent."""

import numpy as np


def clustered_order(true: np.ndarray, predicted: np.ndarray, count: np.ndarray, classes: int) -> np.ndarray:
    """Return the classes ordered by agglomerative clustering (average linkage) of their confusions: int (classes,).

    true, predicted: int (cells,), less than `classes`. count: int (cells,). The similarity of two classes is the
    fraction of each class's images predicted as the other, summed over both directions. Correct predictions do not
    count. When two clusters merge, they are oriented so that their most similar ends are adjacent. Needs O(classes^2)
    memory and O(classes^3) time, so use it for up to a few hundred classes.
    """
    if classes < 3:
        return np.arange(classes)
    rates = np.zeros((classes, classes))
    support = np.maximum(np.bincount(true, weights=count, minlength=classes), 1)
    np.add.at(rates, (true, predicted), count / support[true])
    base = rates + rates.T
    np.fill_diagonal(base, 0.0)
    similarity = base.copy()
    np.fill_diagonal(similarity, -1.0)
    leaves: list[list[int]] = [[number] for number in range(classes)]
    for _ in range(classes - 1):
        first, second = np.unravel_index(int(np.argmax(similarity)), similarity.shape)
        kept, removed = int(min(first, second)), int(max(first, second))
        sizes = len(leaves[kept]), len(leaves[removed])
        merged = (similarity[kept] * sizes[0] + similarity[removed] * sizes[1]) / sum(sizes)
        active = similarity[kept] >= 0
        active[removed] = False
        similarity[kept] = np.where(active, merged, -1.0)
        similarity[:, kept] = similarity[kept]
        similarity[kept, kept] = -1.0
        similarity[removed] = -1.0
        similarity[:, removed] = -1.0
        leaves[kept] = _concatenated(leaves[kept], leaves[removed], base)
        leaves[removed] = []
    return np.array(max(leaves, key=len))


def _concatenated(left: list[int], right: list[int], similarity: np.ndarray) -> list[int]:
    """Concatenate two sequences of classes, each oriented so that the most similar ends are adjacent."""
    orientations = [(left, right), (left, right[::-1]), (left[::-1], right), (left[::-1], right[::-1])]
    first, second = max(orientations, key=lambda pair: similarity[pair[0][-1], pair[1][0]])
    return first + second
