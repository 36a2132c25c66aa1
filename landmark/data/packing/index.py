"""The index of a tar plan: plan row, label and split of each wanted id, in a few bytes per row."""

import functools
import io
from dataclasses import dataclass

import numpy as np

from landmark.storage import Location

UNWANTED = -1
"""An image with a row that is not in the subset."""
UNKNOWN = -2
"""An image without a row."""
INDEX_FILE = "index.npz"


@dataclass(kw_only=True, frozen=True, eq=False)
class IdIndex:
    """Sorted id keys. The position of a wanted id is its row in the plan."""

    wanted: np.ndarray
    """uint64 (wanted,), ascending."""
    labels: np.ndarray
    """int32 (wanted,)."""
    splits: np.ndarray
    """int8 (wanted,)."""
    known: np.ndarray
    """All ids with a row, uint64, ascending. Empty if all of them are wanted."""

    def row(self, key: int) -> int:
        """Return the plan row of an id's key, UNWANTED or UNKNOWN."""
        row = _position(self.wanted, key)
        if row >= 0:
            return row
        return UNWANTED if _position(self.known, key) >= 0 else UNKNOWN

    def save(self, work: Location) -> None:
        """Save the index in the work folder."""
        buffer = io.BytesIO()
        known = self.known if len(self.known) > len(self.wanted) else self.known[:0]
        np.savez(buffer, wanted=self.wanted, labels=self.labels, splits=self.splits, known=known)
        (work / INDEX_FILE).write_bytes(buffer.getvalue())


@functools.lru_cache(maxsize=1)
def load_index(work: Location, plan_id: str) -> IdIndex:
    """Read a plan's index, once per process. `plan_id` distinguishes plans in the same folder."""
    with np.load(io.BytesIO((work / INDEX_FILE).read_bytes())) as arrays:
        return IdIndex(**{name: arrays[name] for name in arrays.files})


def _position(keys: np.ndarray, key: int) -> int:
    place = int(np.searchsorted(keys, np.uint64(key)))
    return place if place < len(keys) and int(keys[place]) == key else -1
