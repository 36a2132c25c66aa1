"""Tests nearest neighbors: exact search equals brute force, and the index finds nearly all exact neighbors."""

import numpy as np
import pytest

from landmark.retrieval.knn import add_embeddings, knn_vote, nearest_embeddings, new_index, search_index


def vectors(rows: int, width: int = 16) -> np.ndarray:
    """Return clustered vectors of length 1."""
    random = np.random.default_rng(rows)
    found = random.normal(size=(rows // 10 + 1, width))[random.integers(0, rows // 10 + 1, rows)]
    found = found + 0.3 * random.normal(size=(rows, width))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_exact_neighbors_equal_brute_force() -> None:
    embeddings = vectors(2500)  # more than a block
    indices, cosines = nearest_embeddings(embeddings, 5)
    similarities = embeddings @ embeddings.T
    np.fill_diagonal(similarities, -np.inf)
    np.testing.assert_allclose(cosines, -np.sort(-similarities, axis=1)[:, :5], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(similarities, indices, 1), cosines, atol=1e-6)


def test_the_index_finds_nearly_all_exact_neighbors() -> None:
    embeddings = vectors(3000)
    embeddings[10] = embeddings[2000]  # a duplicate must not replace the row itself
    exact, _ = nearest_embeddings(embeddings, 5)
    indices, cosines = nearest_embeddings(embeddings, 5, exact_rows=100, threads=1)
    assert not (indices == np.arange(3000)[:, None]).any()
    common = [len(set(a) & set(b)) for a, b in zip(exact.tolist(), indices.tolist(), strict=True)]
    assert np.mean(common) / 5 > 0.95
    assert indices[10, 0] == 2000 and cosines[10, 0] == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_few_rows_have_few_neighbors(rows: int) -> None:
    indices, cosines = nearest_embeddings(np.eye(4, dtype=np.float16)[:rows], 3)
    assert indices.shape == cosines.shape == (rows, max(0, rows - 1))


def test_a_growing_index_matches_brute_force() -> None:
    embeddings = vectors(700).astype(np.float16)
    index = new_index(16)
    assert search_index(index, embeddings[:3], 4)[0].shape == (3, 0)
    for start in range(0, 700, 300):
        add_embeddings(index, embeddings[start : start + 300])
    found, cosines = search_index(index, embeddings[:50], 4)
    similarities = embeddings[:50].astype(np.float32) @ embeddings.astype(np.float32).T
    np.testing.assert_allclose(cosines, -np.sort(-similarities, axis=1)[:, :4], atol=2e-3)
    assert (found[:, 0] == np.arange(50)).all()
    few = new_index(16)
    add_embeddings(few, embeddings[:2])
    assert sorted(search_index(few, embeddings[5:6], 9)[0][0].tolist()) == [0, 1]


def plain_vote(labels: list[int], cosines: list[float], classes: int, top_k: int) -> list[tuple[int, float]]:
    """Return classes and scores from the neighbors of one image, computed in a loop."""
    totals: dict[int, float] = {}
    for label, cosine in zip(labels, cosines, strict=True):
        totals[label] = totals.get(label, 0.0) + min(max(cosine, 0.0), 1.0)
    voted = sorted(totals.items(), key=lambda pair: (-pair[1], pair[0]))
    others = [(label, 0.0) for label in range(classes) if label not in totals]
    return [(label, total / len(labels)) for label, total in [*voted, *others]][: min(top_k, classes)]


@pytest.mark.parametrize(("classes", "neighbors", "top_k"), [(30, 5, 10), (3, 7, 10), (6, 1, 1), (4, 12, 3)])
def test_votes_equal_those_of_a_plain_loop(classes: int, neighbors: int, top_k: int) -> None:
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, (5000, neighbors))
    cosines = random.uniform(-0.3, 1.001, (5000, neighbors)).astype(np.float32)
    cosines[::7] = 0.5  # equal votes
    found, scores = knn_vote(labels, cosines, classes, top_k)
    assert found.dtype == np.int32 and scores.dtype == np.float32
    for row in range(0, 5000, 13):
        expected = plain_vote(labels[row].tolist(), cosines[row].tolist(), classes, top_k)
        assert [pair[0] for pair in expected] == found[row].tolist()
        np.testing.assert_allclose([pair[1] for pair in expected], scores[row], atol=1e-5)
