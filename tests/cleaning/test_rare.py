"""Rare classes survive cleaning, and a threshold that drops most of a dataset is an error."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from landmark.cleaning.noise import find_noise, over_fraction
from landmark.cleaning.run import Cleaning
from landmark.config import CleanConfig, DuplicatesConfig, NoiseConfig, QualityConfig, UserError
from tests.support.packed import write_packed

pytest.importorskip("cleanlab")
WIDTH = 64


def make_embeddings(labels: np.ndarray, *, noise: float, seed: int = 0) -> np.ndarray:
    """Unit-length embeddings of overlapping classes, as of photographs. At noise 1, noise is as strong as the class."""
    random = np.random.default_rng(seed)
    prototypes = random.normal(size=(int(labels.max()) + 1, WIDTH))
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    found = prototypes[labels] + 0.7 + noise * random.normal(size=(len(labels), WIDTH)) / np.sqrt(WIDTH)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def cleaning_of(folder: Path, labels: np.ndarray, embeddings: np.ndarray, **options: object) -> Cleaning:
    """Return a cleaning job for training images with these labels and embeddings."""
    dataset = write_packed(folder, {"train": [len(labels)], "val": [], "test": []}, classes=int(labels.max()) + 1)
    rows = len(labels)
    columns = {
        "split": pa.array(["train"] * rows),
        "sample": pa.array(np.arange(rows)),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.astype(np.float16).reshape(-1)), WIDTH),
        "fault": pa.nulls(rows, pa.string()),
        "file_hash": pa.array([row.to_bytes(4, "big") for row in range(rows)]),
        "pixel_hash": pa.array([row.to_bytes(4, "big") for row in range(rows)]),
        **{name: pa.array(np.full(rows, 64)) for name in ("width", "height")},
        **{name: pa.array(np.full(rows, 7.0)) for name in ("spread", "entropy")},
    }
    settings = {"duplicates": DuplicatesConfig(near=False), **options}
    config = CleanConfig(dataset="data", output="-", **settings)  # type: ignore[arg-type]
    cleaning = Cleaning(dataset, pa.table(columns), config, quiet=True)
    cleaning.rows.label[:] = labels
    cleaning.decisions.label[:] = labels
    return cleaning


@pytest.mark.parametrize("max_cells", [10**8, 1], ids=["classifier", "knn"])
def test_classes_of_three_images_are_kept_next_to_large_classes(tmp_path: Path, max_cells: int):
    labels = np.repeat(np.arange(12), [24] * 6 + [3] * 6)
    # Two images of large classes have swapped labels.
    noisy_labels = labels.copy()
    noisy_labels[[0, 24]] = 1, 0
    cleaning = cleaning_of(
        tmp_path / "data",
        noisy_labels,
        make_embeddings(labels, noise=1.3),
        noise=NoiseConfig(max_cells=max_cells, distractor=0.55),
    )
    decisions = cleaning.decide()
    before, after = (np.bincount(each, minlength=12) for each in (labels, decisions.label[decisions.left]))
    assert (after[6:] == before[6:]).all(), after
    reported = set(decisions.noted()["row"].to_pylist())
    assert {0, 24} <= reported and len(reported) <= 12


def test_a_distractor_in_a_rare_class_is_still_found(tmp_path: Path):
    labels = np.repeat(np.arange(8), [24] * 4 + [4] * 4)
    embeddings = make_embeddings(labels, noise=0.6)
    distractor = np.random.default_rng(9).normal(size=WIDTH)
    embeddings[-1] = distractor / np.linalg.norm(distractor)
    decisions = cleaning_of(tmp_path / "data", labels, embeddings).decide()
    assert decisions.dropped[-1] and np.bincount(labels[decisions.left])[4:].tolist() == [4, 4, 4, 3]


def test_no_class_loses_more_than_the_maximum_fraction(tmp_path: Path):
    labels = np.repeat(np.arange(3), 20)
    embeddings = make_embeddings(labels, noise=0.5)
    distractors = np.random.default_rng(9).normal(size=(12, WIDTH))
    embeddings[40:52] = distractors / np.linalg.norm(distractors, axis=1, keepdims=True)
    cleaning = cleaning_of(tmp_path / "data", labels, embeddings, noise=NoiseConfig(max_class_fraction=0.25))
    decisions = cleaning.decide()
    dropped = np.flatnonzero(decisions.dropped)
    assert len(dropped) == 5 and set(dropped.tolist()) <= set(range(40, 52))


def test_the_most_certain_images_are_within_the_limit_of_a_class():
    labels = np.array([4, 2, 4, 4, 2, 4])
    certainty = np.array([0.9, 0.8, 0.7, 0.95, 0.6, 0.1])
    sizes = np.array([0, 0, 2, 0, 5])
    assert over_fraction(labels, certainty, 0.5, sizes).tolist() == [False, False, True, False, True, True]
    assert not over_fraction(labels[:0], certainty[:0], 0.5, sizes).any()
    assert over_fraction(labels, certainty, 0.0, sizes).all() and not over_fraction(labels, certainty, 1.0, sizes)[2]


def test_a_class_below_the_default_minimum_is_checked_if_configured():
    labels = np.repeat(np.arange(3), [20, 20, 6])
    true = labels.copy()
    true[40] = 0
    embeddings = make_embeddings(true, noise=0.3)
    assert not find_noise(embeddings, labels, NoiseConfig(), 0).wrong[40]
    assert find_noise(embeddings, labels, NoiseConfig(min_class_images=2), 0).wrong[40]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"noise": NoiseConfig(distractor=1.0, max_class_fraction=0.9)},
            r"distractor .* lower --noise\.distractor, or",
        ),
        (
            {"quality": QualityConfig(min_entropy=8)},
            r"degenerate .*--quality\.min-entropy, or set --max-drop-fraction 1$",
        ),
        ({"min_images": 40}, r"small_class .* lower --min-images, or"),
    ],
)
def test_a_threshold_that_drops_most_of_a_dataset_is_refused(tmp_path: Path, options: dict[str, object], message: str):
    labels = np.repeat(np.arange(4), 15)
    embeddings = make_embeddings(labels, noise=0.6)
    with pytest.raises(UserError, match=message) as refused:
        cleaning_of(tmp_path / "data", labels, embeddings, **options).decide()
    text = str(refused.value)
    assert "\n" not in text and "of 60 images" in text and "maximum 50%); no output was written" in text
    allowed = cleaning_of(tmp_path / "again", labels, embeddings, max_drop_fraction=1.0, **options).decide()
    assert len(allowed.left) < 30
