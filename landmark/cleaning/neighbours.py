"""Neighbours: the embeddings nearest to each, exactly in blocks where they are few, by an index where they are many."""

import numpy as np

from landmark.config import UserError

EXACT_ROWS = 20_000
"""Rows up to which every pair is looked at, block by block: faster there than building an index, and exact."""
BLOCK_ROWS = 2048
ADDED_ROWS = 65_536
CONNECTIVITY = 16
EXPANSION = 96


def nearest_embeddings(
    embeddings: np.ndarray, count: int, *, exact_rows: int = EXACT_ROWS, threads: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's nearest other rows, nearest first, int64 (n, k), and their cosines, float32 (n, k).

    embeddings: float16 or float32 (n, d), each of length 1. k is `count`, or n - 1 where rows are fewer. Above `exact_rows` an
    HNSW index (Malkov & Yashunin 2016; the library usearch) finds nearly all of them: time grows with n log n, memory with n.
    """
    count = min(count, len(embeddings) - 1)
    if count < 1:
        return np.zeros((len(embeddings), 0), dtype=np.int64), np.zeros((len(embeddings), 0), dtype=np.float32)
    if len(embeddings) <= exact_rows:
        return _exact(embeddings.astype(np.float32), count)
    return _indexed(embeddings.astype(np.float16, copy=False), count, threads)


def _exact(embeddings: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    indices = np.empty((len(embeddings), count), dtype=np.int64)
    cosines = np.empty((len(embeddings), count), dtype=np.float32)
    for start in range(0, len(embeddings), BLOCK_ROWS):
        block = embeddings[start : start + BLOCK_ROWS] @ embeddings.T
        own = np.arange(len(block))
        block[own, start + own] = -np.inf
        best = np.argpartition(-block, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(block, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        indices[start : start + len(block)] = np.take_along_axis(best, order, axis=1)
        cosines[start : start + len(block)] = np.take_along_axis(values, order, axis=1)
    return indices, cosines


def _indexed(embeddings: np.ndarray, count: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        from usearch.index import Index
    except ImportError:
        raise UserError(
            "neighbours among many images need the package usearch; pip install 'landmark[clean]'"
        ) from None
    index = Index(
        ndim=embeddings.shape[1],
        metric="ip",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION,
        expansion_search=EXPANSION,
    )
    keys = np.arange(len(embeddings))
    for start in range(0, len(embeddings), ADDED_ROWS):
        part = slice(start, start + ADDED_ROWS)
        index.add(keys[part], embeddings[part], threads=threads)
    indices = np.empty((len(embeddings), count), dtype=np.int64)
    cosines = np.empty((len(embeddings), count), dtype=np.float32)
    for start in range(0, len(embeddings), ADDED_ROWS):
        part = slice(start, start + ADDED_ROWS)
        found = index.search(embeddings[part], count + 1, threads=threads)
        indices[part], cosines[part] = _others(
            found.keys.astype(np.int64), 1 - found.distances.astype(np.float32), keys[part], count
        )
    return indices, cosines


def _others(keys: np.ndarray, cosines: np.ndarray, own: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `count` neighbours but the row itself, where the index found that."""
    last = np.argsort(keys == own[:, None], axis=1, kind="stable")[:, :count]
    return np.take_along_axis(keys, last, axis=1), np.take_along_axis(cosines, last, axis=1)
