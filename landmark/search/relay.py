"""Between the workers of a trial and its process; imports neither torch nor our own packages, so that it is there at once."""

import asyncio
from typing import Any


class Relay:
    """Between a trial's workers and its process: an actor where rank 0's report waits until Ray Tune has taken it.

    So a trial that is stopped or paused has not gone beyond what it reported.
    """

    def __init__(self) -> None:
        self._reports: asyncio.Queue[tuple[dict[str, Any], asyncio.Future[bool]]] = asyncio.Queue()
        self._taken: asyncio.Future[bool] | None = None
        self._ended = False
        self._group: Any = None

    async def begin(self, placement_group: Any) -> None:
        """Take what the workers occupy."""
        self._group = placement_group

    async def report(self, metrics: dict[str, Any]) -> bool:
        """Hand over an epoch; returns, when it is known, whether the trial goes on."""
        taken = asyncio.get_running_loop().create_future()
        if self._ended:
            return False
        await self._reports.put((metrics, taken))
        return await taken

    async def take(self, timeout_s: float) -> dict[str, Any] | None:
        """Give the next epoch, which the trial's process reports to Ray Tune, or None when there is none yet."""
        try:
            metrics, self._taken = await asyncio.wait_for(self._reports.get(), timeout_s)
        except TimeoutError:
            return None
        return metrics

    async def go_on(self, *, ended: bool = False) -> Any:
        """Let the workers go on, or return; gives what they occupy."""
        self._ended = ended
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(not ended)
        while ended and not self._reports.empty():
            self._reports.get_nowait()[1].set_result(False)
        return self._group
