"""Synthetic landmarks: exact plans, reproducible images and recorded faults."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from landmark.config import SyntheticConfig
from landmark.data.synthetic import plan_images, render_image
from landmark.data.synthetic.plan import MIN_IMAGES, class_counts

FAULTY = SyntheticConfig(
    classes=8, images=400, image_size=64, label_noise=0.1, near_duplicates=0.1, nothing=0.05, broken=0.05
)


@given(st.integers(2, 60), st.integers(0, 500), st.floats(0, 2))
def test_class_counts_add_up_decrease_and_cover_every_class(classes, spare, tail):
    config = SyntheticConfig(classes=classes, images=classes + spare, tail=tail)
    counts = class_counts(config)
    assert counts.sum() == config.images
    assert counts.min() >= min(MIN_IMAGES, config.images // classes)
    assert (np.diff(counts) <= 1).all()


def test_the_minimum_is_one_image_per_class():
    assert class_counts(SyntheticConfig(classes=9, images=9)).tolist() == [1] * 9
    with pytest.raises(ValueError, match=r"synthetic.images is 8; expected at least one per class \(9\)"):
        SyntheticConfig(classes=9, images=8)


def test_the_tail_is_long():
    counts = class_counts(SyntheticConfig(classes=100, images=10_000, tail=1.0))
    assert counts[0] > 40 * counts[-1]
    assert class_counts(SyntheticConfig(classes=10, images=1000, tail=0)).tolist() == [100] * 10


def test_ids_are_sixteen_hexadecimal_digits_and_distinct():
    ids = plan_images(SyntheticConfig(classes=3, images=20_000), 5)["image_id"].to_pylist()
    assert len(set(ids)) == 20_000
    assert all(len(i) == 16 and int(i, 16) >= 0 for i in ids)


def test_injected_faults_are_recorded_in_the_configured_fractions():
    rows = plan_images(FAULTY, 3).to_pylist()
    by_id = {row["image_id"]: row for row in rows}
    assert sum(row["kind"] == "nothing" for row in rows) == 20
    assert sum(row["kind"] == "broken" for row in rows) == 20
    duplicates = [row for row in rows if row["duplicate_of"]]
    assert len(duplicates) == 40
    for row in duplicates:
        source = by_id[row["duplicate_of"]]
        assert row["group"] == source["group"] == source["image_id"]
        assert row["true_landmark_id"] == source["true_landmark_id"]
        assert row["view_seed"] == source["view_seed"]
        assert source["duplicate_of"] is None and source["kind"] == "landmark"
    mislabeled = [row for row in rows if row["true_landmark_id"] not in (None, row["landmark_id"])]
    assert len(mislabeled) == 40
    assert all((row["true_landmark_id"] is None) == (row["kind"] == "nothing") for row in rows)


def test_another_process_generates_the_same_bytes():
    rows = plan_images(FAULTY, 3).to_pylist()[:40]
    expected = hashlib.sha256(b"".join(render_image(row, FAULTY, 3) for row in rows)).hexdigest()
    code = (
        "import hashlib\nfrom tests.data.test_synthetic import FAULTY, render_image, plan_images\n"
        "rows = plan_images(FAULTY, 3).to_pylist()[:40]\n"
        "print(hashlib.sha256(b''.join(render_image(row, FAULTY, 3) for row in rows[::-1][::-1])).hexdigest())"
    )
    root = Path(__file__).parent.parent.parent
    other_process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert other_process.stdout.strip() == expected


def pixels_of(row: dict, config: SyntheticConfig = FAULTY) -> np.ndarray:
    return simplejpeg.decode_jpeg(render_image(row, config, 3)).astype(float)


def test_near_duplicates_look_like_their_source_but_differ_in_bytes():
    rows = plan_images(FAULTY, 3).to_pylist()
    by_id = {row["image_id"]: row for row in rows}
    near, far = [], []
    for row in [row for row in rows if row["duplicate_of"] and row["kind"] == "landmark"][:15]:
        source = by_id[row["duplicate_of"]]
        assert render_image(row, FAULTY, 3) != render_image(source, FAULTY, 3)
        near.append(np.abs(pixels_of(row) - pixels_of(source)).mean())
        far.append(np.abs(pixels_of(rows[0]) - pixels_of(source)).mean())
    assert np.mean(near) < 0.6 * np.mean(far)


def test_broken_files_fail_to_decode():
    for row in [row for row in plan_images(FAULTY, 3).to_pylist() if row["kind"] == "broken"]:
        with pytest.raises((OSError, SyntaxError)), Image.open(io.BytesIO(render_image(row, FAULTY, 3))) as image:
            image.load()


def test_views_of_one_class_differ():
    rows = [row for row in plan_images(FAULTY, 3).to_pylist() if row["true_landmark_id"] == "synthetic-000000"]
    first, second = (pixels_of(row) for row in [r for r in rows if r["kind"] == "landmark"][:2])
    assert first.shape == (64, 64, 3)
    assert np.abs(first - second).mean() > 8
