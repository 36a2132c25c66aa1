"""The policies by their names."""

from collections.abc import Callable, Iterator

from tests.deployment.manifests import Manifest

Policy = Callable[[list[Manifest]], Iterator[str]]
POLICIES: dict[str, Policy] = {}


def policy(function: Policy) -> Policy:
    """Register a policy under its function's name, hyphens for underscores; its docstring says what it demands."""
    POLICIES[function.__name__.replace("_", "-")] = function
    return function
