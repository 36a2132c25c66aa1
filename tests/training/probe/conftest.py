"""Shared fixtures of the tests of stored features."""

import pytest
import torch

from landmark.models import FeatureModel


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each forward pass that computed features."""
    counts: list[int] = []
    call = FeatureModel.__call__

    def counted(self: FeatureModel, images: torch.Tensor) -> torch.Tensor:
        counts.append(len(images))
        return call(self, images)

    monkeypatch.setattr(FeatureModel, "__call__", counted)
    return counts
