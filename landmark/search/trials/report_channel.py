"""Actor between the workers of a trial and the trial's process. Imports neither torch nor landmark, to start fast."""

import asyncio
from typing import Any


class ReportChannel:
    """Passes reports from a trial's rank 0 to the trial's process; rank 0 waits until Ray Tune has processed each report.

    A trial that is stopped or paused has therefore not trained past its last report.
    """

    def __init__(self) -> None:
        self._reports: asyncio.Queue[tuple[dict[str, Any], asyncio.Future[bool]]] = asyncio.Queue()
        self._taken: asyncio.Future[bool] | None = None
        self._ended = False
        self._group: Any = None

    async def begin(self, placement_group: Any) -> None:
        """Store the workers' placement group."""
        self._group = placement_group

    async def report(self, metrics: dict[str, Any]) -> bool:
        """Report an epoch and wait for the decision; returns whether the trial continues."""
        taken = asyncio.get_running_loop().create_future()
        if self._ended:
            return False
        await self._reports.put((metrics, taken))
        return await taken

    async def take(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the next epoch for the trial's process to report to Ray Tune; None if none arrives within timeout_s."""
        try:
            metrics, self._taken = await asyncio.wait_for(self._reports.get(), timeout_s)
        except TimeoutError:
            return None
        return metrics

    async def go_on(self, *, ended: bool = False) -> Any:
        """Let the workers continue or, if ended, stop; returns their placement group."""
        self._ended = ended
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(not ended)
        while ended and not self._reports.empty():
            self._reports.get_nowait()[1].set_result(False)
        return self._group
