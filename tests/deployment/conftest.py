"""Fixtures of the manifest tests: kubectl and KubeRay's schemas. In CI, tests fail without them."""

import copy
import os
from functools import cache

import pytest

from tests.deployment.manifests import CRDS, Manifest, has_kubectl, overlay


def _require(found: bool, reason: str) -> None:
    if not found and os.environ.get("CI"):
        pytest.fail(reason)
    if not found:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def kustomize() -> None:
    _require(has_kubectl(), "no kubectl of version 1.21 or newer; bash scripts/kubectl.sh installs one")


@pytest.fixture(scope="session")
def crds(kustomize: None) -> None:
    _require(CRDS.is_dir(), f"no schemas of KubeRay at {CRDS}; set LANDMARK_CRDS")


@cache
def _built(name: str) -> list[Manifest]:
    return overlay(name)


@pytest.fixture
def built(kustomize: None):
    """Return a function that takes the name of an overlay and returns a copy of its manifests."""
    return lambda name: copy.deepcopy(_built(name))
