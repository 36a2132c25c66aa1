"""RandAugment: each operation matches torchvision, and randomness depends only on the sample."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from landmark.data.loading.randaugment import FILL, OPERATIONS, randaugment

NAMES = dict(zip(OPERATIONS, v2.RandAugment._AUGMENTATION_SPACE, strict=True))


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A smooth image with structure at several scales, brighter in one corner."""
    y, x = np.mgrid[0:96, 0:96] / 96
    waves = [np.sin(9 * x + 5 * y * c) + np.cos(13 * y - 4 * x * c) + c * x for c in (1, 2, 3)]
    image = np.stack(waves, axis=2)
    return np.round(20 + 200 * (image - image.min()) / np.ptp(image)).astype(np.uint8)


@pytest.mark.parametrize("magnitude", [0, 4, 9, 17, 30])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_each_operation_matches_torchvision(photo, name, magnitude, sign):
    reference = v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR, fill=list(FILL))
    magnitudes, signed = reference._AUGMENTATION_SPACE[NAMES[name]]
    scale = magnitudes(31, 96, 96)
    value = 0.0 if scale is None else float(scale[magnitude]) * (sign if signed else 1)
    expected = np.asarray(
        reference._apply_image_or_video_transform(
            Image.fromarray(photo), NAMES[name], value, v2.InterpolationMode.BILINEAR, {Image.Image: list(FILL)}
        )
    )
    actual = OPERATIONS[name](photo.copy(), magnitude / 30, sign)
    difference = np.abs(actual.astype(int) - expected.astype(int))
    # At the border of the uncovered area, only one implementation blends pixels with the fill color.
    assert np.quantile(difference, 0.97) <= 2
    if name not in ("shear_x", "shear_y", "rotate"):
        assert difference.max() <= 2


@given(
    visits=st.lists(st.integers(0, 2**40), min_size=1, max_size=6, unique=True),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 1000),
    operations=st.integers(1, 3),
)
def test_augmentation_does_not_depend_on_the_batch(visits, seed, epoch, operations):
    images = np.random.default_rng(seed).integers(0, 256, (len(visits), 24, 24, 3), dtype=np.uint8)
    together = images.copy()
    randaugment(together, np.array(visits), seed, epoch, operations=operations, magnitude=9)
    for row, visit in enumerate(visits):
        single = images[[row]].copy()
        randaugment(single, np.array([visit]), seed, epoch, operations=operations, magnitude=9)
        assert np.array_equal(single[0], together[row])
    backwards = images[::-1].copy()
    randaugment(backwards, np.array(visits[::-1]), seed, epoch, operations=operations, magnitude=9)
    assert np.array_equal(backwards[::-1], together)


def test_each_operation_is_sampled_equally_often(photo, monkeypatch):
    sampled = []
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda image, _, sign, name=name: sampled.append((name, sign)) or image)
    randaugment(np.zeros((7000, 1, 1, 3), dtype=np.uint8), np.arange(7000), 0, 1, operations=2, magnitude=9)
    counts = np.array([[sampled.count((name, sign)) for sign in (-1.0, 1.0)] for name in OPERATIONS])
    assert counts.sum() == 14_000
    assert counts == pytest.approx(np.full((14, 2), 500), abs=90)
