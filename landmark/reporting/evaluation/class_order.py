"""Class order that places classes that a model confuses next to each other."""

import numpy as np


def clustered_order(true: np.ndarray, predicted: np.ndarray, count: np.ndarray, classes: int) -> np.ndarray:
    """Return the classes ordered by agglomerative clustering (average linkage) of their confusions: int (classes,).

    true, predicted: int (cells,), less than `classes`. count: int (cells,). The similarity of two classes is the
    fraction of each class's predictions that name the other, summed over both directions. Correct predictions do not
    count. When two clusters join, they are oriented so that their most similar ends meet. Needs O(classes^2) memory and
    O(classes^3) time, so use it for hundreds of classes.
    """
    if classes < 3:
        return np.arange(classes)
    shares = np.zeros((classes, classes))
    support = np.maximum(np.bincount(true, weights=count, minlength=classes), 1)
    np.add.at(shares, (true, predicted), count / support[true])
    base = shares + shares.T
    np.fill_diagonal(base, 0.0)
    similarity = base.copy()
    np.fill_diagonal(similarity, -1.0)
    leaves: list[list[int]] = [[number] for number in range(classes)]
    for _ in range(classes - 1):
        first, second = np.unravel_index(int(np.argmax(similarity)), similarity.shape)
        kept, gone = int(min(first, second)), int(max(first, second))
        sizes = len(leaves[kept]), len(leaves[gone])
        merged = (similarity[kept] * sizes[0] + similarity[gone] * sizes[1]) / sum(sizes)
        alive = similarity[kept] >= 0
        alive[gone] = False
        similarity[kept] = np.where(alive, merged, -1.0)
        similarity[:, kept] = similarity[kept]
        similarity[kept, kept] = -1.0
        similarity[gone] = -1.0
        similarity[:, gone] = -1.0
        leaves[kept] = _joined(leaves[kept], leaves[gone], base)
        leaves[gone] = []
    return np.array(max(leaves, key=len))


def _joined(left: list[int], right: list[int], similarity: np.ndarray) -> list[int]:
    """Return two sequences of classes as one, each oriented so that the most similar ends meet."""
    ways = [(left, right), (left, right[::-1]), (left[::-1], right), (left[::-1], right[::-1])]
    first, second = max(ways, key=lambda way: similarity[way[0][-1], way[1][0]])
    return first + second
