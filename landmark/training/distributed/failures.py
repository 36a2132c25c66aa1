"""One-line errors for machine failures: out of memory, Ray processes that die."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from landmark.config import Recipe, UserError
from landmark.out_of_memory import out_of_memory


def less_memory(recipe: Recipe) -> str:
    """Return advice to reduce a run's memory use."""
    return (
        f"lower loader.batch_size ({recipe.loader.batch_size}) or raise compute.accumulate ({recipe.compute.accumulate}), "
        "which splits each batch into smaller steps"
    )


@contextlib.contextmanager
def memory_errors(recipe: Recipe) -> Iterator[None]:
    """Convert out-of-memory errors of the block to UserError, because a retry would fail again."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if (message := out_of_memory(error)) is None:
            raise
        raise UserError(f"{message}; {less_memory(recipe)}") from None


@contextlib.contextmanager
def ray_errors() -> Iterator[None]:
    """Convert Ray's errors in the block to UserError, in a process that is not restarted."""
    try:
        yield
    except Exception as error:
        ray: Any = sys.modules.get("ray")
        if ray is None or not isinstance(error, ray.exceptions.RayError):
            raise
        from landmark.runtime import own_error

        if (own := own_error(error)) is not None:
            raise own from None
        message = out_of_memory(error)
        if message is None:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            message = f"a Ray process of the run died ({lines[0] if lines else type(error).__name__})"
        raise UserError(f"{message}; run the same command with --resume to continue from the last checkpoint") from None
