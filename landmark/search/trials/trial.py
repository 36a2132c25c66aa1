"""A trial: one training run inside Ray Tune, in the trial's own process or with several Ray Train workers."""

import contextlib
import dataclasses
import gc
import os
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.train._internal.session import get_session
from ray.tune.trainable.function_trainable import wrap_function
from ray.util import remove_placement_group
from torch import nn

from landmark.checkpoints.format import Snapshot
from landmark.checkpoints.store import CheckpointStore
from landmark.config import (
    CheckpointConfig,
    Recipe,
    SubsetConfig,
    TrainConfig,
    UserError,
    WorkersConfig,
    from_mapping,
    to_mapping,
)
from landmark.data.dataset import PackedDataset
from landmark.data.subset_view import open_dataset
from landmark.logs import begin_log, log
from landmark.out_of_memory import out_of_memory
from landmark.search.spaces.space import TrialSpec
from landmark.search.state.state import ERROR, FIRST_STEP, NOT_TAKEN, REPORTED, TAKEN, WEIGHTS, Exploit
from landmark.search.trials.report_channel import ReportChannel
from landmark.storage import Location, TransientStorageError, locate, resuming
from landmark.training.compute.memory import trim_memory
from landmark.training.distributed.failures import less_memory
from landmark.training.distributed.local import default_device
from landmark.training.distributed.ray_train import RECOVERED, fit_workers
from landmark.training.loop.fit import fit
from landmark.training.loop.session import Phase, SingleRank
from landmark.training.observe.run_names import TRIALS, names_of
from landmark.training.observe.telemetry import Telemetry
from landmark.training.observe.throughput import Throughput

CHECKPOINT = CheckpointConfig(keep=1)
"""A trial keeps its newest and its best checkpoint."""
END_TIMEOUT_S = 120
"""Seconds that Ray Tune waits for a stopped trial's threads before it reuses the process (Ray's default: 2)."""
POLL_S = 1.0
END_WORKERS_S = 15.0
"""Seconds that the workers of an ended trial may take to reach the end of their epoch."""
TRANSIENT = (TransientStorageError, OSError, ray.exceptions.RayError, torch.OutOfMemoryError)
"""Errors that may not recur in another attempt: storage, a lost process or node, memory that other trials used."""


def store_of(study: Location, plan: TrialSpec) -> CheckpointStore:
    """Return the store of a trial's checkpoints."""
    return _store(study / TRIALS / plan.name, plan.recipe)


def _store(folder: Location, recipe: Recipe) -> CheckpointStore:
    return CheckpointStore(folder, recipe.monitor, recipe.monitor_mode(), CHECKPOINT, print)


class TuneSession(SingleRank):
    """Session of a trial with one worker, in the trial's process; it stores checkpoints like any run."""

    saves_within_epochs = True
    reports_probe = False

    def __init__(self, store: CheckpointStore, taken: dict[str, int]) -> None:
        """taken: values that each report contains about a planned exploit."""
        self.device = default_device()
        self.store = store
        self.telemetry = Telemetry(store.run, self.rank, self.device)
        self.first_step_at: float | None = None
        self.weights = 0
        self.taken = taken

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model itself; the loop calls this just before the first step."""
        self.first_step_at = time.time()
        self.weights = sum(parameter.numel() for parameter in model.parameters())
        return model

    def report(self, metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        """Store the checkpoint, then report to Ray Tune; a stopped or paused trial ends here."""
        assert snapshot is not None
        self.store.save(snapshot, metrics)
        self.store.close()
        times = {FIRST_STEP: self.first_step_at, REPORTED: time.time()}
        report({**metrics, **self.taken, **times, WEIGHTS: self.weights})

    def save(self, snapshot: Snapshot | None, *, at_once: bool) -> None:
        """Store a checkpoint within an epoch."""
        assert snapshot is not None
        self.store.save(snapshot)

    def checkpoint_requested(self) -> bool:
        """Return False: nothing requests checkpoints from a trial's process."""
        return False

    def heartbeat(self, phase: Phase) -> None:
        """Do nothing: Ray Tune monitors the process."""

    def report_throughput(self, throughput: Throughput) -> None:
        """Report the throughput to Ray's metrics exporter."""
        self.telemetry.report_throughput(throughput)

    @contextlib.contextmanager
    def restore(self) -> Iterator[Path | None]:
        """Yield the checkpoint from which a paused or restarted trial resumes, after reporting its last epochs again.

        A trial process may have died after storing an epoch and before reporting it. A killed driver lost the reports of
        its last second.
        """
        with tempfile.TemporaryDirectory(prefix="landmark-checkpoint-") as folder:
            self.store.claim()
            found = self.store.fetch_last(Path(folder))
            for metrics in self.store.last_reports():
                report({**metrics, **self.taken, REPORTED: time.time(), RECOVERED: True})
            yield Path(folder) if found else None


def trial_values(plan: TrialSpec, dataset: PackedDataset, study: Location) -> dict[str, Any]:
    """Return the values that Ray Tune passes to `run_trial` under the key `trial`."""
    data = {"dataset": dataset.uri, "subset": to_mapping(dataset.subset), "subset_seed": dataset.subset_seed}
    return {"name": plan.name, "recipe": to_mapping(plan.recipe), "folder": (study / TRIALS / plan.name).uri, **data}


def exploit_values(exploit: Exploit, after: dict[str, Any], study: Location) -> dict[str, Any]:
    """Return the values that a trial's process needs for an exploit. after: the trial's values once it has the weights."""
    source = (study / TRIALS / exploit.source).uri
    return {"source": source, "epoch": exploit.epoch, "token": f"{exploit.source}-{exploit.epoch}", "after": after}


def copy_weights(trial: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    """Perform a trial's planned exploit; returns the values to train with, and the values about it in reports.

    If the source's checkpoint is gone or is of the last epoch, log this; the trial keeps its own weights and settings.
    """
    exploit = trial.get("exploit")
    if exploit is None:
        return trial, {}
    recipe = from_mapping(Recipe, exploit["after"]["recipe"], "the trial's recipe")
    own, source = _store(locate(trial["folder"]), recipe), _store(locate(exploit["source"]), recipe)
    epoch = own.adopt(source, range(exploit["epoch"], recipe.epochs), exploit["token"])
    if epoch is None:
        log("no exploit", source=exploit["source"], reason="the source's checkpoint is gone or is of its last epoch")
        return trial, {TAKEN: NOT_TAKEN}
    log("exploit", source=exploit["source"], epoch=epoch)
    return exploit["after"], {TAKEN: epoch}


def run_trial(config: dict[str, Any]) -> None:
    """Run one trial from its newest checkpoint. config: the trial's `trial_values` as `trial`, and the study's `workers`.

    A permanent error is reported as the trial's result, so that the process can serve the next trial. A transient error is
    raised. After that or after a crash, Ray Tune restarts the trial up to workers.max_failures times. A storage outage is
    waited for first, and does not count as a failure.
    """
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(END_TIMEOUT_S)
    _free_memory()
    workers = from_mapping(WorkersConfig, config["workers"], "the study's workers")
    try:
        resuming(lambda: _train(config["trial"], workers), get_session().stop_event)
    except TRANSIENT:
        raise
    except Exception as error:
        tune.report({ERROR: failure_line(error, config["trial"]), REPORTED: time.time()})


def failure_line(error: Exception, trial: dict[str, Any]) -> str:
    """Return a one-line error message. An error other than UserError or out of memory writes its traceback to a file."""
    if (memory := out_of_memory(error)) is not None:
        return f"{memory}; {less_memory(from_mapping(Recipe, trial['recipe'], 'the recipe of the trial'))}"
    if isinstance(error, UserError):
        return _one_line(error)
    (locate(trial["folder"]) / "traceback.txt").write_text("".join(traceback.format_exception(error)))
    return f"{_one_line(error)} (traceback.txt in the trial's folder)"


class TrialProcess(wrap_function(run_trial)):  # type: ignore[misc]
    """Ray Tune's trainable around `run_trial`; unlike Ray Tune's own, its cleanup waits until `run_trial` has ended.

    Otherwise, a trial of several workers would leave their placement group behind: Ray Train's cleanup needs a dashboard,
    which Ray on a single machine does not have.
    """

    def cleanup(self) -> None:
        """Stop the trial, then its process."""
        session = get_session()
        session.stop_event.set()
        session.continue_lock.release()
        if session.training_started:
            # Its exception was reported already, or is the SystemExit that ends it.
            with contextlib.suppress(BaseException):
                session.training_thread.join(timeout=END_TIMEOUT_S)
        super().cleanup()


def _train(trial: dict[str, Any], workers: WorkersConfig) -> None:
    folder = locate(trial["folder"])
    begin_log(*names_of(folder), rank=0)
    trial, taken = copy_weights(trial)
    recipe = from_mapping(Recipe, trial["recipe"], "the trial's recipe")
    subset, seed = from_mapping(SubsetConfig, trial["subset"], "the trial's subset"), int(trial["subset_seed"])
    if workers.in_process:
        if name := recipe.compute.exchanges():
            raise UserError(f"compute.{name} is set, but a trial has one process; set workers.count to 2 or more")
        torch.set_num_threads(max(1, int(workers.reserved_cpus)))
        store = _store(folder, recipe)
        session = TuneSession(store, taken)
        try:
            fit(recipe, open_dataset(trial["dataset"], subset, seed), session, checkpoint=CHECKPOINT)
        finally:
            session.telemetry.close()
            store.flush()
        return
    values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)}
    place = {"dataset": trial["dataset"], "output": folder.uri, "name": "trial", "checkpoint": CHECKPOINT}
    _fit_relayed(
        TrainConfig(**values, **place, subset=subset, subset_seed=seed, workers=workers, tensorboard=False),
        folder,
        taken,
    )


def _fit_relayed(config: TrainConfig, folder: Location, taken: dict[str, int]) -> None:
    """Train with several workers under `folder`, and report each epoch with `taken` from this process."""
    relay = ray.remote(num_cpus=0)(ReportChannel).remote()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            fit_workers(config, folder, relay=relay)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="landmark-trial", daemon=True)
    thread.start()
    stopping = get_session().stop_event
    try:
        while (metrics := ray.get(relay.take.remote(POLL_S))) is not None or (
            thread.is_alive() and not stopping.is_set()
        ):
            if metrics is not None:
                report({**metrics, **taken})
                ray.get(relay.go_on.remote())
    finally:  # Ray Tune may end the trial by SystemExit, or while its workers are within an epoch
        group = ray.get(relay.go_on.remote(ended=True))
        thread.join(END_WORKERS_S)
        if thread.is_alive() and group is not None:
            remove_placement_group(group)
    if failed:
        raise failed[0]


def report(metrics: dict[str, Any]) -> None:
    """Report an epoch to Ray Tune, also as the loggers' step: Ray Tune's own step count restarts with every process."""
    tune.report({**metrics, "timesteps_total": int(metrics["epoch"])})


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:300]}"


def _free_memory() -> None:
    """Free the memory that the previous trial in this process held."""
    gc.collect()
    trim_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
