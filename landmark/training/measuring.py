"""Training in this process that only measures and stores nothing, for `landmark train --headroom` and `--lr-range-test`."""

import contextlib
import itertools
from collections.abc import Iterator

from torch import nn

from landmark.config import MAX_EPOCHS, TrainConfig
from landmark.data.loading.loader import Loader
from landmark.data.subset_view import open_dataset
from landmark.training.compute.device_prefetch import DeviceBatch, to_device
from landmark.training.distributed.failures import memory_errors, ray_errors
from landmark.training.distributed.local import default_device
from landmark.training.loop.loaders import training_loader
from landmark.training.loop.session import Phase, SingleRank
from landmark.training.loop.state import RunState
from landmark.training.run import absolute_paths


class MeasuringSession(SingleRank):
    """One worker in this process, which stores nothing."""

    saves_within_epochs = False
    reports_probe = False

    def __init__(self) -> None:
        self.device = default_device()

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model unchanged."""
        return model

    def heartbeat(self, phase: Phase) -> None:
        """Do nothing: a single process has no watchdog."""

    def checkpoint_requested(self) -> bool:
        """Return False: there is nothing to save."""
        return False


@contextlib.contextmanager
def measured_training(
    config: TrainConfig, *, at_probe: bool = False
) -> Iterator[tuple[RunState, Loader, Iterator[DeviceBatch]]]:
    """Yield a run at its start, its loader, and the loader's batches over many epochs, at the size of the last epoch.

    at_probe: whether the run starts at its probe, if it has one, as training does. Its features are stored. Raises UserError.
    """
    config = absolute_paths(config)
    dataset = open_dataset(config.dataset, config.subset, config.subset_seed)
    loader = training_loader(config, dataset, 1)
    if loader.stream == "ray":
        from landmark.runtime import connect

        connect(config.cluster)
    session, epochs = MeasuringSession(), range(1, MAX_EPOCHS + 1)
    with (
        memory_errors(config),
        ray_errors(),
        Loader(
            dataset,
            "train",
            loader,
            seed=config.seed,
            augment=config.augment,
            sampling=config.sampling,
            epochs=epochs,
            shape=lambda epoch: config.shape(config.epochs),
        ) as train,
    ):
        run = RunState(config, dataset, session)  # type: ignore[arg-type]
        if at_probe and config.probe.head != "none":
            from landmark.training.probe.start import fit_probe

            fit_probe(run, loader, None)
        if config.distill.teachers:
            from landmark.training.probe.teacher import load_teacher

            run.step.objective.teacher = load_teacher(run, loader, None)
        batches = itertools.chain.from_iterable(train.epoch(epoch) for epoch in epochs)
        yield run, train, to_device(batches, session.device)
