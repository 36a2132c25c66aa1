"""Tests that the figures of an unfinished packing job of an earlier version are read."""

from landmark.data.packing.job import _figures
from landmark.storage import locate


def test_figures_of_earlier_versions_have_the_key_of_this_version(tmp_path):
    (tmp_path / "000000.json").write_text('{"rows": 3, "strangers": 2}')
    (tmp_path / "000001.json").write_text('{"rows": 3, "unplanned": 1}')
    assert [_figures(locate(str(file)))["unplanned"] for file in sorted(tmp_path.iterdir())] == [2, 1]
