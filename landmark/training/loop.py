"""The training loop: epochs of steps, validation, checkpoints. Knows a session, neither Ray Train nor Ray Tune."""

import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landmark.config import LoaderConfig, Recipe, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.loader import Loader
from landmark.data.plan import training_steps
from landmark.models import build_model, model_info
from landmark.progress import Progress
from landmark.storage import locate
from landmark.training.checkpoints import (
    CheckpointMeta,
    check_classes,
    read_meta,
    read_recipe,
    read_state,
    read_weights,
    write_checkpoint,
)
from landmark.training.optim import Schedule
from landmark.training.session import Session
from landmark.training.steps import TrainStep, timed, validate

Show = Callable[[str], object]
"""Takes a line for the person who watches."""


def fit(recipe: Recipe, dataset: PackedDataset, session: Session, *, show: Show | None = None) -> None:
    """Train a model as the recipe says, going on from the session's checkpoint where there is one.

    show: takes rank 0's lines, and every rank's warnings: `print` in the user's own process, something that carries
    them elsewhere.
    Reports after every epoch: epoch, train_loss, train_top1, val_loss, val_top1, val_top5,
    val_macro_recall, lr, images_per_s, data_wait_share, epoch_seconds, and lost_images where damaged shards were
    skipped. All are reduced over the ranks.
    """
    run = _Run(recipe, dataset, session)
    with session.restore() as directory:
        if directory is not None:
            run.load(directory)
    loader = resolve_stream(recipe.loader, session.world_size)
    epochs = range(run.epoch + 1, recipe.epochs + 1)
    batches_of = functools.partial(
        Loader, dataset, rank=session.rank, world_size=session.world_size, seed=recipe.seed, epochs=epochs, tell=show
    )
    with (
        batches_of("train", loader, augment=recipe.augment) as train,
        # A reader thread, whatever the training stream: validation is the smaller part, and needs no second set of actors.
        batches_of("val", dataclasses.replace(loader, stream="thread")) as val,
    ):
        for epoch in epochs:
            if run.stops_early():
                return
            metrics = run.run_epoch(epoch, train, val, show if session.rank == 0 else None)
            with tempfile.TemporaryDirectory(prefix="landmark-checkpoint-") as folder:
                if session.rank == 0:
                    run.save(Path(folder), metrics)
                session.report(metrics, Path(folder) if session.rank == 0 else None)


def resolve_stream(config: LoaderConfig, world_size: int) -> LoaderConfig:
    """Return the loader's config with stream `auto` decided: Ray Data for several workers, a thread for one."""
    if config.stream != "auto":
        return config
    return dataclasses.replace(config, stream="ray" if world_size > 1 else "thread")


class _Run:
    """The state of a run on one rank."""

    def __init__(self, recipe: Recipe, dataset: PackedDataset, session: Session) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.session = session
        torch.manual_seed(recipe.seed)
        size = recipe.loader.image_size
        self.info = model_info(recipe.model.backbone)
        model = build_model(recipe.model, classes=dataset.num_classes, image_size=size)
        self.model = model.to(session.device).to(memory_format=torch.channels_last)
        self.step = TrainStep(self.model, recipe, self.info, session)
        rows = dataset.split("train").rows
        self.steps_per_epoch = training_steps(rows, session.world_size, recipe.loader.batch_size)
        self.schedule = Schedule(
            self.step.optimizer,
            recipe.schedule,
            optimizer_config=recipe.optimizer,
            steps_per_epoch=self.steps_per_epoch,
            epochs=recipe.epochs,
            mode=recipe.monitor_mode(),
        )
        self.epoch = 0
        self.best = -math.inf
        self.stale_epochs = 0
        # Dropout may differ between ranks, initial weights may not.
        torch.manual_seed(recipe.seed + 7919 * session.rank)

    def load(self, directory: Path) -> None:
        """Take over a checkpoint's weights and state."""
        check_classes(locate(directory), read_meta(locate(directory)), self.dataset)
        before = read_recipe(directory).model.backbone
        if before != self.recipe.model.backbone:
            raise UserError(
                f"the run's checkpoint is of {before}, but model.backbone is {self.recipe.model.backbone}; choose another name"
            )
        self.model.load_state_dict(read_weights(directory))
        state = read_state(directory)
        self.step.load_state(state["step"])
        self.schedule.load_state_dict(state["schedule"])
        self.epoch, self.best, self.stale_epochs = state["epoch"], state["best"], state["stale_epochs"]
        torch.set_rng_state(state["rng"])

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the weights."""
        return {
            "step": self.step.state(),
            "schedule": self.schedule.state_dict(),
            "rng": torch.get_rng_state(),
            "epoch": self.epoch,
            "best": self.best,
            "stale_epochs": self.stale_epochs,
        }

    def save(self, directory: Path, metrics: dict[str, float]) -> None:
        """Write a checkpoint."""
        meta = CheckpointMeta(
            backbone=self.recipe.model.backbone,
            classes=self.dataset.class_names,
            image_size=self.recipe.loader.image_size,
            mean=self.info.mean,
            std=self.info.std,
            dataset=self.dataset.location.uri,
            epoch=self.epoch,
            metrics=metrics,
            subset=self.dataset.subset,
            subset_seed=self.dataset.subset_seed,
        )
        write_checkpoint(directory, self.model, self.state(), meta, plain_recipe(self.recipe))

    def stops_early(self) -> bool:
        """Return whether the monitored metric has been stale for as long as early stopping allows."""
        patience = self.recipe.early_stopping.patience
        return patience is not None and self.stale_epochs >= patience

    def run_epoch(self, epoch: int, train: Loader, val: Loader, show: Show | None) -> dict[str, float]:
        """Train and validate one epoch; returns its metrics, the same on every rank."""
        start = time.perf_counter()
        rows = self.dataset.split("train").rows
        progress = Progress(
            f"epoch {epoch}/{self.recipe.epochs}", rows, enabled=show is not None, sink=None if show is print else show
        )
        wait, lr, step = [0.0], 0.0, (epoch - 1) * self.steps_per_epoch
        for batch in timed(train.epoch(epoch), wait):
            lr = self.step.run(batch, self.schedule, step, self.recipe.loader.batch_size)
            step += 1
            progress.update(len(batch.labels) * self.session.world_size)
        totals = self.step.take_totals()
        if not totals.rows:
            raise UserError("the training stream gave no batch; check the dataset's train split")
        train_s = time.perf_counter() - start
        average_buffers(self.model, self.session)
        sums = torch.tensor(
            [totals.loss, totals.hits, totals.rows, wait[0], train_s],
            dtype=torch.float64,
            device=self.session.device,
        )
        loss, hits, count, wait_s, all_train_s = self.session.all_reduce(sums).tolist()
        if not math.isfinite(loss):
            raise UserError(f"the loss became {loss} in epoch {epoch}; lower optimizer.lr or set optimizer.clip_norm")
        metrics = {
            "epoch": epoch,
            "train_loss": loss / count,
            "train_top1": hits / count,
            **validate(
                self.step.evaluated, val.epoch(epoch), self.step.preprocess, self.session, self.dataset.num_classes
            ),
            "lr": lr,
            "images_per_s": count / (all_train_s / self.session.world_size),
            "data_wait_share": wait_s / all_train_s,
            "epoch_seconds": time.perf_counter() - start,
        }
        if self.recipe.loader.damaged == "skip":
            lost = torch.tensor([train.lost[epoch] + val.lost[epoch]], dtype=torch.float64, device=self.session.device)
            if all_lost := int(self.session.all_reduce(lost).item()):
                metrics["lost_images"] = all_lost
        self._judge(epoch, metrics)
        progress.clear()
        if show is not None:
            show(_epoch_line(metrics, self.recipe.epochs))
        return metrics

    def _judge(self, epoch: int, metrics: dict[str, float]) -> None:
        """Note the epoch's result for early stopping and the schedule."""
        sign = 1.0 if self.recipe.monitor_mode() == "max" else -1.0
        value = sign * metrics[self.recipe.monitor]
        self.epoch = epoch
        if value > self.best + self.recipe.early_stopping.min_delta:
            self.best, self.stale_epochs = value, 0
        else:
            self.stale_epochs += 1
        self.schedule.epoch_end(metrics[self.recipe.monitor])


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


def _epoch_line(metrics: dict[str, float], epochs: int) -> str:
    lost = f", {metrics['lost_images']:,.0f} images lost" if "lost_images" in metrics else ""
    return (
        f"epoch {metrics['epoch']:.0f}/{epochs}: train loss {metrics['train_loss']:.3f}, "
        f"val loss {metrics['val_loss']:.3f}, val top-1 {metrics['val_top1']:.2%}, top-5 {metrics['val_top5']:.2%}, "
        f"{metrics['images_per_s']:,.0f} images/s, waited for data {metrics['data_wait_share']:.0%}{lost}"
    )
