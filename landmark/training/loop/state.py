"""State of a run on one rank: weights, schedule, progress in the epoch, and how they are saved and restored."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from landmark.checkpoints.format import (
    CheckpointMeta,
    Snapshot,
    check_classes,
    copied,
    read_meta,
    read_recipe,
    read_state,
    read_weights,
)
from landmark.config import Recipe, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.loading.loader import Batch
from landmark.data.loading.plan import training_steps
from landmark.data.loading.progress import EpochProgress
from landmark.data.loading.sampling import EpochRows
from landmark.evaluation.ranking import score
from landmark.models import build_model, check_start_size, has_lora, make_trainable, model_info, plain_state
from landmark.storage import locate
from landmark.training.compute.batch_size import check_batches
from landmark.training.compute.optim import Schedule
from landmark.training.loop.session import Session
from landmark.training.loop.step import TrainStep
from landmark.training.loop.time_limit import TimeLimit
from landmark.training.loop.totals import NO_TOTALS, TrainTotals, added

STATE_LAYOUT = 1
"""Version of the contents of a checkpoint's state."""
ORDER_RULE = 2
"""Version of the order of images within an epoch. If a checkpoint within an epoch has another version or none, the run
resumes with the remaining images of the epoch, redistributed."""


class RunState:
    """All mutable state of a run. It is the same on all ranks, except values that are gathered before a save.

    limit_s: time limit, seconds. The schedule follows the time then, instead of the epochs.
    """

    def __init__(self, recipe: Recipe, dataset: PackedDataset, session: Session, limit_s: float | None = None) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.session = session
        val_rows = dataset.split("val").rows if limit_s is not None else 0
        self.limit = None if limit_s is None else TimeLimit(limit_s, session, val_rows=val_rows)
        check_batches(recipe, dataset.split("train").rows, session.world_size)
        torch.manual_seed(recipe.seed)
        self.info = model_info(recipe.model.backbone)
        size, start_size = recipe.loader.image_size, recipe.resizing.start_size
        model = build_model(recipe.model, classes=dataset.num_classes, image_size=size)
        make_trainable(model, recipe.model, classes=dataset.num_classes, image_size=size)
        if start_size is not None:
            check_start_size(recipe.model, dataset.num_classes, size, start_size)
        self.model = model.to(session.device)
        loss = recipe.loss
        by_class = loss.class_weights != "none" or loss.logit_adjustment or recipe.model.head.min_margin is not None
        class_counts = dataset.label_counts("train") if by_class else None
        self.step = TrainStep(self.model, recipe, self.info, session, class_counts)
        self.rows = EpochRows(dataset, "train", recipe.sampling, recipe.seed)
        self.steps_per_epoch = training_steps(self.rows.total, session.world_size, recipe.loader.batch_size)
        self.schedule = Schedule(
            self.step.optimizer,
            recipe.schedule,
            optimizer_config=recipe.optimizer,
            steps_per_epoch=self.steps_per_epoch,
            epochs=recipe.epochs,
            mode=recipe.monitor_mode(),
        )
        self.finished = 0
        self.metrics: dict[str, float] = {}
        self.best = -math.inf
        self.stale_epochs = 0
        self.position = self._start_of(1)
        self.totals = NO_TOTALS
        """Totals of the current epoch over all ranks, as of the last gather."""
        self._local = NO_TOTALS
        self.trained: dict[str, float] = {}
        """Training metrics of the current epoch after its last step."""

    def _start_of(self, epoch: int) -> EpochProgress:
        return EpochProgress(epoch=epoch, partitioning=self._division(epoch), length=self.rows.length)

    def _division(self, epoch: int) -> tuple[int, ...]:
        _, batch_size = self.recipe.shape(epoch)
        return self.session.world_size, batch_size, self.recipe.loader.shuffle_row_groups, ORDER_RULE

    def load(self, directory: Path) -> None:
        """Load a checkpoint's weights, state and progress. Raises UserError if it does not match the run."""
        check_classes(locate(directory), read_meta(locate(directory)), self.dataset)
        before = read_recipe(directory).model.backbone
        if before != self.recipe.model.backbone:
            raise UserError(
                f"the run's checkpoint contains {before}, but model.backbone is {self.recipe.model.backbone}; choose another --name"
            )
        if not has_lora(self.model):  # else the state contains the weights
            self.model.load_state_dict(read_weights(directory))
        state = read_state(directory)
        if state.get("layout") != STATE_LAYOUT:
            raise UserError(
                "the run's checkpoint was written by an incompatible version of landmark; choose another --name"
            )
        # The class prototypes' state is by far the largest. Each rank reads its own classes of it. The rest is copied.
        step = {key: value if key == "centres" else copied(value) for key, value in state["step"].items()}
        self.step.load_state(step)
        self.schedule.load_state_dict(state["schedule"])
        self.finished, self.best, self.stale_epochs = state["finished"], state["best"], state["stale_epochs"]
        self.metrics = state["metrics"]
        self.totals = TrainTotals(**state["totals"])
        self.trained = state.get("trained", {})
        if self.limit is not None:
            self.limit.load(state.get("seconds", 0.0))
        position = EpochProgress.of(state["position"])
        if position.length != self.rows.length:
            raise UserError(
                f"the run's checkpoint was trained on {position.length:,} images, but the dataset has {self.rows.length:,}; "
                "choose another --name"
            )
        self.position = position.repartitioned(self._division(position.epoch))

    def begin(self, epoch: int) -> None:
        """Start an epoch unless it has already started."""
        if self.position.epoch != epoch:
            self.position = self._start_of(epoch)
            self.totals = NO_TOTALS
            self.trained = {}

    @property
    def shown(self) -> int:
        """Images of the epoch that are known to be used, over all ranks."""
        return 0 if self.position.consumed is None else int(self.position.consumed.sum())

    def steps(self) -> int:
        """Return the number of steps since the epoch was last divided among the ranks, as in the loader's plan."""
        _, batch_size = self.recipe.shape(self.position.epoch)
        left, resumed = self.rows.total - self.position.begun, self.position.before is not None
        return training_steps(left, self.session.world_size, batch_size, resumed=resumed)

    def at(self, steps: int) -> float:
        """Return the position on the schedule, in steps of full-size epochs. steps: count since the last division."""
        if self.limit is not None:
            return self.limit.fraction * (self.steps_per_epoch * self.recipe.epochs - 1)
        begun = self.position.begun / self.rows.total
        of_epoch = self.steps_per_epoch * begun + self.position.step * (self.steps_per_epoch * (1 - begun) / steps)
        return (self.position.epoch - 1) * self.steps_per_epoch + of_epoch

    def reseed(self) -> None:
        """Seed torch as a function of (seed, epoch, step, rank), so that a resumed step repeats its random numbers."""
        key = [self.recipe.seed, self.position.epoch, self.position.begun, self.position.step, self.session.rank]
        seed_generators(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]), self.session.device)

    def advance(self, batch: Batch) -> None:
        """Record the images that one step used on this rank, including lost ones."""
        self.position.advance(batch.visits)
        self._local = added(self._local, dataclasses.replace(NO_TOTALS, lost=batch.lost))

    def take_totals(self) -> None:
        """Add up the totals of this rank's steps. Raises UserError if the loss is not finite."""
        self._local = added(self._local, self.step.take_totals())

    def gather(self) -> None:
        """Gather progress, totals and running statistics over the ranks. Call it on every rank in the same step."""
        self.take_totals()
        for model in {id(model): model for model in (self.model, self.step.evaluated)}.values():
            average_buffers(model, self.session)
        if self.step.partial_fc is not None:
            self.step.partial_fc.gather()
        self.position.gather(self._sum)
        local = torch.tensor(dataclasses.astuple(self._local), dtype=torch.float64, device=self.session.device)
        names = [field.name for field in dataclasses.fields(TrainTotals)]
        summed = dict(zip(names, self.session.all_reduce(local).tolist(), strict=True))
        self.totals, self._local = added(self.totals, TrainTotals(**summed)), NO_TOTALS

    def _sum(self, counts: np.ndarray) -> np.ndarray:
        return self.session.all_reduce(torch.from_numpy(counts).to(self.session.device)).cpu().numpy()

    def finish(self, epoch: int, metrics: dict[str, float]) -> None:
        """Record an epoch's result for early stopping and the schedule, and move to the next epoch."""
        value = score(metrics[self.recipe.monitor], self.recipe.monitor_mode())
        if value > self.best + self.recipe.early_stopping.min_delta:
            self.best, self.stale_epochs = value, 0
        else:
            self.stale_epochs += 1
        self.schedule.epoch_end(metrics[self.recipe.monitor])
        self.finished, self.metrics = epoch, metrics
        self.begin(epoch + 1)

    def stops_early(self) -> bool:
        """Return whether early stopping ends the run."""
        patience = self.recipe.early_stopping.patience
        return patience is not None and self.stale_epochs >= patience

    def snapshot(self) -> Snapshot:
        """Return a checkpoint of the current state. Within an epoch, call `gather` first."""
        state = {
            "layout": STATE_LAYOUT,
            "step": self.step.state(),
            "schedule": self.schedule.state_dict(),
            "finished": self.finished,
            "metrics": self.metrics,
            "best": self.best,
            "stale_epochs": self.stale_epochs,
            "position": self.position.state(),
            "totals": dataclasses.asdict(self.totals),
            "trained": self.trained,
            "seconds": 0.0 if self.limit is None else self.limit.seconds,
        }
        meta = CheckpointMeta(
            backbone=self.recipe.model.backbone,
            classes=self.dataset.class_names,
            image_size=self.recipe.loader.image_size,
            mean=self.info.mean,
            std=self.info.std,
            dataset=self.dataset.uri,
            epoch=self.finished,
            metrics=self.metrics,
            subset=self.dataset.subset,
            subset_seed=self.dataset.subset_seed,
            dataset_id=self.dataset.content_id,
            crop_pct=self.recipe.loader.crop_pct,
            temperature=self.metrics.get("temperature", 1.0),
        )
        within = f"-image-{self.shown:09d}" if self.shown else ""
        return Snapshot(
            name=f"epoch-{self.position.epoch if within else self.finished:04d}{within}",
            weights=copied(plain_state(self.step.evaluated)),
            state=copied(state),
            meta=meta,
            recipe=recipe_of(self.recipe),
        )


def seed_generators(value: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and a device. torch.manual_seed also formats a stack trace for each kind of device
    that is not in use, 0.5 ms per step."""
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(value)
        return
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(value)


def average_buffers(model: nn.Module, session: Session) -> None:
    """Average the running statistics of batch norms over the ranks, so that all validate and save the same model."""
    if session.world_size == 1:
        return
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(session.all_reduce(buffer.double()) / session.world_size)


def recipe_of(recipe: Recipe) -> Recipe:
    """Return the recipe part of a config that extends Recipe."""
    return Recipe(**{field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)})
