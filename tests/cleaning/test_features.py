"""Features: each image is embedded once, finished shards are reused, and undecodable images are reported."""

from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from landmark.cleaning.features import EmbeddingModel, extract_features, image_stats
from landmark.config import CleanConfig, ModelConfig, UserError
from landmark.data.random_access import ImageReader, thumbnail
from landmark.models import Embedder, build_model
from landmark.storage import locate
from tests.support.packed import picture, write_packed

CONFIG = CleanConfig(dataset="-", output="-", batch_size=3)


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    """A small untrained model."""
    classifier = build_model(ModelConfig(backbone="squeezenet1_1"), classes=4, image_size=32)
    return EmbeddingModel(
        embedder=Embedder(classifier), image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3, description="a test"
    )


def test_each_image_is_embedded_once_and_finished_shards_are_reused(model: EmbeddingModel, tmp_path: Path) -> None:
    dataset = write_packed(tmp_path / "data", {"train": [20, 9], "val": [5], "test": []})
    folder = locate(tmp_path / "features")
    table = extract_features(dataset, folder, model, CONFIG, quiet=True)
    assert table["sample"].to_pylist() == [*range(29), *range(5)]
    assert table["split"].to_pylist() == ["train"] * 29 + ["val"] * 5
    vectors = np.array(table["embedding"].to_pylist(), dtype=np.float64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    assert (table["width"].to_numpy() == 32).all() and table["fault"].null_count == 34
    # The second call computes only the missing shard.
    mtimes = {name: (tmp_path / "features" / name).stat().st_mtime_ns for name in folder.names()}
    (tmp_path / "features" / "train-00001.parquet").unlink()
    again = extract_features(dataset, folder, model, CONFIG, quiet=True)
    assert again.drop_columns(["embedding"]).equals(table.drop_columns(["embedding"]))
    changed = {n for n, mtime_ns in mtimes.items() if (tmp_path / "features" / n).stat().st_mtime_ns != mtime_ns}
    assert changed == {"train-00001.parquet"}


def test_features_of_another_dataset_are_refused(model: EmbeddingModel, tmp_path: Path) -> None:
    folder = locate(tmp_path / "features")
    extract_features(
        write_packed(tmp_path / "a", {"train": [4], "val": [], "test": []}), folder, model, CONFIG, quiet=True
    )
    with pytest.raises(UserError, match="contains features of another dataset"):
        extract_features(
            write_packed(tmp_path / "b", {"train": [5], "val": [], "test": []}), folder, model, CONFIG, quiet=True
        )


def test_image_stats_distinguish_blank_busy_and_broken_images() -> None:
    out = np.empty((16, 16, 3), dtype=np.uint8)
    busy = image_stats(picture(1, 1, 64), out)
    assert busy.fault is None and busy.spread > 6 and busy.entropy > 4 and out.any()
    blank = image_stats(simplejpeg.encode_jpeg(np.full((40, 50, 3), 90, np.uint8)), out)
    assert (blank.width, blank.height) == (50, 40) and blank.spread < 1 and blank.entropy < 1
    broken = image_stats(picture(1, 1, 64)[:300], out)
    assert broken.fault and broken.pixel_hash == b"" and not out.any()
    assert image_stats(picture(1, 2, 64), out).pixel_hash != busy.pixel_hash


def test_images_are_read_by_row(tmp_path: Path) -> None:
    dataset = write_packed(tmp_path, {"train": [10, 7], "val": [], "test": [5]})
    splits = np.repeat([0, 2], [17, 5])
    samples = np.concatenate([np.arange(17), np.arange(5)])
    found = ImageReader(dataset, splits, samples).read([21, 3, 12, 3])
    assert found == {3: picture(3, 3, 32), 12: picture(0, 12, 32), 21: picture(0, 4, 32)}
    small = thumbnail(picture(0, 0, 300))
    assert small is not None and simplejpeg.decode_jpeg(small).shape == (112, 112, 3)
    assert thumbnail(b"none") is None
