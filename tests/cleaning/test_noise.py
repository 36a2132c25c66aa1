"""Label noise: label errors and distractors among clustered embeddings are found, and correct labels are kept."""

import numpy as np
import pytest

from landmark.cleaning.noise import find_noise, out_of_fold
from landmark.config import NoiseConfig

pytest.importorskip("cleanlab")
CLASSES, EACH, WIDTH = 6, 40, 32


@pytest.fixture(scope="module")
def clusters() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of six classes, their true labels, and labels of which every twelfth is wrong."""
    random = np.random.default_rng(0)
    true = np.repeat(np.arange(CLASSES), EACH)
    embeddings = 4 * np.eye(WIDTH)[true] + random.normal(size=(len(true), WIDTH)) * 0.5
    labels = np.where(np.arange(len(true)) % 12 == 0, (true + 1 + np.arange(len(true)) % (CLASSES - 1)) % CLASSES, true)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), true, labels


@pytest.mark.parametrize("max_cells", [10**8, 1], ids=["classifier", "knn"])
def test_label_errors_are_found_with_their_true_labels(
    clusters: tuple[np.ndarray, np.ndarray, np.ndarray], max_cells: int
) -> None:
    embeddings, true, labels = clusters
    # Labels have gaps, like those of a subset.
    found = find_noise(embeddings, labels * 7 + 3, NoiseConfig(max_cells=max_cells), seed=0)
    assert not found.wrong[labels == true].any() and found.wrong[labels != true].mean() >= 0.9
    np.testing.assert_array_equal(found.best, true * 7 + 3)
    assert found.confidence[found.wrong].min() > 0.6 and found.own[found.wrong].max() < 0.1


def test_distractors_are_less_similar_to_their_neighbors_than_landmarks(
    clusters: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    embeddings, _, labels = clusters
    distractors = np.random.default_rng(1).normal(size=(20, WIDTH))
    distractors /= np.linalg.norm(distractors, axis=1, keepdims=True)
    found = find_noise(
        np.concatenate([embeddings, distractors]), np.append(labels, np.zeros(20, int)), NoiseConfig(), 0
    )
    assert found.mean_neighbor_similarity[-20:].max() < found.mean_neighbor_similarity[:-20].min()


def test_probabilities_are_out_of_fold() -> None:
    # The embeddings carry no information, so a classifier cannot predict labels that it was not trained on.
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(200, 150))
    codes = random.integers(0, 2, 200)
    probabilities = out_of_fold(embeddings, codes, 5, seed=0)
    assert abs((probabilities.argmax(1) == codes).mean() - 0.5) < 0.12
    np.testing.assert_allclose(probabilities.sum(1), 1)
    np.testing.assert_array_equal(probabilities, out_of_fold(embeddings, codes, 5, seed=0))


def test_a_single_class_or_image_is_never_a_label_error() -> None:
    for rows in (1, 5):
        found = find_noise(np.eye(8)[:rows], np.zeros(rows, dtype=np.int64), NoiseConfig(), 0)
        assert not found.wrong.any() and len(found.mean_neighbor_similarity) == rows
