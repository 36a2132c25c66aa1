"""Losses: images that cannot be read or decoded, and what is done about them."""

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

Spares = Callable[[], Iterator[pa.Table]]
"""Reads some other rows of the split: tables without a fault."""


class Losses:
    """Reports the rows that could not be read or decoded, and finds other images for their places.

    A replaced row keeps its place and its draw: only image, label and sample are another row's. So the account of an epoch
    is that of its plan, whatever is lost. Its column `fault` still says why it was replaced.
    """

    def __init__(
        self,
        split: Location,
        damaged: Literal["stop", "skip"],
        spares: Spares,
        tell: Callable[[str], object] | None,
    ) -> None:
        self.split = split
        self.damaged = damaged
        self.spares = spares
        self.tell = tell
        self.told: set[str] = set()
        self.spare: pa.Table | None = None

    def checked(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield the tables, reporting each shard with lost rows once.

        Raises UserError for the first lost row, unless these are skipped.
        """
        for table in tables:
            for fault in pc.unique(table["fault"].drop_null()).to_pylist():
                if self.damaged == "stop":
                    raise UserError(f"{fault}; {MEND}")
                shard = fault.split(": ")[0]
                if self.tell is not None and shard not in self.told:
                    self.tell(f"warning: {fault}; its images are skipped and counted as lost_images")
                self.told.add(shard)
            yield table

    def replaced(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield the tables in their order, with images read just before for the lost ones, or else images read next.

        Raises UserError where no other image can be read.
        """
        held: list[pa.Table] = []
        for table in tables:
            if table["fault"].null_count:
                self.spare = table.filter(pc.is_null(table["fault"]))
            held.append(table)
            if self.spare is not None:
                yield from (self._filled(each, self.spare) for each in held)
                held = []
        if not held:
            return
        self.spare = next(self.spares(), None)
        if self.spare is None:
            raise UserError(
                f"{held[0]['fault'][0].as_py()}; no other image could be read in its place, prepare the dataset again"
            )
        yield from (self._filled(each, self.spare) for each in held)

    @staticmethod
    def _filled(table: pa.Table, spare: pa.Table) -> pa.Table:
        if table["fault"].null_count == len(table):
            return table
        lost = np.flatnonzero(table["fault"].is_valid().to_numpy(zero_copy_only=False))
        rows = np.arange(len(table))
        rows[lost] = len(table) + np.arange(len(lost)) % len(spare)
        return with_images_of(table, pa.concat_tables([table, spare]).take(rows))

    def report_undecoded(self, table: pa.Table, faults: dict[int, str]) -> str:
        """Report the first image of the run that cannot be decoded, and return the line that names this batch's first.

        faults: what is wrong with a row's image. Raises UserError unless such images are skipped.
        """
        row, fault = next(iter(faults.items()))
        line = f"{self.split}: sample {table['sample'][row]} cannot be decoded ({fault})"
        if self.damaged == "stop":
            raise UserError(f"{line}; {MEND_IMAGE}")
        if self.tell is not None and DECODING not in self.told:
            self.tell(f"warning: {line}; such images are skipped and counted as lost_images")
        self.told.add(DECODING)
        return line

    def candidates(self) -> Iterator[pa.Table]:
        """Yield tables of other images: those read last, then some of the whole split."""
        if self.spare is not None:
            yield self.spare
        yield from self.spares()


def with_images_of(table: pa.Table, other: pa.Table) -> pa.Table:
    """Return a table of as many rows with another one's images, labels and samples; draws and faults stay."""
    for name in ("image", "label", "sample"):
        if name in table.column_names:
            table = table.set_column(table.schema.get_field_index(name), name, other[name])
    return table


def count_lost(table: pa.Table, undecoded: Iterable[int] = ()) -> int:
    """Return the lost images of a batch, each counted once; undecoded: rows whose image cannot be decoded.

    Rows shown to keep the ranks in step (draw -1) count nowhere.
    """
    lost = table["fault"].is_valid().to_numpy(zero_copy_only=False).copy()
    lost[list(undecoded)] = True
    return int((lost & (table["draw"].to_numpy() >= 0)).sum())
