"""Resources of a study with many trials, and the cost of a killed driver.

Run: python benchmarks/study.py [--quick] [--only NAME …]. Two parts:
- many: 200 trials of a second or less. Compares the driver's memory (RSS), that of its descendants, and the seconds per
trial between the second and the last quarter of the trials.
- kills: a study's process group is killed (SIGKILL) at one moment, taken from the study's journal. The same command is
started again immediately, until the study ends. This is done for each scheduler, and for trials of two workers, and
compared with the same study undisturbed. ended_again: trials that had ended before the kill and were trained again
(expected: 0). epochs_twice: epochs with two reports in the journal. epochs_cut: upper bound of the work of the running
trials that the kill discarded, in epochs, from the time since their last reports. lost_s: wall time beyond that of the
undisturbed study. same_best, same_trials: whether the best trial, and how many trials, have the undisturbed study's
metric. Asynchronous schedulers can decide differently if trials report in another order. left_s: how long the processes
started by the killed one survived; null: until the study ended. Everything runs on CPUs. The last line is JSON, saved
to benchmarks/results/study.json. Figures of parts that were not run are kept.
"""

import argparse
import atexit
import csv
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")

import psutil
import ray
from journal import Ledger, read_ledger
from studies import tune_command

from landmark.commands.prepare import prepare
from landmark.config import PrepareConfig, SyntheticConfig
from tests.support.packed import write_packed

DEADLINE_S = 600
MANY, QUICK_MANY = 200, 40
EPOCHS = 9
SINGLE_WORKER = ("--workers.cpus", "1", "--max-concurrent", "2", "--cluster.cpus", "2")
TWO_WORKERS = ("--workers.cpus", "1", "--workers.count", "2", "--max-concurrent", "1", "--cluster.cpus", "3")
"""Two workers with one CPU each, and half a CPU for their readers."""


@dataclass(kw_only=True, frozen=True)
class Case:
    """A kind of study, and the moments at which it is killed."""

    label: str
    scheduler: dict[str, Any]
    moments: tuple[str, ...]
    trials: int = 8
    max_concurrent: int = 2
    flags: tuple[str, ...] = SINGLE_WORKER

    def space(self) -> dict[str, Any]:
        """Return its search space."""
        return {
            "recipe": {
                "epochs": EPOCHS,
                "model": {"backbone": "shufflenet_v2_x0_5"},
                "schedule": {"name": "constant"},
                "loader": {"image_size": 32, "batch_size": 16, "decode_threads": 1},
            },
            "parameters": {"optimizer.lr": {"loguniform": [1e-4, 1e-1]}},
            "samples": self.trials,
            "scheduler": self.scheduler,
        }


CASES = (
    Case(label="none", scheduler={"name": "none"}, moments=("early", "within an epoch", "half ended")),
    Case(label="asha", scheduler={"name": "asha"}, moments=("within an epoch", "half ended")),
    Case(label="hyperband", scheduler={"name": "hyperband"}, moments=("within an epoch", "some paused", "half ended")),
    Case(label="pbt", scheduler={"name": "pbt"}, moments=("within an epoch", "half ended")),
    Case(
        label="asha, 2 workers",
        scheduler={"name": "asha"},
        moments=("within an epoch", "half ended"),
        trials=4,
        max_concurrent=1,
        flags=TWO_WORKERS,
    ),
)


Moment = Callable[[Ledger, Case], bool]
MOMENTS: dict[str, Moment] = {
    "early": lambda ledger, case: bool(ledger.proposed),
    "within an epoch": lambda ledger, case: ledger.reports >= case.trials // 2,
    "some paused": lambda ledger, case: len(ledger.unfinished) >= case.max_concurrent + 2,
    "half ended": lambda ledger, case: len(ledger.ended) >= case.trials // 2,
}
"""Conditions on the journal for each kill. within an epoch: half an epoch's time after that."""


class StudyProcess:
    """The command of a study, in its own process group."""

    def __init__(self, space: dict[str, Any], dataset: str, output: Path, name: str, *flags: str) -> None:
        self.command = tune_command(space, dataset, output, name, *flags)
        self.study = output / name
        self.log = output / f"{name}.log"
        self.job: subprocess.Popen | None = None
        atexit.register(self.close)

    def close(self) -> None:
        """Kill it if it is still running. It would outlive an interrupted benchmark."""
        if self.job is not None and self.job.poll() is None:
            self.kill()

    def start(self) -> psutil.Process:
        """Start it, or start it again."""
        # Ends it with the benchmark. Set here, because Ray, which packed the dataset, replaces the handler.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
        with self.log.open("a") as log:
            self.job = subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        return psutil.Process(self.job.pid)

    def wait(self, moment: str, case: Case) -> bool:
        """Wait for a moment. Returns False if the study ended before it."""
        assert self.job is not None
        deadline = time.monotonic() + DEADLINE_S
        while not MOMENTS[moment](ledger := read_ledger(self.study), case):
            if self.job.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        if moment == "within an epoch":
            time.sleep(ledger.epoch_s() / 2)
        return self.job.poll() is None

    def kill(self) -> list[psutil.Process]:
        """Kill it and its process group. Returns its other descendants, which must end on their own."""
        assert self.job is not None
        descendants = psutil.Process(self.job.pid).children(recursive=True)
        os.killpg(self.job.pid, signal.SIGKILL)
        self.job.wait()
        return descendants

    def wait_for_descendants(self, descendants: list[psutil.Process]) -> float | None:
        """Return the seconds until all descendants ended, or None if some survive the study. These are killed."""
        assert self.job is not None
        start = time.perf_counter()
        while any(map(is_running, descendants)):
            if self.job.poll() is not None:
                for process in filter(is_running, descendants):
                    process.kill()
                return None
            time.sleep(0.1)
        return time.perf_counter() - start

    def end(self) -> None:
        """Wait until it exits successfully."""
        assert self.job is not None
        try:
            code = self.job.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            code = None
        if code != 0:
            state = f"ended with {code}" if code is not None else f"did not end within {DEADLINE_S} s"
            raise SystemExit(f"{self.study.name}: {state}: {self.log.read_text()[-2000:]}")

    def summary(self) -> dict[str, Any]:
        """Return its study.json."""
        return json.loads((self.study / "study.json").read_text())

    def leaderboard(self) -> dict[str, tuple[str, str]]:
        """Return each trial's epochs and best metric from its leaderboard."""
        rows = csv.DictReader((self.study / "leaderboard.csv").open())
        return {row["trial"]: (row["epochs_run"], row["val_top1"]) for row in rows}


def is_running(process: psutil.Process) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_without_kill(study: StudyProcess) -> float:
    """Run a study to its end. Returns its wall time, seconds."""
    start = time.perf_counter()
    study.start()
    study.end()
    return time.perf_counter() - start


def run_with_kill(
    study: StudyProcess, moment: str, case: Case, reference: StudyProcess, seconds: float
) -> dict[str, Any]:
    """Run a study with a kill at a moment. Returns the row of the table."""
    start = time.perf_counter()
    study.start()
    if not study.wait(moment, case):
        study.end()
        return {"killed": False}
    at, before = time.time(), read_ledger(study.study)
    descendants = study.kill()
    study.start()
    left_s = study.wait_for_descendants(descendants)
    study.end()
    lost_s = time.perf_counter() - start - seconds
    after, left = read_ledger(study.study), before.proposed - before.ended
    running = min(case.max_concurrent, len(left))
    best, best_before = study.summary()["best"], reference.summary()["best"]
    board, board_before = study.leaderboard(), reference.leaderboard()
    return {
        "killed": True,
        "running": running,
        "waiting": len(left) - running,
        "ended": len(before.ended),
        "ended_again": len(before.ended & after.trained_since(before)),
        "epochs_twice": after.epochs_twice(),
        "epochs_cut": before.epochs_cut(at, running),
        "lost_s": lost_s,
        "same_best": all(best[key] == best_before[key] for key in ("trial", "epoch", "val_top1", "test")),
        "same_trials": f"{sum(board.get(trial) == found for trial, found in board_before.items())}/{len(board_before)}",
        "left_s": left_s,
    }


def kills(folder: Path, cases: list[Case], *, quick: bool) -> dict[str, dict[str, Any]]:
    """Kill each case's study at each of its moments. Returns the table's rows."""
    dataset = str(folder / "dataset")
    prepare(
        PrepareConfig(
            output=dataset, source="synthetic", synthetic=SyntheticConfig(images=600, classes=6, image_size=48)
        )
    )
    ray.shutdown()
    rows = {}
    for case in cases:
        slug = re.sub(r"\W+", "-", case.label)
        reference = StudyProcess(case.space(), dataset, folder / "studies", slug, *case.flags)
        seconds = run_without_kill(reference)
        print(f"{case.label}: undisturbed {seconds:.0f} s", flush=True)
        for number, moment in enumerate(case.moments[-1:] if quick else case.moments):
            study = StudyProcess(case.space(), dataset, folder / "studies", f"{slug}-{number}", *case.flags)
            row = rows[f"{case.label}, {moment}"] = run_with_kill(study, moment, case, reference, seconds)
            print(f"{case.label}, {moment}: {format_row(row)}", flush=True)
    return rows


def format_row(row: dict[str, Any]) -> str:
    """Return a row as text."""
    return ", ".join(
        f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )


class Memory:
    """Memory samples of a driver and of its descendants, MiB, by unix time."""

    def __init__(self, driver: psutil.Process) -> None:
        self.driver = driver
        self.samples: list[tuple[float, float, float]] = []

    def sample(self) -> None:
        """Take a sample, unless the driver has ended."""
        try:
            own = self.driver.memory_info().rss
            descendants = [self._rss(process) for process in self.driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        self.samples.append((time.time(), own / 2**20, sum(descendants) / 2**20))

    def _rss(self, process: psutil.Process) -> int:
        try:
            return process.memory_info().rss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return 0

    def growth(self, early: tuple[float, float], late: tuple[float, float]) -> tuple[float, float]:
        """Return the difference between the means of two time spans: of the driver, of its descendants."""

        def mean(span: tuple[float, float], column: int) -> float:
            return statistics.mean(sample[column] for sample in self.samples if span[0] <= sample[0] <= span[1])

        return mean(late, 1) - mean(early, 1), mean(late, 2) - mean(early, 2)


def many_trials(folder: Path, trials: int) -> dict[str, float]:
    """Run a study of many short trials. Returns the changes of memory and time per trial."""
    dataset = write_packed(folder / "tiny", {"train": [64], "val": [32], "test": [24]}).location.uri
    space = {
        "recipe": {
            "epochs": 1,
            "model": {"backbone": "reference_mlp"},
            "optimizer": {"name": "adam"},
            "schedule": {"name": "constant"},
            "loader": {"image_size": 16, "batch_size": 16, "decode_threads": 1},
        },
        "parameters": {"optimizer.lr": {"loguniform": [1e-4, 1e-2]}},
        "samples": trials,
    }
    study = StudyProcess(space, dataset, folder / "studies", "many", *SINGLE_WORKER, "--test", "none")
    memory = Memory(study.start())
    assert study.job is not None
    while study.job.poll() is None:
        memory.sample()
        time.sleep(0.5)
    study.end()
    ended = sorted(read_ledger(study.study).ended_at.values())
    if len(ended) != trials:
        raise SystemExit(f"{len(ended)} of {trials} trials ended: {study.log.read_text()[-2000:]}")
    quarters = [ended[trials * quarter // 4 - 1] for quarter in (1, 2, 3, 4)]
    early, late = (quarters[0], quarters[1]), (quarters[2], quarters[3])
    driver, descendants = memory.growth(early, late)
    trial_s = [(span[1] - span[0]) / (trials / 4) for span in (early, late)]
    return {
        "trials": trials,
        "driver_rss_mib": memory.samples[-1][1],
        "driver_rss_growth_mib": driver,
        "below_rss_growth_mib": descendants,
        "seconds_per_trial": trial_s[1],
        "seconds_per_trial_ratio": trial_s[1] / trial_s[0],
    }


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Return values, including nested ones, rounded to three decimal places."""
    return {
        key: rounded(value) if isinstance(value, dict) else round(value, 3) if isinstance(value, float) else value
        for key, value in values.items()
    }


def save_figures(figures: dict[str, Any]) -> None:
    """Write the figures to results/study.json. Figures of parts that were not run are kept."""
    file = Path(__file__).with_name("results") / "study.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    kills = before.get("kills", {}) | figures.get("kills", {})
    file.write_text(json.dumps(before | figures | {"kills": kills}) + "\n")


def main() -> None:
    """Print the figures and the table, and save them."""
    names = ["many", *(case.label for case in CASES)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 trials, and only the last moment per kind of study")
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        if "many" in arguments.only:
            figures = many_trials(Path(name), QUICK_MANY if arguments.quick else MANY)
            print(format_row(figures), flush=True)
        if cases := [case for case in CASES if case.label in arguments.only]:
            figures["kills"] = kills(Path(name), cases, quick=arguments.quick)
    line = json.dumps(rounded(figures))
    if not arguments.quick:
        save_figures(rounded(figures))
    print(line)


if __name__ == "__main__":
    main()
