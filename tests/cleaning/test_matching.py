"""Matching: changed copies of an image match it, and other images do not."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from landmark.cleaning.matching import correlation, detect_keypoints, similarity_of
from landmark.config import DuplicatesConfig

CONFIG = DuplicatesConfig()


def drawing(seed: int) -> np.ndarray:
    """Return a grayscale image of many shapes, uint8 (240, 320)."""
    random = np.random.default_rng(seed)
    image = np.full((240, 320), 128, dtype=np.uint8)
    for _ in range(60):
        corner = random.integers(0, (300, 220))
        end = corner + random.integers(8, 70, 2)
        cv2.rectangle(image, corner.tolist(), end.tolist(), int(random.integers(256)), -1)
        cv2.circle(
            image, random.integers(0, (320, 240)).tolist(), int(random.integers(3, 20)), int(random.integers(256)), -1
        )
    return cv2.GaussianBlur(image, (0, 0), 1)


def encoded(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 35])[1], cv2.IMREAD_GRAYSCALE)


def resized(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (170, 127), interpolation=cv2.INTER_AREA)


def cropped(image: np.ndarray) -> np.ndarray:
    return image[30:220, 50:310]


def watermarked(image: np.ndarray) -> np.ndarray:
    return cv2.putText(image.copy(), "(c) somebody", (20, 120), cv2.FONT_HERSHEY_SIMPLEX, 0.9, 255, 2)


@pytest.mark.parametrize("change", [encoded, resized, cropped, watermarked])
@pytest.mark.parametrize("seed", range(3))
def test_a_changed_copy_matches_and_another_image_does_not(
    change: Callable[[np.ndarray], np.ndarray], seed: int
) -> None:
    original = detect_keypoints(drawing(seed))
    copy, other = detect_keypoints(change(drawing(seed))), detect_keypoints(change(drawing(seed + 100)))
    for one, two in ((original, copy), (copy, original)):
        assert similarity_of(one, two, CONFIG) >= CONFIG.correlation
    assert similarity_of(original, other, CONFIG) < CONFIG.correlation


def test_a_small_part_of_an_image_does_not_match_the_image() -> None:
    part = detect_keypoints(drawing(0)[60:140, 100:200])
    assert similarity_of(part, detect_keypoints(drawing(0)), CONFIG) == 0.0


def test_constant_images_match_nothing() -> None:
    constant = detect_keypoints(np.full((50, 60), 7, dtype=np.uint8))
    assert similarity_of(constant, constant, CONFIG) == 0.0 and correlation(constant.grey, constant.grey) == 0.0
