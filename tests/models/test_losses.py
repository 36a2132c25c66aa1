"""The loss: two labels per image equal dense targets, and class weights average to one."""

import collections

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from landmark.models import MixedLabels, class_weights, classification_loss


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
