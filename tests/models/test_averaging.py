"""Averages of outputs: flips are means of two passes, ensembles are means of probabilities."""

import pytest
import torch

from landmark.config import HeadConfig, ModelConfig
from landmark.models import Embedder, Ensemble, FlipAveraged, build_model, embedding_classifier


@pytest.mark.parametrize("head", ["linear", "cosface"])
def test_flips_average_the_outputs_and_embeddings_of_image_and_mirror_image(head: str) -> None:
    config = ModelConfig(backbone="resnet18", head=HeadConfig(name=head))  # type: ignore[arg-type]
    model = build_model(config, classes=5, image_size=32).eval()
    images = torch.randn(3, 3, 32, 32)
    embedder = Embedder(model)
    with torch.no_grad():
        features = [_features(model, batch) for batch in (images, images.flip(3))]
        layer = embedding_classifier(model) or model.fc
        expected = layer(sum(features) / 2)
        torch.testing.assert_close(FlipAveraged(model)(images), expected)
        if head == "linear":
            torch.testing.assert_close((model(images) + model(images.flip(3))) / 2, expected)
        embeddings, logits = Embedder(model, flips=True).with_logits(images)
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(embeddings, torch.nn.functional.normalize(sum(features), dim=1))
        assert not torch.allclose(embeddings, embedder(images), atol=1e-3)
        twice = Embedder(model, flips=True)(images.flip(3))
    torch.testing.assert_close(twice, embeddings)


def _features(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the input of the last layer."""
    kept: list[torch.Tensor] = []
    layer = [module for module in model.modules() if getattr(module, "weight", None) is not None][-1]
    hook = layer.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    model(images)
    hook.remove()
    return kept[0]


def test_an_ensemble_is_the_mean_of_the_probabilities() -> None:
    models = [build_model(ModelConfig(backbone="resnet18"), classes=5, image_size=32).eval() for _ in range(3)]
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = torch.stack([model(images).softmax(1) for model in models]).mean(0)
        torch.testing.assert_close(Ensemble(models)(images).exp(), expected)
