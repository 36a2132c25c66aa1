"""The training loop: epochs of steps, validation, checkpoints. Uses a session, and neither Ray Train nor Ray Tune."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator

import torch

from landmark.config import CheckpointConfig, LoaderConfig, Recipe, UserError, last_epoch
from landmark.data.dataset import PackedDataset
from landmark.data.loading.bottleneck import StageSeconds
from landmark.data.loading.loader import Batch, Loader
from landmark.logs import log
from landmark.progress import Progress
from landmark.training.compute.device_prefetch import DeviceBatch, to_device
from landmark.training.loop.loaders import training_loader, validation_loader
from landmark.training.loop.session import Session
from landmark.training.loop.state import RunState
from landmark.training.loop.step import HINT
from landmark.training.loop.triggers import SYNC_INTERVAL_STEPS, SaveTrigger
from landmark.training.loop.validation import timed, validate
from landmark.training.observe.profiling import StepProfiler
from landmark.training.observe.throughput import ThroughputMeter

Show = Callable[[str], object]
"""Receives a message for the user."""


def fit(
    recipe: Recipe,
    dataset: PackedDataset,
    session: Session,
    *,
    show: Show | None = None,
    checkpoint: CheckpointConfig | None = None,
    profiler: StepProfiler | None = None,
    limit_s: float | None = None,
) -> None:
    """Train a model as the recipe says. Resumes from the session's checkpoint if there is one, also within an epoch.

    show: receives rank 0's messages and every rank's warnings: `print` in the user's process, or a function that
    forwards them. checkpoint: when to save within epochs, if the session supports it. None: save only at the end of
    epochs. profiler: records some steps. limit_s: time limit, seconds, instead of the recipe's epochs.

    Reports after every epoch: epoch, train_loss, train_top1, val_loss, val_top1, val_top5, val_macro_recall,
    val_calibrated_loss, temperature, lr, images_per_s, data_wait_fraction and its parts by stage, epoch_seconds, and
    lost_images if corrupt shards were skipped. All are reduced over the ranks. A probe that training starts at is epoch 0.
    """
    run = RunState(recipe, dataset, session, limit_s)
    run.step.show = show if session.rank == 0 else None
    with session.restore() as directory:
        if directory is not None:
            run.load(directory)
        resumed = directory is not None
    log("training", epoch=run.position.epoch, step=run.position.step, epochs=recipe.epochs, workers=session.world_size)
    loader = training_loader(recipe, dataset, session.world_size, show if session.rank == 0 else None)
    if recipe.probe.head != "none" and not resumed:
        _start_at_probe(run, loader, show if session.rank == 0 else None)
    epochs = range(run.position.epoch, last_epoch(recipe, limit_s) + 1)
    if epochs:  # else a run that is only a probe, or an elastic run that is resized after its last epoch
        if recipe.distill.teachers:
            from landmark.training.probe.teacher import load_teacher  # the package uses the run's state

            run.step.objective.teacher = load_teacher(run, loader, show if session.rank == 0 else None)
        trigger = SaveTrigger(checkpoint, session)
        _run_epochs(run, epochs, loader, trigger, show, profiler)


def _run_epochs(
    run: RunState,
    epochs: range,
    loader: LoaderConfig,
    trigger: SaveTrigger,
    show: Show | None,
    profiler: StepProfiler | None,
) -> None:
    """Run the remaining epochs until early stopping or the time limit ends them."""
    recipe, dataset, session = run.recipe, run.dataset, run.session
    loader_of = functools.partial(
        Loader,
        dataset,
        rank=session.rank,
        world_size=session.world_size,
        seed=recipe.seed,
        epochs=epochs,
        tell=show,
    )
    shards = {name: session.shard(name, run.position) if loader.stream == "ray" else None for name in ("train", "val")}
    validation = validation_loader(loader)
    if shards["val"] is None:  # one process: validation is the smaller part and needs no second set of actors
        validation = dataclasses.replace(validation, stream="thread")
    with (
        profiler or contextlib.nullcontext(),
        loader_of(
            "train",
            loader,
            augment=recipe.augment,
            sampling=recipe.sampling,
            shape=recipe.shape,
            position=run.position,
            shard=shards["train"],
        ) as train,
        loader_of("val", validation, shard=shards["val"]) as val,
    ):
        loop = _Loop(run, train, val, trigger, show if session.rank == 0 else None, profiler)
        for epoch in epochs:
            if run.stops_early() or (run.limit is not None and run.metrics and not run.limit.fits_epoch()):
                return
            loop.run_epoch(epoch)


def _start_at_probe(run: RunState, loader: LoaderConfig, show: Show | None) -> None:
    """Set the classifier to the probe, and report it: as epoch 1 of a run that is only a probe, else as epoch 0.

    Fine-tuning that is not better than the probe then leaves the probe as the best checkpoint.
    """
    from landmark.training.probe.start import fit_probe  # the package uses the run's state

    only = run.recipe.is_probe()
    if only:
        run.session.prepare(run.model)
    metrics = {"epoch": int(only), **fit_probe(run, loader, show)}
    if not only:
        if not run.session.reports_probe:
            return
        run.step.prepare()
    run.finish(int(only), metrics)
    log("epoch", **metrics)
    run.session.heartbeat("saving")
    run.session.report(metrics, run.snapshot() if run.session.rank == 0 else None)


class _Loop:
    """Epochs of a run on one rank."""

    def __init__(
        self,
        run: RunState,
        train: Loader,
        val: Loader,
        trigger: SaveTrigger,
        show: Show | None,
        profiler: StepProfiler | None,
    ) -> None:
        self.run = run
        self.recipe = run.recipe
        self.session = run.session
        self.train = train
        self.val = val
        self.trigger = trigger
        self.show = show
        self.profiler = profiler

    def run_epoch(self, epoch: int) -> None:
        """Train, validate and report the rest of an epoch. If all of its steps are done, only validate and report."""
        start = time.perf_counter()
        self.run.begin(epoch)
        progress = self._progress(epoch)
        metrics = {"epoch": epoch, **self._train(epoch, progress)}
        self.session.heartbeat("validating")
        validation_start = time.perf_counter()
        metrics |= {**self._validated(epoch), "epoch_seconds": time.perf_counter() - start}
        if self.recipe.loader.corrupt == "skip":
            val_lost = torch.tensor([self.val.lost[epoch]], device=self.session.device)
            if all_lost := int(self.run.totals.lost) + int(self.session.all_reduce(val_lost.double()).item()):
                metrics["lost_images"] = all_lost
        if self.run.totals.skipped:
            metrics["skipped_steps"] = self.run.totals.skipped
        self.run.finish(epoch, metrics)
        progress.clear()
        if self.show is not None:
            self.show(_epoch_line(metrics, self._title(epoch)))
        log("epoch", **metrics)
        self.session.heartbeat("saving")
        self.session.report(metrics, self.run.snapshot() if self.session.rank == 0 else None)
        self.trigger.saved()
        if self.run.limit is not None:
            self.run.limit.validated(time.perf_counter() - validation_start)

    def _title(self, epoch: int) -> str:
        return f"epoch {epoch}" if self.run.limit is not None else f"epoch {epoch}/{self.recipe.epochs}"

    def _train(self, epoch: int, progress: Progress) -> dict[str, float]:
        """Run the remaining steps of an epoch and save. Returns the training metrics with the last learning rate."""
        start, rows_before, steps = time.perf_counter(), self.run.totals.rows, 0
        wait, lr, stages = [0.0], 0.0, self.train.stage_seconds()
        for step_lr in self._steps(epoch, progress, wait):
            lr, steps = step_lr, steps + 1
        if not steps and self.run.trained:
            return self.run.trained
        waited = self.train.stage_seconds().since(stages).within(wait[0])
        self.run.trained = {**self._trained(rows_before, waited, time.perf_counter() - start), "lr": lr}
        if self.trigger.before_validation:
            # Validation can take long. If a process is lost during validation, no training step is lost.
            self._save(at_once=False)
        return self.run.trained

    def _progress(self, epoch: int) -> Progress:
        rows = self.train.rows.total
        sink = None if self.show is print else self.show
        progress = Progress(self._title(epoch), rows, enabled=self.show is not None, sink=sink)
        progress.done = self.run.shown
        return progress

    def _steps(self, epoch: int, progress: Progress, wait: list[float]) -> Iterator[float]:
        """Run the steps of an epoch with checkpoints in between. Yields the learning rate of each step."""
        run, steps = self.run, self.run.steps()
        throughput = ThroughputMeter(epoch, wait, self.train.stage_seconds, self.session.report_throughput)
        _, batch_size = self.recipe.shape(epoch)
        if run.limit is not None:
            run.limit.begin_epoch(run.shown)
        for batch in timed(self._watched(epoch), wait):
            self.session.heartbeat("in a step")
            run.reseed()
            yield run.step.run(batch, run.schedule, run.at(steps), batch_size)
            if self.profiler is not None:
                self.profiler.step()
            run.advance(batch.host)
            progress.update(len(batch.labels) * self.session.world_size)
            throughput.update(len(batch.labels))
            if run.position.step % SYNC_INTERVAL_STEPS == 0:
                run.take_totals()
            if run.position.step < steps and (due := self.trigger.due(run.position.step)) != "no":
                self.run.gather()
                self._save(at_once=due == "asked")
            self.session.heartbeat("waiting for data")
            if run.limit is not None and run.limit.ends(run.position.step, progress.done):
                break
        throughput.flush()

    def _watched(self, epoch: int) -> Iterator[DeviceBatch]:
        self.session.heartbeat("waiting for data")
        yield from to_device(self.train.epoch(epoch), self.session.device)

    def _save(self, *, at_once: bool) -> None:
        """Save a checkpoint of the current state, just gathered. Runs on every rank in the same step."""
        self.session.heartbeat("saving")
        self.session.save(self.run.snapshot() if self.session.rank == 0 else None, at_once=at_once)
        self.trigger.saved()

    def _trained(self, rows_before: float, waited: StageSeconds, train_s: float) -> dict[str, float]:
        """Return the training metrics over all ranks. rows_before: images of the epoch used before a resume."""
        run, world_size = self.run, self.session.world_size
        run.gather()
        if not run.totals.rows and run.totals.skipped:
            raise UserError(f"none of the epoch's {run.totals.skipped:.0f} steps had a finite gradient; {HINT}")
        if not run.totals.rows:
            raise UserError("the training data loader returned no batch; check the dataset's train split")
        times = torch.tensor([train_s, *waited.values()], dtype=torch.float64, device=self.session.device)
        all_train_s, *all_waited_s = self.session.all_reduce(times).tolist()
        storage, decoding, transfer = (seconds / all_train_s for seconds in all_waited_s)
        return {
            "train_loss": run.totals.loss / run.totals.rows,
            "train_top1": run.totals.hits / run.totals.rows,
            "images_per_s": (run.totals.rows - rows_before) / (all_train_s / world_size),
            "data_wait_fraction": storage + decoding + transfer,
            "storage_wait_fraction": storage,
            "decoding_wait_fraction": decoding,
            "transfer_wait_fraction": transfer,
        }

    def _validated(self, epoch: int) -> dict[str, float]:
        """Return the validation metrics."""
        run = self.run
        batches = self._with_heartbeat(self.val.epoch(epoch))
        classes = run.dataset.num_classes
        return validate(run.step.evaluated, batches, run.step.preprocess, self.session, classes, run.step.precision)

    def _with_heartbeat(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield validation's batches, report progress for each, and end the process between two batches if requested.

        The number of batches differs between ranks, so nothing here may wait for another rank.
        """
        for batch in batches:
            self.session.heartbeat("validating")
            if self.trigger.asked_without_others():
                self.session.save(None, at_once=True)
            yield batch
        self.session.heartbeat("validated")


def _epoch_line(metrics: dict[str, float], title: str) -> str:
    lost = f", {metrics['lost_images']:,.0f} images lost" if "lost_images" in metrics else ""
    return (
        f"{title}: train loss {metrics['train_loss']:.3f}, "
        f"val loss {metrics['val_loss']:.3f}, val top-1 {metrics['val_top1']:.2%}, top-5 {metrics['val_top5']:.2%}, "
        f"{metrics['images_per_s']:,.0f} images/s, waited for data {metrics['data_wait_fraction']:.0%}{lost}"
    )
