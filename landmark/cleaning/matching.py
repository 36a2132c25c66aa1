"""Matching: decide whether two images are duplicates of one photograph, by aligning one to the other.

As in Ozaki & Yokoo (2019): key points are matched, and RANSAC finds one transform. Two photographs of the same place
can pass this check, so the pixels decide. After alignment, duplicates correlate and different photographs do not.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from landmark.config import DuplicatesConfig

SIDE = 224
"""Longest side at which images are compared, pixels."""
KEY_POINTS = 400
MIN_MATCHES = 8
REACH = 4.0
"""Maximum distance in pixels between a key point and its transformed counterpart."""
THUMBNAIL = 32
SAME = 0.99
"""Correlation of two complete images at THUMBNAIL above which no key points are needed."""
MIN_SCALE = 0.2
MAX_ROTATION = 5.0
"""Maximum rotation of a duplicate, degrees."""
BLUR = 0.8
"""Standard deviation, pixels, of the blur before images are correlated. It removes compression artifacts."""


@dataclass(kw_only=True, frozen=True, eq=False)
class Keypoints:
    """The data of one image that comparisons need."""

    grey: np.ndarray
    """uint8 (h, w), longest side SIDE."""
    points: np.ndarray
    """Key points, float32 (n, 2)."""
    descriptors: np.ndarray | None
    """ORB descriptors, uint8 (n, 32)."""


def detect_keypoints(grey: np.ndarray) -> Keypoints:
    """Return the comparison data of a grayscale image, uint8 (h, w)."""
    scale = SIDE / max(grey.shape)
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    orb = cv2.ORB.create(KEY_POINTS, scaleFactor=1.2, nlevels=8, edgeThreshold=15, patchSize=31, fastThreshold=8)
    points, descriptors = orb.detectAndCompute(grey, None)
    return Keypoints(
        grey=grey, points=np.array([p.pt for p in points], dtype=np.float32).reshape(-1, 2), descriptors=descriptors
    )


def similarity_of(one: Keypoints, other: Keypoints, config: DuplicatesConfig) -> float:
    """Return the correlation of two aligned images, -1 to 1, or 0 if they cannot be aligned."""
    whole = correlation(_thumbnail(one.grey), _thumbnail(other.grey))
    if whole >= SAME:
        return whole
    transform = align(one, other, config.inliers)
    if transform is None:
        return 0.0
    width, height = other.grey.shape[1], other.grey.shape[0]
    moved = cv2.warpAffine(one.grey, transform, (width, height), flags=cv2.INTER_LINEAR)
    inside = cv2.warpAffine(np.full_like(one.grey, 255), transform, (width, height), flags=cv2.INTER_NEAREST) > 0
    inside = cv2.erode(inside.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    area = abs(float(np.linalg.det(transform[:, :2]))) * one.grey.size
    if inside.sum() < config.overlap * max(area, other.grey.size):
        return 0.0
    moved, still = (cv2.GaussianBlur(image, (0, 0), BLUR) for image in (moved, other.grey))
    return correlation(moved[inside], still[inside])


def align(one: Keypoints, other: Keypoints, inliers: int) -> np.ndarray | None:
    """Return the shift, rotation and scale between two images, float64 (2, 3), or None if too few points agree."""
    if one.descriptors is None or other.descriptors is None or min(len(one.points), len(other.points)) < MIN_MATCHES:
        return None
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(one.descriptors, other.descriptors)
    if len(matches) < max(MIN_MATCHES, inliers):
        return None
    source = one.points[[match.queryIdx for match in matches]]
    target = other.points[[match.trainIdx for match in matches]]
    transform, agreeing = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=REACH, maxIters=1000, confidence=0.99
    )
    if transform is None or int(agreeing.sum()) < inliers:
        return None
    scale = float(np.sqrt(abs(np.linalg.det(transform[:, :2]))))
    turn = abs(float(np.degrees(np.arctan2(transform[1, 0], transform[0, 0]))))
    return transform if MIN_SCALE < scale < 1 / MIN_SCALE and turn < MAX_ROTATION else None


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Pearson's correlation of two arrays of the same shape, or 0 if one is constant."""
    a, b = one.astype(np.float32).ravel(), other.astype(np.float32).ravel()
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else 0.0


def _thumbnail(grey: np.ndarray) -> np.ndarray:
    return cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
