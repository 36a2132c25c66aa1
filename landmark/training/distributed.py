"""Several workers: the same loop in Ray Train V2 workers, gradients averaged by DDP."""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import nn

from landmark.config import TrainConfig, UserError, from_mapping, to_mapping
from landmark.data.selection import open_dataset
from landmark.runtime import quiet_data
from landmark.storage import Location, locate
from landmark.training.loop import fit
from landmark.training.recorder import Recorder

RAY_FOLDER = "ray"
"""Where Ray Train keeps its checkpoints, below the run's folder."""


class TrainWorkerSession:
    """A Ray Train worker. Rank 0 also writes the run's record."""

    def __init__(self, recorder: Recorder | None) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.recorder = recorder if self.rank == 0 else None

    def prepare(self, model: nn.Module) -> nn.Module:
        """Wrap the model in DDP; running statistics are averaged once an epoch, not broadcast at every step."""
        options = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        return ray.train.torch.prepare_model(model, move_to_device=False, parallel_strategy_kwargs=options)

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks."""
        total = values.clone()
        if self.world_size > 1:
            torch.distributed.all_reduce(total)
        return total

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Report to Ray Train: a barrier, which stores rank 0's checkpoint."""
        stored = ray.train.Checkpoint.from_directory(str(checkpoint)) if checkpoint is not None else None
        ray.train.report(dict(metrics), checkpoint=stored)
        if self.recorder is not None:
            self.recorder.add(metrics)

    @contextlib.contextmanager
    def restore(self) -> Iterator[Path | None]:
        """Give the checkpoint that Ray Train restarts from."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)


class _Relay:
    """Carries rank 0's lines to the driver; Ray's own forwarding of output would add its own lines to them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def put(self, line: str) -> None:
        self.lines.append(line)

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


@contextlib.contextmanager
def relayed_lines(poll_s: float = 1.0) -> Iterator[ray.actor.ActorHandle]:
    """Give a relay whose lines are printed in this process while the block runs."""
    relay = ray.remote(num_cpus=0)(_Relay).remote()
    done = threading.Event()

    def show() -> None:
        while not done.wait(poll_s):
            for line in ray.get(relay.take.remote()):
                print(line, flush=True)

    thread = threading.Thread(target=show, name="landmark-relay", daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        done.set()
        thread.join()
        for line in ray.get(relay.take.remote()):
            print(line, flush=True)
        ray.kill(relay)


def fit_workers(
    config: TrainConfig,
    storage: Location,
    callbacks: list[Any] | None = None,
    relay: ray.actor.ActorHandle | None = None,
) -> ray.train.Result:
    """Train with config.workers under `storage`; a run found there goes on from its last checkpoint.

    relay: where rank 0's lines go, as `relayed_lines` gives it; without one nothing is shown.
    Raises UserError with the worker's own message when a worker failed more often than max_failures.
    """
    workers = config.workers
    gpus = gpus_per_worker(workers.gpus)
    scaling = ray.train.ScalingConfig(
        num_workers=workers.most if workers.least == workers.most else (workers.least, workers.most),
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": workers.cpus} | ({"GPU": gpus} if gpus else {}),
    )
    keep = ray.train.CheckpointConfig(
        num_to_keep=2, checkpoint_score_attribute=config.monitor, checkpoint_score_order=config.monitor_mode()
    )
    local = storage.local_path()
    trainer = ray.train.torch.TorchTrainer(
        _work,
        train_loop_config={"config": to_mapping(config), "run": storage.uri, "relay": relay},
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=RAY_FOLDER,
            storage_path=str(local) if local else storage.path,
            storage_filesystem=None if local else storage.fs,
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=keep,
            callbacks=callbacks,
        ),
    )
    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise UserError(f"training failed: {worker_message(error)}") from error


def gpus_per_worker(gpus: float | None) -> float:
    """Return the GPUs a worker reserves: as configured, else 1 where the cluster has any."""
    if gpus is not None:
        return gpus
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def worker_message(error: BaseException) -> str:
    """Return the first worker's own message out of Ray's wrapped errors: its last line."""
    failures = getattr(error, "worker_failures", None) or {}
    cause = next(iter(failures.values()), error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[-1] if lines else type(cause).__name__
    return text.removeprefix("landmark.config.errors.UserError: ")


def _work(values: dict[str, Any]) -> None:
    """Train in one worker process."""
    quiet_data()
    # The old name of an option that has a new one since torch 2.15 and no other before.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
    relay = values["relay"]
    config = from_mapping(TrainConfig, values["config"], "the run's config")
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    rank = ray.train.get_context().get_world_rank()
    recorder = Recorder(locate(values["run"]), tensorboard=config.tensorboard) if rank == 0 else None
    try:
        show = relay.put.remote if relay is not None else None
        dataset = open_dataset(config.dataset, config.subset, config.subset_seed)
        fit(config, dataset, TrainWorkerSession(recorder), show=show)
    finally:
        if recorder is not None:
            recorder.close()
