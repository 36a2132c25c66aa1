"""The record of a study: epochs, state and times of each trial, stored in the journal for resuming."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ray.tune.experiment import Trial

from landmark.config import UserError
from landmark.config.renamed import current_point
from landmark.data.loading.bottleneck import DATA_WAIT, STAGES, current_names, stage_metric
from landmark.evaluation.ranking import score
from landmark.search.spaces.space import TrialSpec
from landmark.search.state.journal import HINT, WHERE, Journal
from landmark.training.distributed.ray_train import RECOVERED

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
    DATA_WAIT,
    *map(stage_metric, STAGES),
    "epoch_seconds",
    "lost_images",
)
"""Metrics of a report that are kept; Ray Tune adds others."""
FIRST_STEP, REPORTED, ERROR, WEIGHTS = "first_step_at", "reported_at", "error", "parameters"
"""Further keys of a report: unix times, a failed trial's error message, the model's number of parameters."""
TAKEN = "taken_epoch"
"""Key of a report after a planned exploit: the epoch of the copied weights; NOT_TAKEN if they no longer existed."""
NOT_TAKEN = -1

Decision = Literal["continue", "stop", "pause", "restart"]
"""pause: wait until the scheduler resolves paused trials. restart: free the process and resume later, maybe with another
plan.
"""
State = Literal["waiting", "running", "paused", "ended"]
"""paused: waits for the scheduler to compare it with the others. waiting: waits for resources to start or resume."""
PlanOf = Callable[[int, dict[str, Any]], TrialSpec]
"""Builds a trial's plan from its number and its point."""
Status = Literal["finished", "stopped early", "failed", "not started"]


@dataclass(kw_only=True, frozen=True)
class Exploit:
    """A trial that continued with another's weights and changed settings, in population-based training."""

    trial: str
    source: str
    """The trial whose weights were copied."""
    epoch: int
    """Epoch of those weights."""
    point: dict[str, Any]
    """The trial's point from then on."""
    changed: dict[str, list[Any]]
    """Parameter -> [the trial's value before, its value after], if they differ."""
    explored: dict[str, list[Any]]
    """Parameter -> [the source's value, the trial's value after], if they differ: the perturbed settings."""


@dataclass(kw_only=True, frozen=True)
class PlannedExploit:
    """An exploit that is decided; the trial's next process copies the weights."""

    exploit: Exploit
    """Its epoch is the one that both trials had reached."""
    plan: TrialSpec
    """The trial's plan once it has the weights."""


@dataclass(kw_only=True)
class TrialState:
    """State and results of one trial."""

    plan: TrialSpec
    state: State = "waiting"
    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    """Epoch -> metrics."""
    times: dict[int, float] = field(default_factory=dict)
    """Epoch -> unix time of its report, by the clock of the trial's node."""
    decisions: dict[int, Decision | None] = field(default_factory=dict)
    """Epoch -> the scheduler's decision; None if an older version wrote the journal, without decisions."""
    planned: PlannedExploit | None = None
    """An exploit that the trial has not confirmed yet."""
    repeated: int = 0
    """Number of epochs trained again because their checkpoint was lost with a process."""
    error: str | None = None
    """Why the trial failed, in one line."""
    weights: int | None = None
    """Number of parameters of the model."""
    process: str = ""
    """Host and process that last ran the trial."""
    submitted: bool = False
    """Whether the trial is submitted to Ray Tune, which runs it when resources are available."""
    first_step_at: float | None = None
    """Unix time of the first training step."""
    last_report_at: float | None = None
    """Unix time of the last report."""

    @property
    def epochs_run(self) -> int:
        """Number of the last complete epoch; 0 if there is none."""
        return max(self.rows, default=0)

    @property
    def spent(self) -> int:
        """Number of epochs trained, including repeated ones."""
        return len(self.rows) + self.repeated

    @property
    def seconds(self) -> float:
        """Seconds spent on training and validation."""
        return sum(row["epoch_seconds"] for row in self.rows.values())

    def status(self) -> Status:
        """Return how the trial ended; "stopped early" if any rule of the trial or the study ended it before its last epoch."""
        if self.error is not None:
            return "failed"
        if not self.rows:
            return "not started"
        return "finished" if self.epochs_run >= self.plan.recipe.epochs else "stopped early"

    def best_epochs(self, metric: str, mode: str) -> list[int]:
        """Return the epochs, best first; ties are ordered by epoch."""
        return sorted(self.rows, key=lambda epoch: (-score(self.rows[epoch][metric], mode), epoch))


@dataclass(kw_only=True, frozen=True)
class Ended:
    """The end of a trial. A failed trial that runs again ends twice."""

    trial: TrialState
    failed: bool
    epochs: int
    """Number of its last complete epoch then."""


REPLAYED = ("report", "decision", "ended", "failed", "retried", "exploit planned", "exploit", "no exploit")
"""Events of a trial that are replayed when a study resumes."""


class StudyState:
    """Keeps a TrialState for every proposed trial, and logs its events in the journal."""

    def __init__(self, journal: Journal | None = None) -> None:
        self.trials: dict[str, TrialState] = {}
        self.exploits: list[Exploit] = []
        self.ended: list[Ended] = []
        """The ends of trials, in order."""
        self.complete = False
        """Whether all trials of the study have been proposed."""
        self.drivers = 0
        """Number of processes that have driven this study, including this one."""
        self.seconds_before = 0.0
        """Wall time spent by earlier processes, seconds."""
        self.journal = journal
        self.started = time.monotonic()
        self.started_at = time.time()

    def of(self, trial: Trial) -> TrialState:
        """Return the record of a Ray Tune trial."""
        return self.trials[trial.config["trial"]["name"]]

    def begin(self, total: int, scheduler: str | None = None) -> None:
        """Record that this process now drives the study, the number of its trials, and its scheduler's identity."""
        self.drivers += 1
        self.complete = False
        self._note("driver", trials=total, **({"scheduler": scheduler} if scheduler is not None else {}))

    def propose(self, plan: TrialSpec) -> TrialState:
        """Add a new trial."""
        self._note("trial", trial=plan.name, number=plan.number, point=plan.point)
        return self.trials.setdefault(plan.name, TrialState(plan=plan))

    def all_proposed(self) -> None:
        """Record that the study has no further trials."""
        self.complete = True
        self._note("all proposed")

    def add(self, trial: TrialState, result: Mapping[str, Any]) -> bool:
        """Process a report: an epoch, or a failure. Returns False if the report contains nothing new."""
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

    def _report(self, trial: TrialState, row: dict[str, float], at: float, weights: int | None) -> None:
        epoch = int(row["epoch"])
        trial.repeated += epoch in trial.rows
        trial.rows[epoch], trial.times[epoch] = row, at
        trial.last_report_at = at
        if weights is not None:
            trial.weights = int(weights)

    def decide(self, trial: TrialState, decision: Decision) -> None:
        """Record the scheduler's decision about a trial at its current epoch."""
        trial.decisions[trial.epochs_run] = decision
        self._note("decision", trial=trial.plan.name, epoch=trial.epochs_run, decision=decision)
        if decision == "restart":
            self.flush()

    def end(self, trial: TrialState) -> None:
        """Record that a trial has ended."""
        if trial.state != "ended":
            self._end(trial)
            self._note("ended", trial=trial.plan.name)
            self.flush()

    def _end(self, trial: TrialState) -> None:
        trial.state = "ended"
        self.ended.append(Ended(trial=trial, failed=trial.error is not None, epochs=trial.epochs_run))

    def fail(self, trial: TrialState, error: str) -> None:
        """Record that a trial failed, and why; its earlier epochs are kept."""
        trial.error = error
        self._note("failed", trial=trial.plan.name, error=error)
        self.end(trial)

    def retry_failed(self) -> list[TrialState]:
        """Queue the failed trials to run again, and return them."""
        failed = [trial for trial in self.trials.values() if trial.error is not None]
        for trial in failed:
            trial.error, trial.state = None, "waiting"
            self._note("retried", trial=trial.plan.name)
        return failed

    def plan_exploit(self, exploit: Exploit, plan: TrialSpec) -> None:
        """Record that a trial will continue with another's weights and a changed plan."""
        self.trials[exploit.trial].planned = PlannedExploit(exploit=exploit, plan=plan)
        self._note("exploit planned", **dataclasses.asdict(exploit))

    def _settle_exploit(self, trial: TrialState, planned: PlannedExploit, epoch: int) -> None:
        """Record whether a trial copied the planned weights; if not, it keeps its weights and its plan."""
        trial.planned = None
        if epoch == NOT_TAKEN:
            self._note("no exploit", trial=trial.plan.name, source=planned.exploit.source)
            return
        exploit = dataclasses.replace(planned.exploit, epoch=epoch)
        self.exploits.append(exploit)
        trial.plan = planned.plan
        self._note("exploit", **dataclasses.asdict(exploit))

    def restore(
        self,
        events: Iterable[Mapping[str, Any]],
        plan_of: PlanOf,
        observe: Callable[[Mapping[str, Any]], object] = lambda event: None,
    ) -> None:
        """Replay the events of earlier processes; trials that were running when the last process died wait to resume.

        observe: called with each event when the record contains it. Raises UserError with the file and the line of an
        invalid event, or of one that `observe` rejects with a UserError.
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
                    self.complete = False
                last = at
                if kind == "trial":
                    point = current_point(event["point"], "journal")
                    plan = dataclasses.replace(plan_of(int(event["number"]), point), name=event["trial"])
                    self.trials[plan.name] = TrialState(plan=plan)
                elif kind == "all proposed":
                    self.complete = True
                elif kind in REPLAYED:
                    self._replay(kind, self.trials[event["trial"]], event, plan_of)
                    if kind == "report" and not decided:
                        self.trials[event["trial"]].decisions.setdefault(int(event["row"]["epoch"]), None)
                observe(event)
            except UserError as error:
                raise UserError(f"{event[WHERE]}: {error}") from None
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                reason = f"{error} is missing or unknown" if isinstance(error, KeyError) else str(error)
                raise UserError(f"{event[WHERE]} is not an event of this study ({reason}); {HINT}") from None
        self.seconds_before += (last or 0.0) - (begun or 0.0)

    def _replay(self, kind: str, trial: TrialState, event: Mapping[str, Any], plan_of: PlanOf) -> None:
        if kind == "report":
            row = {key: float(value) for key, value in current_names(event["row"]).items()}
            self._report(trial, row, float(event["reported_at"]), event["parameters"])
            trial.process, trial.first_step_at = event["process"], event["first_step_at"]
        elif kind == "decision":
            decision = (
                event["decision"]
                if "decision" in event
                else {"go on": "continue"}.get(event["verdict"], event["verdict"])
            )  # the journals of earlier versions
            if decision not in get_args(Decision):
                raise ValueError(f"decision is {decision!r}")
            trial.decisions[int(event["epoch"])] = decision
        elif kind in ("exploit", "exploit planned"):
            event = {**event, "point": current_point(event["point"], "journal")}
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
        elif trial.state != "ended":
            self._end(trial)

    def flush(self, *, due: bool = False, final: bool = False) -> None:
        """Write the journal; due: only if enough time has passed since the last write."""
        if self.journal is not None:
            self.journal.flush(due=due, final=final)

    def _note(self, event: str, **values: Any) -> None:
        if self.journal is not None:
            self.journal.add(event, **values)

    def counts(self) -> Mapping[str, int]:
        """Return status -> number of trials."""
        found = dict.fromkeys(("finished", "stopped early", "failed", "not started"), 0)
        for record in self.trials.values():
            found[record.status()] += 1
        return found

    @property
    def epochs_run(self) -> int:
        """Total number of epochs trained."""
        return sum(record.spent for record in self.trials.values())

    @property
    def epochs_repeated(self) -> int:
        """Number of epochs trained again after a process was lost."""
        return sum(record.repeated for record in self.trials.values())


def death_of(trial: Trial) -> str:
    """Return one line with the reason why a trial's process ended, from Ray Tune's error file."""
    file = Path(trial.error_file) if trial.error_file else None
    lines = file.read_text().splitlines() if file is not None and file.is_file() else []
    cause = next((line for line in reversed(lines) if "memory" in line or "dead because" in line), None)
    cause = cause or next((line for line in reversed(lines) if "Error" in line), "unknown reason")
    return f"the trial failed more often than workers.max_failures allows: {cause.strip()[:200]}"
