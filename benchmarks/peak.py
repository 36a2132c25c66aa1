"""Peak memory of a process and its descendants, for the benchmarks."""

import threading
from collections.abc import Iterator

import psutil


class Peak:
    """Samples the private memory of a process and its descendants. Shared pages do not count. every: seconds."""

    def __init__(self, pid: int, *, leave_out: int | None = None, every: float = 0.5) -> None:
        self.process = psutil.Process(pid)
        self.left_out = leave_out
        self.every = every
        self.peak_mib = 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.ended.wait(self.every):
            self.peak_mib = max(self.peak_mib, sum(self._sizes()) / 2**20)

    def _sizes(self) -> Iterator[int]:
        try:
            for process in [self.process, *self.process.children(recursive=True)]:
                if process.pid == self.left_out:
                    continue
                try:
                    yield process.memory_full_info().uss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
        except psutil.NoSuchProcess:
            return

    def stop(self) -> float:
        """Return the maximum, MiB."""
        self.ended.set()
        self.thread.join()
        return self.peak_mib
