"""k-NN over embeddings: exact search for few rows, an HNSW index for many rows, and votes of the neighbors."""

import numpy as np
from usearch.index import Index

EXACT_ROWS = 20_000
"""Maximum rows for exact search, which is faster for them than building a graph for one search."""
BLOCK_ROWS = 2048
ADDED_ROWS = 65_536
VOTING_ROWS = 4096
CONNECTIVITY = 16
EXPANSION = 96


def new_index(width: int) -> Index:
    """Return an empty inner-product index for embeddings float16 (n, width) of length 1.

    The index is an HNSW graph (Malkov & Yashunin 2016, library usearch). Build time grows with n log n, memory with n.
    """
    return Index(
        ndim=width,
        metric="ip",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION,
        expansion_search=EXPANSION,
    )


def add_embeddings(index: Index, embeddings: np.ndarray, *, threads: int = 0) -> None:
    """Add embeddings float16 (m, d). Their keys continue those of the index, from 0. threads: 0 uses all cores."""
    keys = len(index) + np.arange(len(embeddings))
    for start in range(0, len(embeddings), ADDED_ROWS):
        part = slice(start, start + ADDED_ROWS)
        index.add(keys[part], embeddings[part], threads=threads)


def search_index(
    index: Index, queries: np.ndarray, count: int, *, exact_rows: int = EXACT_ROWS, threads: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of an index nearest to queries float16 (n, d): int64 (n, k), cosines float32 (n, k).

    k is `count`, or the size of the index if smaller. Exact for at most `exact_rows` rows in the index.
    """
    count = min(count, len(index))
    indices = np.empty((len(queries), count), dtype=np.int64)
    cosines = np.empty((len(queries), count), dtype=np.float32)
    if not count:
        return indices, cosines
    for start in range(0, len(queries), ADDED_ROWS):
        part = slice(start, start + ADDED_ROWS)
        found = index.search(queries[part], count, threads=threads, exact=len(index) <= exact_rows)
        shape = (len(queries[part]), count)
        indices[part] = np.reshape(found.keys, shape).astype(np.int64)
        cosines[part] = 1 - np.reshape(found.distances, shape).astype(np.float32)
    return indices, cosines


def nearest_embeddings(
    embeddings: np.ndarray, count: int, *, exact_rows: int = EXACT_ROWS, threads: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's nearest other rows, nearest first, int64 (n, k), and their cosines, float32 (n, k).

    embeddings: float16 or float32 (n, d), each of length 1. k is `count`, or n - 1 if there are fewer rows. Exact, in
    fp32, for at most `exact_rows` rows. For more rows, an approximate index is used.
    """
    count = min(count, len(embeddings) - 1)
    if count < 1:
        return np.zeros((len(embeddings), 0), dtype=np.int64), np.zeros((len(embeddings), 0), dtype=np.float32)
    if len(embeddings) <= exact_rows:
        return _exact(embeddings.astype(np.float32), count)
    halves = embeddings.astype(np.float16, copy=False)
    index = new_index(halves.shape[1])
    add_embeddings(index, halves, threads=threads)
    found, cosines = search_index(index, halves, count + 1, exact_rows=exact_rows, threads=threads)
    # The first `count` results except the row itself, if the index found it.
    last = np.argsort(found == np.arange(len(found))[:, None], axis=1, kind="stable")[:, :count]
    return np.take_along_axis(found, last, axis=1), np.take_along_axis(cosines, last, axis=1)


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


def knn_vote(labels: np.ndarray, cosines: np.ndarray, classes: int, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return k-NN predictions for each image: classes int32 (n, g), best first, and scores float32 (n, g).

    g is `top_k`, or `classes` if smaller. labels int (n, k): the neighbors' classes. cosines float32 (n, k). Each
    neighbor votes for its class with its cosine. A class's score is the sum of its votes divided by k: 1 if all k are
    duplicates of the image, low if they are distant or disagree (soft voting by the sum of cosines: Ozaki & Yokoo,
    arXiv 1906.04087). If fewer classes received votes than are requested, the lowest other labels follow with score 0.
    """
    top_k = min(top_k, classes)
    found = np.empty((len(labels), top_k), np.int32)
    scores = np.zeros((len(labels), top_k), np.float32)
    for start in range(0, len(labels), VOTING_ROWS):
        part = slice(start, start + VOTING_ROWS)
        found[part], scores[part] = _vote(labels[part], np.clip(cosines[part], 0, 1), classes, top_k)
    return found, scores


def _vote(labels: np.ndarray, votes: np.ndarray, classes: int, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    rows, neighbors = labels.shape
    same = labels[:, :, None] == labels[:, None, :]
    totals = (same * votes[:, None, :]).sum(axis=2)
    # A class is at its first neighbor's position. Its other neighbors, and fillers with votes, come last.
    first = same.cumsum(axis=2).diagonal(axis1=1, axis2=2) == 1
    fillers = np.broadcast_to(np.arange(min(classes, top_k + neighbors)), (rows, min(classes, top_k + neighbors)))
    spare = ~(fillers[:, :, None] == labels[:, None, :]).any(axis=2)
    named = np.concatenate([labels, fillers], axis=1)
    ranked = np.concatenate([np.where(first, totals, -2.0), np.where(spare, -1.0, -2.0)], axis=1)
    order = np.lexsort((named, -ranked), axis=1)[:, :top_k]
    found = np.take_along_axis(named, order, axis=1)
    return found, np.maximum(np.take_along_axis(ranked, order, axis=1), 0) / max(neighbors, 1)
