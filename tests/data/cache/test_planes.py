"""Planes: the same crops as from JPEGs, with nearly the same pixels."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from landmark.config import AugmentConfig
from landmark.data.cache.planes import HEADER, divisors, image_size, is_planes, planes_bytes, to_planes
from landmark.data.loading.jpeg import decode_batch
from tests.data.loading.test_jpeg import BROKEN, jpeg, ramp


def photo(width: int, height: int, seed: int = 0, subsampling: int = 2) -> bytes:
    """Return a JPEG of smooth shapes with some noise, as photographs have."""
    rng = np.random.default_rng(seed)
    light = cv2.resize(rng.uniform(20, 220, (9, 12)), (width, height), interpolation=cv2.INTER_LINEAR)
    color = cv2.resize(rng.uniform(-40, 40, (5, 6, 3)), (width, height), interpolation=cv2.INTER_LINEAR)
    noisy = np.clip(light[:, :, None] + color + rng.uniform(-6, 6, (height, width, 1)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=92, subsampling=subsampling)
    return buffer.getvalue()


def both(images: list[bytes], size: int, side: int = 0, **options) -> tuple[np.ndarray, np.ndarray]:
    """Decode images from JPEG and from planes."""
    visits = np.arange(len(images))
    expected, faults = decode_batch(images, visits, size, **options)
    planes = [to_planes(image, side) for image in images]
    assert all(is_planes(image) for image in planes)
    found, plane_faults = decode_batch(planes, visits, size, **options)
    assert faults == plane_faults == {}
    return expected.astype(int), found.astype(int)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize(("width", "height"), [(384, 288), (383, 287), (288, 511)])
def test_crops_differ_by_about_one_level_from_those_of_the_jpeg(width, height, subsampling):
    images = [photo(width, height, seed, subsampling) for seed in range(8)]
    for options in ({}, {"augment": AugmentConfig(), "seed": 3, "epoch": 2}):
        expected, found = both(images, 224, **options)
        assert np.abs(expected - found).mean() < 2.0
        # No shift: a neighboring pixel would differ by more.
        assert np.abs(expected - found).mean() < 0.5 * np.abs(expected - np.roll(found, 1, axis=2)).mean()


@pytest.mark.parametrize(("size", "side"), [(112, 0), (64, 0), (64, 128), (32, 0), (32, 64)])
def test_crops_that_are_much_smaller_than_the_image_show_the_same(size, side):
    """The scaled decoding of JPEGs rounds a crop's box to up to eight pixels, the planes' box is more exact."""
    images = [photo(384, 288, seed) for seed in range(8)]
    expected, found = both(images, size, side, augment=AugmentConfig(), seed=3, epoch=2)
    assert np.abs(expected - found).mean() < 4.0


def test_grayscale_and_pure_colors_survive():
    for color in ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255), (128, 128, 128)):
        image = jpeg(np.full((64, 64, 3), color, dtype=np.uint8))
        expected, found = both([image], 32)
        assert np.abs(expected - found).max() <= 3
    gray = io.BytesIO()
    Image.fromarray(ramp(64, 48)).convert("L").save(gray, "JPEG", quality=95)
    assert np.array_equal(*both([gray.getvalue()], 32))


def test_the_box_of_a_crop_is_that_of_the_original_image():
    images = [jpeg(ramp(300, 200))]
    for side in (0, 100, 50):
        expected, found = both(images, 32, side)
        assert np.abs(expected[:, :, 0] - found[:, :, 0]).max() < 12  # the left and right edges of the crop
        assert np.abs(expected - found).mean() < 3


@pytest.mark.parametrize(
    ("size", "side", "stored"),
    [
        ((384, 288), 0, (384, 288)),
        ((384, 288), 144, (192, 144)),
        ((384, 288), 145, (384, 288)),
        ((384, 288), 30, (48, 36)),
        ((383, 287), 96, (192, 144)),
        ((100, 2000), 96, (100, 2000)),
        ((10, 8), 96, (10, 8)),
    ],
)
def test_images_are_stored_at_the_smallest_scale_that_is_large_enough(size, side, stored):
    data = to_planes(photo(*size), side)
    assert HEADER.unpack_from(data)[1:] == (*size, *stored) and image_size(data) == size
    assert len(data) == planes_bytes(np.array([size]), side)[0]
    assert divisors(np.array([min(size)]), side)[0] in (1, 2, 4, 8)


@pytest.mark.parametrize("name", BROKEN)
def test_an_image_that_cannot_be_decoded_stays_a_jpeg(name):
    assert to_planes(BROKEN[name], 0) == BROKEN[name]
    good = [photo(64, 64), photo(80, 64)]
    mixed = [to_planes(good[0], 0), to_planes(BROKEN[name], 0), good[1]]
    pixels, faults = decode_batch(mixed, np.arange(3), 32)
    _, expected = decode_batch([good[0], BROKEN[name], good[1]], np.arange(3), 32)
    assert faults == expected and list(faults) == [1]
    assert pixels[0].any() and not pixels[1].any() and pixels[2].any()


@pytest.mark.parametrize("size", [5, 12, 1000, -1])
def test_incomplete_planes_are_reported_and_the_others_are_decoded(size):
    whole = to_planes(photo(64, 64), 0)
    pixels, faults = decode_batch([whole, whole[:size], whole], np.arange(3), 32)
    assert list(faults) == [1] and faults[1]
    assert np.array_equal(pixels[0], pixels[2]) and pixels[0].any() and not pixels[1].any()
