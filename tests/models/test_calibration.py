"""Tests temperature scaling: the fitted temperature, and that it only divides the logits of every kind of last layer."""

import pytest
import torch

from landmark.config import HeadConfig, ModelConfig
from landmark.models import build_model, fit_temperature, with_temperature


def sampled(rows: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits whose correct temperature is `scale`."""
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(rows, 6, generator=random)
    labels = torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0]
    return logits * scale, labels


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_the_temperature_of_sampled_labels_is_recovered(scale: float) -> None:
    assert fit_temperature(*sampled(20000, scale)) == pytest.approx(scale, rel=0.03)


def test_no_other_temperature_has_a_lower_loss() -> None:
    logits, labels = sampled(500, 2.0)
    best = fit_temperature(logits, labels)
    assert 1.5 < best < 3
    losses = [float(torch.nn.functional.cross_entropy(logits / t, labels)) for t in (best, best * 1.05, best / 1.05)]
    assert losses[0] == min(losses)


def test_ranks_find_the_temperature_of_all_images() -> None:
    logits, labels = sampled(600, 2.0)
    from tests.support.ranks import World

    parts = [slice(0, 100), slice(100, 600), slice(600, 600)]
    world = World(3)
    found = world.run(lambda rank: fit_temperature(logits[parts[rank.rank]], labels[parts[rank.rank]], rank.all_reduce))
    assert found == pytest.approx([fit_temperature(logits, labels)] * 3, rel=1e-6)


def test_logits_without_an_error_or_without_images() -> None:
    labels = torch.arange(6)
    found = (10 * torch.eye(6) / fit_temperature(10 * torch.eye(6), labels)).softmax(1)
    torch.testing.assert_close(found.diagonal(), torch.full((6,), 1 - 5 / 6 / 8), atol=1e-4, rtol=0)  # 6 + 2 images
    assert fit_temperature(10 * torch.eye(6), labels.roll(1)) == pytest.approx(20, rel=1e-3)
    assert fit_temperature(torch.empty(0, 6), torch.empty(0, dtype=torch.int64)) == 1


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(backbone="resnet18"),
        ModelConfig(backbone="squeezenet1_1"),  # a convolution, a ReLU, an average
        ModelConfig(backbone="resnet18", neck=8, head=HeadConfig(name="arcface")),
        ModelConfig(backbone="resnet18", head=HeadConfig(name="subcenter")),
        ModelConfig(backbone="timm/deit_tiny_distilled_patch16_224"),  # two linear layers
    ],
    ids=lambda config: f"{config.backbone}-{config.head.name}",
)
def test_logits_are_divided(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = build_model(config, classes=5, image_size=224).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        before = model(images)
        after = with_temperature(model, 2.5)(images)
    torch.testing.assert_close(after, before / 2.5, atol=1e-5, rtol=1e-4)
