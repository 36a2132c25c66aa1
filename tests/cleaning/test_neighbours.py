"""Neighbours: exact ones are those of all pairs, an index finds nearly all of them, no row is its own."""

import numpy as np
import pytest

from landmark.cleaning.neighbours import nearest_embeddings


def vectors(rows: int, width: int = 16) -> np.ndarray:
    """Return clustered vectors of length 1."""
    random = np.random.default_rng(rows)
    found = random.normal(size=(rows // 10 + 1, width))[random.integers(0, rows // 10 + 1, rows)]
    found = found + 0.3 * random.normal(size=(rows, width))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_exact_neighbours_are_those_of_all_pairs() -> None:
    embeddings = vectors(2500)  # more than a block
    indices, cosines = nearest_embeddings(embeddings, 5)
    every = embeddings @ embeddings.T
    np.fill_diagonal(every, -np.inf)
    np.testing.assert_allclose(cosines, -np.sort(-every, axis=1)[:, :5], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(every, indices, 1), cosines, atol=1e-6)


def test_the_index_finds_nearly_all_of_them() -> None:
    pytest.importorskip("usearch")
    embeddings = vectors(3000)
    embeddings[10] = embeddings[2000]  # a copy must not hide the row itself
    exact, _ = nearest_embeddings(embeddings, 5)
    indices, cosines = nearest_embeddings(embeddings, 5, exact_rows=100, threads=1)
    assert not (indices == np.arange(3000)[:, None]).any()
    shared = [len(set(a) & set(b)) for a, b in zip(exact.tolist(), indices.tolist(), strict=True)]
    assert np.mean(shared) / 5 > 0.95
    assert indices[10, 0] == 2000 and cosines[10, 0] == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_few_rows_have_few_neighbours(rows: int) -> None:
    indices, cosines = nearest_embeddings(np.eye(4, dtype=np.float16)[:rows], 3)
    assert indices.shape == cosines.shape == (rows, max(0, rows - 1))
