"""k-NN index of a gallery: build time, query time, recall and size, compared with exact search.

Run: python benchmarks/knn.py [--rows 203094] [--width 512] [--queries 10000]. The embeddings are synthetic and
of length 1. A class is a random direction in 24 dimensions, passed through a fixed map. An image of it is that
direction plus noise. The number of classes is about half the number of rows. The peer is exact search: products of
query blocks in fp32 by numpy, on the same cores, for the first tenth of the queries. No useful lower bound of the
search time is known, so recall is reported with the time. The last line is JSON, saved to
benchmarks/results/knn.json at full size: recall5 (fraction of the 5 nearest that are found), top1 (class by a
vote of 5), exact_top1 (the same with the true 5), queries_a_second, over_exact (speedup), rows_a_second (built),
bytes_a_row, peak_mib (of the process, including the embeddings).
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))

import numpy as np

from landmark.retrieval.knn import add_embeddings, knn_vote, new_index, search_index

LATENT, NOISE, NEIGHBORS = 24, 0.25, 5
FULL = (203_094, 512, 10_000)


def embeddings(rows: int, width: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return synthetic embeddings float16 (rows, width) of length 1 and their classes, int64 (rows,).

    The seed only affects the images, not the classes.
    """
    fixed = np.random.default_rng(0)
    projection = fixed.normal(size=(LATENT, width)).astype(np.float32)
    directions = fixed.normal(size=(classes, LATENT)).astype(np.float32)
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    found = np.empty((rows, width), np.float16)
    for start in range(0, rows, 65_536):
        part = labels[start : start + 65_536]
        latent = directions[part] + NOISE * random.normal(size=(len(part), LATENT)).astype(np.float32)
        vectors = latent @ projection + random.normal(size=(len(part), width)).astype(np.float32)
        found[start : start + len(part)] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found, labels


def exact_search(train: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """Return the nearest rows by exact search, int64 (n, count), nearest first."""
    best: list[np.ndarray] = []
    for start in range(0, len(queries), 256):
        block = queries[start : start + 256]
        cosines, rows = [], []
        for first in range(0, len(train), 32_768):
            part = block @ train[first : first + 32_768].astype(np.float32).T
            nearest = np.argpartition(-part, count - 1, axis=1)[:, :count]
            cosines.append(np.take_along_axis(part, nearest, axis=1))
            rows.append(nearest + first)
        candidates = np.concatenate(cosines, axis=1)
        order = np.argsort(-candidates, axis=1)[:, :count]
        best.append(np.take_along_axis(np.concatenate(rows, axis=1), order, axis=1))
    return np.concatenate(best)


def main() -> None:
    """Print the table and the figures, and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=FULL[0])
    parser.add_argument("--width", type=int, default=FULL[1])
    parser.add_argument("--queries", type=int, default=FULL[2])
    arguments = parser.parse_args()
    classes = arguments.rows // 2
    train, labels = embeddings(arguments.rows, arguments.width, classes, 1)
    queries, query_labels = embeddings(arguments.queries, arguments.width, classes, 2)
    start = time.perf_counter()
    index = new_index(arguments.width)
    add_embeddings(index, train)
    build_s = time.perf_counter() - start
    start = time.perf_counter()
    found, cosines = search_index(index, queries, NEIGHBORS)
    search_s = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = len(index.save())
    subset = queries[: max(1, arguments.queries // 10)].astype(np.float32)
    start = time.perf_counter()
    exact_rows = exact_search(train, subset, NEIGHBORS)
    exact_s = time.perf_counter() - start
    exact_cosines = (train[exact_rows].astype(np.float32) * subset[:, None, :]).sum(axis=2)
    hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), exact_rows.tolist(), strict=False)]

    def top1(rows: np.ndarray, similarities: np.ndarray) -> float:
        top_k_labels, _ = knn_vote(labels[rows], similarities, classes, 1)
        return float((top_k_labels[:, 0] == query_labels[: len(rows)]).mean())

    figures = {
        "rows": arguments.rows,
        "recall5": float(np.mean(hits)) / NEIGHBORS,
        "top1": top1(found[: len(subset)], cosines[: len(subset)]),
        "exact_top1": top1(exact_rows, exact_cosines),
        "queries_a_second": arguments.queries / search_s,
        "over_exact": (exact_s / len(subset)) / (search_s / arguments.queries),
        "rows_a_second": arguments.rows / build_s,
        "bytes_a_row": size / arguments.rows,
        "peak_mib": peak,
    }
    print(f"{'':10}{'built, s':>10}{'queries/s':>12}{'recall@5':>10}{'top-1':>8}{'MiB':>8}")
    print(
        f"{'index':10}{build_s:>10.1f}{figures['queries_a_second']:>12,.0f}{figures['recall5']:>10.3f}"
        f"{figures['top1']:>8.2%}"
        f"{size / 2**20:>8,.0f}"
    )
    print(
        f"{'all':10}{'-':>10}{len(subset) / exact_s:>12,.0f}{1:>10.3f}{figures['exact_top1']:>8.2%}"
        f"{train.nbytes / 2**20:>8,.0f}"
    )
    line = json.dumps({key: round(value, 4) for key, value in figures.items()} | {"cores": os.cpu_count()})
    if (arguments.rows, arguments.width, arguments.queries) == FULL:
        Path(__file__).with_name("results").joinpath("knn.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
