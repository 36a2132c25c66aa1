"""The record of a study: each trial's epochs, state and times; kept in the study's journal, from which another process takes it up."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ray.tune.experiment import Trial

from landmark.config import UserError
from landmark.evaluation.ranking import score
from landmark.search.journal import HINT, WHERE, Journal
from landmark.search.space import TrialPlan
from landmark.training.distributed import RECOVERED

METRICS = (
    "epoch",
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "val_top5",
    "val_macro_recall",
    "lr",
    "images_per_s",
    "data_wait_share",
    "epoch_seconds",
    "lost_images",
)
"""What is kept of an epoch, out of all that Ray Tune adds to a report."""
FIRST_STEP, REPORTED, ERROR, WEIGHTS = "first_step_at", "reported_at", "error", "parameters"
"""Keys of a report besides the metrics: unix times, a failed trial's message, how many weights its network has."""
TAKEN = "taken_epoch"
"""Key of a report after a planned exploit: the epoch of the weights that the trial took; NOT_TAKEN: they were gone."""
NOT_TAKEN = -1

Verdict = Literal["go on", "stop", "pause", "restart"]
"""pause: until the scheduler settles; restart: give the process back and continue later, maybe with another plan."""
State = Literal["waiting", "running", "paused", "ended"]
"""paused: until the scheduler has judged the others; waiting: for room, at first or to go on."""
PlanOf = Callable[[int, dict[str, Any]], TrialPlan]
"""Makes a trial's plan out of its number and its chosen values."""
Status = Literal["finished", "stopped early", "failed", "not started"]


@dataclass(kw_only=True, frozen=True)
class Exploit:
    """A trial that went on with another's weights and changed settings, by population-based training."""

    trial: str
    source: str
    """The trial whose weights it took."""
    epoch: int
    """Epoch of those weights."""
    point: dict[str, Any]
    """Its chosen values from then on."""
    changed: dict[str, list[Any]]
    """Parameter -> the trial's own value before and its value after, where they differ."""
    explored: dict[str, list[Any]]
    """Parameter -> the source's value and the trial's, where they differ: what was changed on the way."""


@dataclass(kw_only=True, frozen=True)
class PlannedExploit:
    """An exploit that is decided; the trial's next process fetches the weights."""

    exploit: Exploit
    """Its epoch is the one that both trials had reached."""
    plan: TrialPlan
    """The trial's plan once it has the weights."""


@dataclass(kw_only=True)
class TrialRecord:
    """One trial as it runs."""

    plan: TrialPlan
    state: State = "waiting"
    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    """Metrics by epoch."""
    times: dict[int, float] = field(default_factory=dict)
    """Unix time of the report by epoch, by the clock of the trial's node."""
    arrivals: dict[int, int] = field(default_factory=dict)
    """Place of an epoch's first report among all reports that the study took."""
    decisions: dict[int, Verdict | None] = field(default_factory=dict)
    """What the scheduler decided at an epoch; None: the journal is from before decisions were recorded."""
    planned: PlannedExploit | None = None
    """An exploit that the trial has not confirmed yet."""
    repeated: int = 0
    """Epochs trained again, as their checkpoint was lost with a process."""
    error: str | None = None
    """Why it failed, in one line."""
    weights: int | None = None
    """Weights of its network."""
    process: str = ""
    """Host and process that ran it last."""
    handed: bool = False
    """Whether Ray Tune has it, to run it when there is room."""
    first_step_at: float | None = None
    """Unix time of its first training step."""
    last_report_at: float | None = None
    """Unix time of its last report."""

    @property
    def epochs_run(self) -> int:
        """The epoch it has come to."""
        return max(self.rows, default=0)

    @property
    def spent(self) -> int:
        """Epochs trained, those that were trained again included."""
        return len(self.rows) + self.repeated

    @property
    def seconds(self) -> float:
        """Seconds spent on its epochs: training and validation."""
        return sum(row["epoch_seconds"] for row in self.rows.values())

    def status(self) -> Status:
        """Return how it ended; a trial that its own or the study's rules ended before its last epoch stopped early."""
        if self.error is not None:
            return "failed"
        if not self.rows:
            return "not started"
        return "finished" if self.epochs_run >= self.plan.recipe.epochs else "stopped early"

    def best_epochs(self, metric: str, mode: str) -> list[int]:
        """Return the epochs, best first; of equals the earlier first."""
        return sorted(self.rows, key=lambda epoch: (-score(self.rows[epoch][metric], mode), epoch))


REPLAYED = ("report", "decision", "ended", "failed", "retried", "exploit planned", "exploit", "no exploit")
"""Events of a trial that a restart takes up."""


class StudyRecord:
    """Keeps a TrialRecord for every trial that was proposed, and notes in the journal what happens to it."""

    def __init__(self, journal: Journal | None = None) -> None:
        self.trials: dict[str, TrialRecord] = {}
        self.exploits: list[Exploit] = []
        self.complete = False
        """Whether there will be no further trial."""
        self.drivers = 0
        """Processes that have driven this study, this one included."""
        self.totals: list[int] = []
        """Trials that the study had at each of its starts, as far as the journal says."""
        self.seconds_before = 0.0
        """Wall time that earlier ones spent."""
        self.journal = journal
        self.started = time.monotonic()
        self.started_at = time.time()
        self._arrivals = itertools.count()

    def of(self, trial: Trial) -> TrialRecord:
        """Return the record of one of Ray Tune's trials."""
        return self.trials[trial.config["trial"]["name"]]

    def begin(self, total: int) -> None:
        """Note that this process drives the study from now on, and how many trials it has."""
        self.drivers += 1
        self.totals.append(total)
        self._note("driver", trials=total)

    def propose(self, plan: TrialPlan) -> TrialRecord:
        """Take up a new trial."""
        self._note("trial", trial=plan.name, number=plan.number, point=plan.point)
        return self.trials.setdefault(plan.name, TrialRecord(plan=plan))

    def add(self, trial: TrialRecord, result: Mapping[str, Any]) -> bool:
        """Take a report: an epoch, or why the trial failed. False where it tells nothing new."""
        if "pid" in result:
            trial.process = f"{result.get('hostname', '')}:{result['pid']}"
        if trial.first_step_at is None:
            trial.first_step_at = result.get(FIRST_STEP)
        if ERROR in result:
            self.fail(trial, str(result[ERROR]))
            return True
        if TAKEN in result and trial.planned is not None:
            self._settle_exploit(trial, trial.planned, int(result[TAKEN]))
        at, epoch = float(result[REPORTED]), int(result["epoch"])
        if trial.times.get(epoch) == at or (RECOVERED in result and epoch in trial.rows):
            return False
        row = {key: float(result[key]) for key in METRICS if key in result}
        self._report(trial, row, at, result.get(WEIGHTS))
        values = {"trial": trial.plan.name, "row": row, "reported_at": at, "first_step_at": trial.first_step_at}
        self._note("report", **values, process=trial.process, parameters=trial.weights)
        return True

    def _report(self, trial: TrialRecord, row: dict[str, float], at: float, weights: int | None) -> None:
        epoch = int(row["epoch"])
        trial.repeated += epoch in trial.rows
        trial.rows[epoch], trial.times[epoch] = row, at
        trial.arrivals.setdefault(epoch, next(self._arrivals))
        trial.last_report_at = at
        if weights is not None:
            trial.weights = int(weights)

    def decide(self, trial: TrialRecord, verdict: Verdict) -> None:
        """Note what the scheduler decided about a trial at the epoch it has come to."""
        trial.decisions[trial.epochs_run] = verdict
        self._note("decision", trial=trial.plan.name, epoch=trial.epochs_run, verdict=verdict)
        if verdict == "restart":
            self.flush()

    def end(self, trial: TrialRecord) -> None:
        """Note that a trial is over."""
        if trial.state != "ended":
            trial.state = "ended"
            self._note("ended", trial=trial.plan.name)
            self.flush()

    def fail(self, trial: TrialRecord, error: str) -> None:
        """Note that a trial failed, and why; what it learned before is kept."""
        trial.error = error
        self._note("failed", trial=trial.plan.name, error=error)
        self.end(trial)

    def retry_failed(self) -> int:
        """Let the trials that failed in earlier calls wait to run again; returns their number."""
        failed = [trial for trial in self.trials.values() if trial.error is not None]
        for trial in failed:
            trial.error, trial.state = None, "waiting"
            self._note("retried", trial=trial.plan.name)
        return len(failed)

    def plan_exploit(self, exploit: Exploit, plan: TrialPlan) -> None:
        """Note that a trial is to continue with another's weights, with a changed plan."""
        self.trials[exploit.trial].planned = PlannedExploit(exploit=exploit, plan=plan)
        self._note("exploit planned", **dataclasses.asdict(exploit))

    def _settle_exploit(self, trial: TrialRecord, planned: PlannedExploit, epoch: int) -> None:
        """Note whether a trial took the planned weights; without them it keeps its own, and its plan."""
        trial.planned = None
        if epoch == NOT_TAKEN:
            self._note("no exploit", trial=trial.plan.name, source=planned.exploit.source)
            return
        exploit = dataclasses.replace(planned.exploit, epoch=epoch)
        self.exploits.append(exploit)
        trial.plan = planned.plan
        self._note("exploit", **dataclasses.asdict(exploit))

    def restore(self, events: Iterable[Mapping[str, Any]], plan_of: PlanOf) -> None:
        """Restore what earlier processes noted; trials that ran when the last one died wait to go on.

        Raises UserError that names the file and the line of an event that no study writes.
        """
        begun, last, decided = None, None, True
        for event in events:
            try:
                kind, at = event["event"], float(event["at"])
                if kind == "driver":
                    self.drivers += 1
                    self.seconds_before += (last or at) - (begun or at)
                    begun = at
                    decided = "trials" in event
                    self.totals += [int(event["trials"])] if decided else []
                last = at
                if kind == "trial":
                    plan = plan_of(int(event["number"]), event["point"])
                    self.trials[plan.name] = TrialRecord(plan=plan)
                elif kind in REPLAYED:
                    self._replay(kind, self.trials[event["trial"]], event, plan_of)
                    if kind == "report" and not decided:
                        self.trials[event["trial"]].decisions.setdefault(int(event["row"]["epoch"]), None)
            except UserError as error:
                raise UserError(f"{event[WHERE]}: {error}") from None
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                reason = f"{error} is missing or unknown" if isinstance(error, KeyError) else str(error)
                raise UserError(f"{event[WHERE]} is no event of this study ({reason}); {HINT}") from None
        self.seconds_before += (last or 0.0) - (begun or 0.0)

    def _replay(self, kind: str, trial: TrialRecord, event: Mapping[str, Any], plan_of: PlanOf) -> None:
        if kind == "report":
            row = {key: float(value) for key, value in event["row"].items()}
            self._report(trial, row, float(event["reported_at"]), event["parameters"])
            trial.process, trial.first_step_at = event["process"], event["first_step_at"]
        elif kind == "decision":
            if event["verdict"] not in get_args(Verdict):
                raise ValueError(f"verdict is {event['verdict']!r}")
            trial.decisions[int(event["epoch"])] = event["verdict"]
        elif kind in ("exploit", "exploit planned"):
            exploit = Exploit(**{field.name: event[field.name] for field in dataclasses.fields(Exploit)})
            plan = dataclasses.replace(plan_of(trial.plan.number, event["point"]), name=trial.plan.name)
            if kind == "exploit planned":
                trial.planned = PlannedExploit(exploit=exploit, plan=plan)
            else:
                self.exploits.append(exploit)
                trial.plan, trial.planned = plan, None
        elif kind == "no exploit":
            trial.planned = None
        elif kind == "failed":
            trial.error = event["error"]
        elif kind == "retried":
            trial.error, trial.state = None, "waiting"
        else:
            trial.state = "ended"

    def flush(self, *, due: bool = False, final: bool = False) -> None:
        """Write the journal; due: only when the last time is a while ago."""
        if self.journal is not None:
            self.journal.flush(due=due, final=final)

    def _note(self, event: str, **values: Any) -> None:
        if self.journal is not None:
            self.journal.add(event, **values)

    def counts(self) -> Mapping[str, int]:
        """Return how many of the trials have each status."""
        found = dict.fromkeys(("finished", "stopped early", "failed", "not started"), 0)
        for record in self.trials.values():
            found[record.status()] += 1
        return found

    @property
    def epochs_run(self) -> int:
        """Epochs trained in all."""
        return sum(record.spent for record in self.trials.values())

    @property
    def epochs_repeated(self) -> int:
        """Epochs of them that were trained again, after a process was lost."""
        return sum(record.repeated for record in self.trials.values())


def death_of(trial: Trial) -> str:
    """Return one line that says why a trial's process ended, out of Ray Tune's error file."""
    file = Path(trial.error_file) if trial.error_file else None
    lines = file.read_text().splitlines() if file is not None and file.is_file() else []
    told = next((line for line in reversed(lines) if "memory" in line or "dead because" in line), None)
    told = told or next((line for line in reversed(lines) if "Error" in line), "no reason is known")
    return f"it failed more often than workers.max_failures allows: {told.strip()[:200]}"
