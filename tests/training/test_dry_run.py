"""Tests `landmark train --dry-run`: sizes and rates of the cache's formats, without a run."""

import re

import pytest

from landmark.cli import main
from landmark.config import AugmentConfig, LoaderConfig, TrainConfig
from landmark.data.cache.format import cache_sizes
from landmark.data.cache.split_cache import GIB
from landmark.training.dry_run import dry_run_text
from tests.support.packed import write_packed


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory):
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [200, 120], "val": [32], "test": [8]}, size=96)


def test_it_prints_steps_sizes_and_rates(dataset, capsys, tmp_path):
    command = ["train", dataset.uri, "--recipe", "modern", "--batch-size", "32", "--epochs", "6", "-o", str(tmp_path)]
    assert main([*command, "--img-size", "64", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "320 training images of 4 classes, 32 validation images" in out
    assert "6 epochs of 10 steps, 32 images per step" in out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith("  ")}
    sizes = cache_sizes(dataset, LoaderConfig(image_size=64), {"train": AugmentConfig(), "val": None})
    assert lines["jpeg"][1] == f"{sizes.jpeg / GIB:.2f}" and lines["yuv420"][1] == f"{sizes.yuv420 / GIB:.2f}"
    rates = {kind: float(lines[kind][2].replace(",", "")) for kind in ("none", "jpeg", "yuv420")}
    assert rates["none"] == rates["jpeg"] > 0 and rates["yuv420"] > rates["jpeg"]
    assert re.search(r"--cache FOLDER --cache-gib 1 --cache-format yuv420", out)
    assert not list(tmp_path.iterdir())


def test_it_says_which_format_does_not_fit(dataset, tmp_path):
    loader = LoaderConfig(image_size=64, cache=str(tmp_path / "cache"), cache_gib=1e-4, cache_format="yuv420")
    text = dry_run_text(TrainConfig(dataset=dataset.uri, loader=loader))
    assert "note: the decoded images (yuv420) need 0.00 GiB, more than cache_gib (0.0001)" in text
    assert not (tmp_path / "cache").exists()
