"""The registry of policies by name."""

from collections.abc import Callable, Iterator

from tests.deployment.manifests import Manifest

Policy = Callable[[list[Manifest]], Iterator[str]]
POLICIES: dict[str, Policy] = {}


def policy(function: Policy) -> Policy:
    """Register a policy by its function's name, with hyphens. Its docstring states the requirement."""
    POLICIES[function.__name__.replace("_", "-")] = function
    return function
