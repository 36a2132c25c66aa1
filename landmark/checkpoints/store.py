"""Store of a run's checkpoints: saves in the background during training and finds the newest complete checkpoint."""

import errno
import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from landmark.checkpoints.format import CHECKPOINTS, CHECKSUMS, FILES, INDEX, DamagedCheckpoint, Snapshot, check_files
from landmark.config import CheckpointConfig, UserError
from landmark.evaluation.ranking import score
from landmark.logs import log
from landmark.storage import Damaged, Location, NotFound, restated

Tell = Callable[[str], object]
ADOPT_TRIES = 3
"""Attempts to copy a checkpoint of another run, whose owner may replace it meanwhile."""
RECENT_S, RECENT_EPOCHS = 10.0, 64
"""Maximum age (seconds) and number of epochs whose metrics the index keeps. A study writes its journal every second."""


class Superseded(UserError):
    """Another process resumed the run of this process."""


class CheckpointStore:
    """Keeps a run's newest checkpoints and the best one in `<run>/checkpoints`, listed in its index.json.

    A checkpoint is valid once the index lists it, which happens after all its files are written. A thread writes one
    checkpoint at a time. If that fails, it reports the error and keeps the earlier checkpoints. Only one process of a
    run saves: the last one that claimed it, even if an unreachable earlier process still runs.
    """

    def __init__(
        self, run: Location, monitor: str, mode: str, config: CheckpointConfig | None = None, tell: Tell | None = None
    ) -> None:
        self.run = run
        self.root = run / CHECKPOINTS
        self.monitor = monitor
        self.mode = mode
        self.keep = (config or CheckpointConfig()).keep
        self.tell = tell or (lambda line: None)
        self.index = self._read_index()
        self.error: UserError | None = None
        self._thread: threading.Thread | None = None

    def _read_index(self) -> dict[str, Any]:
        try:
            return json.loads((self.run / INDEX).read_text())
        except NotFound:
            return {"kept": [], "best": None, "metrics": {}}
        except (json.JSONDecodeError, Damaged):
            names = [name for name in self.root.names() if name != "index.json"]
            self.tell(f"warning: {self.run / INDEX}: corrupt; looking for checkpoints in the same folder")
            # Their names sort by time, except those of an epoch's end, which contain no image count.
            return {"kept": sorted(names, key=lambda name: (name[:10], "image" not in name, name))[::-1]} | {
                "best": None,
                "metrics": {},
            }

    def claim(self) -> None:
        """Become the process that saves. Checkpoints of earlier processes are rejected from now on."""
        self.index = self._read_index()
        self.index["claims"] = self.index.get("claims", 0) + 1
        self._write_index(self.index)

    def _write_index(self, index: dict[str, Any]) -> None:
        (self.run / INDEX).write_text(json.dumps(index, indent=1) + "\n")

    def _check_claim(self) -> None:
        if self._read_index().get("claims", 0) > self.index.get("claims", 0):
            raise Superseded("another process has resumed this run; stop this one")

    def save(self, snapshot: Snapshot, metrics: Mapping[str, float] | None = None) -> None:
        """Store a snapshot in a thread, after the previous one. metrics: those of the epoch that the snapshot ends."""
        self.flush()
        arguments = (snapshot, dict(metrics) if metrics is not None else None)
        self._thread = threading.Thread(target=self._store, args=arguments, name="landmark-save", daemon=True)
        self._thread.start()

    def flush(self) -> None:
        """Wait until the last snapshot is stored or failed. `error` contains the reason of a failure."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Wait for the last snapshot. Raises UserError if it could not be stored."""
        self.flush()
        if self.error is not None:
            raise restated(
                self.error,
                f"could not store the last checkpoint ({self.error}); free space or fix the storage, then run the same "
                f"command again to resume from {self.index['kept'][0] if self.index['kept'] else 'the beginning'}",
            )

    def _store(self, snapshot: Snapshot, metrics: dict[str, float] | None) -> None:
        try:
            self._write(snapshot, metrics)
            self.error = None
        except (UserError, OSError) as error:
            self.error = error if isinstance(error, UserError) else UserError(str(error))
            self.tell(
                f"warning: checkpoint {snapshot.name} was not stored: {error}; training continues with the earlier checkpoints"
            )
            if not isinstance(error, Superseded):
                self._forget(snapshot.name)

    def _write(self, snapshot: Snapshot, metrics: dict[str, float] | None) -> None:
        folder, start = self.root / snapshot.name, time.monotonic()
        self._check_claim()
        with tempfile.TemporaryDirectory(prefix="landmark-checkpoint-") as name:
            snapshot.write(Path(name))
            for file in (*FILES, CHECKSUMS):
                (folder / file).upload(Path(name) / file)
        index = dict(self.index)
        if metrics is not None:
            value, best = metrics[self.monitor], index["metrics"].get(self.monitor)
            if best is None or score(value, self.mode) > score(best, self.mode):
                index |= {"best": snapshot.name, "metrics": metrics}
            index["recent"] = _with_recent(index.get("recent", []), snapshot.meta.epoch, metrics)
        index["kept"] = [snapshot.name, *(name for name in index["kept"] if name != snapshot.name)][: self.keep]
        self._check_claim()
        self._write_index(index)
        self.index = index
        log("checkpoint stored", checkpoint=str(folder), seconds=round(time.monotonic() - start, 2))
        for other in self.root.names():
            if other not in ("index.json", index["best"], *index["kept"]):
                (self.root / other).delete()

    def _forget(self, name: str) -> None:
        """Free space: delete the files of a checkpoint that the index does not list."""
        if name in (self.index["best"], *self.index["kept"]):
            return
        try:
            (self.root / name).delete()
        except UserError as error:
            self.tell(f"warning: {self.root / name}: could not delete the incomplete checkpoint: {error}")

    def path(self, which: str) -> str | None:
        """Return the path of the best or the last checkpoint, below the run's folder, or None."""
        name = self.index["best"] if which == "best" else next(iter(self.index["kept"]), None)
        return f"{CHECKPOINTS}/{name}" if name else None

    def last_metrics(self) -> dict[str, float]:
        """Return the metrics of the last finished epoch of the newest checkpoint.

        Empty if there is no checkpoint, or if the run has finished no epoch of its own since it adopted another run's.
        """
        return self._last_epoch()[1]

    def _last_epoch(self) -> tuple[int, dict[str, float]]:
        path = self.path("last")
        if path is None or self.path("best") is None:
            return 0, {}
        try:
            meta = json.loads((self.run / path / "meta.json").read_text())
        except (NotFound, Damaged, json.JSONDecodeError):
            return 0, {}
        return int(meta["epoch"]), dict(meta["metrics"])

    def last_reports(self) -> list[dict[str, float]]:
        """Return the metrics of the latest complete epochs up to the newest checkpoint, oldest first.

        These are `last_metrics` and the epochs of the RECENT_S before, which a driver that was killed may not have
        recorded.
        """
        epoch, last = self._last_epoch()
        before = [entry["metrics"] for entry in self.index.get("recent", []) if entry["epoch"] < epoch]
        return [*before, last] if last else []

    def candidates(self) -> list[str]:
        """Return the names of the checkpoints to resume from, newest first, best last."""
        return list(dict.fromkeys([*self.index["kept"], *filter(None, [self.index["best"]])]))

    def fetch_last(self, directory: Path) -> bool:
        """Copy the newest complete checkpoint into a directory. Returns False if there is no checkpoint.

        Corrupt checkpoints are reported and discarded. Raises UserError if all are corrupt.
        """
        names = self.candidates()
        for name in names:
            try:
                self.fetch(name, directory)
            except DamagedCheckpoint as error:
                self.discard(name, str(error))
                continue
            return True
        if names:
            raise self.none_complete()
        return False

    def fetch(self, name: str, directory: Path) -> None:
        """Copy and verify a checkpoint. Raises DamagedCheckpoint if it is corrupt, UserError if it cannot be copied."""
        try:
            for file in (*FILES, CHECKSUMS):
                (self.root / name / file).download(directory / file)
        except NotFound as error:
            raise DamagedCheckpoint(f"missing ({error})") from None
        except (UserError, OSError) as error:
            if errno.ENOSPC not in (getattr(error, "errno", None), getattr(error.__cause__, "errno", None)):
                raise
            raise UserError(
                f"{directory}: no space left for checkpoint {name}; free space there, or set TMPDIR to a folder on another disk"
            ) from None
        check_files(directory)
        log("checkpoint restored", checkpoint=str(self.root / name))

    def discard(self, name: str, reason: str) -> None:
        """Report a corrupt checkpoint and remove it from the list."""
        self.tell(f"warning: {self.root / name}: corrupt checkpoint: {reason}; resuming from the previous one")
        self.index["kept"] = [other for other in self.index["kept"] if other != name]
        if self.index["best"] == name:
            self.index |= {"best": None, "metrics": {}}

    def none_complete(self) -> UserError:
        """Return the error for a run without a complete checkpoint."""
        return UserError(f"{self.root}: no checkpoint is complete; delete the run's folder, or choose another --name")

    def adopt(self, other: "CheckpointStore", epochs: range, token: str) -> int | None:
        """Copy another run's newest checkpoint within `epochs`, and delete this run's own checkpoints.

        Returns the number of epochs that the checkpoint finished. Returns None and changes nothing if the other run has
        no such checkpoint, for example because its owner deletes it. token: identifies this adoption. A second call
        with the same token changes nothing.
        """
        if (taken := self.index.get("taken", {})).get("token") == token:
            return int(taken["epoch"])
        with tempfile.TemporaryDirectory(prefix="landmark-checkpoint-") as folder:
            for _ in range(ADOPT_TRIES):
                if (epoch := other.fetch_within(epochs, Path(folder))) is not None:
                    break
            else:
                return None
            name = f"taken-{epoch:04d}-{time.time_ns()}"
            for file in (*FILES, CHECKSUMS):
                (self.root / name / file).upload(Path(folder) / file)
        self.index = {"kept": [name], "best": None, "metrics": {}, "claims": self.index.get("claims", 0) + 1}
        self.index["taken"] = {"token": token, "epoch": epoch}
        self._write_index(self.index)
        for old in self.root.names():
            if old not in ("index.json", name):
                (self.root / old).delete()
        return epoch

    def fetch_within(self, epochs: range, directory: Path) -> int | None:
        """Copy the newest complete checkpoint whose epochs finished are in `epochs`. Returns their number or None."""
        self.index = self._read_index()
        for name in self.candidates():
            try:
                epoch = int(json.loads((self.root / name / "meta.json").read_text())["epoch"])
                if epoch in epochs:
                    self.fetch(name, directory)
                    return epoch
            except (DamagedCheckpoint, NotFound, Damaged, json.JSONDecodeError):
                continue
        return None


def _with_recent(before: list[dict[str, Any]], epoch: int, metrics: dict[str, float]) -> list[dict[str, Any]]:
    """Return the index's recent epochs (number, end time, metrics) with a new one, without those that are too old."""
    now = time.time()
    kept = [entry for entry in before if now - RECENT_S < entry["at"] and entry["epoch"] < epoch]
    return [*kept[1 - RECENT_EPOCHS :], {"epoch": epoch, "at": now, "metrics": metrics}]
