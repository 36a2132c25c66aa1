"""Noise: wrong labels and strangers among clustered embeddings are found, right ones left alone."""

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


@pytest.mark.parametrize("max_cells", [10**8, 1], ids=["classifier", "votes"])
def test_wrong_labels_are_found_and_the_true_ones_named(
    clusters: tuple[np.ndarray, np.ndarray, np.ndarray], max_cells: int
) -> None:
    embeddings, true, labels = clusters
    # Labels have gaps, as a subset's do.
    found = find_noise(embeddings, labels * 7 + 3, NoiseConfig(max_cells=max_cells), seed=0)
    assert not found.wrong[labels == true].any() and found.wrong[labels != true].mean() >= 0.9
    np.testing.assert_array_equal(found.best, true * 7 + 3)
    assert found.confidence[found.wrong].min() > 0.6 and found.own[found.wrong].max() < 0.1


def test_strangers_are_less_familiar_than_any_landmark(clusters: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    embeddings, _, labels = clusters
    strangers = np.random.default_rng(1).normal(size=(20, WIDTH))
    strangers /= np.linalg.norm(strangers, axis=1, keepdims=True)
    found = find_noise(np.concatenate([embeddings, strangers]), np.append(labels, np.zeros(20, int)), NoiseConfig(), 0)
    assert found.familiarity[-20:].max() < found.familiarity[:-20].min()


def test_probabilities_come_from_folds_that_have_not_seen_the_image() -> None:
    # Labels that embeddings say nothing about cannot be guessed by a classifier that has not seen them.
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(200, 150))
    codes = random.integers(0, 2, 200)
    probabilities = out_of_fold(embeddings, codes, 5, seed=0)
    assert abs((probabilities.argmax(1) == codes).mean() - 0.5) < 0.12
    np.testing.assert_allclose(probabilities.sum(1), 1)
    np.testing.assert_array_equal(probabilities, out_of_fold(embeddings, codes, 5, seed=0))


def test_one_class_or_one_image_is_never_wrong() -> None:
    for rows in (1, 5):
        found = find_noise(np.eye(8)[:rows], np.zeros(rows, dtype=np.int64), NoiseConfig(), 0)
        assert not found.wrong.any() and len(found.familiarity) == rows
