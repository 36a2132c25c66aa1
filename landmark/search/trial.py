"""A trial: one training run inside Ray Tune, in the trial's own process or by several Ray Train workers."""

import contextlib
import dataclasses
import gc
import os
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from torch import nn

from landmark.config import Recipe, SubsetConfig, TrainConfig, UserError, WorkersConfig, from_mapping, to_mapping
from landmark.data.dataset import PackedDataset
from landmark.data.selection import open_dataset
from landmark.search.record import ERROR, FIRST_STEP, REPORTED
from landmark.search.space import TrialPlan
from landmark.storage import Location, locate
from landmark.training.checkpoints import Snapshot, check_files
from landmark.training.distributed import fit_workers
from landmark.training.local import default_device
from landmark.training.loop import fit
from landmark.training.session import Phase

TUNE_FOLDER = "ray"
"""Where Ray Tune keeps its state and the trials' checkpoints, below the study."""
RUN_FOLDER = "train"
"""Where a trial of several workers keeps its Ray Train run, below the trial's folder."""
END_TIMEOUT_S = 120
"""How long Ray Tune waits for a stopped trial's threads before it uses its process again (default: 2)."""


class TuneSession:
    """A trial of one worker, in the trial's own process."""

    rank = 0
    world_size = 1
    saves_within_epochs = False

    def __init__(self) -> None:
        self.device = default_device()
        self.first_step_at: float | None = None

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model itself; the loop calls this just before the first step."""
        self.first_step_at = time.time()
        return model

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values: there is one rank."""
        return values

    def report(self, metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        """Report to Ray Tune, which stores the checkpoint; a trial that is stopped or paused ends here."""
        assert snapshot is not None
        times = {FIRST_STEP: self.first_step_at, REPORTED: time.time()}
        with tempfile.TemporaryDirectory(prefix="landmark-checkpoint-") as folder:
            snapshot.write(Path(folder))
            tune.report({**metrics, **times}, checkpoint=tune.Checkpoint.from_directory(folder))

    def save(self, snapshot: Snapshot | None, *, at_once: bool) -> None:
        """Do nothing: Ray Tune takes a checkpoint with an epoch's report alone."""

    def asked(self) -> bool:
        """Return False: a trial's process is told nothing."""
        return False

    def moved(self, phase: Phase) -> None:
        """Do nothing: Ray Tune watches the process."""

    @contextlib.contextmanager
    def restore(self) -> Iterator[Path | None]:
        """Give the checkpoint that a paused or restarted trial goes on from."""
        checkpoint = tune.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            check_files(Path(folder))
            yield Path(folder)


class Relay(TuneReportCallback):
    """Hands the epochs of a trial's Ray Train run to Ray Tune."""

    def drain(self) -> None:
        """Wait until Ray Tune has taken the last epoch: the trial's function must not return before."""
        while not self._training_actor_item_queue.empty():
            time.sleep(0.05)


def trial_values(plan: TrialPlan, dataset: PackedDataset, study: Location) -> dict[str, Any]:
    """Return what Ray Tune hands to `run_trial` under the key `trial`."""
    folder = study / TUNE_FOLDER / plan.name
    data = {"dataset": dataset.location.uri, "subset": to_mapping(dataset.subset), "subset_seed": dataset.subset_seed}
    return {"name": plan.name, "recipe": to_mapping(plan.recipe), "folder": folder.uri, **data}


def run_trial(config: dict[str, Any]) -> None:
    """Run one trial: `config` has its `trial_values` under trial, besides the study's workers and metric.

    A Python error is reported as the trial's result instead of raised: tried again it would repeat itself,
    and so the process serves the next trial. A process that dies is restarted by Ray Tune, which goes on
    from the last checkpoint.
    """
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(END_TIMEOUT_S)
    _free_memory()
    try:
        _train(config["trial"], from_mapping(WorkersConfig, config["workers"], "the study's workers"))
    except Exception as error:
        line = _one_line(error)
        if not isinstance(error, UserError):
            (locate(config["trial"]["folder"]) / "traceback.txt").write_text(traceback.format_exc())
            line += " (traceback.txt in the trial's folder)"
        # Schedulers want the metric in every report; in epoch 0 it decides nothing.
        tune.report({"epoch": 0, config["metric"]: config["worst"], ERROR: line, REPORTED: time.time()})


def _train(trial: dict[str, Any], workers: WorkersConfig) -> None:
    recipe = from_mapping(Recipe, trial["recipe"], "the trial's recipe")
    subset, seed = from_mapping(SubsetConfig, trial["subset"], "the trial's subset"), int(trial["subset_seed"])
    if workers.in_process:
        torch.set_num_threads(max(1, int(workers.cpus)))
        fit(recipe, open_dataset(trial["dataset"], subset, seed), TuneSession())
        return
    values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)}
    place = {"dataset": trial["dataset"], "output": trial["folder"], "name": RUN_FOLDER}
    relay = Relay()
    fit_workers(
        TrainConfig(**values, **place, subset=subset, subset_seed=seed, workers=workers, tensorboard=False),
        locate(trial["folder"]) / RUN_FOLDER,
        [relay],
    )
    relay.drain()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:300]}"


def _free_memory() -> None:
    """Let go of what the process's trial before this one held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
