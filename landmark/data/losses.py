"""Losses: images that cannot be read or decoded, and what is done about them."""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from landmark.config import UserError
from landmark.storage import Location

MEND = "put the shard back or prepare the dataset again; `damaged: skip` goes on without its images"
MEND_IMAGE = "prepare the dataset again; `damaged: skip` goes on without such images"
DECODING = "decoding"


class Losses:
    """Counts the rows that could not be read or decoded, tells of them, and finds others for their places.

    lost: what is counted, by epoch.
    """

    def __init__(
        self,
        split: Location,
        damaged: Literal["stop", "skip"],
        lost: collections.Counter[int],
        tell: Callable[[str], object] | None,
    ) -> None:
        self.split = split
        self.damaged = damaged
        self.lost = lost
        self.tell = tell
        self.told: set[str] = set()
        self.spare: pa.Table | None = None

    def counted(self, tables: Iterable[pa.Table], epoch: int) -> Iterator[pa.Table]:
        """Yield the tables, adding their lost rows to the epoch's and telling of each shard once.

        Raises UserError for the first lost row, unless these are skipped.
        """
        for table in tables:
            faults = table["fault"].drop_null()
            self.lost[epoch] += len(faults)
            for fault in pc.unique(faults).to_pylist():
                if self.damaged == "stop":
                    raise UserError(f"{fault}; {MEND}")
                shard = fault.split(": ")[0]
                if self.tell is not None and shard not in self.told:
                    self.tell(f"warning: {fault}; its images are skipped and counted as lost_images")
                self.told.add(shard)
            yield table

    def replaced(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield a table for each, of as many rows, with whole ones for the lost: those read just before, else those that
        come next.

        Raises UserError where there is no whole row.
        """
        waiting = 0
        fault = ""
        for table in tables:
            whole = table.filter(pc.is_null(table["fault"])) if table["fault"].null_count < len(table) else table
            waiting += len(table) - len(whole)
            if len(whole):
                self.spare = whole
            elif self.spare is None:
                fault = table["fault"][0].as_py()
            if waiting and self.spare is not None:
                whole = pa.concat_tables([whole, self.spare.take(np.arange(waiting) % len(self.spare))])
                waiting = 0
            yield whole
        if waiting:
            raise UserError(f"{fault}; no other image could be read in its place, prepare the dataset again")

    def rows_left(self, table: pa.Table, faults: dict[int, str], epoch: int, *, fill: bool) -> np.ndarray:
        """Return the rows of a batch that can be shown, int64: with `fill` as many as it has, good ones for bad.

        faults: what is wrong with a row's image. Counts these images as lost and tells of the first of the run. Raises
        UserError unless they are skipped, and where `fill` finds no good row.
        """
        row, fault = next(iter(faults.items()))
        told = f"{self.split}: sample {table['sample'][row]} cannot be decoded ({fault})"
        if self.damaged == "stop":
            raise UserError(f"{told}; {MEND_IMAGE}")
        self.lost[epoch] += len(faults)
        if self.tell is not None and DECODING not in self.told:
            self.tell(f"warning: {told}; such images are skipped and counted as lost_images")
        self.told.add(DECODING)
        rows = np.arange(len(table))
        bad = np.array(list(faults))
        good = np.delete(rows, bad)
        if not fill:
            return good
        if not len(good):
            raise UserError(f"{told}, nor any other image of its batch; prepare the dataset again")
        rows[bad] = good[np.arange(len(bad)) % len(good)]
        return rows
