"""Tests that the plan and the figures of an unfinished packing job of an earlier version are read."""

import json

from landmark.config import PrepareConfig, SyntheticConfig
from landmark.data.packing.job import _figures
from landmark.data.packing.plan import load_or_make
from landmark.data.packing.sources import SyntheticSource
from landmark.storage import locate


def test_figures_of_earlier_versions_have_the_key_of_this_version(tmp_path):
    (tmp_path / "000000.json").write_text('{"rows": 3, "strangers": 2}')
    (tmp_path / "000001.json").write_text('{"rows": 3, "unplanned": 1}')
    assert [_figures(locate(str(file)))["unplanned"] for file in sorted(tmp_path.iterdir())] == [2, 1]


def test_a_plan_of_an_earlier_version_has_the_same_tasks(tmp_path):
    images = SyntheticConfig(classes=3, images=30, image_size=16)
    config = PrepareConfig(output=str(tmp_path), source="synthetic", synthetic=images)
    source = SyntheticSource(images, config.seed)
    plan = load_or_make(locate(config.output), source, config)
    (file,) = tmp_path.rglob("plan.json")
    values = json.loads(file.read_text())
    file.write_text(json.dumps({"units" if key == "tasks" else key: value for key, value in values.items()}))
    assert load_or_make(locate(config.output), source, config) == plan
