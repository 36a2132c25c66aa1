"""Embeddings: unit length for each kind of backbone, and equal to the input of the classifier."""

import pytest
import torch
from torch import nn

from landmark.config import ModelConfig
from landmark.models import Embedder, build_model
from landmark.models.embeddings import classifier_of

WIDTHS = {
    "reference_mlp": 100,
    "reference_cnn_avg": 100,
    "resnet18": 512,
    "squeezenet1_1": 512,
    "mobilenet_v3_small": 1024,
    "googlenet": 1024,
    "swin_t": 768,
    "timm/tf_efficientnet_lite0": 1280,
    "timm/vit_tiny_patch16_224": 192,
}


@pytest.mark.parametrize("name", WIDTHS)
def test_embeddings_have_unit_length_and_the_width_of_the_backbone(name: str) -> None:
    size = 224 if "vit" in name or "swin" in name else 64
    model = build_model(ModelConfig(backbone=name), classes=7, image_size=size)
    embedder = Embedder(model)
    with torch.no_grad():
        images = torch.randn(2, 3, size, size)
        embeddings, logits = embedder.with_logits(images)
        torch.testing.assert_close(logits, model(images))
        torch.testing.assert_close(embedder(images), embeddings)
    assert embeddings.shape == (2, WIDTHS[name]) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


def test_a_linear_classifier_on_the_features_gives_the_logits() -> None:
    model = build_model(ModelConfig(backbone="resnet18"), classes=5, image_size=64)
    layer = classifier_of(model)
    assert layer is model.fc and isinstance(layer, nn.Linear)
    layer.bias.data.zero_()
    with torch.no_grad():
        embeddings, logits = Embedder(model).with_logits(torch.randn(3, 3, 64, 64))
        directions = embeddings @ layer.weight.T
    torch.testing.assert_close(nn.functional.normalize(directions), nn.functional.normalize(logits))
