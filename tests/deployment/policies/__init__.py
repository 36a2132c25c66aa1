"""Named policies: each takes the built manifests and returns the violations, one line each."""

from tests.deployment.manifests import Manifest
from tests.deployment.policies import access, jobs, operation, pods
from tests.deployment.policies.registry import POLICIES

__all__ = ["POLICIES", "access", "findings", "jobs", "operation", "pods"]


def findings(manifests: list[Manifest]) -> list[tuple[str, str]]:
    """Return the name of the policy and a description for each violation."""
    return [(name, line) for name, policy in POLICIES.items() for line in policy(manifests)]
