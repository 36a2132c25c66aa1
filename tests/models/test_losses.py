"""The loss: two labels per image equal dense targets, and class weights average to one."""

import collections

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from landmark.config import HeadConfig
from landmark.models import MixedLabels, build_margin, class_weights, classification_loss, logit_adjustment


@given(st.floats(0, 0.9), st.floats(0, 1), st.integers(1, 9), st.integers(2, 7), st.integers(0, 1000))
def test_mixed_and_smoothed_labels_equal_dense_targets(smoothing, fraction, rows, classes, seed):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=random)
    one, two = torch.randint(0, classes, (2, rows), generator=random)
    found = classification_loss(logits, one, smoothing, mixed=MixedLabels(labels=two, weight=fraction))
    dense = fraction * functional.one_hot(one, classes) + (1 - fraction) * functional.one_hot(two, classes)
    assert found.item() == pytest.approx(
        functional.cross_entropy(logits, dense, label_smoothing=smoothing).item(), abs=1e-5
    )


def test_class_weights_scale_each_image_without_normalizing_the_mean():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 0, 1, 2, 2, 2])
    weights = torch.tensor([0.5, 2.0, 1.0])
    each = functional.cross_entropy(logits, labels, reduction="none") * weights[labels]
    assert torch.allclose(classification_loss(logits, labels, class_weights=weights), each.mean())


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=50).filter(any), st.sampled_from(["sqrt", "balanced"]))
def test_class_weights_average_to_one_over_the_images(counts, name):
    images = np.array(counts)
    weights = class_weights(images, name)
    assert (weights * images).sum() / images.sum() == pytest.approx(1, rel=1e-4)
    present = weights[images > 0] * (images[images > 0] ** (0.5 if name == "sqrt" else 1.0))
    assert np.allclose(present, present[0], rtol=1e-4) and not weights[images == 0].any()
    assert class_weights(images, "none") is None


def test_auxiliary_heads_have_a_fixed_weight():
    heads = collections.namedtuple("InceptionOutputs", ["logits", "aux"])(torch.randn(4, 3), torch.randn(4, 3))
    labels = torch.tensor([0, 1, 2, 0])
    main, aux = (functional.cross_entropy(logits, labels) for logits in heads)
    assert torch.allclose(classification_loss(heads, labels), main + 0.4 * aux)


def test_logit_adjustment_adds_the_log_of_the_training_images():
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 4, generator=random), torch.tensor([0, 0, 1, 2, 2, 3])
    counts = np.array([100, 10, 1, 0])
    adjustment = torch.from_numpy(logit_adjustment(counts, 1.0))
    # Balanced softmax: each class's exponential is weighted with its number of images.
    weighted = logits.exp() * torch.tensor([100.0, 10.0, 1.0, 1.0])
    expected = -(weighted.gather(1, labels[:, None])[:, 0] / weighted.sum(1)).log()
    assert torch.allclose(classification_loss(logits, labels, adjustment=adjustment), expected.mean(), atol=1e-5)
    assert np.allclose(logit_adjustment(counts, 0.5), adjustment / 2) and logit_adjustment(counts, 0.0) is None


def test_logit_adjustment_applies_to_mixed_labels_auxiliary_heads_and_margins():
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 3, generator=random), torch.tensor([0, 1, 2, 0])
    adjustment = torch.tensor([0.0, 2.0, -1.0])
    mixed = MixedLabels(labels=labels.roll(1), weight=0.3)
    found = classification_loss(logits, labels, mixed=mixed, adjustment=adjustment)
    assert torch.allclose(found, classification_loss(logits + adjustment, labels, mixed=mixed))
    heads = collections.namedtuple("InceptionOutputs", ["logits", "aux"])(logits, logits.flip(0))
    shifted = type(heads)(*(each + adjustment for each in heads))
    found = classification_loss(heads, labels, adjustment=adjustment)
    assert torch.allclose(found, classification_loss(shifted, labels))
    margin = build_margin(HeadConfig(name="cosface", scale=10.0), None, torch.device("cpu"))
    lowered = margin.on_all(logits, labels) + adjustment
    found = classification_loss(logits, labels, margin=margin, adjustment=adjustment)
    assert torch.allclose(found, functional.cross_entropy(lowered, labels))
