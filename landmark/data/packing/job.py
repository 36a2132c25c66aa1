"""The packing job: runs Ray Data over the tasks of the plan until each image is packed once, then finishes the
dataset."""

import collections
import json
import re
import time
from dataclasses import dataclass
from typing import Any

import ray

from landmark.config import PrepareConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.packing.finish import finish
from landmark.data.packing.gldv2_source import Gldv2Source
from landmark.data.packing.join import Figures, drop_duplicates, find_missing, part_rejects
from landmark.data.packing.plan import Plan, load_or_make, recorded_settings
from landmark.data.packing.sources import Source, changes, source_state
from landmark.data.packing.tasks import PARTS_FOLDER, WORK_FOLDER
from landmark.data.packing.worker import NO_ROW, Packer, part_file
from landmark.progress import Progress
from landmark.runtime import own_error
from landmark.storage import Location, NotFound, check_writable, restated
from landmark.storage.tables import read_table

MIN_CHECKED_ROWS = 1000
"""Minimum rows before too many rejects stop a job early."""


@dataclass(kw_only=True, frozen=True)
class PackingResult:
    """The result of a packing job."""

    dataset: PackedDataset
    """The finished dataset."""
    packed: int
    """Number of images packed by this call, without those of an interrupted call."""
    rejects: dict[str, int]
    """Number of rejected images, by reason."""
    seconds: float
    """Wall time of this call."""
    bytes_in: int
    """Bytes read by this call."""
    bytes_out: int
    """Bytes of all shards."""
    notes: list[str]
    """Notes for the user."""

    def summary(self) -> dict[str, Any]:
        """Return the JSON summary."""
        manifest = self.dataset.manifest
        return {
            "dataset": self.dataset.uri,
            "classes": manifest.classes,
            "images": {name: entry.rows for name, entry in manifest.splits.items()},
            "packed": self.packed,
            "rejects": self.rejects,
            "seconds": self.seconds,
        }


def pack_dataset(output: Location, source: Source, config: PrepareConfig) -> PackingResult:
    """Pack a source into `output`, or resume an interrupted call.

    Requires a connected Ray. A finished dataset with the same options is not changed. One with other options raises
    UserError, and so do more than packing.max_reject_fraction rejected images.
    """
    start = time.monotonic()
    if (done := _finished(output, source, config)) is not None:
        return done
    check_writable(output)
    _check_tars(source, config)
    plan = load_or_make(output, source, config)
    figures = _read_figures(output, plan)
    before = sum(part["rows"] for part in figures.values())
    bytes_in = _run(output, source, config, plan, figures)
    while drop_duplicates(output, plan, figures):
        bytes_in += _run(output, source, config, plan, figures)
    packed = max(0, sum(part["rows"] for part in figures.values()) - before)
    missing = find_missing(output, plan)
    _check_rejects(output, config, figures, source, missing=len(missing), final=True)
    dataset = finish(output, source, config, plan, figures, missing)
    return PackingResult(
        dataset=dataset,
        packed=packed,
        rejects=_count_rejects(dataset),
        seconds=time.monotonic() - start,
        bytes_in=bytes_in,
        bytes_out=_size(dataset),
        notes=plan.notes + _tar_notes(config, figures) + _class_notes(plan, dataset),
    )


def _finished(output: Location, source: Source, config: PrepareConfig) -> PackingResult | None:
    """Return the finished dataset in `output`, if there is one with the same options."""
    if not (output / "manifest.json").exists():
        return None
    dataset = PackedDataset.open(output.uri)
    same, note = recorded_settings(dataset.manifest.source, config)
    if not same:
        raise UserError(f"{output}: contains a dataset with other options; choose another --output, or delete it first")
    notes = [note] if note else []
    if changed := changes(dataset.manifest.source_state, source_state(source, config.subset)):
        notes.append(
            f"the source changed after packing ({changed}); the dataset is unchanged. To pack the source as it is now, "
            f"choose another --output, or delete {output}"
        )
    return PackingResult(
        dataset=dataset,
        packed=0,
        rejects=_count_rejects(dataset),
        seconds=0.0,
        bytes_in=0,
        bytes_out=_size(dataset),
        notes=notes,
    )


def _read_figures(output: Location, plan: Plan) -> Figures:
    """Return the figures of completed tasks."""
    parts = output / WORK_FOLDER / PARTS_FOLDER
    try:
        names = [name for name in parts.names() if name.endswith(".json")]
    except NotFound:
        return {}
    figures = {int(name.removesuffix(".json")): _figures(parts / name) for name in names}
    return {task.number: figures[task.number] for task in plan.tasks if task.number in figures}


def _figures(file: Location) -> dict[str, Any]:
    """Return the figures of one task. Unfinished jobs of earlier versions call `unplanned` strangers."""
    values = json.loads(file.read_text())
    return values if "unplanned" in values else values | {"unplanned": values["strangers"]}


def _run(output: Location, source: Source, config: PrepareConfig, plan: Plan, figures: Figures) -> int:
    """Pack the remaining tasks and add their figures. Returns the number of bytes read."""
    missing = [task for task in plan.tasks if task.number not in figures]
    if not missing:
        return 0
    progress = Progress("packing", sum(task.rows for task in missing))
    rows = [{"task": json.dumps(vars(task))} for task in missing]
    stream = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Packer(output, source, config.packing, plan.plan_id), batch_size=1, num_cpus=1
    )
    bytes_in, by_number = 0, {task.number: task for task in missing}
    try:
        for done in stream.iter_rows():
            if done["error"]:
                raise _stopped(done["error"], None)
            number = int(done["number"])
            bytes_in += int(done["bytes_in"])
            figures[number] = _read_part(output, number)
            rejects = sum(part["rejects"] + part["unplanned"] for part in figures.values())
            progress.update(by_number[number].rows, f"{rejects} rejected" if rejects else "")
            _check_rejects(output, config, figures, source)
    except ray.exceptions.RayError as error:
        raise _explain(error) from error
    progress.clear()
    return bytes_in


def _read_part(output: Location, number: int) -> dict[str, Any]:
    """Return the figures of a task that was just packed."""
    try:
        return _figures(part_file(output / WORK_FOLDER, number, ".json"))
    except UserError as error:
        raise _stopped(str(error), error) from None


def _explain(error: ray.exceptions.RayError) -> UserError:
    """Return a worker's error as one line. A UserError is used as it is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"[\w.]+(Error|Invalid|Exception): ", line)]
    own = own_error(error)
    return _stopped(str(own or next(reversed(causes or lines), type(error).__name__)), own)


def _stopped(text: str, cause: UserError | None) -> UserError:
    fix = "" if "run the same" in text else "; run the same command again to resume"
    return restated(cause, f"packing stopped: {text}{fix}")


def _check_tars(source: Source, config: PrepareConfig) -> None:
    """Raise UserError before reading if the fraction of missing tars is above the maximum fraction of rejects."""
    if isinstance(source, Gldv2Source) and source.missing:
        fraction = len(source.missing) / (len(source.missing) + len(source.tars))
        if fraction > config.packing.max_reject_fraction:
            raise UserError(
                f"{source.describe_tars()}; download the missing tars, or increase packing.max_reject_fraction"
            )


def _check_rejects(
    output: Location, config: PrepareConfig, figures: Figures, source: Source, *, missing: int = 0, final: bool = False
) -> None:
    """Stop the job if too many images are rejected, or too many files in tars match none of them."""
    refused = sum(part["rejects"] for part in figures.values()) + missing
    seen = refused + sum(part["rows"] for part in figures.values())
    unplanned, members = (sum(part[key] for part in figures.values()) for key in ("unplanned", "members"))
    limit = config.packing.max_reject_fraction
    for count, total, what, kind in (
        (refused, seen, "images were rejected", "rejects"),
        (unplanned, members, "files in the tars match no image of the plan", "unplanned"),
    ):
        if count > limit * total and (final or total >= MIN_CHECKED_ROWS):
            breakdown = _breakdown(output, figures, kind, missing)
            tars = f" ({source.describe_tars()})" if missing and isinstance(source, Gldv2Source) else ""
            raise UserError(
                f"{count} of {total} {what} ({breakdown}); the maximum is {limit:.1%}; check the source{tars}, or "
                "increase packing.max_reject_fraction and run again"
            )


def _breakdown(output: Location, figures: Figures, kind: str, missing: int) -> str:
    """Return the reasons and counts of rejects or of files that match no planned image, the most frequent first."""
    reasons: collections.Counter[str] = collections.Counter()
    for number, part in figures.items():
        if part[kind]:
            table = part_rejects(output, number)
            wanted = [row != NO_ROW for row in table["plan_row"].to_pylist()]
            listed = zip(table["reason"].to_pylist(), wanted, strict=True)
            reasons.update(reason for reason, is_wanted in listed if is_wanted == (kind == "rejects"))
    if kind == "rejects" and missing:
        reasons["missing"] += missing
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())


def _tar_notes(config: PrepareConfig, figures: Figures) -> list[str]:
    """Return notes on skipped files and missing checksums of the tars."""
    ignored, unchecked = (sum(part[key] for part in figures.values()) for key in ("ignored", "unchecked"))
    notes = []
    if ignored:
        notes.append(f"{ignored:,} files in the tars were skipped; expected names such as <16 hexadecimal digits>.jpg")
    if unchecked and config.gldv2.check_md5:
        notes.append(f"{unchecked:,} tars have no file md5sum/train/md5.images_NNN.txt, so their MD5 was not checked")
    return notes


def _class_notes(plan: Plan, dataset: PackedDataset) -> list[str]:
    """Return a note on classes that were dropped because none of their images can be read."""
    kept = set(dataset.labels["landmark_id"].to_pylist())
    lost = [name for landmark, name in zip(plan.landmark_ids, plan.names, strict=True) if landmark not in kept]
    if not lost:
        return []
    named = ", ".join(lost[:5]) + (", …" if len(lost) > 5 else "")
    return [f"{len(lost):,} classes were dropped because none of their images can be read: {named}"]


def _count_rejects(dataset: PackedDataset) -> dict[str, int]:
    reasons = read_table(dataset.location / "rejects.parquet", columns=["reason"])["reason"].to_pylist()
    return dict(collections.Counter(reasons).most_common())


def _size(dataset: PackedDataset) -> int:
    return sum(shard.bytes for split in dataset.manifest.splits.values() for shard in split.shards)
