"""Duplicates: find duplicates of one photograph and select the one to keep."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from landmark.cleaning.matching import Keypoints, detect_keypoints, similarity_of
from landmark.config import DuplicatesConfig
from landmark.data.random_access import ImageReader, decode_grey
from landmark.progress import Progress
from landmark.retrieval.knn import nearest_embeddings

BLOCK_PAIRS = 4096
"""Number of pairs whose images are in memory at a time."""


@dataclass(kw_only=True, frozen=True, eq=False)
class Pairs:
    """Pairs of duplicate rows. Arrays have the same length."""

    first: np.ndarray
    """int64."""
    second: np.ndarray
    """int64."""
    score: np.ndarray
    """Similarity, float64."""


@dataclass(kw_only=True, frozen=True, eq=False)
class Dropped:
    """Rows that are dropped as duplicates. Arrays have the same length."""

    rows: np.ndarray
    """int64, ascending."""
    kept: np.ndarray
    """The row that each row is a duplicate of, int64."""
    score: np.ndarray
    """Similarity to the most similar row of its group, float64."""


def equal_pairs(*hashes: np.ndarray) -> Pairs:
    """Return pairs that join all rows with an equal hash.

    hashes: object arrays of bytes (n,). Empty bytes match nothing.
    """
    first, second = [], []
    for column in hashes:
        _, codes = np.unique(column, return_inverse=True)
        order = np.argsort(codes, kind="stable")
        same = (codes[order][1:] == codes[order][:-1]) & (column[order][1:] != b"")
        first.append(order[:-1][same])
        second.append(order[1:][same])
    joined = np.concatenate(first).astype(np.int64), np.concatenate(second).astype(np.int64)
    return Pairs(first=joined[0], second=joined[1], score=np.ones(len(joined[0])))


def candidate_pairs(rows: np.ndarray, embeddings: np.ndarray, config: DuplicatesConfig) -> Pairs:
    """Return pairs of rows with similar embeddings. rows: int64 (n,), embeddings: (n, d) of these rows."""
    near, cosines = nearest_embeddings(embeddings, config.neighbors)
    here = np.repeat(np.arange(len(rows)), near.shape[1])
    there, cosine = near.ravel(), cosines.ravel()
    good = cosine >= config.similarity
    low, high = np.minimum(here, there)[good], np.maximum(here, there)[good]
    _, index = np.unique(low * len(rows) + high, return_index=True)
    return Pairs(first=rows[low[index]], second=rows[high[index]], score=cosine[good][index].astype(np.float64))


def verified_pairs(
    candidates: Pairs, pictures: ImageReader, config: DuplicatesConfig, *, threads: int, quiet: bool = False
) -> Pairs:
    """Return the candidates that are duplicates by their pixels, with their similarity.

    Images are read in blocks of pairs.
    """
    scores = np.zeros(len(candidates.first))
    progress = Progress("comparing", len(scores), "pairs", enabled=not quiet)
    with ThreadPoolExecutor(threads, thread_name_prefix="landmark-compare") as pool:
        for start in range(0, len(scores), BLOCK_PAIRS):
            first = candidates.first[start : start + BLOCK_PAIRS].tolist()
            second = candidates.second[start : start + BLOCK_PAIRS].tolist()
            images = pictures.read([*first, *second])
            sketches = dict(zip(images, pool.map(_detected, images.values()), strict=True))

            def compared(pair: tuple[int, int], known: dict[int, Keypoints | None] = sketches) -> float:
                one, other = known.get(pair[0]), known.get(pair[1])
                return 0.0 if one is None or other is None else similarity_of(one, other, config)

            scores[start : start + BLOCK_PAIRS] = list(pool.map(compared, zip(first, second, strict=True)))
            progress.update(len(first))
    progress.clear()
    good = scores >= config.correlation
    return Pairs(first=candidates.first[good], second=candidates.second[good], score=scores[good])


def _detected(data: bytes) -> Keypoints | None:
    grey = decode_grey(data)
    return None if grey is None else detect_keypoints(grey)


def groups_of(rows: int, pairs: Pairs) -> np.ndarray:
    """Return the group of each row as its minimum row: int64 (rows,). Pairs join groups (union-find)."""
    parent = np.arange(rows)
    first, second = pairs.first, pairs.second
    while True:
        # Each tree hooks onto the minimum root of its pairs, then all paths are halved: log(n) rounds.
        low = np.minimum(parent[first], parent[second])
        before = parent.copy()
        np.minimum.at(parent, parent[first], low)
        np.minimum.at(parent, parent[second], low)
        parent = parent[parent]
        if np.array_equal(parent, before):
            return parent


def select_duplicates(pairs: Pairs, rank: np.ndarray) -> Dropped:
    """Return all rows of each group except the one to keep, which has the minimum rank.

    rank: int64 (rows,), unique values.
    """
    groups = groups_of(len(rank), pairs)
    members = np.unique(np.concatenate([pairs.first, pairs.second]))
    order = members[np.lexsort((rank[members], groups[members]))]
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    leaders = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
    best = np.zeros(len(rank))
    np.maximum.at(best, pairs.first, pairs.score)
    np.maximum.at(best, pairs.second, pairs.score)
    copies = order != leaders
    rows, kept = order[copies], leaders[copies]
    ascending = np.argsort(rows)
    return Dropped(rows=rows[ascending], kept=kept[ascending], score=best[rows[ascending]])


def retention_priority(splits: np.ndarray, labels: np.ndarray, areas: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return each row's rank among its duplicates, int64 (n,). The row with the minimum rank is kept.

    Test takes precedence over val, and val over train, so that no test image is a training image. Then follow: the
    label that most of the duplicates have, more pixels, the earlier row. splits: 0 train, 1 val, 2 test.
    """
    pair = groups.astype(np.int64) * (int(labels.max(initial=0)) + 2) + labels
    _, inverse, counts = np.unique(pair, return_inverse=True, return_counts=True)
    rank = np.empty(len(splits), dtype=np.int64)
    rank[np.lexsort((np.arange(len(splits)), -areas, -counts[inverse], -splits))] = np.arange(len(splits))
    return rank
