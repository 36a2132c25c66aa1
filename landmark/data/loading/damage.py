"""Handling of images that cannot be read or decoded."""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from landmark.config import UserError
from landmark.storage import Location

HINT_DAMAGE = "restore the shard, prepare the dataset again, or set `corrupt: skip` to continue without its images"
HINT_IMAGE = "prepare the dataset again, or set `corrupt: skip` to continue without such images"
DECODING = "decoding"

Spares = Callable[[], Iterator[pa.Table]]
"""Reads other rows of the split, as tables without faults."""


class DamagePolicy:
    """Reports rows that cannot be read or decoded, and replaces their images by others.

    A replaced row keeps its position and its `visit`. Only image, label and sample come from another row. The accounting
    of an epoch therefore follows its plan, whatever is lost. The column `fault` keeps the reason.
    """

    def __init__(
        self,
        split: Location,
        corrupt: Literal["stop", "skip"],
        spares: Spares,
        tell: Callable[[str], object] | None,
    ) -> None:
        self.split = split
        self.corrupt = corrupt
        self.spares = spares
        self.tell = tell
        self.reported: set[str] = set()
        self.spare: pa.Table | None = None

    def checked(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield the tables, and report each shard with lost rows once.

        Raises UserError for the first lost row, unless lost rows are skipped.
        """
        for table in tables:
            for fault in pc.unique(table["fault"].drop_null()).to_pylist():
                if self.corrupt == "stop":
                    raise UserError(f"{fault}; {HINT_DAMAGE}")
                shard = fault.split(": ")[0]
                if self.tell is not None and shard not in self.reported:
                    self.tell(f"warning: {fault}; its images are skipped and counted as lost_images")
                self.reported.add(shard)
            yield table

    def replaced(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield the tables in order. Images that were read before replace lost ones, or else images that are read next.

        Raises UserError if no other image can be read.
        """
        held: list[pa.Table] = []
        for table in tables:
            if readable := table["fault"].null_count:
                # A filter copies the images.
                self.spare = table if readable == len(table) else table.filter(pc.is_null(table["fault"]))
            held.append(table)
            if self.spare is not None:
                yield from (self._filled(each, self.spare) for each in held)
                held = []
        if not held:
            return
        self.spare = next(self.spares(), None)
        if self.spare is None:
            raise UserError(
                f"{held[0]['fault'][0].as_py()}; no other image could be read instead; prepare the dataset again"
            )
        yield from (self._filled(each, self.spare) for each in held)

    @staticmethod
    def _filled(table: pa.Table, spare: pa.Table) -> pa.Table:
        if table["fault"].null_count == len(table):
            return table
        lost = np.flatnonzero(table["fault"].is_valid().to_numpy(zero_copy_only=False))
        rows = np.arange(len(table))
        rows[lost] = len(table) + np.arange(len(lost)) % len(spare)
        return replacement_rows(table, pa.concat_tables([table, spare]).take(rows))

    def report_undecoded(self, table: pa.Table, faults: dict[int, str]) -> str:
        """Report the run's first image that cannot be decoded. Returns a description of the batch's first one.

        faults: the error of each row's image. Raises UserError unless such images are skipped.
        """
        row, fault = next(iter(faults.items()))
        line = f"{self.split}: sample {table['sample'][row]} cannot be decoded ({fault})"
        if self.corrupt == "stop":
            raise UserError(f"{line}; {HINT_IMAGE}")
        if self.tell is not None and DECODING not in self.reported:
            self.tell(f"warning: {line}; such images are skipped and counted as lost_images")
        self.reported.add(DECODING)
        return line

    def candidates(self) -> Iterator[pa.Table]:
        """Yield tables of replacement images: the images read last, then images of the whole split."""
        if self.spare is not None:
            yield self.spare
        yield from self.spares()


def replacement_rows(table: pa.Table, other: pa.Table) -> pa.Table:
    """Return the table with the images, labels and samples of another table of equal length. Visits and faults stay."""
    for name in ("image", "undecoded", "label", "sample"):
        if name in table.column_names:
            table = table.set_column(table.schema.get_field_index(name), name, other[name])
    return table


def count_lost(table: pa.Table, undecoded: Collection[int] = ()) -> int:
    """Return the number of lost images of a batch. Each is counted once.

    undecoded: rows whose image cannot be decoded. Padding rows, which keep the ranks in step (visit -1), are not
    counted.
    """
    if not undecoded and table["fault"].null_count == len(table):
        return 0
    lost = table["fault"].is_valid().to_numpy(zero_copy_only=False).copy()
    lost[list(undecoded)] = True
    return int((lost & (table["visit"].to_numpy() >= 0)).sum())
