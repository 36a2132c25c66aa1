"""The state of a run on one rank: weights, schedule, position in the epoch; how it is saved and taken up again."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from landmark.config import Recipe, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.loader import Batch
from landmark.data.plan import training_steps
from landmark.data.position import Position
from landmark.data.sampling import EpochRows
from landmark.evaluation.ranking import score
from landmark.models import build_model, check_start_size, model_info
from landmark.storage import locate
from landmark.training.batches import check_batches
from landmark.training.checkpoints import (
    CheckpointMeta,
    Snapshot,
    check_classes,
    copied,
    read_meta,
    read_recipe,
    read_state,
    read_weights,
)
from landmark.training.optim import Schedule
from landmark.training.session import Session
from landmark.training.steps import TrainStep, TrainTotals

STATE_LAYOUT = 1
"""Version of what a checkpoint's state holds."""
ORDER_RULE = 2
"""Version of the order in which an epoch shows images. A checkpoint within an epoch of another order, or of none that is
recorded, resumes with what is left of the epoch, divided again."""
NO_TOTALS = TrainTotals(loss=0.0, hits=0.0, rows=0)


class RunState:
    """Everything that a run changes, and where it is. Alike on all ranks but for what is gathered before it is saved."""

    def __init__(self, recipe: Recipe, dataset: PackedDataset, session: Session) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.session = session
        check_batches(recipe, dataset.split("train").rows, session.world_size)
        torch.manual_seed(recipe.seed)
        self.info = model_info(recipe.model.backbone)
        size, start_size = recipe.loader.image_size, recipe.resizing.start_size
        model = build_model(recipe.model, classes=dataset.num_classes, image_size=size)
        if start_size is not None:
            check_start_size(recipe.model, dataset.num_classes, size, start_size)
        self.model = model.to(session.device)
        weighted = recipe.loss.class_weights != "none" or recipe.model.head.margin_least is not None
        class_counts = dataset.label_counts("train") if weighted else None
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
        """Of the epoch under way, over all ranks, as far as gathered."""
        self._mine = NO_TOTALS
        self.trained: dict[str, float] = {}
        """What training reached in the epoch under way, once all of its steps are done."""

    def _start_of(self, epoch: int) -> Position:
        return Position(epoch=epoch, division=self._division(epoch), length=self.rows.length)

    def _division(self, epoch: int) -> tuple[int, ...]:
        _, batch_size = self.recipe.shape(epoch)
        return self.session.world_size, batch_size, self.recipe.loader.shuffle_row_groups, ORDER_RULE

    def load(self, directory: Path) -> None:
        """Take over a checkpoint's weights, state and position."""
        check_classes(locate(directory), read_meta(locate(directory)), self.dataset)
        before = read_recipe(directory).model.backbone
        if before != self.recipe.model.backbone:
            raise UserError(
                f"the run's checkpoint is of {before}, but model.backbone is {self.recipe.model.backbone}; choose another name"
            )
        self.model.load_state_dict(read_weights(directory))
        state = read_state(directory)
        if state.get("layout") != STATE_LAYOUT:
            raise UserError("the run's checkpoint is of another version of landmark; choose another name")
        # Of the class prototypes' state, the greatest part by far, a rank reads its own classes; the rest is copied.
        step = {key: value if key == "centres" else copied(value) for key, value in state["step"].items()}
        self.step.load_state(step)
        self.schedule.load_state_dict(state["schedule"])
        self.finished, self.best, self.stale_epochs = state["finished"], state["best"], state["stale_epochs"]
        self.metrics = state["metrics"]
        self.totals = TrainTotals(**state["totals"])
        self.trained = state.get("trained", {})
        position = Position.of(state["position"])
        if position.length != self.rows.length:
            raise UserError(
                f"the run's checkpoint is of {position.length:,} training images, but the dataset has {self.rows.length:,}; "
                "choose another name"
            )
        self.position = position.redivided(self._division(position.epoch))

    def begin(self, epoch: int) -> None:
        """Begin an epoch, unless it is under way."""
        if self.position.epoch != epoch:
            self.position = self._start_of(epoch)
            self.totals = NO_TOTALS
            self.trained = {}

    @property
    def shown(self) -> int:
        """Images of the epoch that are known to be shown, over all ranks."""
        return 0 if self.position.known is None else int(self.position.known.sum())

    def steps(self) -> int:
        """Return the steps of the epoch since it was last divided among the ranks, as the loader's plan has them."""
        _, batch_size = self.recipe.shape(self.position.epoch)
        left, resumed = self.rows.total - self.position.begun, self.position.before is not None
        return training_steps(left, self.session.world_size, batch_size, resumed=resumed)

    def at(self, steps: int) -> float:
        """Return the position on the schedule, in steps of full-size epochs; steps: those since the last division."""
        begun = self.position.begun / self.rows.total
        of_epoch = self.steps_per_epoch * begun + self.position.step * (self.steps_per_epoch * (1 - begun) / steps)
        return (self.position.epoch - 1) * self.steps_per_epoch + of_epoch

    def reseed(self) -> None:
        """Make torch's random numbers a function of (seed, epoch, step, rank), so that a resumed step repeats them."""
        key = [self.recipe.seed, self.position.epoch, self.position.begun, self.position.step, self.session.rank]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    def advance(self, batch: Batch) -> None:
        """Record one step in the account of the epoch: the images that it consumed on this rank, lost ones included."""
        self.position.advance(batch.draws)
        self._mine = _added(self._mine, dataclasses.replace(NO_TOTALS, lost=batch.lost))

    def take_totals(self) -> None:
        """Add up what this rank's steps reached; raises UserError where the loss is not finite."""
        self._mine = _added(self._mine, self.step.take_totals())

    def gather(self) -> None:
        """Bring position, totals and running statistics together over the ranks; on every rank in the same step."""
        self.take_totals()
        for model in {id(model): model for model in (self.model, self.step.evaluated)}.values():
            average_buffers(model, self.session)
        if self.step.centres is not None:
            self.step.centres.gather()
        self.position.gather(self._sum)
        mine = torch.tensor(dataclasses.astuple(self._mine), dtype=torch.float64, device=self.session.device)
        names = [field.name for field in dataclasses.fields(TrainTotals)]
        everyones = dict(zip(names, self.session.all_reduce(mine).tolist(), strict=True))
        self.totals, self._mine = _added(self.totals, TrainTotals(**everyones)), NO_TOTALS

    def _sum(self, counts: np.ndarray) -> np.ndarray:
        return self.session.all_reduce(torch.from_numpy(counts).to(self.session.device)).cpu().numpy()

    def finish(self, epoch: int, metrics: dict[str, float]) -> None:
        """Note an epoch's result for early stopping and the schedule, and stand at the beginning of the next."""
        value = score(metrics[self.recipe.monitor], self.recipe.monitor_mode())
        if value > self.best + self.recipe.early_stopping.min_delta:
            self.best, self.stale_epochs = value, 0
        else:
            self.stale_epochs += 1
        self.schedule.epoch_end(metrics[self.recipe.monitor])
        self.finished, self.metrics = epoch, metrics
        self.begin(epoch + 1)

    def stops_early(self) -> bool:
        """Return whether the monitored metric has been stale for as long as early stopping allows."""
        patience = self.recipe.early_stopping.patience
        return patience is not None and self.stale_epochs >= patience

    def snapshot(self) -> Snapshot:
        """Return a checkpoint of this moment; within an epoch `gather` was called just before."""
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
        )
        within = f"-image-{self.shown:09d}" if self.shown else ""
        return Snapshot(
            name=f"epoch-{self.position.epoch if within else self.finished:04d}{within}",
            weights=copied(self.step.evaluated.state_dict()),
            state=copied(state),
            meta=meta,
            recipe=plain_recipe(self.recipe),
        )


def average_buffers(model: nn.Module, session: Session) -> None:
    """Average the running statistics of batch norms over the ranks, so that all validate and save one model."""
    if session.world_size == 1:
        return
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(session.all_reduce(buffer.double()) / session.world_size)


def plain_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe alone of a config that extends it."""
    return Recipe(**{field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)})


def _added(one: TrainTotals, other: TrainTotals) -> TrainTotals:
    names = [field.name for field in dataclasses.fields(TrainTotals)]
    return TrainTotals(**{name: getattr(one, name) + getattr(other, name) for name in names})
