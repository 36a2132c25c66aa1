"""Rare classes survive cleaning, and a threshold that would drop most of a dataset is refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from landmark.cleaning.noise import beyond_limit, find_noise
from landmark.cleaning.run import Cleaning
from landmark.config import CleanConfig, DuplicatesConfig, NoiseConfig, QualityConfig, UserError
from tests.support.packed import write_packed

pytest.importorskip("cleanlab")
WIDTH = 64


def views(labels: np.ndarray, *, noise: float, seed: int = 0) -> np.ndarray:
    """Embeddings of length 1 whose classes overlap, as those of photographs do: noise is 1 for as much noise as class."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(int(labels.max()) + 1, WIDTH))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    found = centres[labels] + 0.7 + noise * random.normal(size=(len(labels), WIDTH)) / np.sqrt(WIDTH)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def cleaning_of(folder: Path, labels: np.ndarray, embeddings: np.ndarray, **options: object) -> Cleaning:
    """A cleaning of training images with these labels and embeddings."""
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
    cleaning.verdicts.label[:] = labels
    return cleaning


@pytest.mark.parametrize("max_cells", [10**8, 1], ids=["classifier", "votes"])
def test_classes_of_three_next_to_classes_of_many_are_kept(tmp_path: Path, max_cells: int):
    labels = np.repeat(np.arange(12), [24] * 6 + [3] * 6)
    # Two images of the large classes have each other's labels.
    given = labels.copy()
    given[[0, 24]] = 1, 0
    cleaning = cleaning_of(
        tmp_path / "data", given, views(labels, noise=1.3), noise=NoiseConfig(max_cells=max_cells, distractor=0.55)
    )
    verdicts = cleaning.judge()
    before, after = (np.bincount(each, minlength=12) for each in (labels, verdicts.label[verdicts.left]))
    assert (after[6:] == before[6:]).all(), after
    judged = set(verdicts.noted()["row"].to_pylist())
    assert {0, 24} <= judged and len(judged) <= 12


def test_a_distractor_in_a_rare_class_is_found_still(tmp_path: Path):
    labels = np.repeat(np.arange(8), [24] * 4 + [4] * 4)
    embeddings = views(labels, noise=0.6)
    stranger = np.random.default_rng(9).normal(size=WIDTH)
    embeddings[-1] = stranger / np.linalg.norm(stranger)
    verdicts = cleaning_of(tmp_path / "data", labels, embeddings).judge()
    assert verdicts.dropped[-1] and np.bincount(labels[verdicts.left])[4:].tolist() == [4, 4, 4, 3]


def test_no_class_loses_more_than_its_fraction(tmp_path: Path):
    labels = np.repeat(np.arange(3), 20)
    embeddings = views(labels, noise=0.5)
    strangers = np.random.default_rng(9).normal(size=(12, WIDTH))
    embeddings[40:52] = strangers / np.linalg.norm(strangers, axis=1, keepdims=True)
    cleaning = cleaning_of(tmp_path / "data", labels, embeddings, noise=NoiseConfig(max_class_fraction=0.25))
    verdicts = cleaning.judge()
    taken = np.flatnonzero(verdicts.dropped)
    assert len(taken) == 5 and set(taken.tolist()) <= set(range(40, 52))


def test_the_most_certain_images_of_a_class_are_within_its_limit():
    labels = np.array([4, 2, 4, 4, 2, 4])
    certainty = np.array([0.9, 0.8, 0.7, 0.95, 0.6, 0.1])
    sizes = np.array([0, 0, 2, 0, 5])
    assert beyond_limit(labels, certainty, 0.5, sizes).tolist() == [False, False, True, False, True, True]
    assert not beyond_limit(labels[:0], certainty[:0], 0.5, sizes).any()
    assert beyond_limit(labels, certainty, 0.0, sizes).all() and not beyond_limit(labels, certainty, 1.0, sizes)[2]


def test_a_class_below_the_minimum_is_judged_if_asked_for():
    labels = np.repeat(np.arange(3), [20, 20, 6])
    true = labels.copy()
    true[40] = 0
    embeddings = views(true, noise=0.3)
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
    embeddings = views(labels, noise=0.6)
    with pytest.raises(UserError, match=message) as refused:
        cleaning_of(tmp_path / "data", labels, embeddings, **options).judge()
    text = str(refused.value)
    assert "\n" not in text and "of 60 images" in text and "maximum 50%); no output was written" in text
    allowed = cleaning_of(tmp_path / "again", labels, embeddings, max_drop_fraction=1.0, **options).judge()
    assert len(allowed.left) < 30
