"""Tests compute.deterministic: pooling is replaced by an equivalent; other nondeterministic operations are errors."""

import pytest
import torch
import torchvision
from torch import nn

from landmark.config import ComputeConfig, UserError
from landmark.training.compute.determinism import DeterministicAdaptiveAvgPool2d, check_deterministic, replace_pooling
from landmark.training.compute.precision import Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(7, 7), (6, 5), (3, 9), (1, 14), (13, 8)])
@pytest.mark.parametrize("output", [7, (6, 6), (3, None), (2, 5)])
def test_deterministic_pooling_equals_adaptive_pooling(size, output):
    torch.manual_seed(0)
    with torch.inference_mode():  # as when validation runs first
        DeterministicAdaptiveAvgPool2d(output)(torch.randn(2, 3, *size))
    maps = torch.randn(2, 3, *size, requires_grad=True)
    again = maps.detach().clone().requires_grad_()
    actual, expected = DeterministicAdaptiveAvgPool2d(output)(maps), nn.AdaptiveAvgPool2d(output)(again)
    weights = torch.randn_like(expected)
    (actual * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(maps.grad, again.grad)


@pytest.mark.parametrize(("name", "replaced"), [("vgg11", 1), ("alexnet", 1), ("resnet18", 0)])
def test_replaced_pooling_keeps_weights_and_outputs(name, replaced):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=3).eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        before, names = model(images), list(model.state_dict())
        replace_pooling(model)
        torch.testing.assert_close(model(images), before)
    assert list(model.state_dict()) == names
    assert sum(isinstance(module, DeterministicAdaptiveAvgPool2d) for module in model.modules()) == replaced


class NondeterministicModel(nn.Module):
    """A model with an operation that has no deterministic version, not even on CPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros(len(images), 3).put_(torch.tensor([0]), images.sum()[None])
        return self.last(sums)


def test_an_op_without_a_deterministic_version_is_a_one_line_error():
    precision = Precision(ComputeConfig(amp="off"), CPU, NondeterministicModel(), 16)
    model = NondeterministicModel()
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(
            UserError, match=r"compute.deterministic is true, but put_\S*, which odd uses, has no"
        ) as error:
            check_deterministic(model, 16, precision, "odd")
        check_deterministic(torchvision.models.resnet18(num_classes=3), 32, precision, "resnet18")
    finally:
        torch.use_deterministic_algorithms(False)
    assert "\n" not in str(error.value) and all(weight.grad is None for weight in model.parameters())
