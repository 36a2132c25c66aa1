"""Tests augmentation on the device: flips, normalization, random erasing, mixup and CutMix."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmark.config import AugmentConfig
from landmark.data.loading.loader import Batch
from landmark.training.compute.device_augmentation import Augmentation, Preprocess, cut_box, erase, erased_boxes
from landmark.training.compute.device_prefetch import place

CPU = torch.device("cpu")
SIZE = 24


def batch_of(visits: list[int], epoch: int = 1) -> Batch:
    """Return a batch of single-color images; the color is the visit's number."""
    numbers = np.array(visits, dtype=np.int64)
    images = np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None], (len(visits), SIZE, SIZE, 3))
    flip = np.zeros(len(visits), dtype=bool)
    return Batch(
        images=images.copy(), labels=numbers, samples=numbers, visits=numbers, flip=flip, weight=1.0, epoch=epoch
    )


def augmented(config: AugmentConfig, batch: Batch, seed: int = 3):
    placed = place(batch, CPU)
    inputs = torch.from_numpy(batch.images).permute(0, 3, 1, 2).float() + 1
    return Augmentation(config, seed)(inputs.contiguous(memory_format=torch.channels_last), placed)


@pytest.mark.parametrize("channels_last", [True, False])
def test_pixels_are_flipped_and_normalized(channels_last):
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    flip = torch.tensor([True, False, True])
    preprocess = Preprocess((0.5, 0.4, 0.3), (0.2, 0.25, 0.5), CPU, channels_last=channels_last)
    inputs = preprocess(images, flip)
    flipped = images.clone()
    flipped[[0, 2]] = flipped[[0, 2]].flip(2)
    expected = (flipped.float() / 255 - torch.tensor((0.5, 0.4, 0.3))) / torch.tensor((0.2, 0.25, 0.5))
    assert torch.allclose(inputs, expected.permute(0, 3, 1, 2), atol=1e-5)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert inputs.is_contiguous(memory_format=layout)
    assert torch.equal(preprocess(images), preprocess(images, torch.zeros(3, dtype=torch.bool)))


@given(st.integers(0, 2**31), st.floats(0, 1), st.integers(16, 200), st.integers(16, 200))
def test_erased_boxes_are_inside_with_the_set_probability_and_area(seed, probability, height, width):
    uniform = np.random.default_rng(seed).random((500, 5))
    top, left, bottom, right = erased_boxes(uniform, probability, height, width).T
    assert (top >= 0).all() and (left >= 0).all() and (bottom <= height).all() and (right <= width).all()
    areas = (bottom - top) * (right - left) / (height * width)
    assert (areas > 0).mean() == pytest.approx(probability, abs=0.1)
    assert (areas[areas > 0] < 0.4).all()


def test_erasing_is_independent_of_batching_and_varies_by_epoch():
    config = AugmentConfig(erasing=0.5)
    one_batch, _ = augmented(config, batch_of(list(range(1, 65))))
    two_batches = [augmented(config, batch_of(visits))[0] for visits in (list(range(1, 20)), list(range(20, 65)))]
    assert torch.equal(one_batch, torch.cat(two_batches))
    erased = (one_batch == 0).flatten(1).any(1)
    assert 16 < int(erased.sum()) < 48
    assert not torch.equal(one_batch, augmented(config, batch_of(list(range(1, 65)), epoch=2))[0])


def test_erasing_sets_only_the_box_to_zero():
    inputs = torch.ones(2, 3, 10, 12)
    erase(inputs, np.array([[2, 3, 5, 9], [0, 0, 0, 0]]))
    assert inputs[0, :, 2:5, 3:9].sum() == 0
    assert inputs[0].sum() == 3 * (120 - 18) and inputs[1].sum() == 360


def test_mixup_is_the_weighted_sum_of_two_images_and_labels():
    batch = batch_of([10, 20, 40, 80])
    inputs, mixed = augmented(AugmentConfig(mixup=0.8), batch)
    assert mixed is not None and mixed.labels.tolist() == [80, 10, 20, 40]
    first, second = torch.from_numpy(batch.labels).float() + 1, mixed.labels.float() + 1
    expected = mixed.weight * first + (1 - mixed.weight) * second
    assert torch.allclose(inputs, expected.view(-1, 1, 1, 1).expand_as(inputs), rtol=1e-5)


def test_cutmix_pastes_a_box_whose_area_is_the_label_weight():
    batches = [batch_of([10 + n, 100 + n, 200 + n]) for n in range(20)]
    for batch in batches:
        inputs, mixed = augmented(AugmentConfig(cutmix=1.0), batch)
        for image, first, second in zip(inputs, batch.labels, mixed.labels, strict=True):
            assert set(image.unique().tolist()) <= {float(first) + 1, float(second) + 1}
            assert (image == first + 1).float().mean().item() == pytest.approx(mixed.weight, abs=1e-6)


@given(st.floats(0, 1), st.floats(0, 0.999), st.floats(0, 0.999), st.integers(8, 300))
def test_a_cut_box_is_not_larger_than_its_fraction(fraction, y, x, size):
    top, left, bottom, right = cut_box(fraction, np.array([y, x]), size, size)
    assert 0 <= top <= bottom <= size and 0 <= left <= right <= size
    assert (bottom - top) * (right - left) <= (1 - fraction) * size * size + 2 * size + 1


def test_mixing_is_reproducible_and_differs_per_batch():
    config = AugmentConfig(mixup=0.4, cutmix=1.0, mix_prob=0.5)
    first = [augmented(config, batch_of([n, n + 1, n + 2])) for n in range(60)]
    again = [augmented(config, batch_of([n, n + 1, n + 2])) for n in range(60)]
    weights = [mixed.weight if mixed else None for _, mixed in first]
    assert weights == [mixed.weight if mixed else None for _, mixed in again]
    assert all(torch.equal(one, two) for (one, _), (two, _) in zip(first, again, strict=True))
    unmixed = weights.count(None)
    assert 15 < unmixed < 45 and len(set(weights)) > 60 - unmixed - 5
    assert augmented(config, batch_of([7]))[1] is None
