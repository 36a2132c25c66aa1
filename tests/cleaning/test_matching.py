"""Matching: copies of a picture are like it, however they were changed; other pictures are not."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from landmark.cleaning.matching import correlation, likeness, sketch
from landmark.config import DuplicatesConfig

CONFIG = DuplicatesConfig()


def drawing(seed: int) -> np.ndarray:
    """Return a grey picture of many shapes, uint8 (240, 320)."""
    random = np.random.default_rng(seed)
    picture = np.full((240, 320), 128, dtype=np.uint8)
    for _ in range(60):
        corner = random.integers(0, (300, 220))
        end = corner + random.integers(8, 70, 2)
        cv2.rectangle(picture, corner.tolist(), end.tolist(), int(random.integers(256)), -1)
        cv2.circle(
            picture, random.integers(0, (320, 240)).tolist(), int(random.integers(3, 20)), int(random.integers(256)), -1
        )
    return cv2.GaussianBlur(picture, (0, 0), 1)


def encoded(picture: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 35])[1], cv2.IMREAD_GRAYSCALE)


def resized(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, (170, 127), interpolation=cv2.INTER_AREA)


def cropped(picture: np.ndarray) -> np.ndarray:
    return picture[30:220, 50:310]


def watermarked(picture: np.ndarray) -> np.ndarray:
    return cv2.putText(picture.copy(), "(c) somebody", (20, 120), cv2.FONT_HERSHEY_SIMPLEX, 0.9, 255, 2)


@pytest.mark.parametrize("change", [encoded, resized, cropped, watermarked])
@pytest.mark.parametrize("seed", range(3))
def test_a_changed_copy_is_a_copy_and_another_picture_is_not(
    change: Callable[[np.ndarray], np.ndarray], seed: int
) -> None:
    original = sketch(drawing(seed))
    copy, other = sketch(change(drawing(seed))), sketch(change(drawing(seed + 100)))
    for one, two in ((original, copy), (copy, original)):
        assert likeness(one, two, CONFIG) >= CONFIG.correlation
    assert likeness(original, other, CONFIG) < CONFIG.correlation


def test_a_small_part_of_a_picture_is_not_a_copy_of_it() -> None:
    part = sketch(drawing(0)[60:140, 100:200])
    assert likeness(part, sketch(drawing(0)), CONFIG) == 0.0


def test_constant_pictures_are_like_nothing() -> None:
    grey = sketch(np.full((50, 60), 7, dtype=np.uint8))
    assert likeness(grey, grey, CONFIG) == 0.0 and correlation(grey.grey, grey.grey) == 0.0
