"""Memory for arrays that is used again."""

import collections
import math
import weakref

import numpy as np


class BufferPool:
    """Memory for arrays that is reused when nobody holds the array. New memory costs a page fault per 4 KiB."""

    def __init__(self, idle: int) -> None:
        """idle: maximum number of buffers that nobody holds."""
        self._idle: collections.deque[np.ndarray] = collections.deque(maxlen=idle)

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an uninitialized uint8 array. Its memory is reused once the array and all views of it are released."""
        size = math.prod(shape)
        memory = self._fitting(size)
        # The memoryview `data` makes this array the base of all views. Otherwise numpy would use the memory itself as
        # their base.
        array = np.frombuffer(memory.data, dtype=np.uint8, count=size)
        weakref.finalize(array, self._idle.append, memory).atexit = False
        return array.reshape(shape)

    def _fitting(self, size: int) -> np.ndarray:
        while True:
            try:
                memory = self._idle.popleft()
            except IndexError:
                # Batch sizes differ by a row.
                return np.empty(size + size // 16, dtype=np.uint8)
            if size <= len(memory) <= 2 * size:
                return memory
